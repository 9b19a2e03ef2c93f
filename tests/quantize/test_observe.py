from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from graphs import LOGITS
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from vitexport.artifacts import Outputs, silent
from vitexport.errors import InputError
from vitexport.quantize.equalize import Equalization, equalized_moments
from vitexport.quantize.observe import CHANNEL_BINS, Activation, Batch, ChannelHistogram, Observation, Tensor, observe

CHANNELS = 2
# Values at, just beside and between powers of two: where the limit doubles.
EDGES = [
    *(0.0, 1e-7, 2.0**-21, 2.0**-20, 2.0**-19, 0.75, 1.0, 1.5, 2.0, 64.0),
    *(float(np.nextafter(np.float32(1), np.float32(end))) for end in (0, 2)),
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
rows = st.lists(values, min_size=CHANNELS, max_size=CHANNELS)
batches = st.lists(st.lists(rows, min_size=1, max_size=10), min_size=1, max_size=6)


def filled(parts: list[list[list[float]]]) -> ChannelHistogram:
    histogram = ChannelHistogram(CHANNELS)
    for part in parts:
        histogram.add(np.asarray(part, np.float32))
    return histogram


def table(parts: list[list[list[float]]]) -> NDArray[np.float32]:
    return np.asarray(list(itertools.chain(*parts)), np.float32)


@settings(deadline=None, max_examples=150)
@given(batches)
def test_neither_order_nor_chunks_matter(parts: list[list[list[float]]]) -> None:
    first = filled(parts)
    whole = list(itertools.chain(*parts))
    for other in (filled(parts[::-1]), filled([whole]), filled([[row] for row in sorted(whole)])):
        for name in ("limit", "low", "high", "counts"):
            np.testing.assert_array_equal(getattr(other, name), getattr(first, name), err_msg=name)


@settings(deadline=None, max_examples=150)
@given(batches)
def test_every_value_is_counted_in_the_bin_of_its_channel_that_holds_it(parts: list[list[list[float]]]) -> None:
    histogram, seen = filled(parts), table(parts).astype(np.float64)
    assert np.all(np.abs(seen).max(axis=0) < histogram.limit)
    np.testing.assert_array_equal(histogram.low, seen.min(axis=0))
    np.testing.assert_array_equal(histogram.high, seen.max(axis=0))
    for channel in range(CHANNELS):
        limit = histogram.limit[channel]
        assert math.frexp(limit)[0] == 0.5
        expected = np.bincount(
            np.floor(seen[:, channel] / (2 * limit / CHANNEL_BINS)).astype(int) + CHANNEL_BINS // 2, minlength=CHANNEL_BINS
        )
        np.testing.assert_array_equal(histogram.counts[channel], expected)


def test_the_limit_is_beyond_every_value_also_at_a_power_of_two() -> None:
    # 2.0 lies outside of [-2, 2): after 1.5 the limit has to grow, as it would have to begin there.
    for parts in ([[[1.5, 0]], [[2.0, 0]]], [[[2.0, 0]], [[1.5, 0]]]):
        assert filled(parts).limit[0] == 4.0


def test_a_large_channel_does_not_coarsen_another() -> None:
    histogram = filled([[[0.3, 900.0]], [[-0.2, 5.0]]])
    np.testing.assert_array_equal(histogram.limit, [0.5, 1024.0])


@settings(deadline=None, max_examples=150)
@given(batches, st.floats(50, 100))
def test_the_range_of_each_channel_keeps_the_asked_share_on_each_side(
    parts: list[list[list[float]]], percentile: float
) -> None:
    low, high = filled(parts).percentile_range(percentile)
    seen = table(parts)
    tail = (1 - percentile / 100) / 2 * len(seen)
    assert np.all((seen < low).sum(axis=0) <= tail + 1e-9)
    assert np.all((seen > high).sum(axis=0) <= tail + 1e-9)
    assert np.all(seen.min(axis=0) <= low)
    assert np.all(low <= high)
    assert np.all(high <= seen.max(axis=0))


def test_the_share_beyond_the_percentile_is_cut_off() -> None:
    bulk = np.random.default_rng(0).normal(0, 1, (100_000, CHANNELS)).astype(np.float32)
    outliers = np.full((5, CHANNELS), 900, np.float32)
    histogram = ChannelHistogram(CHANNELS)
    histogram.add(bulk)
    histogram.add(outliers)
    # 0.01 % at each end are 10 values: the five outliers and the five largest of the rest.
    low, high = histogram.percentile_range(99.98)
    width = 2 * 1024 / CHANNEL_BINS
    ordered = np.sort(bulk, axis=0)
    assert np.all((ordered[-6] <= high) & (high <= ordered[-6] + width))
    assert np.all(low <= ordered[10])
    np.testing.assert_array_equal(histogram.percentile_range(99.999)[1], [900] * CHANNELS)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_value_that_is_no_number_is_refused(bad: float) -> None:
    histogram = filled([[[1.0, 2.0]]])
    with pytest.raises(InputError, match=r"NaN or infinity on a calibration image"):
        histogram.add(np.asarray([[0.5, 0.5], [bad, 0.5]], np.float32))


def test_memory_does_not_depend_on_how_many_values_were_seen() -> None:
    def held(histogram: ChannelHistogram) -> dict[str, int]:
        return {name: value.nbytes for name, value in vars(histogram).items() if isinstance(value, np.ndarray)}

    few, many = filled([[[1.0, 1.0]]]), ChannelHistogram(CHANNELS)
    block = np.random.default_rng(1).normal(0, 1, (20_000, CHANNELS)).astype(np.float32)
    for factor in range(1, 20):
        many.add(block * np.float32(factor**2))
    assert held(few) == held(many)
    assert many.counts.sum(axis=1).tolist() == [19 * 20_000] * CHANNELS
    assert all(not isinstance(value, list) for value in vars(many).values())


class Given:
    """A session that hands out given rows, one token an image, instead of computing them."""

    def __init__(self, tokens: NDArray[np.float32]) -> None:
        self.tokens = tokens

    def run(self, images: NDArray[np.float32]) -> Outputs:
        numbers = images[:, 0, 0, 0].astype(int)
        return {"x": self.tokens[numbers][:, None], LOGITS: np.repeat(numbers[:, None], 2, axis=1).astype(np.float32)}


def observed(tokens: NDArray[np.float32], rows: int) -> Activation:
    """What is seen of one activation with `tokens` [images, channels], where `rows` rows of each image are asked for."""
    return observation(Given(tokens), len(tokens), rows).activations["x"]


def observation(backend: Any, count: int, rows: int, outputs: Sequence[str] = (LOGITS,)) -> Observation:
    """What is seen of ``x``, and of the graph's own `outputs`, on `count` images, each of which is its own number."""
    parts = [Batch(images=np.full((1, 3, 1, 1), number, np.float32), first=number, rows=rows) for number in range(count)]
    return observe(backend, [Tensor(name="x", per_channel=True, moments=True)], outputs, parts, count, silent)


@pytest.mark.parametrize("rows", [8, 512])
def test_moments_survive_a_mean_that_is_far_larger_than_the_spread(rows: int) -> None:
    """In float32 the square of 1e4 leaves no room for that of 0.1; a constant channel has none at all."""
    random = np.random.default_rng(0)
    tokens = random.normal(0, 1, (400, 6)) * [1, 0.1, 0.1, 0, 1, 1] + [0, 1e4, -1e5, 3e3, 5, 0]
    seen = tokens.astype(np.float32)
    activation = observed(seen, rows)
    shift = seen.mean(axis=0, dtype=np.float64)
    moments = equalized_moments(activation, Equalization(scale=np.ones(6), shift=shift, strength=0.0), 0.0)
    centred = (seen - shift)[:: 400 // activation.gram_rows][: activation.gram_rows]
    expected = centred.T @ centred
    size = np.sqrt(np.outer(np.diag(expected), np.diag(expected)))
    np.testing.assert_array_less(np.abs(moments - expected), 1e-3 * size + 1e-3)


def test_a_tensor_with_one_token_gives_every_row() -> None:
    """The head reads one token of each image: of a few hundred rows none is left out of what rounding looks at."""
    tokens = np.random.default_rng(1).normal(0, 1, (300, 4)).astype(np.float32)
    few = observed(tokens, rows=64)
    assert (few.gram_rows, len(few.rows)) == (300, 300)
    many = observed(tokens, rows=1)
    assert (many.gram_rows, len(many.rows)) == (75, 10)


def test_what_judges_is_none_of_what_was_compensated_for() -> None:
    tokens = np.arange(2 * 512, dtype=np.float32).reshape(512, 2)
    activation = observed(tokens, rows=1)
    compensated = set(range(0, 512, 512 // activation.gram_rows))
    judged = {int(row[0]) // 2 for row in activation.rows}
    assert judged
    assert not judged & compensated


class Computing(Given):
    """Has an output for tokens too, and one of its outputs breaks on image 1."""

    def __init__(self, tokens: NDArray[np.float32], bad: dict[str, float]) -> None:
        super().__init__(tokens)
        self.bad = bad

    def run(self, images: NDArray[np.float32]) -> Outputs:
        computed = super().run(images)
        outputs = {**computed, "tokens": computed["x"] * np.float32(2)}
        for name, value in self.bad.items():
            outputs[name] = np.where(images[:, :1, :1, 0] == 1, np.float32(value), outputs[name].reshape(len(images), 1, -1))
        return outputs


def test_the_first_outputs_are_the_graphs_own_whatever_else_is_observed() -> None:
    tokens = np.random.default_rng(2).normal(0, 1, (3, 4)).astype(np.float32)
    first = observation(Computing(tokens, {}), 3, rows=1, outputs=(LOGITS, "tokens")).first_outputs
    assert set(first) == {LOGITS, "tokens"}
    # A layer may read an output: it is observed, and still an output.
    both = observation(Computing(tokens, {}), 3, rows=1, outputs=(LOGITS, "x")).first_outputs
    assert set(both) == {LOGITS, "x"}
    count = len(first[LOGITS])
    assert count >= 1
    np.testing.assert_array_equal(first[LOGITS][:, 0], np.arange(count))
    np.testing.assert_array_equal(first["tokens"][:, 0], 2 * tokens[:count])


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", [LOGITS, "tokens"])
def test_any_output_that_is_no_number_is_refused(name: str, bad: float) -> None:
    tokens = np.ones((3, 4), np.float32)
    with pytest.raises(InputError, match="computes NaN or infinity on a calibration image; it cannot be quantized"):
        observation(Computing(tokens, {name: bad}), 3, rows=1, outputs=(LOGITS, "tokens"))
