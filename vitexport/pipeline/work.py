"""What all stages of one build share: the request, what was prepared, the folder, and PyTorch's answers to judge by."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vitexport.artifacts import Progress
from vitexport.datasets import ImageSet
from vitexport.machine import Stopwatch
from vitexport.pipeline.prepare import Prepared
from vitexport.pipeline.request import BuildRequest
from vitexport.preprocess import normalize
from vitexport.validate.latency import Runner

EVALUATION_BATCH = 8


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Reference:
    """The images that the result is judged on, and PyTorch's logits for them.

    Attributes:
        images: None where the golden inputs, made from the package's photographs, are all there is.
        logits: float32 [n, classes].
        labels: int64 [n], or None.
        about: What the images are, for messages.
        golden_pixels: uint8 [m, height, width, 3].
        golden_logits: float32 [m, classes].
    """

    images: ImageSet | None
    logits: NDArray[np.float32]
    labels: NDArray[np.int64] | None
    about: str
    golden_pixels: NDArray[np.uint8]
    golden_logits: NDArray[np.float32]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Work:
    """What every stage of one build needs."""

    request: BuildRequest
    prepared: Prepared
    folder: Path
    watch: Stopwatch
    progress: Progress


def over(images: ImageSet, work: Work, what: str, run: Runner) -> NDArray[np.float32]:
    """`run` over all of `images`, batch by batch, with progress."""
    parts, done = [], 0
    for batch in images.batches(work.prepared.source.preprocess, EVALUATION_BATCH):
        parts.append(run(batch))
        done += len(batch)
        work.progress(what, done, len(images.files))
    return np.concatenate(parts)


def golden_batch(work: Work, reference: Reference, size: int) -> NDArray[np.float32]:
    """The first `size` golden inputs, from the start again where they are fewer: float32 [size, 3, height, width]."""
    pixels = np.resize(reference.golden_pixels, (size, *reference.golden_pixels.shape[1:]))
    return normalize(pixels, work.prepared.source.preprocess)


def golden_images(work: Work, reference: Reference) -> NDArray[np.float32]:
    return normalize(reference.golden_pixels, work.prepared.source.preprocess)
