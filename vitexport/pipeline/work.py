"""What all stages of one build share: the request, what was prepared, the folder, and PyTorch's outputs to judge by."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vitexport.artifacts import BatchRange, Outputs
from vitexport.datasets import ImageSet
from vitexport.machine import Stopwatch
from vitexport.pipeline.prepare import Prepared
from vitexport.pipeline.request import BuildRequest
from vitexport.pipeline.stages import Stages
from vitexport.preprocess import normalize
from vitexport.runtime.model import join
from vitexport.validate.answers import Truth
from vitexport.validate.budget import Reading

EVALUATION_BATCH = 8
PEAK_IMAGES = 4
KEPT_BYTES = 256 << 20
RAW_BATCH = 8


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Reference:
    """The images that the result is judged on, and PyTorch's outputs for them.

    Attributes:
        images: None where the golden inputs, made from the package's photographs, are all there is.
        outputs: PyTorch's, float32 [n, …] each.
        truth: Classes int64 [n], or labels or target values float32 [n, k]; None where they are not known.
        about: What the images are, for messages.
        golden_pixels: uint8 [m, height, width, 3].
        golden_outputs: PyTorch's, float32 [m, …] each.
        stay_float32: Nodes of the float export that float16 cannot compute safely, found on the golden inputs.
    """

    images: ImageSet | None
    outputs: Outputs
    truth: Truth | None
    about: str
    golden_pixels: NDArray[np.uint8]
    golden_outputs: Outputs
    stay_float32: frozenset[str]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Work:
    """What every stage of one build needs."""

    request: BuildRequest
    prepared: Prepared
    folder: Path
    watch: Stopwatch
    progress: Stages


def reading(work: Work) -> Reading:
    """How the model's answer is read."""
    return Reading(names=work.prepared.labels, threshold=work.request.threshold)


def over(images: ImageSet, work: Work, what: str, run: Callable[[NDArray[np.float32]], Outputs]) -> Outputs:
    """`run` over all of `images`, batch by batch, with progress.

    Of an output that is no answer (tokens, feature maps) no more is kept than `KEPT_BYTES`: the first images' values,
    copied, since a view would keep the whole batch.
    """
    source = work.prepared.source
    most = {
        spec.name: len(images.files) if spec.is_answer else max(KEPT_BYTES // (4 * math.prod(spec.shape)), 1)
        for spec in source.outputs
    }
    parts: list[Outputs] = []
    done = 0
    for batch in images.batches(source.preprocess, EVALUATION_BATCH):
        parts.append({name: values[: max(most[name] - done, 0)].copy() for name, values in run(batch).items()})
        done += len(batch)
        work.progress(what, done, len(images.files))
    return join(parts)


def golden_batch(work: Work, reference: Reference, size: int) -> NDArray[np.float32]:
    """The first `size` golden inputs, from the start again where they are fewer: float32 [size, 3, height, width]."""
    pixels = np.resize(reference.golden_pixels, (size, *reference.golden_pixels.shape[1:]))
    return normalize(pixels, work.prepared.source.preprocess)


def raw_count(batch: BatchRange) -> int:
    """How many golden inputs a bundle holds as raw files: one call's, and few."""
    return max(batch.minimum, min(batch.optimum, RAW_BATCH))


def repeated(values: NDArray[np.float32], count: int) -> NDArray[np.float32]:
    """The first `count` of `values`, from the start again where they are fewer."""
    result: NDArray[np.float32] = np.resize(values, (count, *values.shape[1:]))
    return result


def peak_images(work: Work, golden_pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """A few golden inputs, as many as the graph takes in one call, to see what its tensors reach: float32 [n, 3, h, w]."""
    batch = work.request.batch
    count = min(max(PEAK_IMAGES, batch.minimum), batch.maximum)
    pixels = np.resize(golden_pixels, (count, *golden_pixels.shape[1:]))
    return normalize(pixels, work.prepared.source.preprocess)


def golden_images(work: Work, reference: Reference) -> NDArray[np.float32]:
    return normalize(reference.golden_pixels, work.prepared.source.preprocess)
