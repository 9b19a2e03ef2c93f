"""Input: a float graph and its linear layers; output: where a scale and a shift per channel can be folded in exactly.

- ``norm``: LayerNormalization → layers. γ and β take the scale and the shift, the layers' weights and biases undo them.
- ``value``: the columns of qkv that become v → attention → proj. The rows of a softmax sum to one, so what v is scaled and
  shifted by arrives unchanged at the projection.
- ``product``: one factor of a gated unit → fc2: the columns of the layer that computes that factor take the scale; no shift.
- `ScoreFold`: q against k, of an attention whose products are quantized (placement B): a scale each, and a shift of k.
- ``after``: anything else (GELU): no scale, and one number taken off behind it, so that a one-sided activation uses both
  halves of a symmetric quantizer. TensorRT only: a CPU's quantizer has a zero point.
"""

from __future__ import annotations

import dataclasses
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from vitexport.quantize.observe import with_outputs
from vitexport.quantize.place import Point, Site, scores_of
from vitexport.rewrites import session
from vitexport.rewrites.fold_channels import ChannelFold
from vitexport.rewrites.graph import Vector, add_constant, bias_index, constant, make_node, only_consumer, operand

Kind = Literal["norm", "value", "product", "after"]

# Numbers of columns are whole; what arrives may be this far from one.
SAME = 0.25


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Fold:
    """One activation whose channels may be scaled and shifted without changing the float function.

    Attributes:
        kind: Where the scale and the shift go; see this module.
        producer: Name of the node that takes them: LayerNormalization or its Add, the MatMul of qkv or of a gate's factor,
            or the node behind which a Sub is put.
        columns: int64 [channels], for ``value`` and ``product``: column of the producer's weight by channel.
        sites: The layers that read the activation.
    """

    kind: Kind
    producer: str
    columns: NDArray[np.int64] | None
    sites: tuple[Site, ...]

    @property
    def scales(self) -> bool:
        """Whether each channel may have a scale of its own."""
        return self.kind != "after"

    @property
    def shifts_channels(self) -> bool:
        """Whether each channel may have a shift of its own."""
        return self.kind in ("norm", "value")

    def change(self, scale: Vector, shift: Vector) -> ChannelFold:
        """That the activation x becomes (x - `shift`) / `scale`, float64 [channels] each."""
        layers = tuple(site.node for site in self.sites)
        return ChannelFold(
            kind=self.kind, producer=self.producer, columns=self.columns, layers=layers, scale=scale, shift=shift
        )


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ScoreFold:
    """One attention whose q and k may be scaled against each other, and whose k may be shifted.

    The scores are sums of q · k over channels: what divides one may multiply the other. A shift of k adds the same to all
    scores of one query, and the softmax takes it out again.

    Attributes:
        product: Name of the MatMul of q and k.
        producers: Names of the linear layers that compute q and k; often one and the same.
        results: What they compute, their biases included: names of tensors.
        q, k: int64 [heads, channels]: columns of the producers that are multiplied with each other.
    """

    product: str
    producers: tuple[str, str]
    results: tuple[str, str]
    q: NDArray[np.int64]
    k: NDArray[np.int64]

    def changes(self, scale: Vector, shift: Vector) -> tuple[ChannelFold, ChannelFold]:
        """That q becomes q / `scale` and k becomes (k - `shift`) · `scale`, float64 [heads, channels] each.

        No layer has to undo either: each undoes the other.
        """
        return (
            _columns_change(self.producers[0], self.q, scale, np.zeros(shift.shape)),
            _columns_change(self.producers[1], self.k, 1 / scale, shift),
        )


def _columns_change(producer: str, columns: NDArray[np.int64], scale: Vector, shift: Vector) -> ChannelFold:
    return ChannelFold(
        kind="value",
        producer=producer,
        columns=columns.reshape(-1),
        layers=(),
        scale=scale.reshape(-1),
        shift=shift.reshape(-1),
    )


