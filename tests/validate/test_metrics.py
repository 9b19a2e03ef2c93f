from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from vitexport.validate.metrics import (
    HIGHEST_SQNR_DB,
    accuracy,
    agreement,
    cosine,
    drop_interval,
    in_top,
    relative_error,
    sqnr_db,
)

values = st.floats(-100, 100, width=32).filter(lambda value: value == 0 or abs(value) > 1e-3)
arrays = st.lists(st.lists(values, min_size=4, max_size=4), min_size=1, max_size=6).map(
    lambda rows: np.asarray(rows, np.float32)
)
signals = arrays.filter(lambda array: bool((np.abs(array).max(axis=1) > 0.1).all()))
bad_values = pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])


def paired(both: int, only_reference: int, only_candidate: int, neither: int) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    counts = [both, only_reference, only_candidate, neither]
    return np.repeat([True, True, False, False], counts), np.repeat([True, False, True, False], counts)


def with_value(value: float) -> NDArray[np.float32]:
    logits = np.eye(4, dtype=np.float32)
    logits[1, 2] = value
    return logits


# Newcombe, Statistics in Medicine 17 (1998), method 10; Altman et al., Statistics with Confidence (2000), table 6.2; and
# Fagerland, Lydersen & Laake, Statistical Analysis of Contingency Tables (2017), chapter 8 (R package contingencytables).
@pytest.mark.parametrize(
    ("table", "low", "high"),
    [
        ((36, 12, 2, 0), 5.69, 34.04),
        ((14, 5, 0, 22), 1.15, 22.65),
        ((1, 1, 7, 12), -50.69, -2.56),
        ((59, 6, 16, 80), -11.86, -0.46),
    ],
)
def test_the_interval_is_the_published_one(table: tuple[int, int, int, int], low: float, high: float) -> None:
    assert drop_interval(*paired(*table)) == pytest.approx((low, high), abs=0.006)


@settings(max_examples=80, deadline=None)
@given(st.tuples(*[st.integers(0, 60)] * 4).filter(any))
def test_the_interval_holds_the_drop_and_turns_with_the_sides(table: tuple[int, int, int, int]) -> None:
    reference, candidate = paired(*table)
    low, high = drop_interval(reference, candidate)
    drop = float(reference.mean() - candidate.mean()) * 100
    assert -100 - 1e-9 <= low <= drop + 1e-9
    assert drop - 1e-9 <= high <= 100 + 1e-9
    assert drop_interval(candidate, reference) == pytest.approx((-high, -low), abs=1e-9)


