"""A timm name, a checkpoint and overrides enter; the live model in eval mode and its `ModelSource` leave."""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

import huggingface_hub
import timm
import torch
from huggingface_hub import constants as hub_constants
from safetensors import SafetensorError
from timm.data import ImageNetInfo, infer_imagenet_subset, resolve_model_data_config
from timm.models import load_state_dict
from torch import nn

from vitexport.artifacts import ModelSource
from vitexport.errors import InputError, UsageError
from vitexport.preprocess import PreprocessSpec
from vitexport.quiet import quiet

# timm's modules that define Vision Transformers and their relatives: token mixing by attention. A convolutional network
# would export too, but nothing here (placement, fusion, checks) was made for it, so it is refused by name.
VIT_FAMILIES = frozenset(
    {
        *("beit", "cait", "coat", "convit", "crossvit", "davit", "deit", "edgenext", "efficientformer"),
        *("efficientformer_v2", "efficientvit_mit", "efficientvit_msra", "eva", "fastvit", "focalnet", "gcvit"),
        *("hiera", "hieradet_sam2", "levit", "maxxvit", "metaformer", "mobilevit", "mvitv2", "naflexvit", "nest"),
        *("nextvit", "pit", "pvt_v2", "repvit", "shvit", "swiftformer", "swin_transformer", "swin_transformer_v2"),
        *("swin_transformer_v2_cr", "tiny_vit", "tnt", "twins", "visformer", "vision_transformer"),
        *(
            "vision_transformer_hybrid",
            "vision_transformer_relpos",
            "vision_transformer_sam",
            "vitamin",
            "volo",
            "xcit",
        ),
    }
)
HUB_TIMEOUT_SECONDS = 5
# What rooms without PyTorch call the module that they hand on.
LiveModel: TypeAlias = nn.Module
CHECKPOINT_SUFFIXES = (".safetensors", ".pth", ".pt")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ModelRequest:
    """What the user asked for.

    Attributes:
        name: timm name with or without a pretrained tag, ``hf-hub:…`` or ``local-dir:…``.
        checkpoint: Local weights; None for pretrained or random ones.
        pretrained: Whether to take timm's pretrained weights.
        kwargs: Further arguments for `timm.create_model`.
        num_classes, img_size: Overrides; None keeps the model's own. `img_size` is one side in pixels.
        mean, std, crop_pct, interpolation: Overrides of the model's data config.
        seed: For weights that are not loaded.
    """

    name: str
    checkpoint: Path | None = None
    pretrained: bool = True
    kwargs: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    num_classes: int | None = None
    img_size: int | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    crop_pct: float | None = None
    interpolation: str | None = None
    seed: int = 0


# Arguments of timm.create_model that vitexport has options for, or whose result it cannot vouch for.
REFUSED_KWARGS = {
    "checkpoint_path": "--checkpoint FILE",
    "pretrained": "--pretrained or --no-pretrained",
    "pretrained_cfg": "--mean, --std, --crop-pct and --interpolation",
    "pretrained_cfg_overlay": "--mean, --std, --crop-pct and --interpolation",
    "pretrained_strict": "weights that fit the model",
    "features_only": "the whole classifier",
    "scriptable": "no such flag: the exporter sets what it needs",
    "exportable": "no such flag: the exporter sets what it needs",
}


