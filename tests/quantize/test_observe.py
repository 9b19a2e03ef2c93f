from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from vitexport.errors import InputError
from vitexport.quantize.observe import BINS, Histogram

# Values at, just beside and between powers of two: where the limit doubles.
EDGES = [
    0.0,
    1e-7,
    2.0**-21,
    2.0**-20,
    2.0**-19,
    0.75,
    1.0,
    float(np.nextafter(np.float32(1), np.float32(2))),
    1.5,
    2.0,
    64.0,
]
values = st.one_of(
    # Below 2**-90 lies nothing that an activation range could tell from zero.
    st.floats(-8192, 8192, width=32).filter(lambda value: value == 0 or abs(value) > 2.0**-90),
    st.sampled_from([sign * value for value in EDGES for sign in (1, -1)]),
    # One step of float32 beside an edge of a bin, where rounding would put it into the next one.
    st.builds(
        lambda edge, towards: float(np.nextafter(np.float32(edge) * np.float32(2.0**-12), np.float32(towards))),
        st.integers(-4096, 4096).filter(bool),
        st.sampled_from([-math.inf, math.inf]),
    ),
)
batches = st.lists(st.lists(values, min_size=1, max_size=12), min_size=1, max_size=6)


def filled(parts: list[list[float]]) -> Histogram:
    histogram = Histogram()
    for part in parts:
        histogram.add(np.asarray(part, np.float32))
    return histogram


@settings(deadline=None, max_examples=150)
@given(batches, st.randoms(use_true_random=False))
def test_the_order_of_the_values_does_not_matter(parts: list[list[float]], random: object) -> None:
    first = filled(parts)
    for other in (
        filled(parts[::-1]),
        filled([list(itertools.chain(*parts))]),
        filled([sorted(part) for part in sorted(parts)]),
    ):
        assert (other.limit, other.low, other.high) == (first.limit, first.low, first.high)
        np.testing.assert_array_equal(other.counts, first.counts)


def test_the_limit_is_beyond_every_value_also_at_a_power_of_two() -> None:
    # 2.0 lies outside of [-2, 2): after 1.5 the limit has to grow, as it would have to begin there.
    assert filled([[1.5], [2.0]]).limit == filled([[2.0], [1.5]]).limit == 4.0


@settings(deadline=None, max_examples=150)
@given(batches)
def test_every_value_is_counted_in_the_bin_that_holds_it(parts: list[list[float]]) -> None:
    histogram = filled(parts)
    flat = np.asarray(list(itertools.chain(*parts)), np.float32).astype(np.float64)
    assert float(np.abs(flat).max()) < histogram.limit
    width = 2 * histogram.limit / BINS
    expected = np.bincount(np.floor(flat / width).astype(np.int64) + BINS // 2, minlength=BINS)
    np.testing.assert_array_equal(histogram.counts, expected)


@settings(deadline=None, max_examples=150)
@given(batches, st.floats(50, 100))
def test_the_range_keeps_the_asked_share_on_each_side(parts: list[list[float]], percentile: float) -> None:
    low, high = filled(parts).percentile_range(percentile)
    flat = np.asarray(list(itertools.chain(*parts)), np.float32)
    tail = (1 - percentile / 100) / 2 * flat.size
    assert np.count_nonzero(flat < low) <= tail + 1e-9
    assert np.count_nonzero(flat > high) <= tail + 1e-9
    assert float(flat.min()) <= low <= high <= float(flat.max())


def test_all_of_the_values_are_what_was_seen() -> None:
    assert filled([[-0.3, 0.2], [7.1, -0.1]]).percentile_range(100) == (
        float(np.float32(-0.3)),
        float(np.float32(7.1)),
    )


def test_the_share_beyond_the_percentile_is_cut_off() -> None:
    bulk = np.random.default_rng(0).normal(0, 1, 1_000_000).astype(np.float32)
    outliers = np.full(5, 900, np.float32)
    histogram = Histogram()
    histogram.add(bulk)
    histogram.add(outliers)
    # 0.001 % at each end are 10 values: the five outliers and the five largest of the rest.
    low, high = histogram.percentile_range(99.998)
    bin_width = 2 * 1024 / BINS
    assert np.sort(bulk)[-6] <= high <= np.sort(bulk)[-6] + bin_width
    assert low <= np.sort(bulk)[10]
    assert histogram.percentile_range(99.9999)[1] == 900


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_value_that_is_no_number_is_refused(bad: float) -> None:
    histogram = filled([[1.0, 2.0]])
    with pytest.raises(InputError, match=r"NaN or infinity on a calibration image"):
        histogram.add(np.asarray([[0.5], [bad]], np.float32))


def test_nothing_observed_is_refused() -> None:
    with pytest.raises(InputError, match=r"No calibration image"):
        Histogram().percentile_range(99.9)


def held(histogram: Histogram) -> dict[str, int]:
    return {name: value.nbytes for name, value in vars(histogram).items() if isinstance(value, np.ndarray)}


def test_memory_does_not_depend_on_how_many_values_were_seen() -> None:
    few, many = filled([[1.0]]), Histogram()
    block: NDArray[np.float32] = np.random.default_rng(1).normal(0, 1, 50_000).astype(np.float32)
    for factor in range(1, 40):
        many.add(block * np.float32(factor**2))
    assert held(few) == held(many)
    assert int(many.counts.sum()) == 39 * 50_000
    assert all(not isinstance(value, list) for value in vars(many).values())