def find_folds(model: ir.Model, sites: Sequence[Site], image: NDArray[np.float32]) -> tuple[Fold, ...]:
    """One fold for every group of layers that read the same activation.

    Args:
        model: The float model; it is not changed.
        sites: Linear layers; behind what a pointwise Conv reads only a shift is taken off.
        image: float32 [n, 3, height, width], as the graph takes it, to follow channels through the attention.
    """
    nodes = {str(node.name): node for node in model.graph}
    groups: dict[str, list[Site]] = {}
    folds: list[Fold] = _behind([site for site in sites if site.channels_first])
    for site in sites:
        if site.per_channel and not site.channels_first:
            groups.setdefault(_origin(operand(nodes[site.node], 0)).name or "", []).append(site)
    unknown: list[list[Site]] = []
    for members in groups.values():
        producer = _origin(operand(nodes[members[0].node], 0)).producer()
        if producer is not None and is_norm(producer) and reaches_only(producer.outputs[0], {site.node for site in members}):
            folds.append(Fold(kind="norm", producer=str(producer.name), columns=None, sites=tuple(members)))
        else:
            unknown.append(members)
    tensors = {members[0].node: _linear_candidates(nodes[members[0].node]) for members in unknown if len(members) == 1}
    columns = _columns(model, [name for names in tensors.values() for name in names], image)
    for members in unknown:
        site = members[0]
        tensor = next((name for name in tensors.get(site.node, ()) if name in columns), None)
        if tensor is None:
            folds += _behind(members)
        else:
            kind: Kind = "value" if tensor == site.activation else "product"
            folds.append(Fold(kind=kind, producer=columns[tensor][0], columns=columns[tensor][1], sites=(site,)))
    order = {site.node: index for index, site in enumerate(sites)}
    return tuple(sorted(folds, key=lambda fold: order[fold.sites[0].node]))


def _behind(members: Sequence[Site]) -> list[Fold]:
    """One fold of kind ``after`` for each tensor: layers of one origin may read it in different shapes."""
    tensors = dict.fromkeys(site.activation for site in members)
    return [
        Fold(kind="after", producer=name, columns=None, sites=tuple(site for site in members if site.activation == name))
        for name in tensors
    ]


def _linear_candidates(node: ir.Node) -> tuple[str, ...]:
    """Tensors whose channels may be columns of a linear layer: what an attention hands to `node`, or a gate's factors."""
    return (str(operand(node, 0).name),) if _from_attention(node) else _factors(node)


def is_norm(node: ir.Node) -> bool:
    """Whether `node` is a LayerNormalization over the last axis with a bias, or the Add that ends a lowered one."""
    if node.op_type == "LayerNormalization":
        return len(node.inputs) > 2 and constant(node.inputs[1]) is not None and constant(node.inputs[2]) is not None
    return affine(node) is not None


def affine(node: ir.Node) -> ir.Node | None:
    """The Mul by γ before `node`, if `node` is the Add of β behind it: a LayerNormalization that was written out."""
    beta = constant(node.inputs[1]) if node.op_type == "Add" else None
    scaled = node.inputs[0].producer() if beta is not None and beta.ndim == 1 and node.inputs[0] is not None else None
    if scaled is None or scaled.op_type != "Mul" or only_consumer(scaled.outputs[0]) is not node:
        return None
    gamma = constant(scaled.inputs[1])
    return scaled if beta is not None and gamma is not None and gamma.shape == beta.shape else None


def _keeps_channels(node: ir.Node) -> bool:
    """Whether `node` only moves tokens, so that the last axis of its inputs is still that of its output."""
    before, after = node.inputs[0], node.outputs[0]
    if before is None or before.shape is None or after.shape is None or len(before.shape) < 2:
        return False
    same = isinstance(before.shape[-1], int) and before.shape[-1] == after.shape[-1]
    if node.op_type in ("Reshape", "Slice"):
        return same
    if node.op_type == "Transpose":
        return list(node.attributes["perm"].as_ints())[-1] == len(before.shape) - 1
    if node.op_type == "Concat":
        # Rolled windows: pieces of one tensor in another order. Anything else beside them would not take the scale.
        axis = node.attributes["axis"].as_int()
        origins = {_origin(value) for value in node.inputs if value is not None}
        return axis not in (-1, len(before.shape) - 1) and len(origins) == 1
    if node.op_type == "Pad":
        # Windows that fit exactly are padded by nothing; zeros that are really added would not take the shift.
        pads = constant(node.inputs[1])
        return pads is not None and not pads.any()
    return False


