"""Input: what was seen of an activation and the layers that read it; output: the scale and shift of each of its channels.

A few channels of a Vision Transformer are 20 to 1000 times larger than the rest, and a quantizer has one step for all. Here
the large ones are made small and the layers' weights in their place large (SmoothQuant, Xiao et al. 2022; the shift as in
Outlier Suppression+, Wei et al. 2023), with a strength chosen for each group of layers by the error that it measures.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from vitexport.quantize.arithmetic import TENSORRT, Arithmetic
from vitexport.quantize.fold import Fold, ScoreFold
from vitexport.quantize.observe import Activation
from vitexport.quantize.place import Site
from vitexport.quantize.ranges import Values
from vitexport.quantize.round import Quantizer, quantize_weight
from vitexport.quantize.settings import DEFAULT_PERCENTILE

Vector = NDArray[np.float64]
Vector32 = NDArray[np.float32]

# A channel's range for the purpose of its scale and shift. A channel's own extremes are too few values to hang a scale on:
# with them the sample lost 4 dB on noisy images against this percentile.
CHANNEL_PERCENTILE = 99.95
# Strength 1 gives every channel the same range; 0 leaves all as they are; SmoothQuant's own choice is 0.5.
STRENGTHS = (0.0, 0.5, 0.7, 0.8, 0.9, 1.0)
# Of q against k, at 0.5 a channel has the same range in both.
SCORE_STRENGTHS = (0.25, 0.5, 0.75)
# Channels smaller than this share of the largest are not made any larger: real ones are up to some thousand times apart,
# and beyond that the folded γ would come near the end of float16.
SMALLEST_SHARE = 2.0**-14
# Below this share of the range on one side of 0, a symmetric quantizer wastes enough levels for a Sub to pay.
ONE_SIDED = 0.5


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Equalization:
    """Scale and shift of one activation's channels.

    Attributes:
        scale: float64 [channels], positive, geometric mean 1.
        shift: float64 [channels].
        strength: Which of `STRENGTHS`; 0 where channels cannot be scaled.
    """

    scale: Vector
    shift: Vector
    strength: float


def equalize(fold: Fold, activation: Activation, arithmetic: Arithmetic, weight_share: float) -> Equalization:
    """Choose for `fold` the strength with the least error at its layers' outputs, on the rows that were kept.

    Args:
        fold: Layers that read one activation.
        activation: What was seen of it.
        arithmetic: What the layers are computed in.
        weight_share: Share of the error of weights rounded to nearest that the rounding in use leaves.
    """
    low, high = activation.histogram.percentile_range(CHANNEL_PERCENTILE)
    plain = np.ones(len(low))
    if fold.shifts_channels:
        shift = (low + high) / 2
    elif fold.kind == "after" and arithmetic.symmetric:
        shift = np.full(len(low), _one_sided_middle(activation))
    else:
        shift = np.zeros(len(low))
    if not fold.scales:
        return Equalization(scale=plain, shift=shift, strength=0.0)
    reach = _floored(np.maximum(high - shift, shift - low))
    # float64 on purpose: a real model's weights span many decades.
    weights = _floored(np.max([np.abs(site.weight).max(axis=1) for site in fold.sites], axis=0).astype(np.float64))
    candidates = [Equalization(scale=_scale(reach, weights, s), shift=shift, strength=s) for s in STRENGTHS]
    # What the layers compute, and with it its power, is the same for every strength.
    rows = activation.rows - shift.astype(np.float32)
    powers = [float(np.square(rows @ site.weight).sum()) for site in fold.sites]
    errors = [
        output_error(fold.sites, powers, activation, candidate, arithmetic=arithmetic, weight_share=weight_share)
        for candidate in candidates
    ]
    return candidates[int(np.argmin(errors))]


def _scale(reach: Vector, weights: Vector, strength: float) -> Vector:
    if strength == 0.0:
        return np.ones(reach.shape)
    scale: Vector = reach**strength / weights ** (1 - strength)
    normalized: Vector = scale / np.exp(np.log(scale).mean())
    return normalized


def _one_sided_middle(activation: Activation) -> float:
    """The middle of the range, if most of it is on one side of 0, as after GELU; else 0."""
    channels = len(activation.histogram.limit)
    values = Values.of(activation.histogram, np.ones(channels), np.zeros(channels))
    low, high = values.percentile_range(DEFAULT_PERCENTILE)
    smaller, larger = sorted((abs(low), abs(high)))
    return (low + high) / 2 if smaller < ONE_SIDED * larger else 0.0


def output_error(  # noqa: PLR0913 - what a layer's error depends on
    sites: Sequence[Site],
    powers: Sequence[float],
    activation: Activation,
    chosen: Equalization,
    *,
    arithmetic: Arithmetic,
    weight_share: float,
) -> float:
    """Noise power over signal power at the layers' outputs, summed over `sites`.

    The noise of the activation and that of the weights are measured apart and added: they are independent, and rounding
    that compensates leaves only `weight_share` of the second.

    Args:
        sites: The layers, with their weights as they are without the scale.
        powers: Of each layer's output on the kept rows: the sum of its squares.
        activation: What they read.
        chosen: Scale and shift.
        arithmetic: What the layers are computed in.
        weight_share: As for `equalize`.
    """
    values = Values.of(activation.histogram, chosen.scale, chosen.shift)
    low, high = values.percentile_range(DEFAULT_PERCENTILE)
    rows = equalized_rows(activation, chosen)
    noise = Quantizer.covering(low, high, arithmetic)(rows) - rows
    total = 0.0
    for site, power in zip(sites, powers, strict=True):
        weight = (site.weight * chosen.scale[:, None]).astype(np.float32)
        levels, steps = quantize_weight(weight, arithmetic.weight_bits)
        of_weights = np.square(rows @ (levels * steps - weight)).sum()
        total += float((np.square(noise @ weight).sum() + weight_share * of_weights) / max(power, 1e-30))
    return total


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ScoreEqualization:
    """What q is divided and k multiplied by, and what is taken off k before; float64 [heads, channels] each."""

    scale: Vector
    shift: Vector
    strength: float


def equalize_scores(fold: ScoreFold, q: Activation, k: Activation) -> ScoreEqualization:
    """Choose the strength with the least error of the scores, on the rows that were kept; 0 leaves q and k as they are.

    Args:
        fold: The attention.
        q: What was seen of the result of q's producer.
        k: The same of k's.
    """
    low, high = (side[fold.q] for side in q.histogram.percentile_range(CHANNEL_PERCENTILE))
    q_reach = _floored(np.maximum(np.abs(low), np.abs(high)))
    low, high = (side[fold.k] for side in k.histogram.percentile_range(CHANNEL_PERCENTILE))
    shift = (low + high) / 2
    k_reach = _floored((high - low) / 2)
    candidates = [
        ScoreEqualization(scale=np.ones(shift.shape), shift=np.zeros(shift.shape), strength=0.0),
        *(ScoreEqualization(scale=_scale(q_reach, k_reach, s), shift=shift, strength=s) for s in SCORE_STRENGTHS),
    ]
    errors = [_score_error(q.rows[:, fold.q], k.rows[:, fold.k], candidate) for candidate in candidates]
    return candidates[int(np.argmin(errors))]


def _score_error(q: Vector32, k: Vector32, chosen: ScoreEqualization) -> float:
    """Power of the scores' noise, where `q` and `k` float32 [rows, heads, channels] are quantized, one scale for each."""
    queries, keys = q / chosen.scale, (k - chosen.shift) * chosen.scale
    noises = [
        Quantizer.covering(-float(np.abs(side).max()), float(np.abs(side).max()), TENSORRT)(side) - side
        for side in (queries.astype(np.float32), keys.astype(np.float32))
    ]
    of_queries = np.einsum("nhc,mhc->hnm", noises[0], keys, optimize=True)
    of_keys = np.einsum("nhc,mhc->hnm", queries, noises[1], optimize=True)
    # The softmax takes out what all keys of a query have in common.
    of_keys = of_keys - of_keys.mean(axis=2, keepdims=True)
    of_queries = of_queries - of_queries.mean(axis=2, keepdims=True)
    return float(np.square(of_queries).sum() + np.square(of_keys).sum())


