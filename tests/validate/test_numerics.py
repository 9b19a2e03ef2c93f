from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from vitexport.report import Report
from vitexport.validate.numerics import GOLDEN_CEILING_DB, PARITY_LIMIT, Budget, compare, golden, parity

BUDGET = Budget(max_drop=1.0, min_agreement=99.0)
LABELS = np.arange(200) % 4
bad_values = pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
labelled = pytest.mark.parametrize("labels", [None, LABELS], ids=["unlabelled", "labelled"])


def perfect() -> NDArray[np.float32]:
    return np.eye(4, dtype=np.float32)[LABELS]


def wrong_on(count: int) -> NDArray[np.float32]:
    logits = perfect()
    logits[:count] = np.roll(logits[:count], 1, axis=1)
    return logits


@pytest.mark.parametrize(("wrong", "status"), [(0, "passed"), (2, "passed"), (3, "failed")])
def test_labelled_images_are_judged_by_the_drop(wrong: int, status: str) -> None:
    [check] = compare(perfect(), wrong_on(wrong), LABELS, BUDGET, where="here").checks
    assert (check.name, check.status, check.limit, check.unit) == ("accuracy", status, 1.0, "points")
    assert check.measured == pytest.approx(wrong / 2)


@pytest.mark.parametrize(("wrong", "status"), [(0, "passed"), (2, "passed"), (3, "failed")])
def test_unlabelled_images_are_judged_by_agreement(wrong: int, status: str) -> None:
    [check] = compare(perfect(), wrong_on(wrong), None, BUDGET, where="here").checks
    assert (check.name, check.status, check.limit, check.unit) == ("agreement", status, 99.0, "percent")
    assert check.measured == pytest.approx(100 - wrong / 2)


def test_a_candidate_that_is_better_than_the_reference_passes() -> None:
    numerics = compare(wrong_on(20), perfect(), LABELS, Budget(max_drop=0, min_agreement=100), where="here")
    assert numerics.within_budget
    assert numerics.figures["drop"] == pytest.approx(-10)


def test_figures_and_message_say_what_was_measured_and_where() -> None:
    numerics = compare(perfect(), wrong_on(3), LABELS, BUDGET, where="digits, on a CPU")
    assert {"images", "agreement_percent", "cosine", "sqnr_db", "reference_top1", "drop_low"} <= set(numerics.figures)
    message = numerics.checks[0].message
    assert "top-1 98.50 %, PyTorch 100.00 %, drop +1.50 points" in message
    assert "200 images (digits, on a CPU)" in message


@bad_values
@labelled
def test_a_candidate_that_is_not_finite_never_passes(bad: float, labels: NDArray[np.int64] | None) -> None:
    candidate = perfect()
    candidate[[3, 7], 1] = bad
    candidate[7, 2] = bad
    numerics = compare(perfect(), candidate, labels, Budget(max_drop=100, min_agreement=0), where="here")
    [check] = numerics.checks
    assert not numerics.within_budget
    assert (check.name, check.status) == ("finite", "failed")
    assert "the logits of 2 of 200 images" in check.message


@bad_values
@labelled
def test_a_reference_that_is_not_finite_passes_nobody(bad: float, labels: NDArray[np.int64] | None) -> None:
    reference = perfect()
    reference[3, 1] = bad
    for candidate in (perfect(), reference):
        assert not compare(reference, candidate, labels, Budget(max_drop=100, min_agreement=0), where="here").within_budget
    [check] = compare(reference, perfect(), labels, BUDGET, where="here").checks
    assert "PyTorch's logits of 1 of 200 images" in check.message


def test_parity_allows_a_ten_thousandth_of_the_largest_logit() -> None:
    reference = perfect() * 50
    assert parity([reference], [reference + np.float32(0.004)]).status == "passed"
    assert parity([reference], [reference + np.float32(0.006)]).status == "failed"


def test_parity_is_judged_by_the_worst_batch() -> None:
    good, bad = perfect(), perfect() + np.float32(0.01)
    for results in ([bad, good], [good, bad]):
        check = parity([good, good], results)
        assert check.status == "failed"
        assert check.measured == pytest.approx(0.01, rel=1e-3)
        assert check.limit == PARITY_LIMIT


