"""Float ranges and weights enter; integer weights, scales and zero points leave. Pure arithmetic on numpy arrays."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from vitexport.errors import InputError

# Below float16's smallest normal number a scale loses bits, and its reciprocal overflows at 1.5e-5.
SMALLEST_SCALE = np.float32(np.finfo(np.float16).tiny)
LARGEST_SCALE = np.float32(np.finfo(np.float16).max)


def float16_scale(scale: NDArray[np.float32] | np.float32) -> NDArray[np.float32]:
    """The next float16 at or above `scale`, as float32, at least `SMALLEST_SCALE`.

    For weights, and for activations that TensorRT quantizes: a stack that wants float16 scales (TensorRT 10.3) then
    computes with the same numbers as one that keeps them in float32. Rounded up, so that nothing that fitted is clipped.

    Raises:
        InputError: A scale is beyond float16.
    """
    wanted = np.maximum(np.asarray(scale, np.float32), SMALLEST_SCALE)
    if bool(np.any(wanted > LARGEST_SCALE)):
        raise InputError(
            f"The model's numbers need a quantization step of {wanted.max():.3g}, and float16 ends at {LARGEST_SCALE:.0f}; "
            "it cannot be quantized."
        )
    nearest = wanted.astype(np.float16)
    up = np.nextafter(nearest, np.float16(LARGEST_SCALE))
    return np.where(nearest.astype(np.float32) < wanted, up, nearest).astype(np.float32)


def quantize_weight(weight: NDArray[np.float32], bits: int) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Symmetric, per output channel, to nearest.

    Args:
        weight: float32 [in, out].
        bits: 8 for -127…127; 7 for -64…64, where two products with uint8 still fit int16: 2 · 255 · 64 = 32,640.

    Returns:
        int8 [in, out] and float32 scales [out]; weight ≈ int8 · scale, within scale / 2.
    """
    largest = 127 if bits == 8 else 64
    scale = float16_scale(np.abs(weight).max(axis=0) / np.float32(largest))
    return np.clip(np.rint(weight / scale), -largest, largest).astype(np.int8), scale


def symmetric_int8(low: float, high: float) -> tuple[np.float32, np.int8]:
    """Scale and zero point (0) of an activation for TensorRT: [low, high] within ±127 · scale."""
    scale = float16_scale(np.float32(max(abs(low), abs(high)) / 127))
    return np.float32(scale), np.int8(0)


def asymmetric(low: float, high: float, kind: str) -> tuple[np.float32, np.uint8 | np.int8]:
    """Scale and zero point of an activation for a CPU: [low, high], widened to hold 0, over all 256 levels.

    Args:
        low: Lower end of the range.
        high: Upper end.
        kind: ``uint8`` or ``int8``.
    """
    low, high = min(low, 0.0), max(high, 0.0)
    scale = max(np.float32((high - low) / 255), np.float32(SMALLEST_SCALE))
    levels = int(np.clip(np.rint(-low / scale), 0, 255))
    return np.float32(scale), np.uint8(levels) if kind == "uint8" else np.int8(levels - 128)