def _floored(reach: Vector) -> Vector:
    return np.maximum(reach, max(float(reach.max()) * SMALLEST_SHARE, 1e-12))


def equalized_rows(activation: Activation, chosen: Equalization) -> NDArray[np.float32]:
    """The kept rows as the layers read them then, float32 [kept, channels]."""
    return ((activation.rows - chosen.shift) / chosen.scale).astype(np.float32)


def equalized_moments(activation: Activation, chosen: Equalization, step: float) -> NDArray[np.float64]:
    """Second moments of what the layers read then, with the rounding noise of a quantizer's `step`, float64 [C, C].

    Raises:
        ValueError: The activation was observed without second moments.
    """
    if activation.gram is None:
        raise ValueError("the activation was observed without second moments")
    # Sums of (x - s)(x - s)ᵀ: G - s tᵀ - (t - n s) sᵀ. In place: a wide layer's moments are tens of MB.
    shift = chosen.shift - activation.offset
    moments = activation.gram.astype(np.float64)
    moments -= np.outer(shift, activation.total)
    moments -= np.outer(activation.total - activation.gram_rows * shift, shift)
    moments /= chosen.scale
    moments /= chosen.scale[:, None]
    moments[np.diag_indices_from(moments)] += activation.gram_rows * step**2 / 12
    return moments