@bad_values
@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_value_that_is_not_finite_in_any_batch_fails_parity(bad: float, place: int) -> None:
    results = [perfect() for _ in range(3)]
    results[place][0, 0] = bad
    check = parity([perfect()] * 3, results)
    assert check.status == "failed"
    assert parity(results, [perfect()] * 3).status == "failed"
    report = Report(title="t", checks=(check,), measurements={}, machine={})
    assert report.to_json()["checks"][0]["measured"] is None


def test_parity_names_the_batch_sizes() -> None:
    check = parity([perfect()[:1], perfect()[:8]], [perfect()[:1], perfect()[:8]])
    assert "at batch 1, 8:" in check.message


def test_parity_of_unequal_lists_is_a_mistake() -> None:
    with pytest.raises(ValueError, match="shorter"):
        parity([perfect(), perfect()], [perfect()])


RANDOM = np.random.default_rng(11)
REFERENCE = RANDOM.normal(0, 3, (64, 10)).astype(np.float32)
NOISE = RANDOM.normal(0, 1, REFERENCE.shape)


def noisy(decibels: float) -> NDArray[np.float32]:
    """The reference with noise that lies `decibels` below it."""
    amplitude = np.linalg.norm(REFERENCE) / np.linalg.norm(NOISE) * 10 ** (-decibels / 20)
    return (REFERENCE + amplitude * NOISE).astype(np.float32)


@pytest.mark.parametrize(
    ("built", "seen", "status"),
    [
        (30, 30, "passed"),
        (30, 60, "passed"),
        (30, 24.1, "passed"),
        (30, 23.9, "failed"),
        (30, 0, "failed"),
        (50, 44.1, "passed"),
        (50, 43.9, "failed"),
        # From 56 dB on the ceiling holds: TF32 is not wrong.
        (57, 50.1, "passed"),
        (120, 50.1, "passed"),
        (120, 49.9, "failed"),
    ],
)
def test_golden_logits_may_be_twice_as_noisy_as_at_build_time(built: float, seen: float, status: str) -> None:
    check, figures = golden(REFERENCE, noisy(seen), built, name="golden", where="here")
    assert (check.name, check.status, check.unit) == ("golden", status, "dB")
    assert check.measured == figures["sqnr_db"] == pytest.approx(seen, abs=0.05)
    assert check.limit == pytest.approx(min(built - 6, GOLDEN_CEILING_DB))


@pytest.mark.parametrize("broken", [np.negative, lambda logits: np.roll(logits, 1, axis=0), np.zeros_like, lambda x: 2 * x])
def test_a_broken_kernel_fails_even_after_a_noisy_build(
    broken: Callable[[NDArray[np.float32]], NDArray[np.float32]],
) -> None:
    check, _ = golden(REFERENCE, broken(REFERENCE), 15.0, name="golden", where="here")
    assert check.status == "failed"


@bad_values
def test_golden_logits_that_are_not_finite_fail_on_either_side(bad: float) -> None:
    broken = REFERENCE.copy()
    broken[5, 2] = bad
    for reference, candidate, whose in ((REFERENCE, broken, "the logits"), (broken, REFERENCE, "PyTorch's logits")):
        check, figures = golden(reference, candidate, -100.0, name="engine_output", where="here")
        assert (check.name, check.status) == ("engine_output", "failed")
        assert f"{whose} of 1 of 64 images (here)" in check.message
        assert figures == {"images": 64}


def test_golden_agreement_is_a_figure_and_no_limit() -> None:
    close = np.tile(np.asarray([[1.0, 1.001, -9.0, 4.0]], np.float32), (8, 1))
    close[:, 3] = 0.9
    candidate = close.copy()
    candidate[:, [0, 1]] = close[:, [1, 0]]
    check, figures = golden(close, candidate, 60.0, name="golden", where="here")
    assert figures["agreement_percent"] == 0
    assert check.status == "passed"
    assert "same top-1 on 0.00 %" in check.message


def test_golden_logits_that_are_equal_pass_whatever_the_build_measured() -> None:
    check, _ = golden(REFERENCE, REFERENCE.copy(), math.inf, name="golden", where="here")
    assert check.status == "passed"
