"""Calibration images enter; the range of every activation that will be quantized leaves.

One float pass over the images. Each activation is kept as a histogram whose size does not depend on their number.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from vitexport.artifacts import Progress
from vitexport.errors import InputError
from vitexport.runtime.backends.onnx_runtime import OnnxRuntimeBackend

BINS = 8192


class Histogram:
    """Counts of values in `BINS` equal bins over [-limit, limit), with `limit` a power of two that grows as needed.

    When a value lies beyond the limit, the limit doubles and pairs of bins merge: nothing is lost, and the result does
    not depend on the order of the values.
    """

    def __init__(self) -> None:
        self.limit = 0.0
        self.counts = np.zeros(BINS, np.int64)
        self.low = math.inf
        self.high = -math.inf

    def add(self, values: NDArray[np.float32]) -> None:
        """Count `values`, of any shape.

        Raises:
            InputError: One of them is NaN or infinite.
        """
        flat = values.reshape(-1)
        low, high = float(flat.min()), float(flat.max())
        if not (math.isfinite(low) and math.isfinite(high)):
            raise InputError("The float model computes NaN or infinity on a calibration image; it cannot be quantized.")
        self.low, self.high = min(self.low, low), max(self.high, high)
        self._grow(max(abs(low), abs(high)))
        # np.histogram would convert to float64 and sort edges first. The factor is a power of two and rounds nothing; adding
        # the limit before would, and a value just below an edge could then change its bin when the limit grows.
        scaled = flat * np.float32(BINS / (2 * self.limit))
        index = np.floor(scaled, out=scaled).astype(np.int32)
        index += BINS // 2
        self.counts += np.bincount(index, minlength=BINS)

    def _grow(self, largest: float) -> None:
        if self.limit == 0.0:
            self.limit = 2.0 ** math.ceil(math.log2(max(largest, 2.0**-20)) + 1e-9)
        while largest >= self.limit:
            merged = self.counts.reshape(-1, 2).sum(axis=1)
            self.counts = np.zeros(BINS, np.int64)
            self.counts[BINS // 4 : BINS // 4 + BINS // 2] = merged
            self.limit *= 2

    def percentile_range(self, percentile: float) -> tuple[float, float]:
        """The range that keeps `percentile` percent of the values: half of the rest is cut off at each end.

        The ends lie on bin edges, outside of what they keep, and never beyond what was seen.
        """
        total = int(self.counts.sum())
        if total == 0:
            raise InputError("No calibration image was observed.")
        tail = (1 - percentile / 100) / 2 * total
        below = np.cumsum(self.counts)
        first = int(np.searchsorted(below, tail, side="right"))
        last = int(np.searchsorted(below, total - tail, side="left"))
        width = 2 * self.limit / BINS
        low = max(-self.limit + first * width, self.low)
        high = min(-self.limit + (last + 1) * width, self.high)
        return low, high


def observe(
    backend: OnnxRuntimeBackend,
    tensors: Sequence[str],
    batches: Iterable[NDArray[np.float32]],
    total: int,
    progress: Progress,
) -> Mapping[str, Histogram]:
    """Run every batch and count the values of `tensors`.

    Args:
        backend: A float session whose outputs are `tensors`, in that order.
        tensors: Names of activations.
        batches: Preprocessed images.
        total: Number of images, for progress.
        progress: Told after each batch.

    Raises:
        InputError: An activation is NaN or infinite.
    """
    histograms = {name: Histogram() for name in tensors}
    done = 0
    for images in batches:
        for name, values in zip(tensors, backend.tensors(images), strict=True):
            histograms[name].add(values)
        done += len(images)
        progress("calibrating", min(done, total), total)
    return histograms
