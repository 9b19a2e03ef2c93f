"""What the user asks of a model, as plain data, and what of it contradicts itself."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from vitexport.errors import UsageError

Head = Literal["classifier", "none", "features", "tokens"]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ModelRequest:
    """What the user asked for.

    Attributes:
        name: timm name with or without a pretrained tag, ``hf-hub:…``, ``local-dir:…``, or ``torchvision:…``.
        checkpoint: Local weights; None for pretrained or random ones.
        pretrained: Whether to take the pretrained weights of timm or torchvision.
        kwargs: Further arguments for `timm.create_model`.
        num_classes, img_size: Overrides; None keeps the model's own. `img_size` is one side in pixels.
        head: What stands at the end: ``classifier`` the logits; ``none`` the model without it, as timm's ``num_classes=0``;
            ``features`` the embedding that the classifier reads; ``tokens`` all tokens. None takes the classifier of a model
            that has one, and ``none`` of one that has not.
        features: Indices of intermediate feature maps, as timm's ``forward_intermediates`` counts them; empty for none. With
            them, and without `head`, they are the only outputs.
        softmax: Probabilities in the place of the logits.
        class_embeddings: File with one text embedding for each class, which make a zero-shot classifier of an image tower.
        classes: File with the class names, embedded by open_clip's text tower; instead of `class_embeddings`.
        templates: Sentences around a class name, which {} stands for; a class is the mean over all of them.
        open_clip: open_clip's name of the model whose text tower embeds `classes`, as ``MODEL:TAG``, ``MODEL:FILE``,
            ``local-dir:…`` or ``hf-hub:…``; None tells it from `name`.
        logit_scale, logit_bias: What the cosine of image and class is multiplied with, and what is added; None for what the
            file or the text tower says.
        mean, std, crop_pct, interpolation: Overrides of the model's data config.
        seed: For weights that are not loaded.
    """

    name: str
    checkpoint: Path | None = None
    pretrained: bool = True
    kwargs: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    num_classes: int | None = None
    img_size: int | None = None
    head: Head | None = None
    features: tuple[int, ...] = ()
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
    interpolation: str | None = None
    seed: int = 0

    @property
    def zero_shot(self) -> bool:
        """Whether class texts make the classifier."""
        return self.class_embeddings is not None or self.classes is not None


# Arguments of timm.create_model that vitexport has options for, or whose result it cannot vouch for.
REFUSED_KWARGS = {
    "checkpoint_path": "--checkpoint FILE",
    "pretrained": "--pretrained or --no-pretrained",
    "pretrained_cfg": "--mean, --std, --crop-pct and --interpolation",
    "pretrained_cfg_overlay": "--mean, --std, --crop-pct and --interpolation",
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
    for key, value in (("num_classes", request.num_classes), ("img_size", request.img_size)):
        if value is not None:
            if kwargs.get(key, value) != value:
                raise UsageError(f"{key} was given twice, as {value} and as model keyword {kwargs[key]}; give it once.")
            kwargs[key] = value
    return kwargs
