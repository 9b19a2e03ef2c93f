"""Input: a graph whose attention is written out; output: ONNX Runtime's MultiHeadAttention operator in its place.

What is replaced, for q, k, v of shape [batch, heads, tokens, channels] and a constant bias for the whole batch::

    scale · q · kᵀ + bias → Softmax over the last axis → · v → Transpose → Reshape to [batch, tokens, heads · channels]

The operator takes [batch, tokens, heads · channels] and splits the heads itself. q, k and v must each be a contiguous block
of columns of such a tensor, head after head (`vitexport.rewrites.origin` finds out); q and k may be turned by a rotary
embedding, which becomes ONNX Runtime's RotaryEmbedding. The scale may stand on q, on k, on both or behind the product; the
product of all is passed on.

What this does not cover exactly stays as it is: talking heads, cross-covariance, cosine attention, computed masks. So does
what the operator would not compute faster (measured with ONNX Runtime 1.31.1 on one core): q and k that are normalized as
[batch, heads, tokens, channels] and would have to be transposed for it (1 % slower), and Swin's shifted windows, with a mask
for each (1 % faster, but the file grows by a table for each window and head: 8 % for Swin-T in INT8).
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes import InPlacePass, PassResult, PostconditionError
from onnx_ir.passes.common import RemoveUnusedNodesPass

from vitexport.rewrites.graph import (
    MICROSOFT,
    add_constant,
    make_node,
    module_of,
    only_consumer,
    operand,
    take_over,
    unique_name,
)
from vitexport.rewrites.origin import AS_THEY_ARE, TOKENS_BEFORE_HEADS, TRANSPOSED, Origin, computed, factor, folded, origin

OPERATOR = "MultiHeadAttention"
ROTARY = "RotaryEmbedding"


class FuseAttention(InPlacePass):
    """Replace every attention that matches; the others stay."""

    def call(self, model: ir.Model) -> PassResult:
        """Replace one by one, then drop the movements that nothing reads any more."""
        graph = model.graph
        matches = [_match(node) for node in graph if node.op_type == "Softmax"]
        attentions = [match for match in matches if match is not None]
        taken = {str(node.name) for node in graph}
        constants = _Constants(graph)
        for attention in attentions:
            _replace(graph, constants, attention, taken)
        if attentions:
            model.opset_imports[MICROSOFT] = 1
            RemoveUnusedNodesPass()(model)
        return PassResult(model, modified=bool(attentions))

    def ensures(self, model: ir.Model) -> None:
        """No attention is left that matches."""
        for node in model.graph:
            if node.op_type == "Softmax" and _match(node) is not None:
                raise PostconditionError(f"the attention around {node.name} is still written out")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Scores:
    """What the softmax reads: `product` of q and kᵀ, times `scale`, plus `bias` [1, heads, tokens, tokens]."""

    product: ir.Node
    scale: float
    bias: NDArray[np.float32] | None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Attention:
    """A match: its operands, the product with v, and `merged`, the tensor [batch, tokens, heads · channels] behind it."""

    query: Origin
    key: Origin
    value: Origin
    scores: _Scores
    scale: float
    product: ir.Node
    merged: ir.Value


def _match(softmax: ir.Node) -> _Attention | None:
    product = _reader(softmax, "MatMul")
    if product is None or product.inputs[0] is not softmax.outputs[0] or not _is_over_last_axis(softmax):
        return None
    scores, merged = _scores(operand(softmax, 0)), _merged(product)
    if scores is None or merged is None:
        return None
    query = origin(operand(scores.product, 0), AS_THEY_ARE)
    key = origin(operand(scores.product, 1), TRANSPOSED)
    value = origin(operand(product, 1), AS_THEY_ARE)
    # What is done to v would have to be done behind the softmax.
    if query is None or key is None or value is None or value.scale != 1.0 or value.rotation is not None:
        return None
    scale = scores.scale * query.scale * key.scale
    # A scale of 0 would ask the operator for its own.
    if scale == 0:
        return None
    return _Attention(query=query, key=key, value=value, scores=scores, scale=scale, product=product, merged=merged)


def _reader(node: ir.Node, op_type: str) -> ir.Node | None:
    """The one node that reads the output of `node`, if it is of `op_type`."""
    reader = only_consumer(node.outputs[0])
    return reader if reader is not None and reader.op_type == op_type else None


def _is_over_last_axis(softmax: ir.Node) -> bool:
    axis = softmax.attributes["axis"].as_int() if "axis" in softmax.attributes else -1
    return axis in (-1, 3) and bool(_extents(softmax.outputs[0]))


def _extents(value: ir.Value) -> tuple[int, ...]:
    """The three behind the batch of a tensor with four dimensions; empty if it has others, or they are not known."""
    shape = value.shape
    if shape is None or len(shape) != 4:
        return ()
    known = tuple(extent for extent in shape[1:] if isinstance(extent, int))
    return known if len(known) == 3 else ()


def _merged(product: ir.Node) -> ir.Value | None:
    """The output of the Transpose and Reshape behind `product`, if they put the heads side by side."""
    extents = _extents(product.outputs[0])
    transpose = _reader(product, "Transpose")
    if not extents or transpose is None or tuple(transpose.attributes["perm"].as_ints()) != TOKENS_BEFORE_HEADS:
        return None
    reshape = _reader(transpose, "Reshape")
    if reshape is None:
        return None
    heads, tokens, channels = extents
    shape = reshape.outputs[0].shape
    # With these two, the number of elements leaves only the batch for the first.
    is_merged = shape is not None and len(shape) == 3 and tuple(shape[1:]) == (tokens, heads * channels)
    return reshape.outputs[0] if is_merged else None


# ---- between the product of q and k and the softmax


def _scores(value: ir.Value) -> _Scores | None:
    chain: list[ir.Node] = []
    node = value.producer()
    while node is not None and node.op_type in ("Add", "Mul", "Div") and only_consumer(node.outputs[0]) is not None:
        chain.append(node)
        inputs = computed(node)
        node = inputs[0].producer() if len(inputs) == 1 else None
    if node is None or node.op_type != "MatMul" or only_consumer(node.outputs[0]) is None or not _extents(node.outputs[0]):
        return None
    scale = 1.0
    bias: NDArray[np.float64] = np.zeros((1, 1, 1, 1))
    for step in reversed(chain):
        if step.op_type == "Add":
            bias = bias + next(array for array in map(folded, step.inputs) if array is not None)
            continue
        number = factor(step)
        if number is None or number.size != 1:
            return None
        scale, bias = scale * float(number.flat[0]), bias * number
    if bias.ndim != 4 or bias.shape[0] != 1:
        return None
    table = np.broadcast_to(bias, (1, *_extents(node.outputs[0]))).astype(np.float32)
    return _Scores(product=node, scale=scale, bias=table if table.any() else None)


# ---- the operator


class _Constants:
    """Initializers by content: every block has the same bounds, and rotates by the same tables."""

    def __init__(self, graph: ir.Graph) -> None:
        self.graph = graph
        self.known: dict[tuple[str, tuple[int, ...], bytes], ir.Value] = {}

    def add(self, name: str, array: NDArray[Any]) -> ir.Value:
        key = (array.dtype.name, array.shape, array.tobytes())
        if key not in self.known:
            self.known[key] = add_constant(self.graph, name, array)
        return self.known[key]


def _replace(graph: ir.Graph, constants: _Constants, attention: _Attention, taken: set[str]) -> None:
    module = module_of(attention.product)
    name = unique_name(f"{module}/{OPERATOR}" if module else OPERATOR, taken)
    taken.add(name)
    heads, tokens, channels = _extents(attention.product.outputs[0])
    # Those of q and k may be others than those of v.
    paired = _extents(operand(attention.scores.product, 0))[2]
    steps: list[ir.Node] = []
    operands: list[ir.Value | None] = [
        _operand(constants, steps, attention.query, heads * paired, f"{name}.query"),
        _operand(constants, steps, attention.key, heads * paired, f"{name}.key"),
        _operand(constants, steps, attention.value, heads * channels, f"{name}.value"),
    ]
    if attention.scores.bias is not None:
        # Absent: the bias of q, k and v, and the mask of keys.
        operands += [None, None, constants.add(f"{name}.attention_bias", attention.scores.bias)]
    batch = (attention.merged.shape or ir.Shape([None]))[0]
    node = make_node(
        OPERATOR,
        operands,
        name=name,
        dtype=ir.DataType.FLOAT,
        shape=ir.Shape([batch, tokens, heads * channels]),
        attributes=[
            ir.AttrInt64("num_heads", heads),
            ir.AttrFloat32("scale", attention.scale),
        ],
        domain=MICROSOFT,
    )
    graph.insert_before(attention.product, [*steps, node])
    take_over(attention.merged, node.outputs[0])


def _operand(constants: _Constants, steps: list[ir.Node], columns: Origin, width: int, name: str) -> ir.Value:
    """`width` columns of the source as a tensor of their own, rotated where they have to be; new nodes go to `steps`."""
    batch, tokens, whole = columns.source.shape or (None, None, None)
    shape = ir.Shape([batch, tokens, width])
    value = columns.source
    if whole != width:
        bounds = [
            constants.add(f"{name}.{part}", np.asarray([number], np.int64))
            for part, number in (("start", columns.first), ("end", columns.first + width), ("axis", 2))
        ]
        steps.append(make_node("Slice", [value, *bounds], name=name, dtype=ir.DataType.FLOAT, shape=shape))
        value = steps[-1].outputs[0]
    if columns.rotation is not None:
        # The token at `position` has the first row of the tables.
        tables = [
            constants.add(f"{name}.position", np.zeros(1, np.int64)),
            constants.add(f"{name}.cosine", columns.rotation.cosine.astype(np.float32)),
            constants.add(f"{name}.sine", columns.rotation.sine.astype(np.float32)),
        ]
        steps.append(
            make_node(
                ROTARY,
                [value, *tables],
                name=f"{name}/{ROTARY}",
                dtype=ir.DataType.FLOAT,
                shape=shape,
                attributes=[ir.AttrInt64("interleaved", int(columns.rotation.interleaved))],
                domain=MICROSOFT,
            )
        )
        value = steps[-1].outputs[0]
    return value
