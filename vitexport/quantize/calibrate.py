"""Choose the integers of every layer from a float graph and calibration images, and say how sensitive each layer is.

observe → find and choose folds → fold them into a float graph of the same function → ranges → rounding.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from vitexport.artifacts import Outputs, Progress
from vitexport.datasets import ImageSet
from vitexport.errors import NothingToQuantizeError, UsageError
from vitexport.preprocess import PreprocessSpec, normalize
from vitexport.quantize.arithmetic import Arithmetic
from vitexport.quantize.degrade import degraded
from vitexport.quantize.equalize import (
    Equalization,
    ScoreEqualization,
    equalize,
    equalize_scores,
    equalized_moments,
    equalized_rows,
)
from vitexport.quantize.fold import Fold, ScoreFold, find_folds, find_score_folds
from vitexport.quantize.observe import ROWS, Activation, Batch, Observation, Tensor, observe, with_outputs
from vitexport.quantize.place import Point, Site, attention_points, find_sites, residual_points
from vitexport.quantize.ranges import Range, Values, choose_range
from vitexport.quantize.round import Quantizer, quantize_weight, quantize_weight_gptq
from vitexport.quantize.settings import QuantSettings, check_placement
from vitexport.rewrites import apply, session
from vitexport.rewrites.fold_channels import ChannelFold, FoldChannels
from vitexport.rewrites.insert_qdq import QuantizedInput, QuantizedLinear
from vitexport.runtime.backends.onnx_runtime import available_threads
from vitexport.runtime.model import join

T = TypeVar("T")
R = TypeVar("R")

# Degraded copies make up half of what the ranges see, from at most this many images: their passes are the cost.
DEGRADED_IMAGES = 128
# Of the error of weights rounded to nearest, what compensated rounding leaves at the layers' outputs: 54 dB became 58 dB on
# the sample.
GPTQ_SHARE = 0.4
# The folded graph may differ from the float one by this share of the largest logit.
FOLD_LIMIT = 1e-5
# Folds that change one node and the layers that read it, and nothing that is found by following channels.
NEAR = ("norm", "after")
CHECKED_IMAGES = 4
# Layers that are worked on at once, at most: a wide one takes some hundred MB.
SIDE_BY_SIDE = 8
# A skip operand is quantized under placement C only if rounding it leaves this much: a real ViT's residual stream with a few
# channels at 1000 leaves less, and a ViT-B fell to 5 % top-1 with it (onnxsim#1742).
RESIDUAL_SQNR_DB = 40.0


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Calibrated:
    """Everything that calibration decided; a stack puts it into a graph.

    Attributes:
        folded: The float graph that the integers belong to: the same function with other channels.
        layers: In graph order.
        inputs: Further quantized inputs, of placements B and C.
        modules: timm module by node.
        ranges: Activation range by module, as the layer reads it.
        strengths: Equalization strength by module; by group of `inputs` that of q against k.
        layer_db: SQNR of each layer's own output on calibration rows, by module, and of the least input of each group of
            `inputs`: the cheap measure of its sensitivity.
        unequalized: How many groups of layers could not be equalized without changing the float function.
    """

    folded: ir.Model
    layers: tuple[QuantizedLinear, ...]
    inputs: tuple[QuantizedInput, ...]
    modules: Mapping[str, str]
    ranges: Mapping[str, Range]
    strengths: Mapping[str, float]
    layer_db: Mapping[str, float]
    unequalized: int


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Calibration:
    """What calibration works on.

    Attributes:
        graph: The float model; it is not changed.
        batch: How many images it takes in one call, at least.
        images: From where the model will work.
        spec: The model's preprocessing.
        arithmetic: What the layers will be computed in.
        settings: How.
        progress: Told after each chunk.
    """

    graph: ir.Model
    batch: int
    images: ImageSet
    spec: PreprocessSpec
    arithmetic: Arithmetic
    settings: QuantSettings
    progress: Progress


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Group:
    """The layers that read one tensor of the folded graph, what was seen of it, and its quantizer."""

    sites: tuple[Site, ...]
    activation: Activation
    equalization: Equalization
    limits: Range
    quantizer: Quantizer


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Folds:
    """What was chosen for the layers, and for q against k."""

    layers: Mapping[Fold, Equalization]
    scores: Mapping[ScoreFold, ScoreEqualization]

    def changes(self) -> list[ChannelFold]:
        """In the graph."""
        own = [fold.change(best.scale, best.shift) for fold, best in self.layers.items()]
        return own + [change for fold, best in self.scores.items() for change in fold.changes(best.scale, best.shift)]


def calibrate(work: Calibration) -> Calibrated:
    """Observe, fold, choose ranges and round.

    Raises:
        InputError: Nothing to quantize, or NaN on a calibration image.
        UsageError: The settings do not go with the target.
        ToolchainError: ONNX Runtime or a rewrite fails.
    """
    check_placement(work.settings.placement, work.arithmetic)
    model = work.graph
    sites = find_sites(model.graph, work.settings, convolutions=work.arithmetic.convolutions)
    if not sites:
        raise NothingToQuantizeError(_nothing(work.settings))
    with threadpool_limits(1):
        images = first_images(work, 0)
        folds = find_folds(model, sites, images) if work.settings.equalize else ()
        points = _points(work, model.graph)
        score_folds = find_score_folds(model, points, images) if work.settings.equalize else ()
        seen = _observe(work, model, [*_tensors(work, sites), *_results(score_folds)])
        share = 1.0 if work.settings.rounding == "nearest" else GPTQ_SHARE
        chosen = _each(
            lambda fold: equalize(fold, seen.activations[fold.sites[0].activation], work.arithmetic, share), folds
        )
        scores = _scores(work, model, score_folds, seen)
        wanted = _Folds(layers=dict(zip(folds, chosen, strict=True)), scores=scores)
        model, kept = _equalized(work, model, wanted, seen)
        equalizations = {site.node: equalization for fold, equalization in kept.layers.items() for site in fold.sites}
        original = {site.node: site.activation for site in sites}
        groups = _groups(work, model, {node: seen.activations[name] for node, name in original.items()}, equalizations)
        results = _each(lambda pair: _round(work, *pair), [(group, site) for group in groups for site in group.sites])
    order = {site.node: index for index, site in enumerate(sites)}
    results.sort(key=lambda result: order[result[0].node])
    modules = {site.node: site.module for site in sites}
    inputs, input_db = _inputs(work, model)
    group_of = {point.node: point.group for point in points}
    return Calibrated(
        folded=model,
        layers=tuple(layer for layer, _ in results),
        inputs=inputs,
        modules=modules,
        ranges={site.module: group.limits for group in groups for site in group.sites},
        strengths={
            **dict.fromkeys(input_db, 0.0),
            **{group_of[fold.product]: best.strength for fold, best in kept.scores.items()},
            **{site.module: group.equalization.strength for group in groups for site in group.sites},
        },
        layer_db={**input_db, **{modules[layer.node]: decibels for layer, decibels in results}},
        unequalized=len(wanted.layers) - len(kept.layers),
    )


def _nothing(settings: QuantSettings) -> str:
    if settings.include or settings.exclude:
        return "`include` and `exclude` leave no linear layer to quantize; `vitexport inspect` of a bundle lists the layers."
    return "The model has no linear layer with a constant weight that the target computes in integers."


def _each(step: Callable[[T], R], items: Sequence[T]) -> list[R]:
    """`step` of every item, side by side; NumPy's work runs outside of Python's lock."""
    with ThreadPoolExecutor(min(available_threads(), SIDE_BY_SIDE)) as pool:
        return list(pool.map(step, items))


def _tensors(work: Calibration, sites: Sequence[Site]) -> list[Tensor]:
    """What the layers read, and how much has to be known of it for these settings."""
    compensates = work.settings.rounding == "gptq"
    counts = work.settings.equalize or work.settings.observer.kind != "minmax"
    return [
        Tensor(
            name=site.activation,
            per_channel=site.per_channel,
            channels_first=site.channels_first,
            moments=site.per_channel and compensates,
            counts=counts,
        )
        for site in sites
    ]


def _results(folds: Sequence[ScoreFold]) -> list[Tensor]:
    return [Tensor(name=name, per_channel=True) for fold in folds for name in fold.results]


def _merged(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Each tensor once, with all that is wanted of it."""
    merged: dict[str, Tensor] = {}
    for tensor in tensors:
        known = merged.get(tensor.name, tensor)
        merged[tensor.name] = Tensor(
            name=tensor.name,
            per_channel=known.per_channel or tensor.per_channel,
            channels_first=known.channels_first or tensor.channels_first,
            moments=known.moments or tensor.moments,
            counts=known.counts or tensor.counts,
        )
    return list(merged.values())


