"""A float graph and its linear layers enter; where a scale and a shift per channel can be folded in exactly leaves.

- ``norm``: LayerNormalization → layers. γ and β take the scale and the shift, the layers' weights and biases undo them.
- ``value``: the columns of qkv that become v → attention → proj. The rows of a softmax sum to one, so what v is scaled and
  shifted by arrives unchanged at the projection.
- ``product``: one factor of a gated unit → fc2: the columns of the layer that computes that factor take the scale; no shift.
- ``after``: anything else (GELU): no scale, and one number taken off behind it, so that a one-sided activation uses both
  halves of a symmetric quantizer. TensorRT only: a CPU's quantizer has a zero point.
"""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from vitexport.quantize.observe import with_outputs
from vitexport.quantize.place import Site
from vitexport.rewrites.graph import add_constant, bias_index, constant, make_node, only_consumer, operand
from vitexport.runtime.backends.onnx_runtime import OnnxRuntimeBackend

Kind = Literal["norm", "value", "product", "after"]


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
    runs = []
    for sign in (1.0, -1.0):
        copy = model.clone()
        numbering = _number_columns(copy.graph, sign)
        backend = OnnxRuntimeBackend(with_outputs(copy, tensors), exact=True, threads=1, outputs=tensors)
        runs.append([sign * tensor.reshape(-1, tensor.shape[-1]) for tensor in backend.tensors(image)])
    found = {}
    for name, up, down in zip(tensors, *runs, strict=True):
        columns = np.rint(up[0]).astype(np.int64)
        same = np.abs(up - columns).max() < 0.25 and np.abs(down - columns).max() < 0.25
        layer = next((name for name, (first, width) in numbering.items() if first <= columns.min() < first + width), None)
        if not same or layer is None or len(set(columns.tolist())) != len(columns):
            continue
        first, width = numbering[layer]
        if columns.max() < first + width:
            found[name] = (layer, columns - first)
    return found


def _number_columns(graph: ir.Graph, sign: float) -> dict[str, tuple[int, int]]:
    """Replace the result of every linear layer by the numbers of its columns; returns first number and width by layer."""
    numbering: dict[str, tuple[int, int]] = {}
    start = 1
    for node in list(graph):
        weight = constant(node.inputs[1]) if node.op_type == "MatMul" else None
        if weight is None or weight.ndim != 2 or constant(node.inputs[0]) is not None:
            continue
        width = weight.shape[1]
        numbering[str(node.name)] = (start, width)
        add = only_consumer(node.outputs[0])
        last = add if add is not None and bias_index(add, width) is not None else node
        result = last.outputs[0]
        # Tokens by the shape of what the layer reads; neither the layer nor its weight is needed for that.
        last_axis = add_constant(graph, f"{node.name}/axis", np.asarray([-1], np.int64))
        zero = add_constant(graph, f"{node.name}/zero", np.zeros((), np.float32))
        numbers = add_constant(graph, f"{node.name}/numbers", (sign * np.arange(start, start + width)).astype(np.float32))
        sums = make_node(
            "ReduceSum", [node.inputs[0], last_axis], name=f"{node.name}/sums", dtype=ir.DataType.FLOAT, shape=None
        )
        nothing = make_node("Mul", [sums.outputs[0], zero], name=f"{node.name}/nothing", dtype=ir.DataType.FLOAT, shape=None)
        numbered = make_node(
            "Add", [nothing.outputs[0], numbers], name=f"{node.name}/numbered", dtype=ir.DataType.FLOAT, shape=result.shape
        )
        for use in list(result.uses()):
            use.node.replace_input_with(use.idx, numbered.outputs[0])
        graph.insert_after(last, [sums, nothing, numbered])
        # Who asks for the layer's result by name gets the numbers.
        result.name, numbered.outputs[0].name = numbered.outputs[0].name, result.name
        start += width
    return numbering
