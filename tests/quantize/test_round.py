from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray

from vitexport.errors import InputError
from vitexport.quantize.round import asymmetric, float16_scale, quantize_weight, symmetric_int8

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
