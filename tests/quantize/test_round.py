from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray

from vitexport.errors import InputError
from vitexport.quantize.arithmetic import TENSORRT, Arithmetic
from vitexport.quantize.round import (
    BLOCK,
    DAMPING,
    Quantizer,
    asymmetric,
    float16_scale,
    quantize_weight,
    quantize_weight_gptq,
    symmetric_int8,
)
from vitexport.targets import CpuArithmetic

Moments = NDArray[np.float64]
SMALLEST_NORMAL = 2.0**-14
# Products of a float32 scale and an integer are themselves rounded.
ROUNDING = 1 + 1e-6

ends = st.floats(-1e4, 1e4, width=32)
ranges = st.tuples(ends, ends).map(lambda pair: (min(pair), max(pair)))
weights = arrays.arrays(
    np.float32,
    st.tuples(st.integers(1, 6), st.integers(1, 4)),
    elements=st.one_of(st.floats(-8, 8, width=32), st.floats(-(2.0**-10), 2.0**-10, width=32), st.just(0.0)),
)


@settings(deadline=None, max_examples=200)
@given(st.one_of(st.floats(0, 60000, width=32), st.floats(0, 2.0**-13, width=32)))
def test_a_scale_is_a_normal_float16_at_or_just_above_what_was_wanted(wanted: float) -> None:
    scale = float16_scale(np.float32(wanted))
    assert scale.dtype == np.float32
    assert float(scale) == float(np.float16(scale))
    assert float(scale) >= max(wanted, SMALLEST_NORMAL)
    # Not further up than the next float16.
    assert float(scale) <= max(wanted * (1 + 2.0**-10), SMALLEST_NORMAL)


@pytest.mark.parametrize("wanted", [65505.0, 1e6])
def test_a_scale_that_float16_does_not_hold_is_refused(wanted: float) -> None:
    with pytest.raises(InputError, match=r"float16"):
        float16_scale(np.float32(wanted))


@settings(deadline=None, max_examples=200)
@given(weights, st.sampled_from([8, 7]))
def test_weights_come_back_within_half_a_step(weight: NDArray[np.float32], bits: int) -> None:
    integers, scale = quantize_weight(weight, bits)
    assert (integers.dtype.name, scale.dtype.name) == ("int8", "float32")
    assert (integers.shape, scale.shape) == (weight.shape, weight.shape[1:])
    back = integers.astype(np.float64) * scale
    assert np.all(np.abs(back - weight) <= scale / 2 * ROUNDING)
    # -128 would be clipped by nobody but has no counterpart; the 7-bit limit is what keeps two products in int16.
    assert int(np.abs(integers.astype(int)).max()) <= (127 if bits == 8 else 64)
    np.testing.assert_array_equal(scale, scale.astype(np.float16).astype(np.float32))
    assert np.all(scale >= SMALLEST_NORMAL)


def test_two_seven_bit_products_with_uint8_fit_int16() -> None:
    integers, _ = quantize_weight(np.asarray([[3.0, -3.0]], np.float32), 7)
    assert integers.tolist() == [[64, -64]]
    assert 2 * 255 * int(integers.max()) <= np.iinfo(np.int16).max
    assert 2 * 255 * int(integers.min()) >= np.iinfo(np.int16).min


def test_each_output_channel_has_its_own_scale() -> None:
    weight = np.asarray([[1, 100], [-2, 50], [0.5, -25]], np.float32)
    integers, scale = quantize_weight(weight, 8)
    assert np.abs(integers).max(axis=0).tolist() == [127, 127]
    np.testing.assert_allclose(scale, [2 / 127, 100 / 127], rtol=1e-3)


def test_a_channel_of_zeros_stays_zero() -> None:
    integers, scale = quantize_weight(np.asarray([[0, 1], [0, -1]], np.float32), 8)
    assert integers[:, 0].tolist() == [0, 0]
    assert scale[0] == SMALLEST_NORMAL
    assert np.abs(integers[:, 1]).tolist() == [127, 127]


@settings(deadline=None, max_examples=200)
@given(ranges, st.floats(0, 1))
def test_a_symmetric_activation_keeps_its_whole_range(limits: tuple[float, float], where: float) -> None:
    low, high = limits
    scale, zero = symmetric_int8(low, high)
    assert (zero.dtype.name, int(zero)) == ("int8", 0)
    assert float(scale) == float(np.float16(scale)) >= SMALLEST_NORMAL
    assert max(abs(low), abs(high)) <= 127 * float(scale) * ROUNDING
    x = low + where * (high - low)
    back = float(np.clip(np.rint(x / float(scale)), -128, 127)) * float(scale)
    assert abs(back - x) <= float(scale) / 2 * ROUNDING


