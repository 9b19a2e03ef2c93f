"""Ask of a classifier what no comparison with PyTorch can answer: whether it can be right at all.

Every other check compares an artefact with PyTorch as vitexport loaded it. A model that was loaded wrongly, fed wrongly or
whose classes are named in the wrong order agrees with itself. Needs NumPy only, since devices ask the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from vitexport.artifacts import OutputSpec
from vitexport.errors import UsageError
from vitexport.preprocess import PreprocessSpec
from vitexport.report import Check, skipped
from vitexport.validate.metrics import in_top, wilson

NAME, EXPECTED = "plausibility", "expected_top1"
CAUSES = (
    "usual causes: wrong class order or labels; wrong preprocessing (mean and std, crop, channel order); wrong or partly "
    "loaded weights"
)
# Near chance: a model that gets this share of the way from guessing to always right can be excluded with 95 %.
WORKING_SHARE = 0.25
# One class for nearly all: of pictures that are known to show several, and of folders that may all show the same.
ONE_CLASS, ONE_CLASS_UNLABELLED = 0.95, 0.99
FEWEST_PICTURES = 32
FEWEST_CLASSES = 3
# Pictures are called of several kinds where none has more than this share.
LARGEST_KIND = 0.80
# In levels of 255, and in units of the normalized input.
LEAST_LEVELS = 0.5
LEAST_SPREAD, LARGEST_SPREAD = 0.01, 255.0
# In percentage points, wherever the 95 % interval is narrower.
EXPECTED_TOLERANCE = 1.0


def classifier_output(specs: Sequence[OutputSpec]) -> OutputSpec | None:
    """The output that names one of two or more classes; None without one."""
    return next((spec for spec in specs if spec.names_classes and spec.shape[0] > 1), None)


def untrained(weights: object) -> str | None:
    """Why nothing absolute is asked of `weights` (`ModelSource.weights`); None where they were trained."""
    if str(weights).startswith("random:"):
        return f"the weights are untrained ({weights}), so there is nothing to be right about"
    return None


def labelled(scores: NDArray[np.float32], labels: NDArray[np.int64], whose: str) -> Check:
    """Whether the classes that are named are better than a guess, and more than one.

    Args:
        scores: float32 [n, classes].
        labels: int64 [n].
        whose: For the message: ``PyTorch's``, or what computed `scores`.

    Returns:
        Failed at or near chance, or if nearly all pictures of several classes get one class; skipped where the pictures are
        too few to tell chance from a model that works.
    """
    count, classes = scores.shape
    predicted = scores.argmax(axis=1)
    hits = int((predicted == labels).sum())
    chance = 1 / classes
    low, high = wilson(hits, count)
    told = (
        f"{whose} top-1 is {100 * hits / count:.2f} % on {count} labelled pictures; a guess among {classes} is right on "
        f"{100 * chance:.2f} %"
    )
    if share := _one_class(predicted, labels, ONE_CLASS, classes):
        message = (
            f"{whose} answer is class {_commonest(predicted)} for {100 * share:.1f} % of {count} pictures of several classes"
        )
        return Check(name=NAME, status="failed", message=f"{message}; {CAUSES}")
    if low > chance:
        return Check(
            name=NAME, status="passed", message=told, measured=100 * hits / count, limit=100 * chance, unit="percent"
        )
    if high < chance + WORKING_SHARE * (1 - chance):
        return Check(
            name=NAME,
            status="failed",
            message=f"{told}; {CAUSES}",
            measured=100 * hits / count,
            limit=100 * chance,
            unit="percent",
        )
    return skipped(NAME, f"{told}: too few pictures to tell the two apart")


def unlabelled(scores: NDArray[np.float32], folders: Sequence[str], whose: str) -> Check:
    """Whether nearly all pictures of several folders get one class; that the classes are right is not asked.

    Args:
        scores: float32 [n, classes].
        folders: Name of the sub-folder of each picture.
        whose: As for `labelled`.
    """
    predicted = scores.argmax(axis=1)
    _, kinds = np.unique(np.asarray(folders), return_inverse=True)
    if share := _one_class(predicted, kinds, ONE_CLASS_UNLABELLED, scores.shape[1]):
        message = (
            f"{whose} answer is class {_commonest(predicted)} for {100 * share:.1f} % of {len(predicted)} pictures from "
            f"{len(set(folders))} folders"
        )
        return Check(name=NAME, status="failed", message=f"{message}; {CAUSES}")
    seen = len(np.unique(predicted))
    return skipped(
        NAME,
        f"{whose} answers are {seen} different classes on {len(predicted)} pictures; whether they are right, only labelled "
        "pictures tell (`data`)",
    )


def _one_class(predicted: NDArray[np.int64], kinds: NDArray[np.int64], least: float, classes: int) -> float | None:
    """Share of the commonest answer, if that is nearly all of them though the pictures are of several kinds."""
    if len(predicted) < FEWEST_PICTURES or classes < FEWEST_CLASSES:
        return None
    share = float(np.bincount(predicted).max() / len(predicted))
    largest_kind = float(np.bincount(kinds).max() / len(kinds))
    return share if share >= least and largest_kind <= LARGEST_KIND else None


def _commonest(predicted: NDArray[np.int64]) -> int:
    return int(np.bincount(predicted).argmax())


def constant_input(images: NDArray[np.float32], spec: PreprocessSpec) -> Check | None:
    """A failed check if the model is fed nearly the same values whatever the picture shows; None if it is not.

    Args:
        images: Preprocessed pictures that are not copies of one another, float32 [n, channels, height, width].
        spec: What preprocessed them.
    """
    levels = images * np.asarray(spec.std, np.float32).reshape(-1, 1, 1) * 255
    within = float(np.median(levels.std(axis=(1, 2, 3))))
    spread = float(images.std())
    if within < LEAST_LEVELS:
        what = f"half of the preprocessed pictures are of one colour (they vary by {within:.2f} levels of 255)"
    elif len(images) >= FEWEST_PICTURES // 4 and (between := float(levels.std(axis=0).mean())) < LEAST_LEVELS:
        what = f"{len(images)} preprocessed pictures are nearly the same (they differ by {between:.2f} levels of 255)"
    elif not LEAST_SPREAD <= spread <= LARGEST_SPREAD:
        what = f"the preprocessed values have a standard deviation of {spread:.3g} with mean {spec.mean} and std {spec.std}"
    else:
        return None
    return Check(name=NAME, status="failed", message=f"{what}, so the model cannot tell pictures apart; {CAUSES}")


def check_expectation(percent: float | None, *, labelled: bool) -> None:
    """Refuse an expectation that cannot be judged.

    Raises:
        UsageError: It is no share in percent, or there are no labelled pictures.
    """
    if percent is None:
        return
    if not 0 < percent <= 100:
        raise UsageError(f"`expect_top1` is {percent:g}; it must be a top-1 above 0 and up to 100 percent.")
    if percent < 1:
        raise UsageError(f"`expect_top1` is {percent:g} percent; for a share of {percent:g} give {100 * percent:g}.")
    if not labelled:
        raise UsageError("`expect_top1` needs labelled pictures: give `data` with one folder per class.")


def expected_top1(percent: float, measured: Mapping[str, float], count: int) -> Check:
    """Whether every top-1 of `measured` reaches what the user knows of the model.

    Args:
        percent: Known top-1.
        measured: Top-1 in percent, by what computed it.
        count: Of labelled pictures.

    Returns:
        Failed if one of `measured` is lower by more than `EXPECTED_TOLERANCE` points and its 95 % interval is lower too.
    """
    worst = min(measured.values())
    _, high = wilson(round(worst * count / 100), count)
    tolerance = max(EXPECTED_TOLERANCE, 100 * high - worst)
    told = ", ".join(f"{name} {value:.2f} %" for name, value in measured.items())
    message = f"top-1 {told} on {count} pictures; expected {percent:.2f} % (up to {tolerance:.2f} points less pass)"
    is_reached = worst >= percent - tolerance
    return Check(
        name=EXPECTED,
        status="passed" if is_reached else "failed",
        message=message if is_reached else f"{message}; {CAUSES}",
        measured=worst,
        limit=percent - tolerance,
        unit="percent",
    )


def in_percent(scores: NDArray[np.float32], labels: NDArray[np.int64]) -> float:
    """Top-1 in percent."""
    return float(in_top(scores, labels, 1).mean() * 100)
