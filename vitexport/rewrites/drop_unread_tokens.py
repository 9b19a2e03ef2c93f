"""Input: a graph that computes tokens which nothing reads; output: the same graph without these computations.

A classifier that reads the class token (and the distillation token behind it) uses nothing else of what the last block
computes behind k and v. What is computed token by token (linear layers, LayerNormalization, activations, residual Adds,
the queries of MultiHeadAttention) is then needed for the first tokens only: of a ViT with 12 blocks that is 7 % of the work.
No number of what remains changes, but for the order of sums in products that get another shape.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes import InPlacePass, PassResult

from vitexport.rewrites.graph import add_constant, constant, drop_unused_initializers, make_node, operand
from vitexport.rewrites.movement import integers, is_movement

TOKEN_AXIS = 1
ATTENTION = "MultiHeadAttention"
ATTENTION_BIAS = 5
# Operators that compute each token of a [batch, tokens, channels] tensor for itself.
BINARY = frozenset({"Add", "Sub", "Mul", "Div"})
UNARY = frozenset({"Gelu", "Erf", "Identity", "Relu", "Sigmoid", "Tanh"})
OVER_CHANNELS = frozenset({"LayerNormalization", "Split"})
LINEAR = frozenset({"MatMul", "MatMulIntegerToFloat"})


class DropUnreadTokens(InPlacePass):
    """Narrow what is computed token by token to the first tokens, where only these are read."""

    def call(self, model: ir.Model) -> PassResult:
        """Ask from the end of the graph how many tokens are read, then cut what is not."""
        graph = model.graph
        narrowed = _narrowed(graph)
        cut: dict[tuple[ir.Value, int], ir.Value] = {}
        for node, (count, holders) in reversed(narrowed.items()):
            _narrow(graph, node, count, holders, cut)
        drop_unused_initializers(graph)
        return PassResult(model, modified=bool(narrowed))


def _narrowed(graph: ir.Graph) -> dict[ir.Node, tuple[int, list[ir.Value]]]:
    """The nodes that need not compute all tokens, the last one first: how many they must, and from which inputs."""
    read: dict[ir.Value, int] = {}
    narrowed: dict[ir.Node, tuple[int, list[ir.Value]]] = {}
    for node in reversed(graph):
        tokens = _tokens(node.outputs[0])
        holders = _token_inputs(node)
        count = max((read.get(output, 0) for output in node.outputs), default=0)
        is_output = any(output.is_graph_output() for output in node.outputs)
        if tokens is None or not holders or is_output or count * 2 > tokens:
            count = 0
        if count:
            narrowed[node] = count, holders
        for value in node.inputs:
            extent = _tokens(value)
            if value is not None and extent is not None:
                needed = count if count and value in holders else _first_tokens(node, extent)
                read[value] = max(read.get(value, 0), needed)
    return narrowed


def _tokens(value: ir.Value | None) -> int | None:
    """The number of tokens of a computed [batch, tokens, channels] tensor; None if it is none, or not known."""
    if value is None or constant(value) is not None or value.shape is None or len(value.shape) != 3:
        return None
    extent = value.shape[TOKEN_AXIS]
    return extent if isinstance(extent, int) else None


def _first_tokens(node: ir.Node, extent: int) -> int:
    """How many of the first tokens `node` reads of a tensor that has `extent`."""
    if not is_movement(node):
        return extent
    if node.op_type == "Gather" and "axis" in node.attributes and node.attributes["axis"].as_int() == TOKEN_AXIS:
        indices = integers(node, 1) or (-1,)
        return max(indices) + 1 if min(indices) >= 0 else extent
    if node.op_type == "Slice" and integers(node, 3) == (TOKEN_AXIS,):
        (start,), (end,) = integers(node, 1) or (-1,), integers(node, 2) or (-1,)
        return min(end, extent) if start >= 0 and end >= 0 and integers(node, 4) in (None, (1,)) else extent
    return extent


def _token_inputs(node: ir.Node) -> list[ir.Value]:
    """The inputs of an operator that computes each token for itself; none if it is no such operator."""
    tokens = _tokens(node.outputs[0])
    computed = [value for value in node.inputs if value is not None and constant(value) is None]
    constants = [array for array in map(constant, node.inputs) if array is not None]
    if tokens is None or not computed or _tokens(computed[0]) != tokens:
        return []
    if node.op_type in BINARY:
        # One token would be broadcast to all.
        same = all(_tokens(value) == tokens for value in computed)
        return computed if same and all(array.ndim < 2 or array.shape[-2] == 1 for array in constants) else []
    if computed[0] is not node.inputs[0]:
        return []
    if node.op_type == ATTENTION:
        return computed[:1] if _is_plain_attention(node, tokens) else []
    return computed if len(computed) == 1 and _is_tokenwise(node, constants) else []


def _is_tokenwise(node: ir.Node, constants: Sequence[NDArray[Any]]) -> bool:
    """Whether `node`, with one computed input, computes each token for itself."""
    if node.op_type in OVER_CHANNELS:
        default = 0 if node.op_type == "Split" else -1
        return (node.attributes["axis"].as_int() if "axis" in node.attributes else default) in (-1, 2)
    if node.op_type in LINEAR:
        # Weight, then scales and zero points: for all tokens, or one for each column.
        return constants[0].ndim == 2 and all(array.ndim < 2 for array in constants[1:])
    if node.op_type == "RotaryEmbedding":
        # The first tokens have the first rows of the tables.
        return constants[0].shape == (1,) and not constants[0].any()
    if node.op_type == "QuantizeLinear":
        return all(array.size == 1 for array in constants)
    return node.op_type in UNARY


def _is_plain_attention(node: ir.Node, tokens: int) -> bool:
    """Whether it has q, k, v and at most a constant bias for each query, and one output."""
    if len(node.outputs) > 1 or node.inputs.count(node.inputs[0]) > 1:
        return False
    further = [index for index, value in enumerate(node.inputs) if index > 2 and value is not None]
    bias = constant(node.inputs[ATTENTION_BIAS]) if further == [ATTENTION_BIAS] else None
    return not further or (bias is not None and bias.ndim == 4 and bias.shape[2] == tokens)


def _narrow(
    graph: ir.Graph, node: ir.Node, count: int, holders: Sequence[ir.Value], cut: dict[tuple[ir.Value, int], ir.Value]
) -> None:
    """Let `node` read `count` tokens of `holders`, and declare that it computes as many."""
    for index, value in enumerate(node.inputs):
        if value is not None and value in holders and _tokens(value) != count:
            node.replace_input_with(index, _first(graph, value, count, cut))
    if node.op_type == ATTENTION and len(node.inputs) > ATTENTION_BIAS:
        bias = operand(node, ATTENTION_BIAS)
        rows = np.ascontiguousarray(np.asarray(constant(bias))[:, :, :count])
        node.replace_input_with(ATTENTION_BIAS, add_constant(graph, f"{bias.name}[:{count}]", rows))
    for output in node.outputs:
        if output.shape is not None:
            output.shape = ir.Shape([count if axis == TOKEN_AXIS else extent for axis, extent in enumerate(output.shape)])


def _first(graph: ir.Graph, value: ir.Value, count: int, cut: dict[tuple[ir.Value, int], ir.Value]) -> ir.Value:
    """The first `count` tokens of `value`."""
    if (value, count) not in cut:
        name = f"{value.name}[:{count}]"
        bounds = [
            add_constant(graph, f"{name}.{part}", np.asarray([number], np.int64))
            for part, number in (("start", 0), ("end", count), ("axis", TOKEN_AXIS))
        ]
        shape = ir.Shape([count if axis == TOKEN_AXIS else extent for axis, extent in enumerate(value.shape or ())])
        dtype = value.dtype or ir.DataType.FLOAT
        node = make_node("Slice", [value, *bounds], name=name, dtype=dtype, shape=shape)
        producer = value.producer()
        if producer is None:
            graph.insert_before(graph[0], [node])
        else:
            graph.insert_after(producer, [node])
        cut[value, count] = node.outputs[0]
    return cut[value, count]
