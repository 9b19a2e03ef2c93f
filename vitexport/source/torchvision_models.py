"""Input: ``torchvision:vit_b_16``; output: the same network as timm's VisionTransformer, with torchvision's weights.

torchvision's ViT is the original one, which timm has too: the weights are carried over name by name, and both modules are
compared on one image. So everything behind this door (heads, image sizes, feature maps, export) is the same.
"""

from __future__ import annotations

import urllib.parse
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import timm
import torch
import torchvision
from torch import nn
from torchvision.models import WeightsEnum, get_model, get_model_weights, list_models
from torchvision.models.vision_transformer import VisionTransformer

from vitexport.errors import InputError, ToolchainError
from vitexport.quiet import quiet
from vitexport.source.names import from_torchvision
from vitexport.source.request import ModelRequest, create_kwargs
from vitexport.source.timm_models import HUB_TIMEOUT_SECONDS, WAYS_OUT

PREFIX = "torchvision:"
# Another order of summation is all that may differ.
SAME = 1e-5


def is_ours(name: str) -> bool:
    """Whether `name` asks for a model of torchvision."""
    return name.startswith(PREFIX)


def check_name(name: str) -> None:
    """Refuse an unknown model or an unknown name of weights.

    Raises:
        InputError: torchvision has no such ViT, or it has no such weights.
    """
    architecture, dot, tag = name.removeprefix(PREFIX).partition(".")
    known = [name for name in list_models(module=torchvision.models) if name.startswith("vit_")]
    if architecture not in known:
        raise InputError(
            f"torchvision {torchvision.__version__} has no Vision Transformer named {architecture!r}; it has "
            f"{', '.join(known)}. timm has its other families too; give their timm names."
        )
    weights = [entry.name for entry in get_model_weights(architecture)]
    if dot and tag not in (*weights, "DEFAULT"):
        raise InputError(f"torchvision's {architecture} has no weights {tag!r}; it has {', '.join(weights)}.")


def check_hub(name: str) -> None:
    """Refuse in seconds when the weights are neither here nor to be had.

    Raises:
        InputError: They are not in torch's cache and their server does not answer.
    """
    weights = _weights(name)
    file = Path(urllib.parse.urlparse(weights.url).path).name
    if (Path(torch.hub.get_dir()) / "checkpoints" / file).is_file():
        return
    try:
        request = urllib.request.Request(weights.url, method="HEAD")  # noqa: S310 - torchvision's own address
        with urllib.request.urlopen(request, timeout=HUB_TIMEOUT_SECONDS):  # noqa: S310 - as above
            return
    except OSError as error:
        raise InputError(
            f"The pretrained weights of {name} ({weights.name}) are not in the local cache and cannot be reached "
            f"({type(error).__name__}: {error}). {WAYS_OUT}"
        ) from None


def create(request: ModelRequest, *, weights: bool) -> nn.Module:
    """Timm's VisionTransformer with the weights and the data config of torchvision's.

    Raises:
        InputError: torchvision or timm cannot build it, or the weights cannot be loaded.
        ToolchainError: The two networks differ in what they compute.
    """
    kwargs, asked = create_kwargs(request), str(request.name)
    if kwargs.get("in_chans", 3) != 3:
        raise InputError("torchvision's models take 3 channels; for another number give a timm model and `in_chans`.")
    # A checkpoint of one's own, too, is of the size and takes the pictures of the weights that the name stands for.
    chosen = _weights(asked) if request.pretrained or request.checkpoint is not None else None
    downloaded = weights and request.checkpoint is None
    architecture = asked.removeprefix(PREFIX).partition(".")[0]
    torch.manual_seed(request.seed)
    size = int(chosen.meta["min_size"][0]) if chosen is not None else 224
    classes = len(chosen.meta["categories"]) if chosen is not None else 1000
    try:
        with quiet():
            theirs: VisionTransformer = get_model(architecture, weights=None, image_size=size, num_classes=classes)
            if chosen is not None and downloaded:
                theirs.load_state_dict(chosen.get_state_dict(progress=False, check_hash=True, weights_only=True))
        if chosen is None:
            # torchvision starts with a head of zeros, whose logits would all be 0.
            nn.init.trunc_normal_(theirs.heads.head.weight, std=0.02)
        ours: nn.Module = _translated(theirs.eval(), kwargs)
    except (MemoryError, InputError, ToolchainError):
        raise
    except Exception as error:
        # As with timm: whatever the constructors and the download meet.
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(f"{asked} cannot be built: {reason}") from error
    config: Any = _data_config(architecture, chosen, kwargs.get("img_size", size))
    ours.pretrained_cfg = config
    return ours


def class_names(_model: nn.Module, request: ModelRequest) -> tuple[tuple[str, ...] | None, None]:
    """The categories that come with the weights, without names of folders; for anything else the user has to say."""
    if request.checkpoint is not None or not request.pretrained or "num_classes" in create_kwargs(request):
        return None, None
    return tuple(str(name) for name in _weights(str(request.name)).meta["categories"]), None


def _weights(name: str) -> Any:
    architecture, _, tag = name.removeprefix(PREFIX).partition(".")
    enum: type[WeightsEnum] = get_model_weights(architecture)
    return enum[tag or "DEFAULT"]


def _translated(theirs: VisionTransformer, kwargs: Mapping[str, Any]) -> Any:
    """`theirs` as timm's module; checked at its own size before the asked size and number of classes are applied."""
    shape: dict[str, Any] = {
        "patch_size": theirs.patch_size,
        "embed_dim": theirs.hidden_dim,
        "depth": len(theirs.encoder.layers),
        "num_heads": theirs.encoder.layers[0].num_heads,
        "mlp_ratio": theirs.encoder.layers[0].mlp[0].out_features / theirs.hidden_dim,
    }
    ours = timm.models.VisionTransformer(**shape, img_size=theirs.image_size, num_classes=theirs.num_classes)
    ours.load_state_dict(from_torchvision(theirs.state_dict()))
    ours.eval()
    image = torch.randn(1, 3, theirs.image_size, theirs.image_size, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        before, after = theirs(image), ours(image)
    if not float((after - before).abs().max()) <= SAME * float(before.abs().max()):
        raise ToolchainError(
            f"timm's VisionTransformer computes something else than torchvision {torchvision.__version__}'s with the same "
            "weights. This is a defect of vitexport."
        )
    extra = {key: value for key, value in kwargs.items() if key not in ("img_size", "num_classes", "in_chans")}
    if extra:
        raise InputError(f"Model keywords are for timm's models; torchvision's take none ({', '.join(extra)}).")
    if "img_size" in kwargs:
        # timm resamples the position embeddings, in PyTorch.
        ours.set_input_size(img_size=kwargs["img_size"])
    if "num_classes" in kwargs:
        ours.reset_classifier(kwargs["num_classes"])
    return ours


def _data_config(architecture: str, chosen: Any, size: int | Sequence[int]) -> dict[str, Any]:
    """What `timm.data.resolve_model_data_config` reads, from torchvision's transforms; ImageNet's for untrained weights."""
    height, width = (size, size) if isinstance(size, int) else size
    config: dict[str, Any] = {"architecture": architecture, "input_size": (3, height, width)}
    if chosen is None:
        return config
    preset = chosen.transforms()
    return config | {
        "tag": chosen.name,
        "mean": tuple(preset.mean),
        "std": tuple(preset.std),
        "interpolation": preset.interpolation.value,
        "crop_pct": preset.crop_size[0] / preset.resize_size[0],
    }