def load(request: ModelRequest, *, weights: bool = True) -> tuple[nn.Module, ModelSource]:
    """Create the model, load its weights and read its data config.

    Args:
        request: What the user asked for.
        weights: Off for a plan: untrained weights stand in for pretrained ones, and nothing is downloaded (but the
            configuration of an ``hf-hub:`` model, without which its shape is not known).

    Returns:
        The module in eval mode, float32, on the CPU, with unfused attention (the form that exports to single MatMul and
        Softmax operators); and its `ModelSource`.

    Raises:
        InputError: The name is unknown or not a ViT; the weights cannot be had, need more than weights_only, or do not
            fit; the model has no classifier or does not take the asked image size.
    """
    check_available(request)
    model = _create(request, weights=weights)
    family = type(model).__module__.rpartition(".")[2]
    _check_family(request.name, family)
    if request.checkpoint is not None:
        _load_checkpoint(model, request.checkpoint)
    config = getattr(model, "pretrained_cfg", {})
    origin = _weights_name(request, config)
    _check_finite(model, origin)
    model.eval().requires_grad_(requires_grad=False)
    preprocess = _preprocess_spec(model, request)
    peak = _trial_run(model, preprocess, request.name)
    _unfuse_attention(model)
    labels, synsets = _labels(model, request)
    return model, ModelSource(
        name=request.name,
        architecture=str(config.get("architecture") or type(model).__name__),
        family=family,
        kwargs=_create_kwargs(request),
        weights=origin,
        weights_sha256=_state_sha256(model),
        parameters=sum(tensor.numel() for tensor in model.state_dict().values()),
        peak_activation_elements=peak,
        num_classes=int(model.num_classes),  # type: ignore[arg-type]
        timm_version=timm.__version__,
        torch_version=str(torch.__version__),
        preprocess=preprocess,
        labels=labels,
        synsets=synsets,
    )


def check_available(request: ModelRequest) -> None:
    """Refuse what cannot be loaded, as far as a few seconds can tell; loads and downloads nothing.

    Raises:
        InputError: The name is unknown, or pretrained weights are asked for and cannot be had.
    """
    _check_name(request)
    if request.checkpoint is None and request.pretrained:
        _check_hub(request.name)


def _create_kwargs(request: ModelRequest) -> dict[str, Any]:
    kwargs = dict(request.kwargs)
    for key in sorted(kwargs.keys() & REFUSED_KWARGS.keys()):
        raise UsageError(f"Model keyword {key} is not taken; use {REFUSED_KWARGS[key]}.")
    for key, value in (("num_classes", request.num_classes), ("img_size", request.img_size)):
        if value is not None:
            if kwargs.get(key, value) != value:
                raise UsageError(f"{key} was given twice, as {value} and as model keyword {kwargs[key]}; give it once.")
            kwargs[key] = value
    return kwargs


def _weights_name(request: ModelRequest, config: Mapping[str, Any]) -> str:
    if request.checkpoint is not None:
        return f"checkpoint:{request.checkpoint.name}"
    if request.pretrained and request.name.startswith("local-dir:"):
        return request.name
    if request.pretrained:
        return f"pretrained:{config.get('tag') or config.get('hf_hub_id') or request.name}"
    return f"random:seed={request.seed}"


def _check_name(request: ModelRequest) -> None:
    """Refuse an unknown name before anything is created."""
    name = request.name
    if name.startswith("local-dir:"):
        folder = Path(name.removeprefix("local-dir:"))
        if not (folder / "config.json").is_file():
            raise InputError(f"{folder} has no config.json; local-dir: takes a folder that timm.save_for_hf wrote.")
        return
    if ":" in name:
        if not name.startswith(("hf-hub:", "hf_hub:")):
            raise InputError(f"Model {name!r}: the prefix is unknown; use a timm name, hf-hub:… or local-dir:….")
        return
    architecture, dot, tag = name.partition(".")
    if dot and not tag:
        raise InputError(f"Model {name!r} ends in a dot; leave it out, or name the pretrained tag behind it.")
    if not timm.is_model(architecture):
        near = difflib.get_close_matches(architecture, timm.list_models(), n=4, cutoff=0.5)
        hint = f" Near it: {', '.join(near)}." if near else ""
        raise InputError(f"timm {timm.__version__} has no model named {architecture!r}.{hint}")
    _check_family(name, timm.model_entrypoint(architecture).__module__)
    if tag and tag not in (known := _tags(architecture)):
        raise InputError(f"{architecture} has no pretrained tag {tag!r}; it has: {', '.join(sorted(known)) or 'none'}.")