def _observe(work: Calibration, model: ir.Model, tensors: Sequence[Tensor]) -> Observation:
    unique = _merged(tensors)
    own = [str(value.name) for value in model.graph.outputs]
    wanted = list(dict.fromkeys([*(tensor.name for tensor in unique), *own]))
    backend = session(with_outputs(model, wanted), outputs=wanted, threads=1)
    count = len(work.images.files)
    return observe(backend, unique, own, _batches(work), count + _copies(work, count), work.progress)


def _batches(work: Calibration) -> Iterator[Batch]:
    """All images as they are, then degraded copies of some, spread evenly."""
    count, size = len(work.images.files), work.batch
    worse = _copies(work, count)
    for numbers, spoil in ((range(count), False), ([index * count // worse for index in range(worse)], True)):
        rows = -(-ROWS // ((2 if worse else 1) * max(len(numbers), 1)))
        for start in range(0, len(numbers), size):
            # A graph of one batch size takes no smaller one; the last batch is filled up from the beginning.
            batch = [numbers[index % len(numbers)] for index in range(start, start + size)]
            pixels = work.images.pixels(work.spec, batch)
            if spoil:
                # Counted by copies, not by images: those are spread evenly, and would all get the same kind.
                pixels = np.stack([degraded(picture, start + place) for place, picture in enumerate(pixels)])
            yield Batch(images=normalize(pixels, work.spec), first=start, rows=rows)


def _copies(work: Calibration, count: int) -> int:
    """How many of `count` images are also seen degraded: half, and no more than `DEGRADED_IMAGES`, if any."""
    if not work.settings.degraded:
        return 0
    return min(max(count // 2, 1), DEGRADED_IMAGES)


def first_images(work: Calibration, start: int) -> NDArray[np.float32]:
    """The smallest batch that the graph takes, from image `start` on: float32 [n, 3, height, width]."""
    count = len(work.images.files)
    numbers = [index % count for index in range(start, start + work.batch)]
    return normalize(work.images.pixels(work.spec, numbers), work.spec)


def _scores(
    work: Calibration, model: ir.Model, folds: Sequence[ScoreFold], seen: Observation
) -> Mapping[ScoreFold, ScoreEqualization]:
    """How q is equalized against k; in no attention where something else reads q or k too, and would not take the scale."""
    chosen = _each(lambda fold: equalize_scores(fold, *(seen.activations[name] for name in fold.results)), folds)
    changes = [change for fold, best in zip(folds, chosen, strict=True) for change in fold.changes(best.scale, best.shift)]
    if not changes:
        return {}
    exact = _difference(work, _folded(model, changes), seen.first_outputs) <= FOLD_LIMIT
    return dict(zip(folds, chosen, strict=True)) if exact else {}


def _equalized(work: Calibration, model: ir.Model, wanted: _Folds, seen: Observation) -> tuple[ir.Model, _Folds]:
    """The float graph with as many of the folds as leave its function alone, and those folds.

    A v that something besides the projection reads cannot be scaled, and a network that amplifies float32's own rounding
    shows every change. All folds are tried first, then those that reach no further than the next node, then none.
    """
    near = {fold: best for fold, best in wanted.layers.items() if fold.kind in NEAR}
    attempts = [wanted, _Folds(layers=near, scores={})]
    for folds in attempts:
        changes = folds.changes()
        if not changes:
            return model, folds
        folded = _folded(model, changes)
        if _difference(work, folded, seen.first_outputs) <= FOLD_LIMIT:
            return folded, folds
    return model, _Folds(layers={}, scores={})


def _folded(model: ir.Model, changes: Sequence[ChannelFold]) -> ir.Model:
    """A copy of `model`, changed."""
    folded = model.clone()
    apply(folded, FoldChannels(changes))
    return folded


def _difference(work: Calibration, folded: ir.Model, before: Outputs) -> float:
    """Largest change of an output for the first images, as a share of its largest value; `before` is what the float graph
    computed.

    Infinite if the graph computes NaN.
    """
    backend, size = session(folded, threads=1), work.batch
    count = min(-(-CHECKED_IMAGES // size) * size, *map(len, before.values()))
    after = join(_each(lambda start: backend.run(first_images(work, start)), range(0, count, size)))
    shares = [
        float(np.abs(after[name] - values[:count]).max() / max(float(np.abs(values[:count]).max()), 1e-30))
        for name, values in before.items()
    ]
    share = float(np.max(shares))
    return share if np.isfinite(share) else float("inf")


def _groups(
    work: Calibration,
    folded: ir.Model,
    activations: Mapping[str, Activation],
    equalizations: Mapping[str, Equalization],
) -> list[_Group]:
    """The layers of the folded graph by the tensor that they read, each with its quantizer.

    Args:
        work: What is calibrated.
        folded: The float model after equalization.
        activations: What the layer read before it, by node.
        equalizations: By node, of those that have one.
    """
    members: dict[str, list[Site]] = {}
    for site in find_sites(folded.graph, work.settings, convolutions=work.arithmetic.convolutions):
        members.setdefault(site.activation, []).append(site)
    pairs = []
    for group in members.values():
        activation = activations[group[0].node]
        channels = len(activation.histogram.limit)
        plain = Equalization(scale=np.ones(channels), shift=np.zeros(channels), strength=0.0)
        pairs.append((tuple(group), activation, equalizations.get(group[0].node, plain)))
    return _each(lambda parts: _group(work, *parts), pairs)


def _group(work: Calibration, sites: tuple[Site, ...], activation: Activation, equalization: Equalization) -> _Group:
    values = Values.of(activation.histogram, equalization.scale, equalization.shift)
    rows = equalized_rows(activation, equalization)

    def error(limits: Range) -> float:
        noise = Quantizer.covering(*limits, work.arithmetic)(rows) - rows
        # A Conv's rows are single values: the error of what it reads stands for that of what it computes.
        return float(sum(np.square(noise @ site.weight if site.per_channel else noise).mean() for site in sites))

    limits = choose_range(values, work.settings.observer, symmetric=work.arithmetic.symmetric, error=error)
    quantizer = Quantizer.covering(*limits, work.arithmetic)
    return _Group(sites=sites, activation=activation, equalization=equalization, limits=limits, quantizer=quantizer)


def _round(work: Calibration, group: _Group, site: Site) -> tuple[QuantizedLinear, float]:
    """The integers of one layer, and the SQNR of its own output in dB."""
    bits = work.arithmetic.weight_bits
    if work.settings.rounding == "nearest" or not site.per_channel:
        levels, scale = quantize_weight(site.weight, bits)
    else:
        moments = equalized_moments(group.activation, group.equalization, float(group.quantizer.scale))
        levels, scale = quantize_weight_gptq(site.weight, moments, bits)
    bias_change, decibels = _judge(group, site, levels, scale)
    layer = QuantizedLinear(
        node=site.node,
        activation=site.activation,
        activation_scale=group.quantizer.scale,
        activation_zero_point=group.quantizer.zero_point,
        weight=levels,
        weight_scale=scale,
        layout=site.layout,
        bias_change=bias_change,
    )
    return layer, decibels


def _judge(
    group: _Group, site: Site, levels: NDArray[np.int8], scale: NDArray[np.float32]
) -> tuple[NDArray[np.float64] | None, float]:
    """The change of the layer's bias, where one measures better, and the SQNR of the layer's output with it.

    The mean error on every other kept row is taken off if that makes the error on the rest smaller.
    """
    if not site.per_channel:
        weight_noise = np.square(levels * scale - site.weight).sum() / np.square(site.weight).sum()
        return None, float(-10 * np.log10(max(weight_noise, 1e-30)))
    rows = equalized_rows(group.activation, group.equalization)
    wanted = rows @ site.weight
    noise = group.quantizer(rows) @ (levels * scale) - wanted
    mean = noise[::2].mean(axis=0)
    better = np.square(noise[1::2] - mean).sum() < np.square(noise[1::2]).sum()
    if better:
        noise = noise - mean
    share = float(np.square(noise).sum() / max(float(np.square(wanted).sum()), 1e-30))
    return -mean.astype(np.float64) if better else None, float(-10 * np.log10(max(share, 1e-30)))


def _points(work: Calibration, graph: ir.Graph) -> tuple[Point, ...]:
    """The further tensors that placements B and C quantize."""
    base = work.settings.placement.base
    if base == "A":
        return ()
    points = attention_points(graph, work.settings) if base == "B" else residual_points(graph, work.settings)
    if not points:
        narrowed = " that `include` and `exclude` leave" if work.settings.include or work.settings.exclude else ""
        raise UsageError(
            f"Placement {base} finds nothing to quantize beyond the layers of A in this model{narrowed}; use `placement=A`."
        )
    return points


def _inputs(work: Calibration, folded: ir.Model) -> tuple[tuple[QuantizedInput, ...], Mapping[str, float]]:
    """The further tensors of placements B and C, observed in a second pass over the folded graph.

    With the SQNR in dB that rounding leaves them, by group: the least of a group's inputs.
    """
    points = _points(work, folded.graph)
    if not points:
        return (), {}
    with threadpool_limits(1):
        tensors = [Tensor(name=point.tensor, per_channel=False) for point in points]
        seen = _observe(work, folded, tensors).activations
    inputs: list[QuantizedInput] = []
    decibels: dict[str, float] = {}
    for point in points:
        scale, own = _input(work, seen[point.tensor])
        if work.settings.placement.base == "C" and own < RESIDUAL_SQNR_DB:
            continue
        inputs.append(QuantizedInput(node=point.node, index=point.index, scale=scale, group=point.group))
        decibels[point.group] = min(own, decibels.get(point.group, own))
    return tuple(inputs), decibels


def _input(work: Calibration, activation: Activation) -> tuple[np.float32, float]:
    """The scale of one tensor's pair, and the SQNR in dB that rounding leaves it.

    No single layer reads it: ``output`` is here the error of the tensor itself.
    """
    rows = activation.rows

    def error(limits: Range) -> float:
        return float(np.square(Quantizer.covering(*limits, work.arithmetic)(rows) - rows).mean())

    values = Values.of(activation.histogram, np.ones(1), np.zeros(1))
    limits = choose_range(values, work.settings.observer, symmetric=True, error=error)
    share = error(limits) / max(float(np.square(rows).mean()), 1e-30)
    return Quantizer.covering(*limits, work.arithmetic).scale, float(-10 * np.log10(max(share, 1e-30)))
