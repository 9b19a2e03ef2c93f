"""What is asked of a classifier itself, at its limits: chance, one class, a constant input, other preprocessings."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path

import numpy as np
import pytest
from conftest import VALIDATION
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from scipy.stats import binomtest
from sklearn.metrics import confusion_matrix

from vitexport.artifacts import OutputSpec
from vitexport.datasets import ImageSet, open_labelled
from vitexport.errors import UsageError
from vitexport.preprocess import PreprocessSpec, normalize
from vitexport.report import Check
from vitexport.validate import alternatives, class_order, plausibility

SPEC = PreprocessSpec(
    height=8, width=8, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), interpolation="bicubic", crop_pct=1.0, crop_mode="center"
)


def scores(predicted: NDArray[np.int64], classes: int) -> NDArray[np.float32]:
    return np.eye(classes, dtype=np.float32)[predicted]


def answered(hits: int, count: int, classes: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """`hits` right answers of `count`; the wrong ones are spread over the other classes."""
    labels = np.arange(count) % classes
    wrong = (labels + 1 + np.arange(count) // classes % (classes - 1)) % classes
    return scores(np.where(np.arange(count) < hits, labels, wrong), classes), labels


@pytest.mark.parametrize(
    ("hits", "count", "classes", "status"),
    [
        (40, 400, 10, "failed"),
        (50, 400, 10, "failed"),
        (64, 400, 10, "passed"),
        (396, 400, 10, "passed"),
        (0, 20, 1000, "failed"),
        (1, 5, 10, "skipped"),
        (0, 10, 10, "failed"),
        (3, 3, 10, "passed"),
        (50, 100, 2, "failed"),
        (58, 100, 2, "skipped"),
        (70, 100, 2, "passed"),
        (5, 100, 2, "failed"),
    ],
)
def test_top1_is_compared_with_chance(hits: int, count: int, classes: int, status: str) -> None:
    check = plausibility.labelled(*answered(hits, count, classes), "PyTorch's")
    assert check.status == status
    assert f"top-1 is {100 * (hits / count):.2f} % on {count} labelled pictures" in check.message
    assert ("wrong class order or labels" in check.message) == (status == "failed")


@pytest.mark.parametrize(
    ("share", "kinds", "classes", "status"),
    [(1.0, 5, 5, "failed"), (0.96, 5, 5, "failed"), (0.8, 5, 5, "passed"), (1.0, 2, 2, "failed"), (1.0, 1, 5, "passed")],
)
def test_one_class_for_pictures_of_several_is_no_answer(share: float, kinds: int, classes: int, status: str) -> None:
    labels = np.arange(200) % kinds
    predicted = np.where(np.arange(200) < 200 * share, 0, labels)
    assert plausibility.labelled(scores(predicted, classes), labels, "PyTorch's").status == status


@pytest.mark.parametrize(
    ("count", "folders", "classes", "status"),
    [(64, 4, 5, "failed"), (31, 4, 5, "skipped"), (64, 1, 5, "skipped"), (64, 4, 2, "skipped")],
)
def test_without_labels_one_class_for_all_folders_fails_and_nothing_passes(
    count: int, folders: int, classes: int, status: str
) -> None:
    names = [f"folder {index % folders}" for index in range(count)]
    constant = scores(np.zeros(count, np.int64), classes)
    assert plausibility.unlabelled(constant, names, "PyTorch's").status == status
    several = scores(np.arange(count) % classes, classes)
    assert plausibility.unlabelled(several, names, "PyTorch's").status == "skipped"


def test_a_constant_input_is_seen_and_dark_pictures_are_not_one() -> None:
    random = np.random.default_rng(0)
    photographs = random.integers(0, 256, (16, 8, 8, 3)).astype(np.uint8)
    assert plausibility.constant_input(normalize(photographs, SPEC), SPEC) is None
    dark = (photographs // 32).astype(np.uint8)
    assert plausibility.constant_input(normalize(dark, SPEC), SPEC) is None
    masks = ((photographs > 127) * 255).astype(np.uint8)
    assert plausibility.constant_input(normalize(masks, SPEC), SPEC) is None
    black = (photographs // 255).astype(np.uint8)
    same = np.repeat(photographs[:1], 16, axis=0)
    for pixels, told in ((black, "of one colour"), (same, "nearly the same")):
        check = plausibility.constant_input(normalize(pixels, SPEC), SPEC)
        assert check is not None
        assert check.status == "failed"
        assert told in check.message


@pytest.mark.parametrize(
    ("expected", "measured", "count", "status"),
    [
        (90.0, 90.0, 50_000, "passed"),
        (90.0, 89.1, 50_000, "passed"),
        (90.0, 88.9, 50_000, "failed"),
        (90.0, 95.0, 50_000, "passed"),
        (98.9, 97.0, 100, "passed"),
        (99.0, 80.0, 100, "failed"),
    ],
)
def test_an_expectation_holds_to_a_point_or_the_interval(expected: float, measured: float, count: int, status: str) -> None:
    for results in ({"PyTorch": measured, "what ships": 100.0}, {"PyTorch": 100.0, "what ships": measured}):
        assert plausibility.expected_top1(expected, results, count).status == status


@pytest.mark.parametrize(
    ("percent", "message"),
    [
        (0.0, "above 0 and up to 100"),
        (101.0, "above 0 and up to 100"),
        (float("nan"), "above 0 and up to 100"),
        (0.83, "for a share of 0.83 give 83"),
    ],
)
def test_an_expectation_that_is_no_percentage_is_refused(percent: float, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        plausibility.check_expectation(percent, labelled=True)


def test_an_expectation_without_labelled_pictures_is_refused() -> None:
    plausibility.check_expectation(None, labelled=False)
    with pytest.raises(UsageError, match="give `data`"):
        plausibility.check_expectation(83.0, labelled=False)


def test_regression_embeddings_and_single_logits_are_not_asked() -> None:
    assert plausibility.classifier_output([OutputSpec(name="logits", kind="logits", shape=(1,))]) is None
    assert plausibility.classifier_output([OutputSpec(name="embedding", kind="embedding", shape=(8,))]) is None


def test_the_sign_test_is_scipys() -> None:
    for gained, lost in ((0, 0), (0, 5), (1, 0), (14, 0), (20, 3), (300, 250)):
        wanted = binomtest(gained, gained + lost, alternative="greater").pvalue if gained + lost else 1.0
        assert class_order.sign_test(gained, lost) == pytest.approx(wanted)


def test_the_order_that_fits_maximizes_the_trace_of_the_confusion_matrix() -> None:
    random = np.random.default_rng(1)
    shuffle = np.array([3, 0, 1, 2, 5, 4])
    labels = np.repeat(np.arange(6), 40)
    predicted = np.where(random.random(240) < 0.8, shuffle[labels], random.integers(0, 6, 240))
    names = list("abcdef")
    answers = class_order.Answers(predicted=predicted, labels=labels, names=names, folders=dict(enumerate(names)))
    check, fitting = class_order.class_order(answers)
    matrix = confusion_matrix(labels, predicted)
    rows, columns = linear_sum_assignment(matrix, maximize=True)
    best = max(sum(matrix[row, column] for row, column in enumerate(order)) for order in itertools.permutations(range(6)))
    assert matrix[rows, columns].sum() == best
    assert check.limit == pytest.approx(100 * best / 240)
    assert check.measured == pytest.approx(100 * np.trace(matrix) / 240)
    assert fitting is not None
    assert [fitting[logit] for logit in columns] == names


def test_the_names_of_a_known_order_are_told() -> None:
    names = sorted(str(index) for index in range(1, 13))
    labels = np.repeat(np.arange(12), 4)
    predicted = np.array([int(names[label]) - 1 for label in labels])
    answers = class_order.Answers(predicted=predicted, labels=labels, names=names, folders=dict(enumerate(names)))
    check, fitting = class_order.class_order(answers)
    assert check.status == "failed"
    assert "100.00 % in natural order of the class folders: 1, 2, 3, 4, 5" in check.message
    assert "`class_order` natural" in check.message
    assert fitting == tuple(str(index) for index in range(1, 13))


def test_too_few_pictures_and_too_many_classes_are_not_passed() -> None:
    labels = np.arange(30) % 10
    names = list("abcdefghij")
    few = class_order.Answers(predicted=labels, labels=labels, names=names, folders=dict(enumerate(names)))
    assert class_order.class_order(few)[0].status == "skipped"
    many = [f"{index:05}" for index in range(class_order.MOST_CLASSES + 1)]
    wide = class_order.Answers(
        predicted=np.arange(len(many)), labels=np.arange(len(many)), names=many, folders=dict(enumerate(many))
    )
    assert class_order.class_order(wide)[0].status == "skipped"


@pytest.fixture(scope="module")
def digits() -> ImageSet:
    return open_labelled(VALIDATION, labels=None, synsets=None, classes=10)


def test_the_subset_has_every_class_as_often_and_is_the_same_every_time(digits: ImageSet) -> None:
    assert digits.labels is not None
    chosen = alternatives.stratified(digits.labels, 55)
    assert sorted(np.bincount(digits.labels[chosen])) == [5] * 5 + [6] * 5
    assert chosen.tolist() == alternatives.stratified(digits.labels, 55).tolist()
    assert len(set(chosen.tolist())) == 55


def test_when_time_is_up_what_was_not_settled_is_skipped(digits: ImageSet) -> None:
    assert digits.labels is not None
    turns = iter(range(14))

    def answer(batch: NDArray[np.float32]) -> NDArray[np.int64]:
        return np.full(len(batch), 3)

    check, tried = alternatives.try_alternatives(
        digits, SPEC, np.full(len(digits.files), 3), answer, lambda _: next(turns, None) is not None
    )
    assert check.status == "skipped"
    assert "the time was up" in check.message
    assert tried


def crop_tried(images: ImageSet, gained: NDArray[np.bool_], lost: NDArray[np.bool_]) -> Check:
    """What is found where a crop of 0.9 was asked for, and a crop of 1 answers otherwise on the pictures named so."""
    assert images.labels is not None
    spec = dataclasses.replace(SPEC, crop_pct=0.9, height=32, width=32)
    pixels = images.pixels(dataclasses.replace(spec, crop_pct=1.0), range(len(images.files)))
    places = {normalize(pixels[index], spec).tobytes(): index for index in range(len(images.files))}
    wrong = (images.labels + 1) % 10
    right = np.random.default_rng(0).random(len(wrong)) < 0.5
    asked = np.where((right & ~gained) | lost, images.labels, wrong)
    other = np.where((right & ~lost) | gained, images.labels, wrong)

    def answer(batch: NDArray[np.float32]) -> NDArray[np.int64]:
        found = [places.get(entry.tobytes()) for entry in batch]
        return np.array([-1 if place is None else other[place] for place in found])

    return alternatives.try_alternatives(images, spec, asked, answer, lambda _: True)[0]


def every(step: int, order: NDArray[np.int64], start: int = 0) -> NDArray[np.bool_]:
    """Which pictures are every so many-th in the order in which they are tried."""
    found = np.zeros(len(order), bool)
    found[order[start::step]] = True
    return found


def test_all_labelled_pictures_settle_what_the_first_leave_open(digits: ImageSet) -> None:
    assert digits.labels is not None
    order = alternatives.stratified(digits.labels, len(digits.labels))
    gained, lost = every(5, order), every(12, order, start=1)
    first = order[: alternatives.FIRST_PICTURES]
    few = dataclasses.replace(digits, files=tuple(digits.files[index] for index in first))
    settled, left = crop_tried(digits, gained, lost), crop_tried(few, gained[first], lost[first])
    assert settled.status == "failed"
    assert left.status == "skipped"
    for check, count in ((settled, 400), (left, 200)):
        assert "with crop_pct 1 and" in check.message
        assert f"on the same {count} pictures" in check.message
        assert "build with `crop_pct=1`" in check.message
    assert "give more labelled pictures" in left.message
    fair = crop_tried(digits, every(80, order), np.zeros(len(order), bool))
    assert fair.status == "passed"
    assert "the best of them: " in fair.message


def test_a_model_that_is_right_is_not_run_again(digits: ImageSet) -> None:
    assert digits.labels is not None

    def answer(batch: NDArray[np.float32]) -> NDArray[np.int64]:
        raise AssertionError(len(batch))

    check, tried = alternatives.try_alternatives(digits, SPEC, digits.labels, answer, lambda _: True)
    assert (check.status, tried) == ("passed", {})


def test_few_pictures_are_not_tried(digits: ImageSet, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    path = digits.files[0].path
    (tmp_path / "a" / "1.png").write_bytes(path.read_bytes())
    one = open_labelled(tmp_path, labels=["a", "b"], synsets=None, classes=2)
    check, _ = alternatives.try_alternatives(
        one, SPEC, np.array([1]), lambda batch: np.zeros(len(batch), np.int64), lambda _: True
    )
    assert check.status == "skipped"


def test_every_alternative_differs_from_what_was_asked_for_and_says_the_words_to_type() -> None:
    for spec in (SPEC, PreprocessSpec(**{**SPEC.to_json(), "crop_mode": "squash", "mean": (0.0,) * 3, "std": (1.0,) * 3})):
        found = alternatives.usual_alternatives(spec)
        assert len({entry.name for entry in found}) == len(found) >= 8
        assert all(entry.spec != spec or entry.reverses for entry in found)
        assert all("`" in entry.cure or entry.reverses for entry in found)