def _check_family(name: str, module: str) -> None:
    family = module.rpartition(".")[2]
    if family not in VIT_FAMILIES:
        raise InputError(
            f"{name} is defined in timm.models.{family}, which is not a Vision Transformer family. "
            "vitexport exports Vision Transformers and their relatives; timm's own export script serves other networks."
        )


def _tags(architecture: str) -> set[str]:
    return {full.partition(".")[2] for full in timm.list_pretrained(f"{architecture}.*")}


def _check_hub(name: str) -> None:
    """Refuse in seconds when the hub cannot be reached; its own client would retry for a minute first."""
    if name.startswith("local-dir:"):
        return
    repository = name.partition(":")[2] if ":" in name else (_pretrained_config(name).get("hf_hub_id") or "")
    if not repository:
        raise InputError(f"timm has no pretrained weights for {name}. {_WAYS_OUT}")
    if "/" in repository and _is_cached(repository.partition("@")[0]):
        return
    try:
        huggingface_hub.get_session().head(hub_constants.ENDPOINT, timeout=HUB_TIMEOUT_SECONDS)
    except Exception as error:  # noqa: BLE001
        # The HTTP library behind the client changed twice; whatever it raises here means: no answer.
        raise InputError(
            f"The pretrained weights of {name} are not in the local cache and the model hub cannot be reached "
            f"({type(error).__name__}: {error}). {_WAYS_OUT}"
        ) from None


_WAYS_OUT = "Give local weights with --checkpoint FILE, or export untrained weights with --no-pretrained."


def _pretrained_config(name: str) -> Mapping[str, Any]:
    config = timm.get_pretrained_cfg(name, allow_unregistered=True)
    data: Mapping[str, Any] = config.to_dict() if config is not None else {}
    hub_id = data.get("hf_hub_id")
    return {**data, "hf_hub_id": f"timm/{name}" if hub_id == "timm/" else hub_id}


def _is_cached(repository: str) -> bool:
    names = ("model.safetensors", "pytorch_model.bin", "open_clip_model.safetensors", "open_clip_pytorch_model.bin")
    return any(isinstance(huggingface_hub.try_to_load_from_cache(repository, file), str) for file in names)


def _create(request: ModelRequest, *, weights: bool) -> nn.Module:
    torch.manual_seed(request.seed)
    pretrained = request.pretrained and request.checkpoint is None and (weights or request.name.startswith("local-dir:"))
    kwargs = _create_kwargs(request)
    try:
        with quiet("timm", "huggingface_hub"):
            model = timm.create_model(request.name, pretrained=pretrained, **kwargs)
    except MemoryError:
        raise
    except Exception as error:
        # timm raises whatever the model's constructor meets: TypeError, AssertionError, RuntimeError, OSError …
        given = f" with {', '.join(f'{key}={value!r}' for key, value in kwargs.items())}" if kwargs else ""
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(f"timm cannot build {request.name}{given}: {reason}") from error
    if not isinstance(model, nn.Module):
        raise InputError(f"timm built {type(model).__name__} for {request.name}, which is not a module.")
    return model.float()


def _load_checkpoint(model: nn.Module, path: Path) -> None:
    if not path.is_file():
        raise InputError(f"Checkpoint {path} does not exist or is not a file.")
    if path.suffix not in CHECKPOINT_SUFFIXES:
        raise InputError(f"Checkpoint {path} ends in {path.suffix!r}; expected one of {', '.join(CHECKPOINT_SUFFIXES)}.")
    try:
        with quiet("timm", "huggingface_hub"):
            state = load_state_dict(str(path), use_ema=True, device="cpu", weights_only=True)
    except (
        *(SafetensorError, RuntimeError, OSError, EOFError, ValueError, LookupError, AttributeError, TypeError),
        pickle.UnpicklingError,
    ) as error:
        # timm wraps what PyTorch's restricted unpickler raises.
        if not isinstance(error.__cause__ or error, pickle.UnpicklingError):
            raise InputError(
                f"Checkpoint {path} is damaged, or is no file of weights that timm reads "
                f"({type(error).__name__}: {_first_sentence(error)})."
            ) from None
        raise InputError(
            f"Checkpoint {path} holds more than tensors, or is damaged, and loading it could run code; it was not loaded. "
            "Save the model's state_dict (torch.save(model.state_dict(), …) or safetensors.torch.save_file) and give that. "
            f"PyTorch says: {_first_sentence(error.__cause__ or error)}"
        ) from None
    _fit(model, state, path)


