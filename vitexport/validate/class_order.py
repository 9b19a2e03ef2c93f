"""Find the order of the classes that explains a confusion matrix, where the given one does not.

A model whose classes are named in another order than it was trained with is right about its pictures and wrong about every
name. Which permutation fits best is an assignment problem. The best fit always looks better than the given order on the
pictures that it was fitted to, so it is judged on others: fitted on one half, tested on the other, in both directions.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from scipy.special import betainc

from vitexport.datasets import natural_order, string_order
from vitexport.report import Check, skipped
from vitexport.validate.metrics import wilson

NAME = "class_order"
# Of a sign test, in each of the two directions, divided by the number of hypotheses.
SIGNIFICANCE = 1e-3
# Of the moved classes' pictures, at least so many more must be right, and three times as many as in the given order.
LEAST_GAIN, LEAST_RATIO = 0.10, 3.0
# A model that prefers one class makes that class alone look moved; two are needed, and few may lose.
LARGEST_SHARE_OF_ONE, LARGEST_LOSS = 0.80, 0.25
# An order that has a name is told if it is right nearly as often as the one that fits best.
NAMED_SHARE = 0.95
# A tie goes to the given order.
GIVEN_BONUS = 1e-3
# From so many pictures a class on average, a swap of two classes shows.
ENOUGH_A_CLASS = 20
MOST_CLASSES = 5000
SHOWN_NAMES, SHOWN_MOVES = 12, 4

# What the model calls each class: index in the given order to index of the logit.
Order: TypeAlias = Mapping[int, int]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Answers:
    """What a model answered on labelled pictures.

    Attributes:
        predicted, labels: int64 [n] each.
        names: Class names in the given order, one for each logit.
        folders: Name of the class folder by index of the class, of those that have pictures.
    """

    predicted: NDArray[np.int64]
    labels: NDArray[np.int64]
    names: Sequence[str]
    folders: Mapping[int, str]

    def part(self, chosen: NDArray[np.bool_]) -> Answers:
        """Those of some pictures."""
        return dataclasses.replace(self, predicted=self.predicted[chosen], labels=self.labels[chosen])

    def top1(self, order: Order) -> float:
        """Share of right answers if the classes are in `order`."""
        return float((self.predicted == _apply(order, self.labels, len(self.names))).mean())


def class_order(answers: Answers) -> tuple[Check, tuple[str, ...] | None]:
    """Whether another order of the classes explains `answers` far better than the given one.

    Returns:
        The check, and all names in the order that fits better, if one does. Skipped where the pictures are too few, or the
        given order is not better than chance and no other is.
    """
    if len(answers.folders) > MOST_CLASSES:
        return skipped(
            NAME, f"looked for among up to {MOST_CLASSES} classes; the pictures show {len(answers.folders)}"
        ), None
    given: Order = {index: index for index in answers.folders}
    found = _named(answers) or _fitted(answers)
    if found is not None:
        order, title = found
        names = _reordered(answers.names, order)
        before, after = answers.top1(given), answers.top1(order)
        message = (
            f"PyTorch's top-1 is {100 * before:.2f} % with the classes in the given order and {100 * after:.2f} % in "
            f"{title}: {_told(answers.names, names)}. If the model was trained so, build with {_cure(title)}"
        )
        return Check(
            name=NAME, status="failed", message=message, measured=100 * before, limit=100 * after, unit="percent"
        ), names
    count, classes = len(answers.labels), len(answers.names)
    if wilson(round(answers.top1(given) * count), count)[0] <= 1 / classes:
        return skipped(NAME, "PyTorch's answers are no better than chance in the given order, and no other order fits"), None
    a_class = count / len(answers.folders)
    if a_class < ENOUGH_A_CLASS:
        return skipped(
            NAME,
            f"no other order of the classes fits better, but {a_class:.0f} pictures a class are too few to see two that are "
            f"swapped; {ENOUGH_A_CLASS} show it",
        ), None
    message = f"no other order of the {classes} classes explains PyTorch's answers better ({count} pictures)"
    return Check(name=NAME, status="passed", message=message), None


def sign_test(gained: int, lost: int) -> float:
    """One-sided exact p-value that `gained` pictures or more of both would be gained if each were a coin's toss.

    Of right and wrong answers to the same pictures this is McNemar's exact test.
    """
    return float(betainc(gained, lost + 1, 0.5)) if gained else 1.0


def _named(answers: Answers) -> tuple[Order, str] | None:
    """The order in which a training library would sort the folders, if it is not the given one and explains more."""
    if len(answers.folders) != len(answers.names):
        return None
    folders = list(answers.folders.values())
    hypotheses = {
        "natural order of the class folders": natural_order(folders),
        "string order of the class folders": string_order(folders),
    }
    for title, ordered in hypotheses.items():
        places = {folder: place for place, folder in enumerate(ordered)}
        order = {index: places[folder] for index, folder in answers.folders.items()}
        moved = _moved(order)
        explains = bool(moved) and _explains(answers, order, moved, SIGNIFICANCE / len(hypotheses))
        # Another order may fit still better: then this one is right about some classes only.
        if explains and answers.top1(order) >= NAMED_SHARE * answers.top1(_fit(answers)):
            return order, title
    return None


def _fitted(answers: Answers) -> tuple[Order, str] | None:
    """The order that fits best, if what each half of the pictures suggests is confirmed by the other half."""
    halves = _halves(answers.labels)
    confirmed = []
    for half in (halves, ~halves):
        order = _fit(answers.part(half))
        groups = _groups(order)
        rest = answers.part(~half)
        good = [group for group in groups if _explains(rest, order, group, SIGNIFICANCE / len(groups))]
        confirmed.append(frozenset().union(*good))
    if not confirmed[0] & confirmed[1]:
        return None
    order = _fit(answers)
    return order, "the order that fits"


def _fit(answers: Answers) -> Order:
    """The assignment of classes to logits with the most right answers, every class counting the same."""
    classes = np.asarray(sorted(answers.folders))
    rows = np.searchsorted(classes, answers.labels)
    rates = np.zeros((len(classes), len(answers.names)))
    np.add.at(rates, (rows, answers.predicted), 1.0)
    rates /= np.maximum(rates.sum(axis=1, keepdims=True), 1.0)
    rates[np.arange(len(classes)), classes] += GIVEN_BONUS
    assigned = linear_sum_assignment(rates, maximize=True)[1]
    return {int(index): int(logit) for index, logit in zip(classes, assigned, strict=True)}


def _halves(labels: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Every other picture of each class."""
    chosen = np.zeros(len(labels), np.bool_)
    for index in np.unique(labels):
        chosen[np.flatnonzero(labels == index)[::2]] = True
    return chosen


