"""What the user asks of a model, as plain data, and what of it contradicts itself."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from vitexport.artifacts import Task
from vitexport.errors import InputError, UsageError
from vitexport.preprocess import CropMode, PreprocessSpec

Head = Literal["classifier", "none", "features", "tokens"]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ModelRequest:
    """What the user asked for.

    Attributes:
        name: timm name with or without a pretrained tag, ``hf-hub:…``, ``local-dir:…``, or ``torchvision:…``; None where
            the checkpoint says of which model it is.
        checkpoint: Local weights, a file or a folder; None for pretrained or random ones.
        checkpoint_key: Which dictionary of tensors of the checkpoint; None to find it.
        ema: Whether the averaged weights of the checkpoint are taken; None takes the others where both are there.
        pretrained: Whether to take the pretrained weights of timm or torchvision.
        kwargs: Further arguments for `timm.create_model`.
        num_classes, img_size, in_chans: Overrides; None keeps the model's own. `img_size` is the side of a square, or height
            and width, in pixels; `in_chans` is the number of input channels.
        head: What stands at the end: ``classifier`` the logits; ``none`` the model without it, as timm's ``num_classes=0``;
            ``features`` the embedding that the classifier reads; ``tokens`` all tokens. None takes the classifier of a model
            that has one, and ``none`` of one that has not.
        features: Indices of intermediate feature maps, as timm's ``forward_intermediates`` counts them; empty for none. With
            them, and without `head`, they are the only outputs.
        task: What the model is for; None for what the checkpoint's file says, else ``classification`` of a classifier with
            two or more outputs and ``embedding`` of a model without one. ``embedding`` takes ``features`` as `head`.
        softmax: Probabilities in the place of the logits.
        class_embeddings: File with one text embedding for each class, which make a zero-shot classifier of an image tower.
        classes: File with the class names, embedded by open_clip's text tower; instead of `class_embeddings`.
        templates: Sentences around a class name, which {} stands for; a class is the mean over all of them.
        open_clip: open_clip's name of the model whose text tower embeds `classes`, as ``MODEL:TAG``, ``MODEL:FILE``,
            ``local-dir:…`` or ``hf-hub:…``; None tells it from `name`.
        logit_scale, logit_bias: What the cosine of image and class is multiplied with, and what is added; None for what the
            file or the text tower says.
        mean, std, crop_pct, crop_mode, interpolation: Overrides of the model's data config; `mean` and `std` are one value
            for all channels or one for each.
        seed: For weights that are not loaded.
        module: A live `torch.nn.Module` in the place of a named model; it is copied, and stays as it is.
        model_from: ``FILE.py:FUNCTION``: a function without arguments that returns such a module, or a pair of it and its
            `PreprocessSpec`. The file is executed.
        preprocess: How pictures become the input of such a module; None if the fields from `mean` to `interpolation` and
            `img_size` say it.
    """

    name: str | None = None
    checkpoint: Path | None = None
    checkpoint_key: str | None = None
    ema: bool | None = None
    pretrained: bool = True
    kwargs: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    num_classes: int | None = None
    img_size: int | tuple[int, int] | None = None
    in_chans: int | None = None
    head: Head | None = None
    features: tuple[int, ...] = ()
    task: Task | None = None
    softmax: bool = False
    class_embeddings: Path | None = None
    classes: Path | None = None
    templates: tuple[str, ...] = ()
    open_clip: str | None = None
    logit_scale: float | None = None
    logit_bias: float | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    crop_pct: float | None = None
    crop_mode: CropMode | None = None
    interpolation: str | None = None
    seed: int = 0
    # PyTorch is not imported here.
    module: Any = None
    model_from: str | None = None
    preprocess: PreprocessSpec | None = None

    @property
    def zero_shot(self) -> bool:
        """Whether class texts make the classifier."""
        return self.class_embeddings is not None or self.classes is not None


# Arguments of timm.create_model that vitexport has options for, or whose result it cannot vouch for.
REFUSED_KWARGS = {
    "checkpoint_path": "`checkpoint`",
    "pretrained": "`pretrained` or `pretrained=False`",
    "pretrained_cfg": "`mean`, `std`, `crop_pct`, `crop_mode` and `interpolation`",
    "pretrained_cfg_overlay": "`mean`, `std`, `crop_pct`, `crop_mode` and `interpolation`",
    "pretrained_strict": "weights that fit the model",
    "features_only": "`features=2,5,8,11`",
    "scriptable": "no such flag: the exporter sets what it needs",
    "exportable": "no such flag: the exporter sets what it needs",
}


def create_kwargs(request: ModelRequest) -> dict[str, Any]:
    """Arguments for `timm.create_model`: the model keywords and the options that stand for some of them.

    Raises:
        UsageError: A keyword that an option stands for, or that contradicts one.
    """
    kwargs = dict(request.kwargs)
    for key in sorted(kwargs.keys() & REFUSED_KWARGS.keys()):
        raise UsageError(f"Model keyword {key} is not taken; use {REFUSED_KWARGS[key]}.")
    for key in ("num_classes", "img_size", "in_chans"):
        value = getattr(request, key)
        if value is not None:
            if _size(kwargs.get(key, value)) != _size(value):
                raise UsageError(f"{key} was given twice, as {value} and as model keyword {kwargs[key]}; give it once.")
            kwargs[key] = value
    return kwargs


def channels_asked(request: ModelRequest) -> int | None:
    """Number of input channels, where the request says it."""
    asked = request.in_chans or request.kwargs.get("in_chans")
    return asked if isinstance(asked, int) and asked > 0 else None


def _size(value: Any) -> Any:
    """``224`` and ``(224, 224)`` are the same size."""
    sides = tuple(value) if isinstance(value, (list, tuple)) else (value,)
    return sides[0] if len(set(sides)) == 1 else sides


def check_outputs(request: ModelRequest) -> None:
    """Check the asked outputs against one another, as far as the model is not needed for it.

    Raises:
        UsageError: They contradict one another.
    """
    head, features = request.head, request.features
    # Class texts make a classifier of any embedding.
    if request.softmax and not request.zero_shot and (head not in (None, "classifier") or (head is None and features)):
        raise UsageError("`softmax` needs a classifier head. Remove it, or use `head=classifier`.")
    if not features:
        return
    shown = ",".join(map(str, features))
    if head == "none":
        raise UsageError("`features` with `head=none`: give `features` alone, or with classifier, features or tokens.")
    if min(features) < 0:
        raise UsageError(f"`features={shown}`: count blocks or stages from 0.")
    if len(set(features)) != len(features) or sorted(features) != list(features):
        raise UsageError(f"`features={shown}`: give each index once, in rising order.")


# Fields that describe a named model, and say nothing of a module of one's own.
_OF_NAMED = ("checkpoint", "checkpoint_key", "ema", "kwargs")
# What a `PreprocessSpec` is made of where it is not given.
_OF_PREPROCESS = ("img_size", "mean", "std", "crop_pct", "interpolation")


def check_own(request: ModelRequest) -> None:
    """Check what is asked of a module of one's own against what can be asked of it; of a named model, that it is named.

    Raises:
        UsageError: Fields contradict one another.
        InputError: The file of `model_from` does not exist.
    """
    if request.module is None and request.model_from is None:
        if request.name is None and request.checkpoint is None:
            raise UsageError(
                "No model was given; give the name of one, or `checkpoint` that says which model it is of, or "
                "`model_from` for a module of your own."
            )
        if request.preprocess is not None:
            raise UsageError(f"preprocess is for a module of one's own; for {request.name} give {_fields(_OF_PREPROCESS)}.")
        return
    if request.module is not None and request.model_from is not None:
        raise UsageError("module and model_from exclude each other; give one of them.")
    if given := [name for name in _OF_NAMED if getattr(request, name)]:
        raise UsageError(f"{_fields(given)} cannot be asked of a module of one's own; it is taken as it is.")
    if request.model_from is not None:
        path, _ = split_model_from(request.model_from)
        if not path.is_file():
            raise InputError(f"{path} does not exist or is not a file; expected FILE.py:FUNCTION.")
    else:
        own_preprocess(request, None)


def split_model_from(model_from: str) -> tuple[Path, str]:
    """File and function of ``FILE.py:FUNCTION``.

    Raises:
        UsageError: It is not of that form.
    """
    file, _, function = model_from.rpartition(":")
    if not file.endswith(".py") or not function.isidentifier():
        raise UsageError(f"{model_from!r} is not FILE.py:FUNCTION, for example models.py:make_model.")
    return Path(file), function


def own_preprocess(request: ModelRequest, returned: PreprocessSpec | None) -> PreprocessSpec:
    """The preprocessing of a module of one's own; nothing of it is guessed.

    Args:
        request: What was asked for.
        returned: What the user's function returned beside the module.

    Raises:
        UsageError: It is not given, not wholly, or twice.
    """
    fields = [name for name in (*_OF_PREPROCESS, "crop_mode") if getattr(request, name) is not None]
    given = request.preprocess or returned
    if given is not None:
        if fields:
            raise UsageError(f"{_fields(fields)} and a PreprocessSpec were given; give one of both.")
        return given
    if missing := [name for name in _OF_PREPROCESS if name not in fields]:
        raise UsageError(
            f"A module of one's own does not say how pictures become its input: {_fields(missing)} "
            f"{'is' if len(missing) == 1 else 'are'} missing. Give a PreprocessSpec, or all of {_fields(_OF_PREPROCESS)}."
        )
    return _preprocess_of(request)


def _preprocess_of(request: ModelRequest) -> PreprocessSpec:
    size: Any = request.img_size
    height, width = (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))
    mean, std, channels = request.mean or (), request.std or (), request.in_chans or 3
    return PreprocessSpec(
        height=height,
        width=width,
        mean=mean * channels if len(mean) == 1 else mean,
        std=std * channels if len(std) == 1 else std,
        interpolation=str(request.interpolation),
        crop_pct=float(request.crop_pct or 0),
        crop_mode=request.crop_mode or "center",
    )


def _fields(names: Sequence[str]) -> str:
    quoted = [f"`{name}`" for name in names]
    return ", ".join(quoted[:-1]) + (" and " if len(quoted) > 1 else "") + quoted[-1]
