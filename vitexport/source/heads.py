"""A model and the outputs that are asked of it enter; a module that computes exactly those leaves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from vitexport.artifacts import OutputKind, OutputSpec
from vitexport.errors import InputError, UsageError
from vitexport.source import zero_shot
from vitexport.source.request import Head, ModelRequest

# What an output without a classifier is, by the number of its axes for one image.
KINDS: dict[int, OutputKind] = {1: "embedding", 2: "tokens", 3: "feature_map"}


class Exposed(nn.Module):
    """A model whose forward returns the outputs that were asked for, as a tuple of float32 tensors [n, …].

    Args:
        model: In eval mode.
        head: What stands at its end; None for nothing but `features`.
        features: Indices of intermediate feature maps, [n, channels, height, width] each.
        softmax: Probabilities in the place of the logits.
    """

    def __init__(self, model: nn.Module, head: Head | None, features: Sequence[int] = (), *, softmax: bool = False) -> None:
        super().__init__()
        self.model = model
        self.head = head
        self.features = list(features)
        self.softmax = softmax
        self.specs: tuple[OutputSpec, ...] = ()

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Outputs of float32 [n, 3, height, width], in the order of `specs`."""
        maps: Sequence[torch.Tensor] = ()
        if self.features:
            # Hiera stops behind the last map that is asked for unless it is told otherwise, and has no trunk's output then.
            found = self.model.forward_intermediates(  # type: ignore[operator]
                image,
                indices=self.features,
                output_fmt="NCHW",
                intermediates_only=self.head is None,
                stop_early=self.head is None,
            )
            trunk, maps = (None, found) if self.head is None else found
            last = () if self.head is None else _flat(self._end(trunk))
        else:
            last = _flat(self._whole(image))
        if (classes := zero_shot.head_of(self.model)) is not None:
            last = tuple(classes(tensor) for tensor in last)
        if self.softmax:
            last = tuple(torch.softmax(tensor, dim=-1) for tensor in last)
        return (*last, *maps)

    @property
    def names_classes(self) -> bool:
        """Whether logits come first: of the model's own classifier, or of class texts."""
        return self.head == "classifier" or zero_shot.head_of(self.model) is not None

    @property
    def classes(self) -> int:
        """Width of the logits."""
        head = zero_shot.head_of(self.model)
        return int(self.model.num_classes) if head is None else head.classes.out_features  # type: ignore[arg-type]

    def _whole(self, image: torch.Tensor) -> Any:
        if self.head in ("classifier", "none"):
            return self.model(image)
        return self._end(self.model.forward_features(image))  # type: ignore[operator]

    def _end(self, trunk: Any) -> Any:
        """What `head` makes of the trunk's last output."""
        if self.head == "tokens":
            return [_as_tokens(tensor, self.model) for tensor in _flat(trunk)]
        return self.model.forward_head(trunk, **({"pre_logits": True} if self.head == "features" else {}))  # type: ignore[operator]

    def describe(self, outputs: Sequence[torch.Tensor]) -> tuple[OutputSpec, ...]:
        """Name and describe what `forward` returned for one image."""
        ends = len(outputs) - len(self.features)
        specs = []
        for index, tensor in enumerate(outputs):
            shape = tuple(tensor.shape[1:])
            kind: OutputKind = KINDS.get(len(shape), "tokens")
            if index < ends and self.names_classes:
                kind = "probabilities" if self.softmax else "logits"
            name = kind if ends == 1 else f"{kind}_{index}"
            if index >= ends:
                name = f"feature_{self.features[index - ends]}"
            specs.append(OutputSpec(name=name, kind=kind, shape=shape))
        return tuple(specs)


def expose(model: nn.Module, request: ModelRequest) -> Exposed:
    """Put the outputs that `request` asks for at the end of `model`, which may lose its classifier.

    Raises:
        UsageError: The options contradict one another or the model.
    """
    if request.zero_shot:
        return _image_tower(model, request)
    classes = getattr(model, "num_classes", None)
    head = request.head
    if head is None and not request.features:
        head = "classifier" if classes else "none"
    if head == "classifier" and not classes:
        raise UsageError(
            f"{request.name} has no classifier (num_classes is 0); give --num-classes and a checkpoint that has one, or "
            "leave out --head classifier for its embedding."
        )
    if request.softmax and head != "classifier":
        raise UsageError("--softmax makes probabilities of logits, and no classifier is asked for; leave it out.")
    if request.features:
        _check_features(model, request)
    if head == "none" and classes and not request.features:
        model.reset_classifier(0)  # type: ignore[operator]
    return Exposed(model, head, request.features, softmax=request.softmax).eval()


def _image_tower(model: nn.Module, request: ModelRequest) -> Exposed:
    """`model` with the embedding at its end that class texts are compared with: by default its own output.

    timm has the projection of a CLIP's image tower as the classifier of a network.
    """
    classes = getattr(model, "num_classes", None)
    head = request.head
    if head in (None, "classifier"):
        head = "classifier" if classes else "none"
    if request.features:
        _check_features(model, request)
    if head == "none" and classes and not request.features:
        model.reset_classifier(0)  # type: ignore[operator]
    return Exposed(model, head, request.features, softmax=request.softmax).eval()


def _check_features(model: nn.Module, request: ModelRequest) -> None:
    if not hasattr(model, "forward_intermediates"):
        raise UsageError(f"--features: timm's {type(model).__name__} has no forward_intermediates; choose another model.")
    if request.head == "none":
        raise UsageError("--features with --head none: give --features alone, or with classifier, features or tokens.")
    if min(request.features) < 0:
        raise UsageError(f"--features {','.join(map(str, request.features))}: count blocks or stages from 0.")
    if len(set(request.features)) != len(request.features) or sorted(request.features) != list(request.features):
        raise UsageError(f"--features {','.join(map(str, request.features))}: give each index once, in rising order.")


def _flat(value: Any) -> tuple[torch.Tensor, ...]:
    """The tensors of whatever a model returns: one, or several in a list or tuple."""
    if isinstance(value, torch.Tensor):
        return (value,)
    if isinstance(value, (list, tuple)) and value and all(isinstance(entry, torch.Tensor) for entry in value):
        return tuple(value)
    seen = type(value).__name__ if not isinstance(value, dict) else f"a dict with {', '.join(map(str, value))}"
    raise InputError(f"the model returns {seen} there; expected a tensor, or several. Choose another --head.")


def _as_tokens(tensor: torch.Tensor, model: nn.Module) -> torch.Tensor:
    """[n, tokens, channels] of tokens, or of a map with the channels first or last."""
    if tensor.dim() != 4:
        return tensor
    channels = int(model.num_features)  # type: ignore[arg-type]
    last = getattr(model, "output_fmt", "NCHW" if tensor.shape[1] == channels else "NHWC") == "NHWC"
    return tensor.flatten(1, 2) if last else tensor.flatten(2).transpose(1, 2)