def _moved(order: Order) -> frozenset[int]:
    return frozenset(index for index, logit in order.items() if index != logit)


def _groups(order: Order) -> list[frozenset[int]]:
    """Moved classes that take one another's places: cycles, and chains where a class has no pictures."""
    moved = _moved(order)
    before = {logit: index for index, logit in order.items()}
    left, groups = set(moved), []
    while left:
        todo, group = [left.pop()], set()
        while todo:
            index = todo.pop()
            group.add(index)
            todo += [near for near in (order[index], before.get(index)) if near in moved and near not in group]
        left -= group
        groups.append(frozenset(group))
    return groups


def _explains(answers: Answers, order: Order, group: frozenset[int], significance: float) -> bool:
    """Whether `order` names the pictures of the classes in `group` far better than the given order."""
    part = answers.part(np.isin(answers.labels, list(group)))
    if not len(part.labels):
        return False
    now = part.predicted == part.labels
    then = part.predicted == _apply(order, part.labels, len(answers.names))
    gained, lost = int((then & ~now).sum()), int((now & ~then).sum())
    difference = then.astype(np.float64) - now
    gains = [float(difference[part.labels == index].mean()) for index in np.unique(part.labels)]
    won, missed = sum(gain for gain in gains if gain > 0), -sum(gain for gain in gains if gain < 0)
    return (
        sign_test(gained, lost) <= significance
        and difference.mean() >= LEAST_GAIN
        and then.sum() >= LEAST_RATIO * now.sum()
        and max(gains) <= LARGEST_SHARE_OF_ONE * won
        and missed <= LARGEST_LOSS * won
    )


def _apply(order: Order, labels: NDArray[np.int64], classes: int) -> NDArray[np.int64]:
    logits = np.arange(classes)
    for index, logit in order.items():
        logits[index] = logit
    result: NDArray[np.int64] = logits[labels]
    return result


def _reordered(names: Sequence[str], order: Order) -> tuple[str, ...]:
    """All names by logit; those of classes without pictures stay where they are, or go where there is room."""
    placed = {logit: index for index, logit in order.items()}
    left = [index for index in range(len(names)) if index not in order]
    for logit in [logit for logit in left if logit not in placed]:
        placed[logit] = logit
        left.remove(logit)
    room = [logit for logit in range(len(names)) if logit not in placed]
    placed.update(zip(room, left, strict=True))
    return tuple(names[placed[logit]] for logit in range(len(names)))


def _told(given: Sequence[str], fitting: Sequence[str]) -> str:
    changed = [index for index, (one, other) in enumerate(zip(given, fitting, strict=True)) if one != other]
    if len(changed) <= SHOWN_MOVES < len(given):
        return ", ".join(f"logit {index} is {fitting[index]!r}, not {given[index]!r}" for index in changed)
    more = f", … ({len(fitting)} names, all in report.json)" if len(fitting) > SHOWN_NAMES else ""
    return ", ".join(fitting[:SHOWN_NAMES]) + more


def _cure(title: str) -> str:
    word = title.partition(" ")[0]
    if word in ("natural", "string"):
        return f"`class_order` {word} where no labels are known, or `labels` in this order in the place of those given"
    return "`labels` in this order, in the place of those given"