@settings(deadline=None, max_examples=200)
@given(ranges, st.floats(0, 1), st.sampled_from(["uint8", "int8"]))
def test_an_asymmetric_activation_keeps_its_whole_range_and_zero(
    limits: tuple[float, float], where: float, kind: str
) -> None:
    low, high = limits
    scale, zero = asymmetric(low, high, kind)
    bounds = np.iinfo(kind)
    assert zero.dtype == np.dtype(kind)
    assert float(scale) > 0

    def back(x: float) -> float:
        level = np.clip(np.rint(x / float(scale)) + int(zero), bounds.min, bounds.max)
        return float(level - int(zero)) * float(scale)

    assert back(0.0) == 0.0
    x = low + where * (high - low)
    for value in (low, high, x):
        assert abs(back(value) - value) <= float(scale) / 2 * ROUNDING


@pytest.mark.parametrize(
    ("limits", "kind", "zero"),
    [((0, 6), "uint8", 0), ((2, 6), "uint8", 0), ((-6, 0), "uint8", 255), ((-6, -2), "uint8", 255), ((0, 6), "int8", -128)],
)
def test_a_range_on_one_side_of_zero_is_widened_to_hold_it(limits: tuple[int, int], kind: str, zero: int) -> None:
    scale, found = asymmetric(*limits, kind)
    assert int(found) == zero
    np.testing.assert_allclose(scale, 6 / 255, rtol=1e-6)


def test_a_range_of_nothing_has_a_usable_scale() -> None:
    for scale, zero in (symmetric_int8(0.0, 0.0), asymmetric(0.0, 0.0, "uint8")):
        assert float(scale) >= SMALLEST_NORMAL
        assert int(zero) == 0


ARITHMETIC = {
    kind: Arithmetic.of_cpu(CpuArithmetic(activation=kind, weight_bits=8, required_flags=(), arch="x86_64"))
    for kind in ("uint8", "int8")
}


@settings(deadline=None, max_examples=200)
@given(
    ranges,
    arrays.arrays(np.float32, 5, elements=st.floats(0, 1, width=32)),
    st.sampled_from([None, *ARITHMETIC]),
)
def test_a_quantizer_errs_by_half_a_step_inside_its_range_and_clips_outside(
    limits: tuple[float, float], where: NDArray[np.float32], kind: str | None
) -> None:
    low, high = limits
    quantizer = Quantizer.covering(low, high, TENSORRT if kind is None else ARITHMETIC[kind])
    step = float(quantizer.scale)
    inside = (low + where.astype(np.float64) * (high - low)).astype(np.float32)
    # float32 numbers of this size are this far apart themselves.
    slack = 4 * float(np.spacing(np.float32(max(abs(low), abs(high), step))))
    assert np.all(np.abs(quantizer(inside).astype(np.float64) - inside) <= step / 2 + slack)
    # Levels repeat, and nothing lies beyond all of them.
    np.testing.assert_array_equal(quantizer(quantizer(inside)), quantizer(inside))
    bounds, zero = np.iinfo(quantizer.zero_point.dtype), int(quantizer.zero_point)
    far = quantizer(np.asarray([-1e9, 1e9], np.float32))
    np.testing.assert_allclose(far, [(bounds.min - zero) * step, (bounds.max - zero) * step], rtol=1e-5)
    assert quantizer(np.zeros(1, np.float32))[0] == 0


def loss(weight: NDArray[np.float32], rounded: tuple[NDArray[np.int8], NDArray[np.float32]], moments: Moments) -> float:
    """tr((W - W')ᵀ H (W - W')): the square error at the layer's output."""
    error = weight - rounded[0].astype(np.float64) * rounded[1]
    return float(np.einsum("io,ij,jo->", error, moments, error))


def correlated(random: np.random.Generator, width: int, rank: int) -> Moments:
    """Second moments of rows that lie near a space of `rank` dimensions."""
    rows = random.normal(0, 1, (4 * width, rank)) @ random.normal(0, 1, (rank, width))
    rows += 0.05 * random.normal(0, 1, rows.shape)
    moments: Moments = rows.T @ rows
    return moments


