"""The stages of one build, counted before the first begins."""

from __future__ import annotations

from collections.abc import Sequence

from vitexport.artifacts import Precision, Progress
from vitexport.pipeline.request import BuildRequest
from vitexport.stacks import Stack

LOADING = "loading the model"
EXPORTING = "exporting to ONNX"
REFERENCE = "running PyTorch"
TIMING = "timing beside PyTorch"
EMBEDDING = "putting the preprocessing into a graph"
WRITING = "writing the bundle"


def trying(precision: Precision) -> str:
    """The stage that makes a candidate and judges it."""
    return f"making and validating {precision}"


def stages_of(request: BuildRequest, stack: Stack, precisions: Sequence[Precision]) -> tuple[str, ...]:
    """What a build does, in order."""
    return (
        LOADING,
        EXPORTING,
        REFERENCE,
        *map(trying, precisions),
        *([TIMING] if stack.is_timed else []),
        *([stack.delivering] if stack.delivering is not None else []),
        *([EMBEDDING] if request.embeds(stack) else []),
        WRITING,
    )


class Stages:
    """A `Progress` that says where in the build it is: ``stage 3 of 7: running PyTorch``.

    Args:
        names: As `stages_of` returns them.
        progress: Told of each stage when it begins, and of what is done in it.
    """

    def __init__(self, names: Sequence[str], progress: Progress) -> None:
        self._names = tuple(names)
        self._progress = progress
        self._number = 0

    def begin(self, name: str) -> None:
        """Enter the stage `name`; one that is left out is passed over."""
        self._number = self._names.index(name) + 1
        self(name)

    def __call__(self, what: str, done: int = 0, total: int = 0) -> None:
        """As `Progress`, within the stage that has begun."""
        self._progress(f"stage {self._number} of {len(self._names)}: {what}", done, total)
