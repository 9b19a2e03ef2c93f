"""Input: what was seen of an activation; output: the range that its quantizer covers. Arithmetic on histograms."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from vitexport.quantize.observe import CHANNEL_BINS, ChannelHistogram
from vitexport.quantize.settings import Observer

BINS = 8192
# Shares of the full range that `mse`, `entropy` and `output` try.
SHARES = np.linspace(1.0, 0.2, 41)
LEVELS = 128

Range = tuple[float, float]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Values:
    """The distribution of one tensor.

    Attributes:
        centers: float64 [n], rising.
        counts: float64 [n].
        low, high: Smallest and largest value that was seen.
    """

    centers: NDArray[np.float64]
    counts: NDArray[np.float64]
    low: float
    high: float

    @classmethod
    def of(cls, histogram: ChannelHistogram, scale: NDArray[np.float64], shift: NDArray[np.float64]) -> Values:
        """The distribution of ``(x - shift) / scale``, over all channels.

        Args:
            histogram: Of x.
            scale: [channels], positive.
            shift: [channels].
        """
        low = (histogram.low - shift) / scale
        high = (histogram.high - shift) / scale
        bottom, top = float(low.min()), float(high.max())
        width = max(top - bottom, 1e-12) / BINS
        # Most bins of a channel are empty: it fills its range up to the next power of two, and thinly at the ends.
        channel, place = np.nonzero(histogram.counts)
        middle = (place + 0.5) / (CHANNEL_BINS / 2) - 1
        values = (middle * histogram.limit[channel] - shift[channel]) / scale[channel]
        # The middle of an outermost bin may lie beyond what was seen.
        values = np.clip(values, low[channel], high[channel])
        index = np.minimum(((values - bottom) / width).astype(np.intp), BINS - 1)
        counts = np.bincount(index, weights=histogram.counts[channel, place], minlength=BINS)
        centers = np.asarray(bottom + (np.arange(BINS) + 0.5) * width, np.float64)
        return cls(centers=centers, counts=np.asarray(counts, np.float64), low=bottom, high=top)

    def percentile_range(self, percentile: float) -> Range:
        """The range that keeps `percentile` percent of the values, within what was seen."""
        total = float(self.counts.sum())
        tail = (1 - percentile / 100) / 2 * total
        below = np.cumsum(self.counts)
        half = (self.centers[1] - self.centers[0]) / 2
        first = int(np.searchsorted(below, tail, side="right"))
        last = min(int(np.searchsorted(below, total - tail, side="left")), len(self.centers) - 1)
        return max(float(self.centers[first] - half), self.low), min(float(self.centers[last] + half), self.high)


def choose_range(values: Values, observer: Observer, *, symmetric: bool, error: Callable[[Range], float]) -> Range:
    """The range that a quantizer of `values` covers, within what was seen.

    Args:
        values: The distribution.
        observer: How to choose.
        symmetric: Whether the quantizer's range is symmetric about 0.
        error: Mean square error of the layers that read the tensor if its quantizer covers a range; for ``output`` only.
    """
    full = (values.low, values.high)
    if observer.kind == "minmax":
        return full
    if observer.kind == "percentile":
        return values.percentile_range(observer.percentile)
    # A quantizer always covers 0, and narrowing must not move an end away from it.
    full = (min(full[0], 0.0), max(full[1], 0.0))
    candidates = [(full[0] * share, full[1] * share) for share in SHARES] if symmetric else _narrowed(full)
    if observer.kind == "mse":
        return _least(candidates, lambda limits: _square_error(values, limits, symmetric=symmetric))
    if observer.kind == "entropy":
        return _least(candidates, lambda limits: _divergence(values, limits, symmetric=symmetric))
    return _least(candidates, error)


def _narrowed(full: Range) -> list[Range]:
    """Ranges that cut either end, or both: an asymmetric quantizer need not cut them alike."""
    coarse = SHARES[::4]
    return [(full[0] * low, full[1] * high) for low in coarse for high in coarse]


def _least(candidates: Sequence[Range], cost: Callable[[Range], float]) -> Range:
    return min(candidates, key=cost)


def _step(limits: Range, *, symmetric: bool) -> tuple[float, float, float]:
    """Step, lowest and highest level's value of a quantizer that covers `limits`."""
    if symmetric:
        largest = max(abs(limits[0]), abs(limits[1]))
        return max(largest / 127, 1e-12), -largest, largest
    low, high = min(limits[0], 0.0), max(limits[1], 0.0)
    return max((high - low) / 255, 1e-12), low, high


def _square_error(values: Values, limits: Range, *, symmetric: bool) -> float:
    step, low, high = _step(limits, symmetric=symmetric)
    beyond = values.centers - np.clip(values.centers, low, high)
    # Inside, rounding errs evenly within half a step.
    return float((values.counts * np.where(beyond == 0, step**2 / 12, beyond**2)).sum())


def _divergence(values: Values, limits: Range, *, symmetric: bool) -> float:
    """Kullback-Leibler divergence between the clipped distribution and the same one spread over the quantizer's levels."""
    step, low, high = _step(limits, symmetric=symmetric)
    clipped = np.clip(values.centers, low, high)
    level = np.rint((clipped - low) / step).astype(np.int64)
    fine = np.minimum(((clipped - low) / max(high - low, 1e-12) * BINS).astype(np.int64), BINS - 1)
    seen = np.bincount(fine, weights=values.counts, minlength=BINS)
    inside = (values.centers >= low) & (values.centers <= high)
    kept = np.bincount(fine, weights=values.counts * inside, minlength=BINS)
    bins_level = np.full(BINS, -1, np.int64)
    bins_level[fine] = level
    used = seen > 0
    mass = np.bincount(bins_level[used], weights=kept[used], minlength=int(level.max()) + 1)
    width = np.bincount(bins_level[used], minlength=int(level.max()) + 1)
    spread = np.zeros(BINS)
    spread[used] = (mass / np.maximum(width, 1))[bins_level[used]]
    p, q = seen / seen.sum(), spread / max(spread.sum(), 1e-12)
    both = p > 0
    return float((p[both] * np.log(p[both] / np.maximum(q[both], 1e-12))).sum())
