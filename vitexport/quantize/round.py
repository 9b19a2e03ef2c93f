"""Input: float ranges and weights; output: integer weights, scales and zero points. Pure arithmetic on numpy arrays."""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import lapack

from vitexport.errors import InputError
from vitexport.quantize.arithmetic import Arithmetic

# Below float16's smallest normal number a scale loses bits, and its reciprocal overflows at 1.5e-5.
SMALLEST_SCALE = np.float32(np.finfo(np.float16).tiny)
LARGEST_SCALE = np.float32(np.finfo(np.float16).max)
# Added to the diagonal of the second moments, as a share of its mean: keeps channels that hardly vary from being bent far.
DAMPING = 0.01
BLOCK = 32


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Quantizer:
    """How one activation is rounded: q = clip(rint(x / scale) + zero_point), per tensor."""

    scale: np.float32
    zero_point: np.uint8 | np.int8

    @classmethod
    def covering(cls, low: float, high: float, arithmetic: Arithmetic) -> Quantizer:
        """For the range [low, high]: symmetric int8, or all levels of the arithmetic's type."""
        symmetric = arithmetic.symmetric
        scale, zero = symmetric_int8(low, high) if symmetric else asymmetric(low, high, arithmetic.activation)
        return cls(scale=scale, zero_point=zero)

    def __call__(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """`x` as the quantizer leaves it, float32."""
        limits = np.iinfo(self.zero_point.dtype)
        # TensorRT clips to -128 … 127 although symmetric scales are chosen for 127.
        zero = np.float32(self.zero_point)
        levels = np.clip(np.rint(x / self.scale) + zero, limits.min, limits.max)
        result: NDArray[np.float32] = (levels - zero) * self.scale
        return result


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


def largest_level(bits: int) -> int:
    """127 for 8 bits; 64 for 7, where two products with uint8 still fit int16: 2 · 255 · 64 = 32,640."""
    return 127 if bits == 8 else 64


def weight_scale(weight: NDArray[np.float32], bits: int) -> NDArray[np.float32]:
    """Symmetric scale of each output channel, float32 [out], for `weight` [in, out]."""
    return float16_scale(np.abs(weight).max(axis=0) / np.float32(largest_level(bits)))


def quantize_weight(weight: NDArray[np.float32], bits: int) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Symmetric, per output channel, to nearest.

    Args:
        weight: float32 [in, out].
        bits: 8 for -127…127; 7 for -64…64.

    Returns:
        int8 [in, out] and float32 scales [out]; weight ≈ int8 · scale, within scale / 2.
    """
    scale = weight_scale(weight, bits)
    largest = largest_level(bits)
    return np.clip(np.rint(weight / scale), -largest, largest).astype(np.int8), scale


def quantize_weight_gptq(
    weight: NDArray[np.float32], moments: NDArray[np.float64], bits: int
) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Symmetric, per output channel; the error of each input channel is compensated in those still to be rounded.

    The method of Frantar et al., "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers" (2022):
    input channels in the order of falling second moment, with the upper Cholesky factor of the inverse moments.

    Args:
        weight: float32 [in, out].
        moments: float64 [in, in]: sum of the outer products of what the layer reads; any positive factor.
        bits: 8 or 7, as `quantize_weight`.

    Returns:
        As `quantize_weight`; a weight may now be further than scale / 2 from its integer.
    """
    scale, largest = weight_scale(weight, bits), largest_level(bits)
    order = np.argsort(-np.diag(moments), kind="stable")
    factor = _inverse_factor(moments[np.ix_(order, order)])
    left = weight[order].astype(np.float32)
    levels = np.empty(left.shape, np.int8)
    for start in range(0, len(left), BLOCK):
        stop = min(start + BLOCK, len(left))
        block = left[start:stop]
        errors = np.empty_like(block)
        for row in range(stop - start):
            rounded = np.clip(np.rint(block[row] / scale), -largest, largest)
            levels[start + row] = rounded
            errors[row] = (block[row] - rounded * scale) / factor[start + row, start + row]
            block[row + 1 :] -= np.outer(factor[start + row, start + row + 1 : stop], errors[row])
        left[stop:] -= factor[start:stop, stop:].T @ errors
    result = np.empty_like(levels)
    result[order] = levels
    return result, scale


def _inverse_factor(moments: NDArray[np.float64]) -> NDArray[np.float32]:
    """Upper triangular U with UᵀU = inverse of `moments`, which are damped in place."""
    mean = float(np.diag(moments).mean())
    moments[np.diag_indices_from(moments)] += DAMPING * mean if mean > 0 else 1.0
    # Reversing both axes turns the lower factor of the reversed matrix into an upper one: U = inverse of that, so no
    # second factorization of the inverse is needed.
    lower = np.linalg.cholesky(moments[::-1, ::-1])
    inverse, _ = lapack.strtri(np.asfortranarray(lower, np.float32), lower=1, overwrite_c=1)
    factor: NDArray[np.float32] = np.ascontiguousarray(inverse[::-1, ::-1])
    return factor


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
