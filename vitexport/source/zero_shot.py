"""Make a classifier of an image tower and one text embedding for each class, as open_clip computes it.

The logits are ``scale * cosine(image, class) + bias``: the embedding is divided by its length and multiplied with the
normalized class embeddings, which are constant and carry the scale, so that the graph gets one more linear layer and no
product beside it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from vitexport.artifacts import Task, ZeroShot
from vitexport.datasets import read_labels
from vitexport.errors import InputError, UsageError
from vitexport.source.class_files import ClassEmbeddings, read_class_embeddings
from vitexport.source.open_clip_texts import embed_texts, find_text_model
from vitexport.source.request import ModelRequest
from vitexport.source.tasks import check_softmax

# What open_clip's own zero-shot evaluation multiplies the cosine with, and what OpenAI's CLIP was trained to.
CLIP_SCALE = 100.0
DEFAULT_TEMPLATES = ("a photo of a {}.",)
# Where a length of 0 is divided by instead, as torch.nn.functional.normalize does it.
SHORTEST = 1e-12
# Two lengths, and two scales, that differ by less are the same.
SAME = 1e-3
# The child of the tower that computes the logits.
CHILD = "zero_shot"


class ZeroShotHead(nn.Module):
    """Logits float32 [n, classes] of embeddings float32 [n, channels].

    Args:
        embeddings: Normalized, float64 [classes, channels].
        scale: Factor of the cosine.
        bias: What is added.
    """

    def __init__(self, embeddings: NDArray[np.float64], scale: float, bias: float) -> None:
        super().__init__()
        classes, channels = embeddings.shape
        # A bias of 0 makes it what a classifier is everywhere else in vitexport: a product with a bias, left in float.
        self.classes = nn.Linear(channels, classes).requires_grad_(requires_grad=False)
        self.classes.weight.copy_(torch.from_numpy(embeddings * scale))
        self.classes.bias.fill_(bias)

    def forward(self, embedding: torch.Tensor) -> torch.Tensor:
        """Divide by the length, then multiply."""
        length = torch.linalg.vector_norm(embedding, dim=-1, keepdim=True).clamp_min(SHORTEST)
        logits: torch.Tensor = self.classes(embedding / length)
        return logits


def templates_of(request: ModelRequest) -> tuple[str, ...]:
    """The sentences that class names are put into; none where the embeddings are given."""
    return () if request.classes is None else request.templates or DEFAULT_TEMPLATES


def head_of(model: nn.Module) -> ZeroShotHead | None:
    """What makes logits of `model`'s embedding, if anything does."""
    head = getattr(model, CHILD, None)
    return head if isinstance(head, ZeroShotHead) else None


def check_request(request: ModelRequest) -> None:
    """Refuse options that contradict one another.

    Raises:
        UsageError: They do.
    """
    asked = request.zero_shot
    if request.class_embeddings is not None and request.classes is not None:
        raise UsageError("`class_embeddings` and `classes` both say what the classes are; give one of them.")
    for option, value in (("`logit_scale`", request.logit_scale), ("`logit_bias`", request.logit_bias)):
        if value is not None and not asked:
            raise UsageError(f"{option} is for zero-shot classifiers: give `class_embeddings` or `classes` with it.")
    for option, given in (("`templates`", request.templates), ("`open_clip`", request.open_clip)):
        if given and request.classes is None:
            raise UsageError(f"{option} is for the text tower that `classes` asks for; leave it out, or give `classes`.")
    for template in request.templates:
        _check_template(template)
    _check_numbers(request)
    if asked and request.task in ("regression", "embedding"):
        raise UsageError(
            f"`task={request.task}` contradicts class texts, which make classes or labels; leave out one of them."
        )
    if asked and request.head == "tokens":
        raise UsageError("`head=tokens` gives one embedding for each token; a zero-shot classifier needs one for the image.")


def _check_template(template: str) -> None:
    try:
        fits = template.format("cat") != template.format("dog")
    except (LookupError, ValueError, AttributeError):
        fits = False
    if not fits:
        raise UsageError(f"`templates`: {template!r} has no single {{}} for the class name, as in 'a photo of a {{}}.'.")


def _check_numbers(request: ModelRequest) -> None:
    scale, bias = request.logit_scale, request.logit_bias
    if scale is not None and not (math.isfinite(scale) and 0 < scale <= 1000):
        raise UsageError(f"`logit_scale={scale:g}` is not a factor of the cosine; CLIP's is 100, SigLIP's about 112.")
    # What checkpoints store is 2.3 of an untrained model to 4.8; a factor as small as that would make all classes alike.
    if scale is not None and 2 <= scale < 5:
        raise UsageError(
            f"`logit_scale={scale:g}` looks like the logarithm that checkpoints store; give its exponential, "
            f"{math.exp(scale):.4g}. If a factor of {scale:g} is meant, store its logarithm as logit_scale in the file of "
            "class embeddings."
        )
    if bias is not None and not (math.isfinite(bias) and abs(bias) <= 1000):
        raise UsageError(f"`logit_bias={bias:g}` is not a bias of logits; SigLIP's is about -16.5.")