def _origin(value: ir.Value) -> ir.Value:
    """`value`, followed back to where its channels were computed."""
    producer = value.producer()
    while producer is not None and _keeps_channels(producer):
        value = operand(producer, 0)
        producer = value.producer()
    return value


def reaches_only(value: ir.Value, sites: set[str]) -> bool:
    """Whether all that is computed from `value` goes through the first input of the MatMuls named `sites`."""
    queue, seen = deque([value]), {value}
    while queue:
        current = queue.popleft()
        if current.is_graph_output():
            return False
        for use in current.uses():
            if use.node.op_type == "Shape" or (use.node.name in sites and use.idx == 0):
                continue
            if (use.idx != 0 and use.node.op_type != "Concat") or not _keeps_channels(use.node):
                return False
            moved = use.node.outputs[0]
            if moved not in seen:
                seen.add(moved)
                queue.append(moved)
    return True


def _factors(node: ir.Node) -> tuple[str, ...]:
    """The factors of the gated unit that the layer `node` alone reads."""
    gate = operand(node, 0).producer()
    if gate is None or gate.op_type != "Mul" or not reaches_only(gate.outputs[0], {str(node.name)}):
        return ()
    return tuple(
        str(value.name)
        for value in gate.inputs
        if value is not None and constant(value) is None and only_consumer(value) is gate
    )


def _from_attention(node: ir.Node) -> bool:
    """Whether the layer reads, through data movement only, a product of two computed tensors."""
    value = operand(node, 0)
    while (producer := value.producer()) is not None and producer.op_type in (
        "Reshape",
        "Transpose",
        "Squeeze",
        "Unsqueeze",
    ):
        value = operand(producer, 0)
    return producer is not None and producer.op_type == "MatMul" and constant(producer.inputs[1]) is None


def _columns(
    model: ir.Model, tensors: Sequence[str], image: NDArray[np.float32]
) -> Mapping[str, tuple[str, NDArray[np.int64]]]:
    """For each of `tensors` that allows it: the linear layer behind it, and which of its columns each channel is.

    Found by experiment, so that no layout of heads has to be known: the results of all linear layers are replaced by numbers
    that say which column they are, and in another run by the number of the layer, the same for every token. Averaging over
    tokens leaves them as they are, and they arrive behind the attention. A run with the opposite signs, and one of ones,
    exclude whatever is not linear on the way.
    """
    if not tensors:
        return {}
    runs = _experiment(model, tensors, image)
    found = {}
    for name in tensors:
        side = _traced(runs, name, swapped=False)
        # One row for every image, window and the like; all of them say the same.
        if side is not None and side.same_factor and len(np.unique(side.columns, axis=0)) == 1:
            columns = side.columns[0]
            if len(set(columns.tolist())) == len(columns):
                found[name] = (side.layer, columns)
    return found


