"""What the user asks of a model, as plain data, and what of it contradicts itself."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from vitexport.artifacts import Task
from vitexport.errors import UsageError
from vitexport.preprocess import CropMode

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
        mean, std, crop_pct, crop_mode, interpolation: Overrides of the model's data config; `mean` and `std` are one value
            for all channels or one for each.
        seed: For weights that are not loaded.
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
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    crop_pct: float | None = None
    crop_mode: CropMode | None = None
    interpolation: str | None = None
    seed: int = 0


# Arguments of timm.create_model that vitexport has options for, or whose result it cannot vouch for.
REFUSED_KWARGS = {
    "checkpoint_path": "--checkpoint FILE",
    "pretrained": "--pretrained or --no-pretrained",
    "pretrained_cfg": "--mean, --std, --crop-pct, --crop-mode and --interpolation",
    "pretrained_cfg_overlay": "--mean, --std, --crop-pct, --crop-mode and --interpolation",
    "pretrained_strict": "weights that fit the model",
    "features_only": "--features 2,5,8,11",
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


def _size(value: Any) -> Any:
    """``224`` and ``(224, 224)`` are the same size."""
    sides = tuple(value) if isinstance(value, (list, tuple)) else (value,)
    return sides[0] if len(set(sides)) == 1 else sides
