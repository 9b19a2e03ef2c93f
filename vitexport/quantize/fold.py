"""A float graph and its linear layers enter; where a scale and a shift per channel can be folded in exactly leaves.

- ``norm``: LayerNormalization → layers. γ and β take the scale and the shift, the layers' weights and biases undo them.
- ``value``: the columns of qkv that become v → attention → proj. The rows of a softmax sum to one, so what v is scaled and
  shifted by arrives unchanged at the projection.
- ``product``: one factor of a gated unit → fc2: the columns of the layer that computes that factor take the scale; no shift.
- ``scores``: q against k, of an attention whose products are quantized (placement B): a scale each, and a shift of k.
- ``after``: anything else (GELU): no scale, and one number taken off behind it, so that a one-sided activation uses both
  halves of a symmetric quantizer. TensorRT only: a CPU's quantizer has a zero point.
"""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from vitexport.quantize.observe import with_outputs
from vitexport.quantize.place import Point, Site, scores_of
from vitexport.rewrites.fold_channels import ChannelFold
from vitexport.rewrites.graph import Vector, add_constant, bias_index, constant, make_node, only_consumer, operand
from vitexport.runtime.backends.onnx_runtime import OnnxRuntimeBackend

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
        sites: Linear layers, of which those that read channels of a last axis are looked at.
        image: float32 [n, 3, height, width], as the graph takes it, to follow channels through the attention.
    """
    nodes = {str(node.name): node for node in model.graph}
    groups: dict[str, list[Site]] = {}
    for site in sites:
        if site.per_channel:
            groups.setdefault(_origin(operand(nodes[site.node], 0)).name or "", []).append(site)
    folds: list[Fold] = []
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

    Found by experiment, so that no layout of heads has to be known: the result of every linear layer is replaced by numbers
    that say which layer and column they are, the same for every token. Averaging over tokens leaves them as they are, and
    they arrive behind the attention. A second run with the opposite signs excludes whatever is not linear on the way.
    """
    if not tensors:
        return {}
    numbering = _numbering(model.graph)
    up = _numbered(model, numbering, tensors, image, np.positive)
    down = _numbered(model, numbering, tensors, image, np.negative)
    found = {}
    for name in tensors:
        first = up[name].reshape(-1, up[name].shape[-1])
        columns = np.rint(first[0]).astype(np.int64)
        others = np.stack([first, -down[name].reshape(first.shape)])
        behind = _layer_of(columns, numbering)
        if np.abs(others - columns).max() < SAME and behind is not None and len(set(columns.tolist())) == len(columns):
            found[name] = (behind, columns - numbering[behind].first)
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
    numbering = _numbering(model.graph)
    up = _numbered(model, numbering, tensors, image, np.positive)
    down = _numbered(model, numbering, tensors, image, np.negative)
    ones = _numbered(model, numbering, tensors, image, np.ones_like)
    results = {name: result_of(nodes[name]).name or "" for name in numbering}
    folds = []
    for product, pair in pairs.items():
        # Tokens are the last but one axis of q, and the last one of the transposed k.
        q = _scaled_columns(*(run[pair[0]] for run in (up, down, ones)), numbering=numbering)
        k = _scaled_columns(*(run[pair[1]].swapaxes(-1, -2) for run in (up, down, ones)), numbering=numbering)
        heads = _pairs(q[1], k[1]) if q is not None and k is not None else None
        if q is not None and k is not None and heads is not None:
            folds.append(
                ScoreFold(
                    product=product, producers=(q[0], k[0]), results=(results[q[0]], results[k[0]]), q=heads[0], k=heads[1]
                )
            )
    return tuple(folds)


def _scaled_columns(
    up: NDArray[np.float32],
    down: NDArray[np.float32],
    ones: NDArray[np.float32],
    *,
    numbering: Mapping[str, _Numbers],
) -> tuple[str, NDArray[np.int64]] | None:
    """The layer behind a tensor [..., tokens, channels], and its columns [heads, channels], a constant factor aside."""
    # The same factor for every token, or a shift of k would not be the same for every key.
    factor = ones[..., :1, :]
    factor = np.where((factor == 0) | (np.abs(ones - factor) > 1e-6 * np.abs(factor)), np.nan, factor)
    numbers = np.stack([up / factor, -down / factor])
    columns = np.rint(numbers[0, ..., :1, :])
    # NaN is not below the limit.
    if not np.abs(numbers - columns).max() < SAME:
        return None
    heads = columns.reshape(-1, columns.shape[-1]).astype(np.int64)
    behind = _layer_of(heads, numbering)
    return None if behind is None else (behind, heads - numbering[behind].first)


def _pairs(q: NDArray[np.int64], k: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]] | None:
    """Columns of q and k by head, each head once; None where a column meets more than one other."""
    if q.shape != k.shape:
        return None
    heads = np.unique(np.stack([q, k], axis=1), axis=0)
    distinct = all(len(np.unique(heads[:, side])) == heads[:, side].size for side in (0, 1))
    return (heads[:, 0], heads[:, 1]) if distinct else None


def _layer_of(columns: NDArray[np.int64], numbering: Mapping[str, _Numbers]) -> str | None:
    """The layer that all of these numbers belong to."""
    return next((name for name, at in numbering.items() if at.first <= columns.min() and columns.max() < at.end), None)


def _numbered(
    model: ir.Model,
    numbering: Mapping[str, _Numbers],
    tensors: Sequence[str],
    image: NDArray[np.float32],
    values: Callable[[NDArray[np.float32]], NDArray[np.float32]],
) -> Mapping[str, NDArray[np.float32]]:
    """`tensors` of a graph in which every linear layer's result is `values` of its columns' numbers, for every token."""
    copy = model.clone()
    nodes = {str(node.name): node for node in copy.graph}
    for name, numbers in numbering.items():
        _replace_result(copy.graph, nodes[name], values(np.arange(numbers.first, numbers.end, dtype=np.float32)))
    backend = OnnxRuntimeBackend(with_outputs(copy, tensors), exact=True, threads=1, outputs=tensors)
    return dict(zip(tensors, backend.tensors(image), strict=True))


@dataclasses.dataclass(frozen=True, slots=True)
class _Numbers:
    """The numbers of one layer's columns: from `first` up to, and without, `end`."""

    first: int
    end: int


def _numbering(graph: ir.Graph) -> dict[str, _Numbers]:
    """Numbers for the columns of every linear layer, by node, without a gap."""
    numbering: dict[str, _Numbers] = {}
    start = 1
    for node in graph:
        weight = constant(node.inputs[1]) if node.op_type == "MatMul" else None
        if weight is not None and weight.ndim == 2 and constant(node.inputs[0]) is None:
            numbering[str(node.name)] = _Numbers(start, start + weight.shape[1])
            start += weight.shape[1]
    return numbering


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
