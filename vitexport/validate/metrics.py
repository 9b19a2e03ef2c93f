"""Input: outputs of a reference and of a candidate; output: figures of agreement and accuracy. Pure arithmetic."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
from numpy.typing import NDArray

# Logits whose noise is below float32's own resolution have no finite ratio; JSON has no infinity either.
HIGHEST_SQNR_DB = 150.0


def relative_error(reference: NDArray[np.float32], candidate: NDArray[np.float32], scale: float = 0.0) -> float:
    """Largest |candidate - reference| over largest |reference|; NaN or infinite if either holds such a value.

    `scale` is what the reference reaches elsewhere: a single number may be near 0 by chance.
    """
    largest = max(float(np.abs(reference).max()), scale)
    with np.errstate(invalid="ignore"):
        difference = float(np.abs(candidate.astype(np.float64) - reference).max())
    return difference / largest if largest else difference


def sqnr_db(reference: NDArray[np.float32], candidate: NDArray[np.float32]) -> float:
    """Signal to quantization noise ratio over all values in decibels, at most `HIGHEST_SQNR_DB`; NaN if not finite."""
    wide = reference.astype(np.float64)
    with np.errstate(invalid="ignore"):
        signal, noise = float((wide**2).sum()), float(((candidate - wide) ** 2).sum())
    if not (math.isfinite(signal) and math.isfinite(noise)):
        return math.nan
    if noise == 0.0:
        return HIGHEST_SQNR_DB
    return min(10 * math.log10(signal / noise), HIGHEST_SQNR_DB) if signal else -HIGHEST_SQNR_DB


def cosine(reference: NDArray[np.float32], candidate: NDArray[np.float32]) -> float:
    """Mean over the images of the cosine between the two outputs, each taken as one vector."""
    wide, other = (values.astype(np.float64).reshape(len(values), -1) for values in (reference, candidate))
    lengths = np.linalg.norm(wide, axis=1) * np.linalg.norm(other, axis=1)
    return float(np.mean((wide * other).sum(axis=1) / np.maximum(lengths, np.finfo(np.float64).tiny)))


def agreement(reference: NDArray[np.float32], candidate: NDArray[np.float32]) -> float:
    """Percent of images on which both name the same class first."""
    return float(np.mean(reference.argmax(axis=1) == candidate.argmax(axis=1)) * 100)


def in_top(logits: NDArray[np.float32], labels: NDArray[np.int64], count: int) -> NDArray[np.bool_]:
    """For each image whether its label is among the `count` largest logits."""
    best = np.argsort(-logits, axis=1, kind="stable")[:, :count]
    result: NDArray[np.bool_] = (best == labels[:, None]).any(axis=1)
    return result


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Accuracy:
    """Top-1 and top-5 of reference and candidate on the same images, in percent.

    Attributes:
        images: How many.
        reference_top1, reference_top5, candidate_top1, candidate_top5: Percent.
        drop: reference_top1 - candidate_top1, in percentage points.
        drop_low, drop_high: 95 % interval of `drop`.
    """

    images: int
    reference_top1: float
    reference_top5: float
    candidate_top1: float
    candidate_top5: float
    drop: float
    drop_low: float
    drop_high: float


def accuracy(reference: NDArray[np.float32], candidate: NDArray[np.float32], labels: NDArray[np.int64]) -> Accuracy:
    """Compare the two on labelled images."""
    right, candidate_right = in_top(reference, labels, 1), in_top(candidate, labels, 1)
    low, high = drop_interval(right, candidate_right)
    top1, candidate_top1 = float(right.mean() * 100), float(candidate_right.mean() * 100)
    return Accuracy(
        images=len(labels),
        reference_top1=top1,
        reference_top5=float(in_top(reference, labels, 5).mean() * 100),
        candidate_top1=candidate_top1,
        candidate_top5=float(in_top(candidate, labels, 5).mean() * 100),
        drop=top1 - candidate_top1,
        drop_low=low,
        drop_high=high,
    )


def drop_interval(reference: NDArray[np.bool_], candidate: NDArray[np.bool_]) -> tuple[float, float]:
    """95 % interval of the drop in percentage points, for right/wrong of both on the same images.

    Newcombe's score interval for a difference of paired proportions (method 10 of Statistics in Medicine 17, 1998,
    2635-2650): it does not shrink to nothing where the two never disagree, as a bootstrap or a Wald interval does.
    """
    n = len(reference)
    both = int((reference & candidate).sum())
    only_reference, only_candidate = int((reference & ~candidate).sum()), int((~reference & candidate).sum())
    neither = n - both - only_reference - only_candidate
    first, second = (both + only_reference) / n, (both + only_candidate) / n
    low_first, high_first = wilson(both + only_reference, n)
    low_second, high_second = wilson(both + only_candidate, n)
    phi = _correlation(both, only_reference, only_candidate, neither)
    below, above = first - low_first, high_second - second
    low = math.sqrt(max(below**2 - 2 * phi * below * above + above**2, 0))
    upward, downward = high_first - first, second - low_second
    high = math.sqrt(max(upward**2 - 2 * phi * upward * downward + downward**2, 0))
    drop = first - second
    return (drop - low) * 100, (drop + high) * 100


def _correlation(both: int, only_first: int, only_second: int, neither: int) -> float:
    """The phi coefficient with Newcombe's correction for continuity."""
    product = (both + only_first) * (only_second + neither) * (both + only_second) * (only_first + neither)
    if product == 0:
        return 0.0
    cross = both * neither - only_first * only_second
    n = both + only_first + only_second + neither
    corrected = max(cross - n / 2, 0.0) if cross > 0 else float(cross)
    return corrected / math.sqrt(product)


def wilson(successes: int, n: int) -> tuple[float, float]:
    """95 % score interval of a proportion. Too small for a dependency of what runs on devices."""
    z = 1.959963984540054
    centre = (successes + z * z / 2) / (n + z * z)
    half = z * math.sqrt(successes * (n - successes) / n + z * z / 4) / (n + z * z)
    return max(centre - half, 0.0), min(centre + half, 1.0)
