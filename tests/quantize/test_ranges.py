from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray

from vitexport.quantize.observe import CHANNEL_BINS, ChannelHistogram
from vitexport.quantize.ranges import BINS, Range, Values, choose_range
from vitexport.quantize.settings import OBSERVERS, Observer

CHANNELS = 3
tables = arrays.arrays(np.float32, st.tuples(st.integers(1, 30), st.just(CHANNELS)), elements=st.floats(-512, 512, width=16))
scales = arrays.arrays(np.float64, CHANNELS, elements=st.floats(0.0625, 16))
shifts = arrays.arrays(np.float64, CHANNELS, elements=st.floats(-100, 100))
ONES, ZEROS = np.ones(CHANNELS), np.zeros(CHANNELS)


def counted(rows: NDArray[np.float32]) -> ChannelHistogram:
    histogram = ChannelHistogram(rows.shape[1])
    histogram.add(rows)
    return histogram


def values_of(rows: NDArray[np.float32]) -> Values:
    return Values.of(counted(rows), ONES, ZEROS)


def squares(limits: Range) -> float:
    """A made-up error at the layers' outputs: least where the range is narrowest."""
    return limits[1] - limits[0]


@settings(deadline=None, max_examples=100)
@given(tables, scales, shifts)
def test_scaled_and_shifted_values_are_all_there(
    rows: NDArray[np.float32], scale: NDArray[np.float64], shift: NDArray[np.float64]
) -> None:
    histogram = counted(rows)
    values = Values.of(histogram, scale, shift)
    exact = (rows - shift) / scale
    assert values.counts.sum() == exact.size
    assert np.all(values.counts >= 0)
    assert (values.low, values.high) == (exact.min(), exact.max())
    assert np.all(np.diff(values.centers) >= 0)
    # No value moved by more than half a bin of its channel and half a bin of the whole.
    error = np.broadcast_to(histogram.limit / CHANNEL_BINS / scale, exact.shape).sum()
    error += exact.size * max(values.high - values.low, 1e-12) / BINS
    assert abs(float((values.counts * values.centers).sum()) - float(exact.sum())) <= error * (1 + 1e-9) + 1e-6


@settings(deadline=None, max_examples=60)
@given(tables, st.sampled_from(OBSERVERS), st.booleans())
def test_every_observer_stays_within_what_was_seen_and_zero(
    rows: NDArray[np.float32],
    kind: str,
    symmetric: bool,  # noqa: FBT001 - hypothesis gives it
) -> None:
    limits = choose_range(values_of(rows), Observer(kind=kind), symmetric=symmetric, error=squares)
    assert all(min(float(rows.min()), 0.0) <= limit <= max(float(rows.max()), 0.0) for limit in limits)


@settings(deadline=None, max_examples=60)
@given(tables, st.booleans())
def test_minmax_is_exact(rows: NDArray[np.float32], symmetric: bool) -> None:  # noqa: FBT001 - hypothesis gives it
    limits = choose_range(values_of(rows), Observer(kind="minmax"), symmetric=symmetric, error=squares)
    assert limits == (float(rows.min()), float(rows.max()))


@settings(deadline=None, max_examples=60)
@given(tables, st.floats(51, 100))
def test_the_percentile_keeps_the_asked_share(rows: NDArray[np.float32], percentile: float) -> None:
    values = values_of(rows)
    low, high = choose_range(values, Observer(percentile=percentile), symmetric=True, error=squares)
    tail = (1 - percentile / 100) / 2 * rows.size
    width = max(values.high - values.low, 1e-12) / BINS
    assert values.counts[values.centers < low - width].sum() <= tail + 1e-9
    assert values.counts[values.centers > high + width].sum() <= tail + 1e-9


def square_error(values: Values, limits: Range, *, symmetric: bool) -> float:
    """Clipping beyond the range, and rounding that errs evenly within half a step inside of it."""
    if symmetric:
        high = max(abs(limit) for limit in limits)
        low, levels = -high, 127
        step = high / levels
    else:
        low, high = min(limits[0], 0.0), max(limits[1], 0.0)
        step = (high - low) / 255
    inside = (values.centers >= low) & (values.centers <= high)
    clipped = np.minimum(np.abs(values.centers - low), np.abs(values.centers - high))
    return float((values.counts * np.where(inside, step**2 / 12, clipped**2)).sum())


@settings(deadline=None, max_examples=60)
@given(tables, st.booleans())
def test_mse_is_no_worse_than_minmax(rows: NDArray[np.float32], symmetric: bool) -> None:  # noqa: FBT001 - hypothesis gives it
    values = values_of(rows)
    chosen, full = (
        square_error(
            values, choose_range(values, Observer(kind=kind), symmetric=symmetric, error=squares), symmetric=symmetric
        )
        for kind in ("mse", "minmax")
    )
    assert chosen <= full * (1 + 1e-9) + 1e-12


@pytest.mark.parametrize("kind", ["percentile", "mse", "entropy"])
@pytest.mark.parametrize("symmetric", [True, False])
def test_one_outlier_of_many_does_not_set_the_range(kind: str, *, symmetric: bool) -> None:
    rows = np.random.default_rng(0).normal(0, 1, (100_000, CHANNELS)).astype(np.float32)
    rows[0, 0] = 30.0
    observer = Observer(kind=kind, percentile=99.99)
    low, high = choose_range(values_of(rows), observer, symmetric=symmetric, error=squares)
    # Entropy narrows further than the others.
    assert 2.5 < high < 25
    assert -6 < low < -0.5


def test_output_takes_the_range_with_the_least_error_at_the_layers() -> None:
    rows = np.random.default_rng(0).normal(0, 1, (1000, CHANNELS)).astype(np.float32)
    values, wanted = values_of(rows), 0.6 * float(rows.max())
    limits = choose_range(values, Observer(kind="output"), symmetric=True, error=lambda limits: (limits[1] - wanted) ** 2)
    np.testing.assert_allclose(limits, (0.6 * float(rows.min()), wanted), rtol=0.02)
