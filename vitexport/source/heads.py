"""Input: a model and the outputs that are asked of it; output: a module that computes exactly those."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from vitexport.artifacts import OutputKind, OutputSpec, Task
from vitexport.errors import InputError, UsageError
from vitexport.source import zero_shot
from vitexport.source.request import Head, ModelRequest, check_outputs
from vitexport.source.tasks import check_request, check_softmax, decide_task, head_of

# What an output without a classifier is, by the number of its axes for one image.
KINDS: dict[int, OutputKind] = {1: "embedding", 2: "tokens", 3: "feature_map"}
# What a classifier's output is, by the model's task, and what it is called.
ANSWERS: dict[Task, tuple[OutputKind, str]] = {
    "classification": ("logits", "logits"),
    "multi-label": ("label_logits", "logits"),
    "regression": ("values", "values"),
}


class Exposed(nn.Module):
    """A model whose forward returns the outputs that were asked for, as a tuple of float32 tensors [n, …].

    Args:
        model: In eval mode.
        head: What stands at its end; None for nothing but `features`.
        features: Indices of intermediate feature maps, [n, channels, height, width] each.
        task: What the model is for.
        softmax: Probabilities in the place of the logits.
    """

    def __init__(
        self,
        model: nn.Module,
        head: Head | None,
        features: Sequence[int] = (),
        *,
        task: Task = "classification",
        softmax: bool = False,
    ) -> None:
        super().__init__()
        self.model = model
        self.head = head
        self.features = list(features)
        self.task = task
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
            name = str(kind)
            if index < ends and self.names_classes:
                kind, name = ("probabilities", "probabilities") if self.softmax else ANSWERS[self.task]
            name = name if ends == 1 else f"{name}_{index}"
            if index >= ends:
                name = f"feature_{self.features[index - ends]}"
            specs.append(OutputSpec(name=name, kind=kind, shape=shape))
        return tuple(specs)


def expose(model: nn.Module, request: ModelRequest, recorded: Task | None = None) -> Exposed:
    """Put the outputs that `request` asks for at the end of `model`, which may lose its classifier.

    Args:
        model: In eval mode.
        request: What the user asked for.
        recorded: The task that the checkpoint's file says the model was trained for, or None.

    Raises:
        UsageError: The options contradict one another or the model.
    """
    if request.zero_shot:
        return _image_tower(model, request)
    classes = getattr(model, "num_classes", None)
    check_request(request)
    head = head_of(request, classes)
    if head == "classifier" and not classes:
        raise UsageError(
            f"{request.name} has no classifier (num_classes is 0); give `num_classes` and a checkpoint that has one, or "
            "leave out `head=classifier` for its embedding."
        )
    if request.softmax and head != "classifier":
        raise UsageError("`softmax` needs a classifier head. Remove it, or use `head=classifier`.")
    check_outputs(request)
    if request.features and not hasattr(model, "forward_intermediates"):
        raise UsageError(f"`features`: timm's {type(model).__name__} has no forward_intermediates; choose another model.")
    task = decide_task(request.task, recorded, classes=classes if head == "classifier" else None, name=str(request.name))
    if request.softmax:
        check_softmax(task, classes or 0)
    if head == "none" and classes and not request.features:
        model.reset_classifier(0)  # type: ignore[operator]
    return Exposed(model, head, request.features, task=task, softmax=request.softmax).eval()


def _image_tower(model: nn.Module, request: ModelRequest) -> Exposed:
    """`model` with the embedding at its end that class texts are compared with: by default its own output.

    timm has the projection of a CLIP's image tower as the classifier of a network.
    """
    classes = getattr(model, "num_classes", None)
    head = request.head
    if head in (None, "classifier"):
        head = "classifier" if classes else "none"
    check_outputs(request)
    if request.features and not hasattr(model, "forward_intermediates"):
        raise UsageError(f"`features`: timm's {type(model).__name__} has no forward_intermediates; choose another model.")
    if head == "none" and classes and not request.features:
        model.reset_classifier(0)  # type: ignore[operator]
    return Exposed(model, head, request.features, softmax=request.softmax).eval()


def takes_other_sizes(exposed: Exposed) -> bool:
    """Whether the live model takes images of other sizes, too (timm's ``dynamic_img_size``)."""
    return bool(getattr(exposed.model, "dynamic_img_size", False))


def _flat(value: Any) -> tuple[torch.Tensor, ...]:
    """The tensors of whatever a model returns: one, or several in a list or tuple."""
    if isinstance(value, torch.Tensor):
        return (value,)
    if isinstance(value, (list, tuple)) and value and all(isinstance(entry, torch.Tensor) for entry in value):
        return tuple(value)
    seen = type(value).__name__ if not isinstance(value, dict) else f"a dict with {', '.join(map(str, value))}"
    raise InputError(f"the model returns {seen} there; expected a tensor, or several. Choose another `head`.")


def _as_tokens(tensor: torch.Tensor, model: nn.Module) -> torch.Tensor:
    """[n, tokens, channels] of tokens, or of a map with the channels first or last."""
    if tensor.dim() != 4:
        return tensor
    channels = int(model.num_features)  # type: ignore[arg-type]
    last = getattr(model, "output_fmt", "NCHW" if tensor.shape[1] == channels else "NHWC") == "NHWC"
    return tensor.flatten(1, 2) if last else tensor.flatten(2).transpose(1, 2)