def find_score_folds(model: ir.Model, points: Sequence[Point], image: NDArray[np.float32]) -> tuple[ScoreFold, ...]:
    """The attentions among `points` whose q and k are columns of linear layers, each by a constant factor at most.

    A rotation by position or a normalization of q or k in between leaves nothing to fold here.

    Args:
        model: The float model; it is not changed.
        points: Inputs that will be quantized; only the products of q and k among their nodes are looked at.
        image: As for `find_folds`.
    """
    nodes = {str(node.name): node for node in model.graph}
    pairs: dict[str, dict[int, str]] = {}
    for point in points:
        if nodes[point.node].op_type == "MatMul" and scores_of(nodes[point.node]) is None:
            pairs.setdefault(point.node, {})[point.index] = point.tensor
    tensors = [name for pair in pairs.values() for name in pair.values()]
    if not tensors:
        return ()
    runs = _experiment(model, tensors, image)
    results = {name: result_of(nodes[name]).name or "" for name in runs.layers}
    folds = []
    for product, pair in pairs.items():
        # Tokens are the last but one axis of q, and the last one of the transposed k.
        q, k = _traced(runs, pair[0], swapped=False), _traced(runs, pair[1], swapped=True)
        heads = _pairs(q.columns, k.columns) if q is not None and k is not None else None
        if q is not None and k is not None and heads is not None:
            producers = (q.layer, k.layer)
            names = (results[q.layer], results[k.layer])
            folds.append(ScoreFold(product=product, producers=producers, results=names, q=heads[0], k=heads[1]))
    return _without_shared(folds)


def _without_shared(folds: Sequence[ScoreFold]) -> tuple[ScoreFold, ...]:
    """Those of whose columns none is read by another's product as well: it would be scaled twice."""
    readers = Counter(
        (producer, int(column))
        for fold in folds
        for producer, columns in zip(fold.producers, (fold.q, fold.k), strict=True)
        for column in columns.reshape(-1)
    )
    return tuple(
        fold
        for fold in folds
        if all(
            readers[producer, int(column)] == 1
            for producer, columns in zip(fold.producers, (fold.q, fold.k), strict=True)
            for column in columns.reshape(-1)
        )
    )


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Runs:
    """Tensors of four runs in which the results of all linear layers are replaced, the same for every token.

    Attributes:
        layers: Linear layers, by node; a layer's number is its place here, from 1 on.
        up: By tensor: every column's result is its number in its layer, from 1 on.
        down: The negatives of those.
        which: Every column's result is the number of its layer.
        ones: Every column's result is 1.
    """

    layers: tuple[str, ...]
    up: Mapping[str, NDArray[np.float32]]
    down: Mapping[str, NDArray[np.float32]]
    which: Mapping[str, NDArray[np.float32]]
    ones: Mapping[str, NDArray[np.float32]]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Traced:
    """Where a tensor's channels come from: a linear layer, and int64 [heads, channels] columns of its weight.

    `same_factor` says that the columns arrive as they are, and not scaled by a constant.
    """

    layer: str
    columns: NDArray[np.int64]
    same_factor: bool


def _experiment(model: ir.Model, tensors: Sequence[str], image: NDArray[np.float32]) -> _Runs:
    """Layer and column have a run each: in one number they would be too many to tell apart in float32 sums over tokens."""
    layers = {str(node.name): weight.shape[1] for node in model.graph if (weight := linear_weight(node)) is not None}
    numbers = {name: np.arange(1, width + 1, dtype=np.float32) for name, width in layers.items()}
    which = {name: np.full(width, index, np.float32) for index, (name, width) in enumerate(layers.items(), 1)}
    return _Runs(
        layers=tuple(layers),
        up=_replaced(model, numbers, tensors, image),
        down=_replaced(model, {name: -columns for name, columns in numbers.items()}, tensors, image),
        which=_replaced(model, which, tensors, image),
        ones=_replaced(model, {name: np.ones_like(columns) for name, columns in numbers.items()}, tensors, image),
    )