@pytest.mark.parametrize("images", [10, 100, 1000])
def test_the_interval_does_not_vanish_where_the_two_never_disagree(images: int) -> None:
    low, high = drop_interval(*paired(images - images // 20, 0, 0, images // 20))
    assert low < -0.1 < 0.1 < high


def test_more_images_give_a_narrower_interval() -> None:
    widths = [high - low for low, high in (drop_interval(*paired(90 * n, 5 * n, 3 * n, 2 * n)) for n in (1, 4, 16))]
    assert widths == sorted(widths, reverse=True)
    assert widths[0] / widths[2] == pytest.approx(4, rel=0.2)


def outcomes(images: int) -> Iterator[tuple[int, int, int, int]]:
    """Every table of `images` pictures."""
    for both in range(images + 1):
        for first in range(images + 1 - both):
            for second in range(images + 1 - both - first):
                yield both, first, second, images - both - first - second


@pytest.mark.parametrize("chances", [(0.85, 0.05, 0.05, 0.05), (0.6, 0.2, 0.1, 0.1), (0.3, 0.1, 0.3, 0.3)], ids=str)
def test_the_interval_covers_the_truth_in_95_of_100_experiments(chances: tuple[float, float, float, float]) -> None:
    images, truth = 22, (chances[1] - chances[2]) * 100
    covered = 0.0
    for table in outcomes(images):
        low, high = drop_interval(*paired(*table))
        if low <= truth <= high:
            ways = math.factorial(images) / math.prod(map(math.factorial, table))
            covered += ways * math.prod(chance**count for chance, count in zip(chances, table, strict=True))
    # With few pictures in disagreement this interval is known to be on the safe side.
    assert 0.93 <= covered <= 0.998


@given(signals)
def test_equal_logits_are_perfect(logits: NDArray[np.float32]) -> None:
    assert relative_error(logits, logits) == 0
    assert sqnr_db(logits, logits) == HIGHEST_SQNR_DB
    assert cosine(logits, logits) == pytest.approx(1)
    assert agreement(logits, logits) == 100


@pytest.mark.parametrize(("scale", "decibels"), [(0.9, 20), (0.99, 40), (1.001, 60), (2.0, 0), (11.0, -20)])
def test_sqnr_is_in_decibels_of_power(scale: float, decibels: float) -> None:
    logits = np.random.default_rng(0).normal(size=(5, 7)).astype(np.float32)
    assert sqnr_db(logits, logits * np.float32(scale)) == pytest.approx(decibels, abs=0.01)


@given(signals, signals, st.sampled_from([0.25, 2.0, 64.0]))
def test_sqnr_and_relative_error_do_not_depend_on_the_unit(
    reference: NDArray[np.float32], candidate: NDArray[np.float32], scale: float
) -> None:
    count = min(len(reference), len(candidate))
    reference, candidate = reference[:count], candidate[:count]
    factor = np.float32(scale)
    assert sqnr_db(reference * factor, candidate * factor) == pytest.approx(sqnr_db(reference, candidate))
    assert relative_error(reference * factor, candidate * factor) == pytest.approx(relative_error(reference, candidate))


@given(signals, st.sampled_from([0.5, 2.0, 1024.0]))
def test_cosine_knows_direction_only(logits: NDArray[np.float32], scale: float) -> None:
    assert cosine(logits, logits * np.float32(scale)) == pytest.approx(1)
    assert cosine(logits, -logits) == pytest.approx(-1)


def test_cosine_is_the_mean_over_images_not_over_all_logits() -> None:
    reference = np.array([[1, 0], [1000, 0]], np.float32)
    candidate = np.array([[0, 1], [1000, 0]], np.float32)
    assert cosine(reference, candidate) == pytest.approx(0.5)


def test_zero_logits_divide_by_nothing() -> None:
    zeros, ones = np.zeros((2, 3), np.float32), np.ones((2, 3), np.float32)
    assert cosine(zeros, ones) == 0
    assert sqnr_db(zeros, zeros) == HIGHEST_SQNR_DB
    assert sqnr_db(zeros, ones) == -HIGHEST_SQNR_DB
    assert relative_error(zeros, ones) == 1


def test_relative_error_is_against_the_largest_logit() -> None:
    reference = np.array([[-8, 1], [2, 0.5]], np.float32)
    candidate = np.array([[-8, 1], [2, 0.1]], np.float32)
    assert relative_error(reference, candidate) == pytest.approx(0.4 / 8)


@bad_values
def test_what_is_not_finite_never_gives_a_finite_error(bad: float) -> None:
    clean, broken = with_value(0), with_value(bad)
    for pair in ((clean, broken), (broken, clean), (broken, broken)):
        assert not math.isfinite(relative_error(*pair))
        assert math.isnan(sqnr_db(*pair))


def test_agreement_counts_images_with_the_same_winner() -> None:
    reference = np.array([[3, 1, 2], [1, 2, 3], [5, 4, 3], [0, 1, 0]], np.float32)
    candidate = np.array([[9, 8, 7], [3, 2, 1], [5, 3, 4], [0, 2, 1]], np.float32)
    assert agreement(reference, candidate) == 75


@given(st.lists(st.permutations(range(6)), min_size=1, max_size=5), st.integers(0, 5), st.integers(1, 6))
def test_in_top_is_the_rank_of_the_label(orders: list[list[int]], label: int, count: int) -> None:
    logits = np.asarray(orders, np.float32)
    labels = np.full(len(orders), label)
    ranks = [sum(value > row[label] for value in row) for row in orders]
    assert in_top(logits, labels, count).tolist() == [rank < count for rank in ranks]


def test_more_than_there_are_classes_is_all_of_them() -> None:
    assert in_top(np.zeros((2, 3), np.float32), np.array([0, 2]), 5).all()


def test_accuracy_puts_the_drop_on_the_candidates_side() -> None:
    labels = np.arange(10)
    reference = np.eye(10, dtype=np.float32)
    candidate = reference.copy()
    candidate[0, :6] = [0, 9, 8, 7, 6, 5]
    result = accuracy(reference, candidate, labels)
    assert (result.reference_top1, result.candidate_top1, result.drop) == pytest.approx((100, 90, 10))
    assert (result.reference_top5, result.candidate_top5, result.images) == (100, 90, 10)
    assert result.drop_low < 10 < result.drop_high
    assert accuracy(candidate, reference, labels).drop == pytest.approx(-10)
