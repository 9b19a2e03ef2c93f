from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from vitexport.quantize.degrade import KINDS, degraded

# The numbers of the kinds, in turn.
NOISE, TURN, EXPOSURE, BLUR = range(4)


def picture(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 1000))
def test_any_picture_keeps_its_shape_and_type(height: int, width: int, number: int) -> None:
    pixels = picture(height, width)
    before = pixels.copy()
    result = degraded(pixels, number)
    assert (result.shape, result.dtype.name) == (pixels.shape, "uint8")
    np.testing.assert_array_equal(pixels, before)
    np.testing.assert_array_equal(degraded(pixels, number), result)


@pytest.mark.parametrize("number", range(2 * KINDS))
@pytest.mark.parametrize("shape", [(1, 1), (2, 3), (1, 7)])
def test_tiny_pictures_do_not_fail(number: int, shape: tuple[int, int]) -> None:
    assert degraded(picture(*shape), number).shape == (*shape, 3)


@pytest.mark.parametrize("number", range(4 * KINDS))
def test_every_copy_differs_from_its_picture_and_from_the_next_of_its_kind(number: int) -> None:
    pixels = picture(32, 24)
    result = degraded(pixels, number)
    assert not np.array_equal(result, pixels)
    assert not np.array_equal(result, degraded(pixels, number + KINDS))


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 200), st.integers(1, 24), st.integers(1, 24))
def test_an_even_picture_shows_which_kind_it_is(number: int, height: int, width: int) -> None:
    white = np.full((height, width, 3), 255, np.uint8)
    result = degraded(white, number)
    if number % KINDS in (TURN, BLUR):
        # Nothing comes in from outside of the picture.
        np.testing.assert_array_equal(result, white)
    elif number % KINDS == EXPOSURE:
        assert len(np.unique(result)) == 1
    else:
        assert number % KINDS == NOISE
        assert int(result.min()) > 0.2 * 255


def test_a_blur_evens_out_and_noise_does_not() -> None:
    pixels = picture(48, 48)
    steps = {number: float(np.abs(np.diff(degraded(pixels, number).astype(float), axis=0)).mean()) for number in range(4)}
    plain = float(np.abs(np.diff(pixels.astype(float), axis=0)).mean())
    assert steps[BLUR] < 0.7 * plain
    grey = np.full((48, 48, 3), 128, np.uint8)
    deviations = [float(degraded(grey, KINDS * number).astype(float).std()) for number in range(20)]
    assert 0.025 * 255 * 0.9 < min(deviations) < max(deviations) < 0.10 * 255 * 1.1