def _traced(runs: _Runs, name: str, *, swapped: bool) -> _Traced | None:
    """The columns behind the tensor `name`, [..., tokens, channels] or, `swapped`, [..., channels, tokens].

    None where channels are not columns of one layer, each the same for every token but for one constant factor: a shift of k
    would otherwise not be the same for every key.
    """
    up, down, which, ones = (
        run[name].swapaxes(-1, -2) if swapped else run[name] for run in (runs.up, runs.down, runs.which, runs.ones)
    )
    factor = ones[..., :1, :]
    factor = np.where((factor == 0) | (np.abs(ones - factor) > 1e-4 * np.abs(factor)), np.nan, factor)
    layer = float(which.reshape(-1)[0] / factor.reshape(-1)[0])
    numbers = np.stack([up / factor, -down / factor])
    columns = np.rint(numbers[0, ..., :1, :])
    # NaN is not below the limit.
    if not (np.abs(numbers - columns).max() < SAME and np.abs(which / factor - np.rint(layer)).max() < SAME):
        return None
    index = int(np.rint(layer)) - 1
    if not 0 <= index < len(runs.layers):
        return None
    return _Traced(
        layer=runs.layers[index],
        columns=columns.reshape(-1, columns.shape[-1]).astype(np.int64) - 1,
        same_factor=bool(np.abs(factor - 1).max() < 1e-4),
    )


def _pairs(q: NDArray[np.int64], k: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]] | None:
    """Columns of q and k by head, each head once; None where a column meets more than one other."""
    if q.shape != k.shape:
        return None
    heads = np.unique(np.stack([q, k], axis=1), axis=0)
    distinct = all(len(np.unique(heads[:, side])) == heads[:, side].size for side in (0, 1))
    return (heads[:, 0], heads[:, 1]) if distinct else None


def _replaced(
    model: ir.Model,
    values: Mapping[str, NDArray[np.float32]],
    tensors: Sequence[str],
    image: NDArray[np.float32],
) -> Mapping[str, NDArray[np.float32]]:
    """`tensors`, where every linear layer's result is `values` of its columns, for every token."""
    copy = model.clone()
    nodes = {str(node.name): node for node in copy.graph}
    for name, columns in values.items():
        _replace_result(copy.graph, nodes[name], columns)
    backend = session(with_outputs(copy, tensors), exact=True, threads=1, outputs=tensors)
    return dict(zip(tensors, backend.tensors(image), strict=True))


def linear_weight(node: ir.Node) -> NDArray[np.float32] | None:
    """The constant [in, out] weight of a MatMul that computes a linear layer; None for any other node."""
    weight = constant(node.inputs[1]) if node.op_type == "MatMul" else None
    return weight if weight is not None and weight.ndim == 2 and constant(node.inputs[0]) is None else None


def result_of(layer: ir.Node) -> ir.Value:
    """What the linear layer `layer`, with a constant weight, computes, its bias included."""
    weight, add = constant(layer.inputs[1]), only_consumer(layer.outputs[0])
    has_bias = add is not None and weight is not None and bias_index(add, weight.shape[1]) is not None
    return add.outputs[0] if add is not None and has_bias else layer.outputs[0]


def _replace_result(graph: ir.Graph, layer: ir.Node, values: NDArray[np.float32]) -> None:
    """Let whoever reads what `layer` computes read `values` [columns] in its place, for every token."""
    result = result_of(layer)
    # Tokens by the shape of what the layer reads; neither the layer nor its weight is needed for that.
    last_axis = add_constant(graph, f"{layer.name}/axis", np.asarray([-1], np.int64))
    zero = add_constant(graph, f"{layer.name}/zero", np.zeros((), np.float32))
    numbers = add_constant(graph, f"{layer.name}/numbers", values)
    sums = make_node(
        "ReduceSum", [layer.inputs[0], last_axis], name=f"{layer.name}/sums", dtype=ir.DataType.FLOAT, shape=None
    )
    nothing = make_node("Mul", [sums.outputs[0], zero], name=f"{layer.name}/nothing", dtype=ir.DataType.FLOAT, shape=None)
    numbered = make_node(
        "Add", [nothing.outputs[0], numbers], name=f"{layer.name}/numbered", dtype=ir.DataType.FLOAT, shape=result.shape
    )
    for use in list(result.uses()):
        use.node.replace_input_with(use.idx, numbered.outputs[0])
    producer = result.producer()
    graph.insert_after(layer if producer is None else producer, [sums, nothing, numbered])
    # Who asks for the layer's result by name gets the numbers.
    result.name, numbered.outputs[0].name = numbered.outputs[0].name, result.name
