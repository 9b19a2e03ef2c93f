"""Input: a timm name; output: timm's model, untrained or pretrained. Unknown names and absent weights are refused soon."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import huggingface_hub
import timm
import torch
from huggingface_hub import constants as hub_constants
from timm.data import ImageNetInfo, infer_imagenet_subset
from torch import nn

from vitexport.errors import InputError
from vitexport.quiet import quiet
from vitexport.source.families import check_family
from vitexport.source.request import ModelRequest, create_kwargs

HUB_TIMEOUT_SECONDS = 5
WAYS_OUT = "Give local weights with `checkpoint`, or export untrained weights with `pretrained=False`."


def check_name(name: str) -> None:
    """Refuse an unknown name before anything is created."""
    if name.startswith("local-dir:"):
        folder = Path(name.removeprefix("local-dir:"))
        if not (folder / "config.json").is_file():
            raise InputError(f"{folder} has no config.json; local-dir: takes a folder that timm.save_for_hf wrote.")
        return
    if ":" in name:
        if not name.startswith(("hf-hub:", "hf_hub:")):
            raise InputError(
                f"Model {name!r}: the prefix is unknown; use a timm name, hf-hub:…, local-dir:… or torchvision:…."
            )
        return
    architecture, dot, tag = name.partition(".")
    if dot and not tag:
        raise InputError(f"Model {name!r} ends in a dot; leave it out, or name the pretrained tag behind it.")
    if not timm.is_model(architecture):
        near = difflib.get_close_matches(architecture, timm.list_models(), n=4, cutoff=0.5)
        hint = f" Near it: {', '.join(near)}." if near else ""
        raise InputError(f"timm {timm.__version__} has no model named {architecture!r}.{hint}")
    check_family(name, timm.model_entrypoint(architecture).__module__)
    if tag and tag not in (known := _tags(architecture)):
        raise InputError(f"{architecture} has no pretrained tag {tag!r}; it has: {', '.join(sorted(known)) or 'none'}.")


def _tags(architecture: str) -> set[str]:
    return {full.partition(".")[2] for full in timm.list_pretrained(f"{architecture}.*")}


def check_hub(name: str) -> None:
    """Refuse in seconds when the hub cannot be reached; its own client would retry for a minute first."""
    if name.startswith("local-dir:"):
        return
    repository = name.partition(":")[2] if ":" in name else (_pretrained_config(name).get("hf_hub_id") or "")
    if not repository:
        raise InputError(f"timm has no pretrained weights for {name}. {WAYS_OUT}")
    if "/" in repository and is_cached(repository.partition("@")[0]):
        return
    check_reachable(f"The pretrained weights of {name}", WAYS_OUT)


def check_reachable(what: str, ways_out: str) -> None:
    """Refuse in seconds when the hub does not answer.

    Raises:
        InputError: It does not; the message begins with `what` and ends in `ways_out`.
    """
    try:
        huggingface_hub.get_session().head(hub_constants.ENDPOINT, timeout=HUB_TIMEOUT_SECONDS)
    except Exception as error:  # noqa: BLE001
        # The HTTP library behind the client changed twice; whatever it raises here means: no answer.
        raise InputError(
            f"{what} are not in the local cache and the model hub cannot be reached ({type(error).__name__}: "
            f"{error}). {ways_out}"
        ) from None


def _pretrained_config(name: str) -> Mapping[str, Any]:
    config = timm.get_pretrained_cfg(name, allow_unregistered=True)
    data: Mapping[str, Any] = config.to_dict() if config is not None else {}
    hub_id = data.get("hf_hub_id")
    return {**data, "hf_hub_id": f"timm/{name}" if hub_id == "timm/" else hub_id}


def is_cached(repository: str) -> bool:
    """Whether the weights of a repository of the hub are on this machine."""
    names = ("model.safetensors", "pytorch_model.bin", "open_clip_model.safetensors", "open_clip_pytorch_model.bin")
    return any(isinstance(huggingface_hub.try_to_load_from_cache(repository, file), str) for file in names)


def create(request: ModelRequest, *, weights: bool) -> nn.Module:
    """Timm's model in float32, with pretrained weights if they are asked for and `weights` is set.

    Raises:
        InputError: timm cannot build it.
    """
    torch.manual_seed(request.seed)
    pretrained = request.pretrained and request.checkpoint is None and weights
    kwargs, name = create_kwargs(request), str(request.name)
    try:
        with quiet("timm", "huggingface_hub"):
            model = _create(name, pretrained, kwargs)
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


def _create(name: str, pretrained: bool, kwargs: Mapping[str, Any]) -> Any:  # noqa: FBT001 - timm's own argument
    try:
        return timm.create_model(name, pretrained=pretrained, **kwargs)
    except TypeError as error:
        if "img_size" not in kwargs or "'img_size'" not in str(error):
            raise
    # A network without position embeddings is made for no size in particular; whether it takes this one, it is asked later.
    sizeless = {key: value for key, value in kwargs.items() if key != "img_size"}
    return timm.create_model(name, pretrained=pretrained, **sizeless)


def class_names(model: nn.Module, request: ModelRequest) -> tuple[tuple[str, ...] | None, tuple[str, ...] | None]:
    """Names that come with the weights, or ImageNet's for its classifiers; for anything else the user has to say.

    Returns:
        Labels for people, and the names that class folders may have instead; each in the order of the logits, or None.
    """
    if request.checkpoint is not None or not request.pretrained or "num_classes" in create_kwargs(request):
        return None, None
    config = getattr(model, "pretrained_cfg", {})
    count = int(model.num_classes)  # type: ignore[arg-type]
    own = config.get("label_names")
    if own:
        names = [own[str(index)] if isinstance(own, dict) else own[index] for index in range(min(count, len(own)))]
        descriptions = config.get("label_descriptions") or {}
        labels = tuple(str(descriptions.get(name, name)) for name in names)
        return (labels, tuple(map(str, names))) if len(labels) == count else (None, None)
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
