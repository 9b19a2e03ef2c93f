"""Try the usual other preprocessings on a few labelled pictures, and name the one that is clearly better.

A checkpoint does not always say how its pictures were prepared. The wrong mean, crop or channel order costs a few points or
most of them, and PyTorch, which everything else is compared with, loses the same.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from vitexport.datasets import ImageSet
from vitexport.preprocess import PreprocessSpec, normalize
from vitexport.report import Check, skipped
from vitexport.validate.class_order import sign_test

NAME = "preprocessing_choice"
FIRST_PICTURES = 200
# Where the first ones leave it open, as many as the confidence of a published top-1 takes.
MOST_PICTURES = 2000
FEWEST_PICTURES = 32
BATCH = 16
# What is not ahead after so many pictures is not tried on more.
SCREENED = 48
# Of McNemar's exact test, divided by the number of alternatives that differ: from the first the check fails, from the second
# the alternative is too likely for the check to pass.
SIGNIFICANCE = 1e-3
SUSPICION = 0.05
LEAST_POINTS = 3.0
Round: TypeAlias = Literal["first", "rest"]

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
CROPS = (0.875, 0.9, 0.95, 1.0)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Alternative:
    """Another preprocessing.

    Attributes:
        name: For the message.
        cure: What to do if it is the right one.
        spec: The preprocessing.
        reverses: Whether the channels are fed in the order blue, green, red.
    """

    name: str
    cure: str
    spec: PreprocessSpec
    reverses: bool = False


@dataclasses.dataclass(slots=True, kw_only=True)
class _Tally:
    """Right answers of one alternative, and of the preprocessing that was asked for on the same pictures."""

    alternative: Alternative
    seen: int = 0
    right: int = 0
    asked_right: int = 0
    gained: int = 0
    lost: int = 0
    differs: bool = False

    def add(self, right: NDArray[np.bool_], asked: NDArray[np.bool_]) -> None:
        self.seen += len(right)
        self.right += int(right.sum())
        self.asked_right += int(asked.sum())
        self.gained += int((right & ~asked).sum())
        self.lost += int((asked & ~right).sum())

    @property
    def points(self) -> float:
        """How much better it is, in percentage points."""
        return 100 * (self.right - self.asked_right) / self.seen if self.seen else 0.0

    @property
    def p_value(self) -> float:
        """How likely chance alone puts it so far ahead."""
        return sign_test(self.gained, self.lost)

    def is_ahead(self, significance: float) -> bool:
        """Whether it is better by enough points, and by chance no more often than `significance`."""
        return self.differs and self.points >= LEAST_POINTS and self.p_value <= significance

    def figures(self) -> str:
        """Both top-1, for the message."""
        top1, asked = (100 * right / self.seen for right in (self.right, self.asked_right))
        return f"{top1:.1f} % with {self.alternative.name} and {asked:.1f} % as asked for"

    @property
    def is_hopeless(self) -> bool:
        return (self.seen >= BATCH and not self.differs) or (self.seen >= SCREENED and self.gained <= self.lost)


def usual_alternatives(spec: PreprocessSpec) -> list[Alternative]:
    """What else the preprocessing of a Vision Transformer may be: one setting changed at a time."""
    found = [*_of_values(spec), *_of_geometry(spec)]
    return [entry for entry in found if entry.reverses or entry.spec != spec]


def _of_values(spec: PreprocessSpec) -> list[Alternative]:
    channels = len(spec.mean)
    known: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
        "mean and std of 0.5": ((0.5,) * channels, (0.5,) * channels),
        "values of 0 to 1": ((0.0,) * channels, (1.0,) * channels),
    }
    if channels == 3:
        known = {"ImageNet's mean and std": IMAGENET, **known, "CLIP's mean and std": CLIP}
    found = [
        Alternative(
            name=name,
            cure=f"`mean={_numbers(mean)}` `std={_numbers(std)}`",
            spec=_with_values(spec, mean, std),
        )
        for name, (mean, std) in known.items()
        if not (np.allclose(mean, spec.mean, atol=1e-3) and np.allclose(std, spec.std, atol=1e-3))
    ]
    if channels == 3:
        cure = (
            "weights whose first layer takes red, green, blue, as vitexport feeds them: reverse its axis of input channels"
        )
        found.append(Alternative(name="channels in the order BGR", cure=cure, spec=spec, reverses=True))
    return found


def _with_values(spec: PreprocessSpec, mean: tuple[float, ...], std: tuple[float, ...]) -> PreprocessSpec:
    changes: dict[str, Any] = {"mean": mean, "std": std}
    return dataclasses.replace(spec, **changes)


def _of_geometry(spec: PreprocessSpec) -> list[Alternative]:
    found = [
        Alternative(name=f"crop_pct {crop:g}", cure=f"`crop_pct={crop:g}`", spec=dataclasses.replace(spec, crop_pct=crop))
        for crop in CROPS
    ]
    if spec.crop_mode != "squash":
        squashed = dataclasses.replace(spec, crop_mode="squash", crop_pct=1.0)
        found.append(Alternative(name="squashed pictures", cure="`crop_mode=squash` `crop_pct=1`", spec=squashed))
    else:
        whole = dataclasses.replace(spec, crop_mode="center")
        found.append(Alternative(name="a centre crop", cure="`crop_mode=center`", spec=whole))
    other = {"bicubic": "bilinear"}.get(spec.interpolation, "bicubic")
    found.append(
        Alternative(
            name=f"{other} resizing", cure=f"`interpolation={other}`", spec=dataclasses.replace(spec, interpolation=other)
        )
    )
    return found


def _numbers(values: Sequence[float]) -> str:
    same = len(set(values)) == 1
    return ",".join(f"{value:g}" for value in (values[:1] if same else values))


def try_alternatives(
    images: ImageSet,
    spec: PreprocessSpec,
    predicted: NDArray[np.int64],
    run: Callable[[NDArray[np.float32]], NDArray[np.int64]],
    has_time: Callable[[Round], bool],
) -> tuple[Check, dict[str, dict[str, float]]]:
    """Whether one of the usual alternatives is clearly better than `spec`.

    Args:
        images: Labelled pictures.
        spec: The preprocessing that was asked for.
        predicted: PyTorch's class of each picture with it, int64 [n].
        run: PyTorch's class of each of a batch of preprocessed pictures.
        has_time: Asked before every batch of the first pictures, and of the rest, on which only what is ahead is tried; when
            there is none left, what was seen is judged.

    Returns:
        The check; and top-1 in percent of each alternative with that of `spec` on the same pictures.

    Raises:
        InputError: A picture cannot be read any more.
    """
    labels = images.labels
    if labels is None or len(labels) < FEWEST_PICTURES:
        return skipped(NAME, f"fewer than {FEWEST_PICTURES} labelled pictures tell too little of another preprocessing"), {}
    chosen = stratified(labels, MOST_PICTURES)
    first, rest = chosen[:FIRST_PICTURES], chosen[FIRST_PICTURES:]
    right = predicted == labels
    tallies = [_Tally(alternative=entry) for entry in usual_alternatives(spec)]
    if sign_test(int((~right[first]).sum()), 0) > SIGNIFICANCE / len(tallies):
        return _no_room(int((~right[first]).sum()), len(first)), {}

    def add(which: Round, indices: NDArray[np.int64], asked: Sequence[_Tally]) -> bool:
        for start in range(0, len(indices), BATCH):
            part = indices[start : start + BATCH]
            plain = images.pixels(spec, part.tolist())
            for tally in [entry for entry in asked if not entry.is_hopeless]:
                if not has_time(which):
                    return False
                pixels = _pixels(images, tally.alternative, spec, part, plain)
                inputs = normalize(pixels, tally.alternative.spec)
                tally.differs |= not np.array_equal(inputs, normalize(plain, spec))
                tally.add(run(inputs) == labels[part], right[part])
        return True

    is_complete = add("first", first, tallies)
    if not any(tally.is_ahead(SIGNIFICANCE / len(tallies)) for tally in tallies):
        # One that may be better is worth all pictures and more time: the report says no without them, or says nothing.
        add("rest", rest, [tally for tally in tallies if tally.is_ahead(SUSPICION)])
    return _verdict(tallies, spec, len(first), is_complete=is_complete), _figures(tallies)


def _pixels(
    images: ImageSet, alternative: Alternative, spec: PreprocessSpec, part: NDArray[np.int64], asked: NDArray[np.uint8]
) -> NDArray[np.uint8]:
    same = dataclasses.replace(alternative.spec, mean=spec.mean, std=spec.std) == spec
    pixels = asked if same else images.pixels(alternative.spec, part.tolist())
    return pixels[..., ::-1] if alternative.reverses else pixels


def _no_room(wrong: int, count: int) -> Check:
    message = (
        f"PyTorch is wrong on {wrong} of {count} labelled pictures, too few for another preprocessing to be clearly better"
    )
    if count < FIRST_PICTURES // 2:
        return skipped(NAME, message)
    return Check(name=NAME, status="passed", message=message)


def _verdict(tallies: Sequence[_Tally], spec: PreprocessSpec, count: int, *, is_complete: bool) -> Check:
    tried = [tally for tally in tallies if tally.differs]
    best = max(tried, key=lambda tally: (tally.points, -tally.p_value), default=None)
    if better := [tally for tally in tried if tally.is_ahead(SIGNIFICANCE / len(tried))]:
        best = max(better, key=lambda tally: tally.points)
        message = (
            f"PyTorch's top-1 is {best.figures()} ({_described(spec)}) on the same {best.seen} pictures; "
            f"if the model was trained so, build with {best.alternative.cure}"
        )
        return Check(name=NAME, status="failed", message=message, measured=best.points, limit=LEAST_POINTS, unit="points")
    if likely := [tally for tally in tried if tally.is_ahead(SUSPICION / len(tried))]:
        best = min(likely, key=lambda tally: tally.p_value)
        return skipped(
            NAME,
            f"not settled: PyTorch's top-1 is {best.figures()} ({_described(spec)}) on the same {best.seen} pictures, which "
            f"chance alone makes in 1 of {1 / best.p_value:.0f} trials; if the model was trained so, build with "
            f"{best.alternative.cure}, and if you do not know, give more labelled pictures",
        )
    unsettled = [tally for tally in tallies if not tally.is_hopeless and tally.seen < min(count, FIRST_PICTURES // 2)]
    if unsettled and not is_complete:
        return skipped(
            NAME,
            f"the time was up before {len(unsettled)} of {len(tallies)} other preprocessings were tried on enough pictures",
        )
    message = f"none of {len(tried)} other preprocessings is clearly better on {count} labelled pictures"
    if best is not None and best.points > 0:
        message += f"; the best of them: {best.figures()}, {best.seen} pictures"
    return Check(name=NAME, status="passed", message=message)


def _described(spec: PreprocessSpec) -> str:
    values = f"mean {_numbers(spec.mean)}, std {_numbers(spec.std)}"
    return f"{values}, crop_pct {spec.crop_pct:g}, {spec.crop_mode}, {spec.interpolation}"


def _figures(tallies: Sequence[_Tally]) -> dict[str, dict[str, float]]:
    return {
        tally.alternative.name: {
            "images": tally.seen,
            "top1": 100 * tally.right / tally.seen,
            "asked_top1": 100 * tally.asked_right / tally.seen,
        }
        for tally in tallies
        if tally.seen and tally.differs
    }


def stratified(labels: NDArray[np.int64], most: int) -> NDArray[np.int64]:
    """Indices of up to `most` pictures, the same every time: one of each class, then a second of each, and so on."""
    shuffled = np.random.default_rng(0).permutation(len(labels))
    seen: dict[int, int] = {}
    ranks = np.empty(len(labels), np.int64)
    for place, index in enumerate(shuffled):
        label = int(labels[index])
        ranks[place] = seen[label] = seen.get(label, -1) + 1
    result: NDArray[np.int64] = shuffled[np.argsort(ranks, kind="stable")][:most]
    return result