def check_tower(model: nn.Module, request: ModelRequest, labels: Sequence[str] | None) -> None:
    """Refuse a model whose output is no embedding, or is another one than that which the class texts were trained with.

    Args:
        model: With its weights.
        request: What the user asked for.
        labels: Names of the classes that the model's own output tells apart, if it does.

    Raises:
        UsageError: It is.
    """
    if labels is not None and request.head in (None, "classifier"):
        raise UsageError(
            f"{request.name} ends in a classifier of {len(labels)} classes ({labels[0]}, …), not in an embedding. Name an "
            "image tower such as vit_base_patch16_clip_224.laion2b, or give `head=features` for what the classifier reads."
        )
    config = getattr(model, "pretrained_cfg", {})
    notes = " ".join(map(str, config.get("notes") or ()))
    if request.checkpoint is None and request.pretrained and "QuickGELU" in notes and not _has_quick_gelu(model):
        name = str(config.get("architecture", "")).replace("clip_", "clip_quickgelu_")
        raise UsageError(
            f"The weights of {request.name} were trained with QuickGELU, and this model computes GELU, so that its "
            "embeddings are "
            f"not those of the class texts. Use {name}.{config.get('tag', '')}."
        )


def _has_quick_gelu(model: nn.Module) -> bool:
    return any("quickgelu" in type(module).__name__.lower() for module in model.modules())


def width_of(model: nn.Module, head: str | None) -> int:
    """Channels of the embedding that the model returns."""
    if head == "classifier":
        return int(model.num_classes)  # type: ignore[arg-type]
    return int(getattr(model, "head_hidden_size", None) or model.num_features)  # type: ignore[arg-type]


def settle(given: ClassEmbeddings, width: int, name: str) -> ClassEmbeddings:
    """Normalized embeddings, [classes, channels], of a matrix that may be stored either way.

    Args:
        given: As read.
        width: Channels of the image's embedding.
        name: Of the model, for messages.

    Raises:
        InputError: Neither side has that width, both have and nothing tells them apart, or a class has no direction of its
            own.
    """
    values = given.values
    if width not in values.shape:
        raise InputError(
            f"Class embeddings {given.origin} are {list(values.shape)}, and {name} embeds images in {width} "
            "channels; expected "
            f"[classes, {width}] or [{width}, classes], from the text tower that the image tower was trained with."
        )
    if values.shape == (width, width):
        values = _square(values, given.origin)
    elif values.shape[1] != width:
        values = values.T
    lengths = np.linalg.norm(values, axis=1)
    if not bool((lengths > SHORTEST).all()):
        row = int(np.argmin(lengths))
        raise InputError(
            f"Class embeddings {given.origin}: class {row}{_named(given, row)} is all zeros and has no direction."
        )
    values = values / lengths[:, None]
    _check_distinct(values, given)
    if given.names is not None and len(given.names) != len(values):
        raise InputError(
            f"Class embeddings {given.origin} hold {len(values)} classes and {len(given.names)} names; expected "
            "one for each."
        )
    return dataclasses.replace(given, values=values)


def _square(values: NDArray[np.float64], origin: str) -> NDArray[np.float64]:
    """Which side of a square matrix is the classes: the one whose vectors all have length 1."""
    rows, columns = (bool((np.abs(np.linalg.norm(values, axis=axis) - 1) < SAME).all()) for axis in (1, 0))
    if rows == columns:
        raise InputError(
            f"Class embeddings {origin} are square, {list(values.shape)}: whether rows or columns are the classes cannot be "
            "told. Save each class's embedding divided by its length, which tells them apart."
        )
    return values if rows else values.T


def _check_distinct(values: NDArray[np.float64], given: ClassEmbeddings) -> None:
    if len(values) < 2:
        raise InputError(f"Class embeddings {given.origin} hold one class; a classifier needs two or more.")
    seen: dict[bytes, int] = {}
    for row, vector in enumerate(values.astype(np.float32)):
        first = seen.setdefault(vector.tobytes(), row)
        if first != row:
            raise InputError(
                f"Class embeddings {given.origin}: classes {first}{_named(given, first)} and "
                f"{row}{_named(given, row)} are the "
                "same, so that none can be told from the other; give each a text of its own."
            )


def _named(given: ClassEmbeddings, row: int) -> str:
    return f" ({given.names[row]})" if given.names is not None and row < len(given.names) else ""


