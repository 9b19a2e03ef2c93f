"""Figures of one logit, of labels and of values: agreement, margin, mAP, F1, R² and errors. Pure arithmetic."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]


def as_two_classes(logit: Floats) -> Floats:
    """One logit [n, 1] as the scores of two classes, [n, 2]: the second wins where it is above 0."""
    return np.concatenate([np.zeros_like(logit), logit], axis=1)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Sides:
    """How often one logit has the sign of PyTorch's, and how near to 0 PyTorch's is where it has not.

    Attributes:
        agreement_percent: Pictures with the same sign.
        flipped: How many have the other.
        flipped_margin, flipped_largest: Median and largest |logit| of PyTorch on these; 0 where there are none.
        margin: Median |logit| of PyTorch on all pictures.
    """

    agreement_percent: float
    flipped: int
    flipped_margin: float
    flipped_largest: float
    margin: float


def sides(reference: Floats, candidate: Floats) -> Sides:
    """Compare the signs of one logit, float32 [n, 1] each."""
    flipped = (reference[:, 0] > 0) != (candidate[:, 0] > 0)
    distances = np.abs(reference[:, 0].astype(np.float64))
    far = distances[flipped]
    return Sides(
        agreement_percent=float(np.mean(~flipped) * 100),
        flipped=int(flipped.sum()),
        flipped_margin=float(np.median(far)) if len(far) else 0.0,
        flipped_largest=float(far.max(initial=0)),
        margin=float(np.median(distances)),
    )


def decisions(logits: Floats, threshold: float) -> NDArray[np.bool_]:
    """Whether the sigmoid of each of `logits` is at least `threshold`, above 0 and below 1."""
    result: NDArray[np.bool_] = logits >= math.log(threshold / (1 - threshold))
    return result


def label_agreement(reference: NDArray[np.bool_], candidate: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Percent of the pictures on which each label is decided alike: [labels] of [n, labels]."""
    result: NDArray[np.float64] = np.mean(reference == candidate, axis=0) * 100
    return result


def kept(reference: NDArray[np.bool_], candidate: NDArray[np.bool_], least: int) -> NDArray[np.float64]:
    """Percent of the reference's pictures with a label that have it still, [labels]; NaN where those are below `least`."""
    found = reference.sum(axis=0)
    shares = (reference & candidate).sum(axis=0) / np.maximum(found, 1) * 100
    return np.where(found >= least, shares, np.nan)


def average_precision(scores: Floats, truth: NDArray[np.bool_]) -> float:
    """Area under precision over recall of one label, [n] each; equal scores share a step. NaN without positives."""
    if not truth.any():
        return math.nan
    order = np.argsort(-scores, kind="stable")
    hits = np.cumsum(truth[order])
    # The last of each run of equal scores: no threshold parts them.
    ends = np.append(np.flatnonzero(np.diff(scores[order])), len(order) - 1)
    precision, recall = hits[ends] / (ends + 1), hits[ends] / hits[-1]
    return float(np.sum(np.diff(recall, prepend=0) * precision))


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class LabelScores:
    """How well labels are found, in percent; labels that no picture has are left out of the means over labels.

    Attributes:
        map: Mean over the labels of the average precision.
        f1_macro: Mean over the labels of F1 at the threshold.
        f1_micro: F1 over all decisions at once.
    """

    map: float
    f1_macro: float
    f1_micro: float


def label_scores(logits: Floats, truth: NDArray[np.bool_], threshold: float) -> LabelScores:
    """Compare float32 logits with what is true, [n, labels] each."""
    said, present = decisions(logits, threshold), truth.any(axis=0)
    right, wrong = (said & truth).sum(axis=0), (said != truth).sum(axis=0)
    f1 = 2 * right / np.maximum(2 * right + wrong, 1)
    precisions = [average_precision(logits[:, index], truth[:, index]) for index in np.flatnonzero(present)]
    return LabelScores(
        map=float(np.mean(precisions) * 100),
        f1_macro=float(np.mean(f1[present]) * 100),
        f1_micro=float(2 * right.sum() / max(2 * right.sum() + wrong.sum(), 1) * 100),
    )


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Errors:
    """How far one value is from its target, in the target's unit; R² has none."""

    r2: float
    mean_error: float
    largest_error: float


def errors(values: NDArray[np.float32], targets: NDArray[np.float32]) -> Errors:
    """Compare one value of each picture with its target, [n] each.

    R² of targets that are all the same is 1 where they are met and 0 where they are not.
    """
    wide = targets.astype(np.float64)
    difference = values - wide
    spread, missed = float(((wide - wide.mean()) ** 2).sum()), float((difference**2).sum())
    r2 = 1 - missed / spread if spread else float(missed == 0)
    return Errors(r2=r2, mean_error=float(np.abs(difference).mean()), largest_error=float(np.abs(difference).max()))


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Deviation:
    """How far one value is from PyTorch's, in its unit, and against the spread of PyTorch's over the pictures.

    Attributes:
        percent: RMS difference in percent of the standard deviation of PyTorch's values.
        mean_difference, largest_difference: Of the absolute values.
        spread: That standard deviation.
        r2: Of the candidate's values with PyTorch's as targets.
    """

    percent: float
    mean_difference: float
    largest_difference: float
    spread: float
    r2: float


def deviation(reference: NDArray[np.float32], candidate: NDArray[np.float32]) -> Deviation:
    """Compare one value of each picture, [n] each; where PyTorch's are all the same any difference is infinite."""
    wide, found = reference.astype(np.float64), errors(candidate, reference)
    rms, spread = float(np.sqrt(((candidate - wide) ** 2).mean())), float(wide.std())
    share = rms / spread if spread else (math.inf if rms else 0.0)
    return Deviation(
        percent=share * 100,
        mean_difference=found.mean_error,
        largest_difference=found.largest_error,
        spread=spread,
        r2=found.r2,
    )