def _first_sentence(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text.partition(". ")[0][:300]


def _fit(model: nn.Module, state: Mapping[str, Any], path: Path) -> None:
    """Load `state` if names and shapes are the model's own; say where they are not."""
    own = model.state_dict()
    tensors = {name: value for name, value in state.items() if isinstance(value, torch.Tensor)}
    problems = [
        *(f"{name} is missing" for name in own if name not in tensors),
        *(f"{name} is not in the model" for name in tensors if name not in own),
        *(
            f"{name} is {list(tensors[name].shape)} in the file and {list(own[name].shape)} in the model"
            for name in own
            if name in tensors and tensors[name].shape != own[name].shape
        ),
        *(
            f"{name} is {_kind(tensors[name])} in the file and {_kind(own[name])} in the model"
            for name in own
            if name in tensors and not _same_kind(tensors[name], own[name])
        ),
    ]
    if problems:
        more = f" (and {len(problems) - 4} more)" if len(problems) > 4 else ""
        raise InputError(
            f"The weights in {path} do not fit the model: {'; '.join(problems[:4])}{more}. "
            "Check the model name, --num-classes, --img-size and --model-kwarg against those it was trained with."
        )
    model.load_state_dict(dict(tensors))


def _same_kind(given: torch.Tensor, own: torch.Tensor) -> bool:
    """Float weights may have any float type; everything else would be converted with a loss that nobody asked for."""
    plain = given.layout == torch.strided and not given.is_quantized and given.device.type == "cpu"
    return plain and given.is_floating_point() == own.is_floating_point() and not given.is_complex()


def _kind(tensor: torch.Tensor) -> str:
    layout = "" if tensor.layout == torch.strided else f" {tensor.layout}"
    device = "" if tensor.device.type == "cpu" else f" on {tensor.device.type}"
    return f"{tensor.dtype}{layout}{device}".replace("torch.", "")


def _check_finite(model: nn.Module, weights: str) -> None:
    tensors = model.state_dict().items()
    bad = [name for name, value in tensors if value.is_floating_point() and not bool(value.isfinite().all())]
    if bad:
        more = f" and {len(bad) - 1} more tensors" if len(bad) > 1 else ""
        raise InputError(f"The weights ({weights}) hold NaN or infinity, in {bad[0]}{more}.")


def _preprocess_spec(model: nn.Module, request: ModelRequest) -> PreprocessSpec:
    with quiet("timm", "huggingface_hub"):
        config = resolve_model_data_config(model)
    channels, height, width = config["input_size"]
    channels = request.kwargs.get("in_chans", channels)
    if channels != 3:
        raise InputError(f"{request.name} takes {channels} input channels; vitexport exports models that take RGB images.")
    # A model that was made with another img_size still carries the pretrained size in its data config.
    made_for = _create_kwargs(request).get("img_size") or getattr(getattr(model, "patch_embed", None), "img_size", None)
    if made_for is not None:
        height, width = (made_for, made_for) if isinstance(made_for, int) else (int(made_for[0]), int(made_for[1]))
    return PreprocessSpec(
        height=int(height),
        width=int(width),
        mean=_three("mean", request.mean or config["mean"]),
        std=_three("std", request.std or config["std"]),
        interpolation=request.interpolation or str(config["interpolation"]),
        crop_pct=float(config["crop_pct"] if request.crop_pct is None else request.crop_pct),
        crop_mode=config.get("crop_mode", "center"),
    )


def _three(name: str, values: Any) -> tuple[float, float, float]:
    numbers = [float(value) for value in values]
    if len(numbers) == 1:
        numbers *= 3
    if len(numbers) != 3:
        raise UsageError(f"{name} has {len(numbers)} values; give one, or three for red, green and blue.")
    return numbers[0], numbers[1], numbers[2]


def _trial_run(model: nn.Module, spec: PreprocessSpec, name: str) -> int:
    """Run one grey image: the model takes this size and gives logits. Returns the largest working set in elements."""
    largest = 0

    def watch(_module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        nonlocal largest
        tensors = [value for value in (*inputs, output) if isinstance(value, torch.Tensor)]
        largest = max(largest, sum(tensor.numel() for tensor in tensors))

    patch = getattr(getattr(model, "patch_embed", None), "patch_size", None)
    if patch is not None:
        rows, columns = (patch, patch) if isinstance(patch, int) else (int(patch[0]), int(patch[1]))
        if spec.height % rows or spec.width % columns:
            # timm would drop the last rows and columns of every image without a word.
            raise InputError(
                f"{name} cuts images into patches of {rows} x {columns} pixels; {spec.height} x {spec.width} is not a "
                f"multiple. The nearest sizes are {spec.height // rows * rows} and {-(-spec.height // rows) * rows}."
            )
    hooks = [module.register_forward_hook(watch) for module in model.modules()]
    try:
        with torch.inference_mode():
            output = model(torch.zeros(1, 3, spec.height, spec.width))
    except Exception as error:
        raise InputError(
            f"{name} does not take images of {spec.height} x {spec.width} pixels: {_first_sentence(error)}"
        ) from error
    finally:
        for hook in hooks:
            hook.remove()
    classes = getattr(model, "num_classes", None)
    if not classes:
        raise InputError(f"{name} has no classifier (num_classes is 0); give --num-classes and a checkpoint that has one.")
    if not isinstance(output, torch.Tensor) or tuple(output.shape) != (1, classes):
        seen = list(output.shape) if isinstance(output, torch.Tensor) else type(output).__name__
        raise InputError(f"{name} returns {seen} for one image; expected logits of shape [1, {classes}].")
    return largest


def _unfuse_attention(model: nn.Module) -> None:
    """Export attention as scale → MatMul → Softmax → MatMul, the pattern that TensorRT and ONNX Runtime fuse.

    PyTorch's decomposition of scaled_dot_product_attention scales q and k separately and reshapes k through a chain of
    Shape and Slice operators; no upstream issue was found that would change it.
    """
    for module in model.modules():
        if hasattr(module, "fused_attn"):
            setattr(module, "fused_attn", False)  # noqa: B010 - nn.Module types every attribute as a tensor


def _state_sha256(model: nn.Module) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _labels(model: nn.Module, request: ModelRequest) -> tuple[tuple[str, ...] | None, tuple[str, ...] | None]:
    """Names that come with the weights, or ImageNet's for its classifiers; for anything else the user has to say.

    Returns:
        Labels for people, and the names that class folders may have instead; each in the order of the logits, or None.
    """
    if request.checkpoint is not None or not request.pretrained or "num_classes" in _create_kwargs(request):
        return None, None
    config = getattr(model, "pretrained_cfg", {})
    count = int(model.num_classes)  # type: ignore[arg-type]
    own = config.get("label_names")
    if own:
        names = [own[str(index)] if isinstance(own, dict) else own[index] for index in range(min(count, len(own)))]
        descriptions = config.get("label_descriptions") or {}
        labels = tuple(str(descriptions.get(name, name)) for name in names)
        return (labels, tuple(map(str, names))) if len(set(labels)) == count else (None, None)
    subset = infer_imagenet_subset(model)
    if subset is None:
        return None, None
    info = ImageNetInfo(subset)
    synsets = tuple(info.label_names())
    full = [info.index_to_description(index) for index in range(count)]
    short = [name.partition(",")[0] for name in full]
    # ImageNet has two cranes and two maillots; what is not unique keeps its synset beside it.
    labels = tuple(
        name if short.count(name) == 1 else f"{name} ({synset})" for name, synset in zip(short, synsets, strict=True)
    )
    return labels, synsets