seeds = st.integers(0, 2**32 - 1)


@settings(deadline=None, max_examples=40)
@given(seeds, st.integers(1, 48), st.sampled_from([8, 7]))
def test_compensated_rounding_is_hardly_ever_worse_than_nearest_where_nothing_is_correlated(
    seed: int, width: int, bits: int
) -> None:
    random = np.random.default_rng(seed)
    rows = random.normal(0, 1, (64 * width, width))
    weight, moments = random.normal(0, 1, (width, 8)).astype(np.float32), rows.T @ rows
    compensated = quantize_weight_gptq(weight, moments, bits)
    assert loss(weight, compensated, moments) <= 1.1 * loss(weight, quantize_weight(weight, bits), moments)
    assert int(np.abs(compensated[0].astype(int)).max()) <= (127 if bits == 8 else 64)


@settings(deadline=None, max_examples=30)
@given(seeds, st.integers(24, 64), st.sampled_from([8, 7]))
def test_compensated_rounding_is_better_than_nearest_where_channels_are_correlated(seed: int, width: int, bits: int) -> None:
    random = np.random.default_rng(seed)
    weight, moments = random.normal(0, 1, (width, 16)).astype(np.float32), correlated(random, width, width // 3)
    compensated = quantize_weight_gptq(weight, moments, bits)
    assert loss(weight, compensated, moments) < 0.8 * loss(weight, quantize_weight(weight, bits), moments)
    assert int(np.abs(compensated[0].astype(int)).max()) <= (127 if bits == 8 else 64)
    assert compensated[0].dtype == np.int8


def test_compensated_rounding_is_nearest_where_channels_are_independent() -> None:
    random = np.random.default_rng(0)
    weight = random.normal(0, 1, (BLOCK + 9, 4)).astype(np.float32)
    moments = np.diag(random.uniform(0.1, 10, len(weight)))
    for found, expected in zip(quantize_weight_gptq(weight, moments, 8), quantize_weight(weight, 8), strict=True):
        np.testing.assert_array_equal(found, expected)


def one_by_one(weight: NDArray[np.float32], moments: Moments, bits: int) -> NDArray[np.int8]:
    """Each channel in turn, with the whole inverse updated behind it: slow, and without blocks or Cholesky factors."""
    scale, largest = quantize_weight(weight, bits)[1], 127 if bits == 8 else 64
    inverse = np.linalg.inv(moments + np.eye(len(moments)) * DAMPING * np.diag(moments).mean())
    left, levels = weight.astype(np.float64), np.zeros(weight.shape, np.int8)
    for channel in np.argsort(-np.diag(moments), kind="stable"):
        levels[channel] = np.clip(np.rint(left[channel] / scale), -largest, largest)
        error = (left[channel] - levels[channel] * scale) / inverse[channel, channel]
        left -= np.outer(inverse[:, channel], error)
        inverse -= np.outer(inverse[:, channel], inverse[channel]) / inverse[channel, channel]
    return levels


@pytest.mark.parametrize("bits", [8, 7])
@pytest.mark.parametrize("width", [20, BLOCK, 2 * BLOCK + 7])
def test_blocks_round_as_one_by_one(width: int, bits: int) -> None:
    random = np.random.default_rng(width)
    weight, moments = random.normal(0, 1, (width, 6)).astype(np.float32), correlated(random, width, width // 2)
    levels, _ = quantize_weight_gptq(weight, moments, bits)
    # A number that lies almost between two integers may fall to the other one, and those behind it follow.
    assert float((levels == one_by_one(weight, moments, bits)).mean()) > 0.98


@pytest.mark.parametrize("factor", [1e-6, 1e6])
def test_the_size_of_the_moments_does_not_matter(factor: float) -> None:
    random = np.random.default_rng(1)
    weight, moments = random.normal(0, 1, (40, 5)).astype(np.float32), correlated(random, 40, 12)
    first, second = (quantize_weight_gptq(weight, moments * by, 8)[0] for by in (1.0, factor))
    assert float((first == second).mean()) > 0.99


def test_an_activation_that_was_always_zero_rounds_to_nearest() -> None:
    weight = np.random.default_rng(1).normal(0, 1, (12, 5)).astype(np.float32)
    np.testing.assert_array_equal(quantize_weight_gptq(weight, np.zeros((12, 12)), 8)[0], quantize_weight(weight, 8)[0])
