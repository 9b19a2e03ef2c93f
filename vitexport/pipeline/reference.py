"""Run PyTorch on the pictures that everything else is judged on."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from vitexport.artifacts import BatchRange, ModelSource, Outputs
from vitexport.datasets import ImageSet
from vitexport.pipeline.prepare import Prepared
from vitexport.pipeline.session import Session
from vitexport.pipeline.stages import REFERENCE
from vitexport.preprocess import PreprocessSpec, normalize
from vitexport.runtime.model import join
from vitexport.validate.answers import Truth
from vitexport.validate.probes import golden_count, probe_pixels
from vitexport.validate.reference import reference_outputs

EVALUATION_BATCH = 8
PEAK_IMAGES = 4
KEPT_BYTES = 256 << 20
RAW_BATCH = 8


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Reference:
    """The pictures that the result is judged on, and PyTorch's outputs for them.

    Attributes:
        images: None where the golden inputs, made from the package's photographs, are all there is.
        outputs: PyTorch's, float32 [n, …] each.
        truth: Classes int64 [n], or labels or target values float32 [n, k]; None where they are not known.
        about: What the images are, for messages.
        spec: How pictures become the model's input.
        golden_pixels: uint8 [m, height, width, channels].
        golden_outputs: PyTorch's, float32 [m, …] each.
    """

    images: ImageSet | None
    outputs: Outputs
    truth: Truth | None
    about: str
    spec: PreprocessSpec
    golden_pixels: NDArray[np.uint8]
    golden_outputs: Outputs

    @property
    def golden_images(self) -> NDArray[np.float32]:
        """float32 [m, channels, height, width]."""
        return normalize(self.golden_pixels, self.spec)

    def golden_batch(self, size: int) -> NDArray[np.float32]:
        """The first `size` golden inputs, repeated where they are fewer: float32 [size, channels, height, width]."""
        pixels = np.resize(self.golden_pixels, (size, *self.golden_pixels.shape[1:]))
        return normalize(pixels, self.spec)

    def peak_images(self, batch: BatchRange) -> NDArray[np.float32]:
        """A few golden inputs, as many as the graph takes in one call, to see what its tensors reach."""
        return self.golden_batch(min(max(PEAK_IMAGES, batch.minimum), batch.maximum))


def make_reference(prepared: Prepared, session: Session) -> Reference:
    """Choose the pictures to judge on, and run PyTorch on them."""
    session.progress.begin(REFERENCE)
    source = prepared.source

    def pytorch(images: NDArray[np.float32]) -> Outputs:
        return reference_outputs(prepared.model, source.outputs, images)

    with session.watch.stage("reference"):
        # Without images to judge on, those of calibration are of no use either.
        shown = prepared.data or prepared.calibration if prepared.evaluation is not None else None
        golden_pixels = probe_pixels(shown, source.preprocess, golden_count(source.outputs))
        golden_outputs = pytorch(normalize(golden_pixels, source.preprocess))
        images = prepared.evaluation
        outputs: Outputs = golden_outputs
        truth: Truth | None = None
        if images is not None:
            outputs = over(images, source, session, REFERENCE, pytorch)
            truth = images.labels if images.targets is None else images.targets
    return Reference(
        images=images,
        outputs=outputs,
        truth=truth,
        about=prepared.evaluation_about,
        spec=source.preprocess,
        golden_pixels=golden_pixels,
        golden_outputs=golden_outputs,
    )


def over(
    images: ImageSet, source: ModelSource, session: Session, what: str, run: Callable[[NDArray[np.float32]], Outputs]
) -> Outputs:
    """`run` over all of `images`, batch by batch, with progress.

    Of an output that is no answer (tokens, feature maps) no more is kept than `KEPT_BYTES`: the first images' values,
    copied, since a view would keep the whole batch.
    """
    most = {
        spec.name: len(images.files) if spec.is_answer else max(KEPT_BYTES // (4 * math.prod(spec.shape)), 1)
        for spec in source.outputs
    }
    parts: list[Outputs] = []
    done = 0
    for batch in images.batches(source.preprocess, EVALUATION_BATCH):
        parts.append({name: values[: max(most[name] - done, 0)].copy() for name, values in run(batch).items()})
        done += len(batch)
        session.progress(what, done, len(images.files))
    return join(parts)


def raw_count(batch: BatchRange) -> int:
    """How many golden inputs a bundle holds as raw files: one call's, and few."""
    return max(batch.minimum, min(batch.optimum, RAW_BATCH))


def repeated(values: NDArray[np.float32], count: int) -> NDArray[np.float32]:
    """The first `count` of `values`, from the start again where they are fewer."""
    result: NDArray[np.float32] = np.resize(values, (count, *values.shape[1:]))
    return result