def scale_and_bias(given: ClassEmbeddings, request: ModelRequest, architecture: str) -> tuple[float, float | None]:
    """Factor of the cosine, and what is added: as asked for, else as recorded, else what open_clip takes for a CLIP.

    Raises:
        UsageError: Nothing says them, or two things say different ones.
    """
    scale = _agreed("logit_scale", request.logit_scale, given.logit_scale, given.origin)
    bias = _agreed("logit_bias", request.logit_bias, given.logit_bias, given.origin)
    if "siglip" in architecture and (scale is None or bias is None):
        raise UsageError(
            f"{request.name} is a SigLIP, whose logits have a scale and a bias that were trained with it; give "
            f"`logit_scale` and `logit_bias` (open_clip: model.logit_scale.exp() and model.logit_bias), or "
            f"store both in {given.origin}."
        )
    if scale is None and "clip" not in architecture:
        raise UsageError(
            f"{request.name} is no CLIP by its name, and nothing says what the cosine is multiplied with; give "
            f"`logit_scale` ({CLIP_SCALE:g} for a CLIP), or store logit_scale in {given.origin}."
        )
    return CLIP_SCALE if scale is None else scale, bias


def _task(request: ModelRequest, *, has_bias: bool) -> Task:
    """What the logits are for: with a bias, as SigLIP's, each class has a sigmoid, unless the user asks otherwise."""
    return request.task or ("multi-label" if has_bias else "classification")


def _agreed(option: str, asked: float | None, recorded: float | None, origin: str) -> float | None:
    if asked is not None and recorded is not None and abs(asked - recorded) > SAME * max(abs(asked), abs(recorded)):
        raise UsageError(f"`{option}={asked:g}` contradicts {origin}, which says {recorded:g}; leave out `{option}`.")
    return recorded if asked is None else asked


def add_classes(
    exposed: Any, request: ModelRequest, size: tuple[int, int], *, weights: bool
) -> tuple[ZeroShot | None, tuple[str, ...] | None]:
    """Put the classes that `request` asks for into ``exposed.model``, where its forward finds them.

    Args:
        exposed: A `vitexport.source.heads.Exposed` that returns the tower's embedding.
        request: What the user asked for.
        size: Height and width of the images.
        weights: Off for a plan: random numbers then stand in for texts that open_clip would have to embed.

    Returns:
        What was put in, None for a stand-in; and the classes' names, where they are known.

    Raises:
        InputError: The embeddings do not fit, or cannot be had.
        UsageError: Nothing says what the cosine is multiplied with.
    """
    model, width = exposed.model, width_of(exposed.model, exposed.head)
    names = None if request.classes is None else _distinct(read_labels(request.classes), request.classes)
    if names is not None and not weights:
        attach_stand_in(model, len(names), width)
        exposed.task = _task(request, has_bias="siglip" in _architecture(model, str(request.name)))
        return None, names
    if names is not None:
        given = embed_texts(find_text_model(request), names, templates_of(request), lambda image: exposed(image)[0], size)
    elif request.class_embeddings is not None:
        given = read_class_embeddings(request.class_embeddings)
    else:
        raise UsageError("A zero-shot classifier needs `class_embeddings` or `classes`.")
    given = settle(given, width, str(request.name))
    scale, bias = scale_and_bias(given, request, _architecture(model, str(request.name)))
    exposed.task = _task(request, has_bias=bias is not None)
    if request.softmax:
        check_softmax(exposed.task, len(given.values))
    model.add_module(CHILD, ZeroShotHead(given.values, scale, bias or 0.0))
    stored = np.ascontiguousarray(given.values, np.float32)
    record = ZeroShot(
        origin=given.origin,
        sha256=hashlib.sha256(f"{stored.shape}".encode() + stored.tobytes()).hexdigest(),
        logit_scale=scale,
        logit_bias=bias,
        head=exposed.head,
        templates=templates_of(request),
    )
    return record, given.names


def _distinct(names: tuple[str, ...], path: Path) -> tuple[str, ...]:
    """Refuse names whose texts would be the same."""
    for index, name in enumerate(names):
        if (first := names.index(name)) != index:
            raise InputError(
                f"Classes file {path} has {name!r} twice, as class {first} and {index}, whose texts would be the "
                "same; give each "
                "a name of its own."
            )
    return names


def attach_stand_in(model: nn.Module, classes: int, width: int) -> None:
    """Put random classes into `model`: for a plan, which computes no texts, and for timing."""
    values = np.random.default_rng(0).standard_normal((classes, width))
    model.add_module(CHILD, ZeroShotHead(values / np.linalg.norm(values, axis=1, keepdims=True), CLIP_SCALE, 0.0))


def add_stand_in(exposed: Any, classes: int, size: tuple[int, int], *, softmax: bool) -> int:
    """Make a classifier with random classes of a `vitexport.source.heads.Exposed` that returns an embedding.

    Returns:
        How many parameters it gained.
    """
    attach_stand_in(exposed.model, classes, width_of(exposed.model, exposed.head))
    # For timing, logits are logits, whatever is made of them.
    exposed.task, exposed.softmax = "classification", softmax
    with torch.inference_mode():
        exposed.specs = exposed.describe(exposed(torch.zeros(1, 3, *size)))
    return sum(tensor.numel() for tensor in exposed.model.get_submodule(CHILD).state_dict().values())


def _architecture(model: Any, name: str) -> str:
    """Name of the architecture in timm, by which CLIP's and SigLIP's towers are known."""
    return str(getattr(model, "pretrained_cfg", {}).get("architecture") or name).lower()
