"""Input: matrix products and convolutions; output: what keeps them from INT8, or makes them worse for it."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from vitexport.legality.rules import Violation
from vitexport.legality.view import (
    DEQUANTIZE,
    QUANTIZE,
    RESHAPING,
    SCALING,
    STANDARD,
    Source,
    View,
    input_of,
    integer,
    integers,
    label,
    readers,
)
from vitexport.targets import Target
from vitexport.targets.opsets import refuses_float32_products

PRODUCTS = frozenset({"MatMul", "Gemm", "Conv", "ConvTranspose"})
MATRIX_PRODUCTS = frozenset({"MatMul", "Gemm", "Einsum"})
# Documented limits of fused INT8 attention.
HEAD_SIZES = frozenset({16, 32, 64})
MOST_TOKENS = 512
ONE_TYPE = frozenset({ir.DataType.INT8, ir.DataType.FLOAT8E4M3FN})


def is_product(node: ir.Node) -> bool:
    """Whether `node` multiplies two tensors and sums, as ONNX's own operator."""
    return node.op_type in PRODUCTS and node.domain in STANDARD


def quantized_product(view: View, node: ir.Node) -> Iterator[Violation]:
    """The rules about the operands of one product."""
    sources = [view.source(input_of(node, index)) for index in (0, 1)]
    for index, source in enumerate(sources):
        if source is not None and source.weight:
            yield from _weight(view, node, index, source)
    left, right = sources
    if left is not None and right is not None:
        yield from _two_types(view, node, left, right)
        if not left.weight and not right.weight:
            yield from _attention(view, node)
    elif left is not None or right is not None:
        yield from _one_side(node, sources)


def weight_axis(view: View, node: ir.Node, index: int, source: Source) -> Iterator[Violation]:
    """The scales of a weight lie along its output channels."""
    shape = view.shape(input_of(source.dequantize, 1))
    data = view.shape(input_of(source.dequantize, 0))
    axis = integer(source.dequantize, "axis")
    if shape is None or len(shape) != 1 or shape[0] == 1 or data is None or axis is None:
        return
    if not -len(data) <= axis < len(data):
        return  # `numbers` has said so
    seen = _through(axis % len(data), source.path, len(data))
    wanted = _output_axis(node, index, len(data))
    if seen is not None and wanted is not None and seen != wanted:
        message = f"is per channel on axis {axis}, which is not the output's: {label(node)} ({node.op_type}) sums over it"
        yield Violation(rule="axis", node=label(source.dequantize), message=message)


def _weight(view: View, node: ir.Node, index: int, source: Source) -> Iterator[Violation]:
    yield from weight_axis(view, node, index, source)
    if source.path:
        between = ", ".join(step.op_type for step in reversed(source.path))
        message = f"reaches {label(node)} ({node.op_type}) through {between}"
        yield Violation(rule="weight-path", node=label(source.dequantize), message=message)


def _through(axis: int, path: tuple[ir.Node, ...], rank: int) -> int | None:
    """Where `axis` of the dequantized tensor is at the end of `path`; None where it cannot be followed."""
    for step in reversed(path):
        if step.op_type == "Transpose":
            order = integers(step, "perm") or tuple(range(rank))[::-1]
            if axis not in order:
                return None
            axis = order.index(axis)
        elif step.op_type not in SCALING | {"Cast"}:
            return None
    return axis


def _output_axis(node: ir.Node, index: int, rank: int) -> int | None:
    """The axis of operand `index` that is not summed over and not shared with the other operand."""
    if node.op_type == "Conv":
        return 0 if index == 1 else None
    if node.op_type == "ConvTranspose":
        return 1 if index == 1 and integer(node, "group") in (None, 1) else None
    transposed = node.op_type == "Gemm" and bool(integer(node, "transB" if index else "transA") or 0)
    if rank < 2:
        return None
    return rank - 1 - (transposed if index else not transposed)


def _two_types(view: View, node: ir.Node, left: Source, right: Source) -> Iterator[Violation]:
    stored = {view.stored(source.dequantize) for source in (left, right)}
    if len(stored) == 2 and stored <= ONE_TYPE:
        message = "multiplies " + " with ".join(sorted(dtype.name.lower() for dtype in stored if dtype))
        yield Violation(rule="operand-types", node=label(node), message=message)
    scales = {view.dtype(input_of(source.dequantize, 1)) for source in (left, right)}
    if len(scales) == 2 and None not in scales:
        message = "has operands with " + " and ".join(sorted(dtype.name.lower() for dtype in scales if dtype)) + " scales"
        yield Violation(rule="scale-type", node=label(node), message=message)


def _one_side(node: ir.Node, sources: list[Source | None]) -> Iterator[Violation]:
    source = next(found for found in sources if found is not None)
    if not source.weight:
        message = f"({node.op_type}) multiplies a quantized activation with a float operand"
        yield Violation(rule="half-quantized", node=label(node), message=message)
        return
    data = input_of(source.dequantize, 0)
    producer = data.producer() if data is not None else None
    if producer is not None and producer.op_type == QUANTIZE:
        message = f"({node.op_type}) multiplies a float activation with a weight that is rounded from float in the graph"
        yield Violation(rule="weight-folded", node=label(node), message=message)


def _attention(view: View, node: ir.Node) -> Iterator[Violation]:
    shapes = [view.shape(input_of(node, index)) for index in (0, 1)]
    left, right = shapes
    if node.op_type != "MatMul" or left is None or right is None or min(len(left), len(right)) < 2:
        return
    by_values = _is_softmax(view, input_of(node, 0))
    head, tokens = (right[-1], left[-1]) if by_values else (left[-1], right[-1])
    if (head is not None and head not in HEAD_SIZES) or (tokens is not None and tokens > MOST_TOKENS):
        message = f"is a quantized attention product with heads of {head or '?'} channels and {tokens or '?'} tokens"
        yield Violation(rule="attention-limits", node=label(node), message=message)


def _is_softmax(view: View, operand: ir.Value | None) -> bool:
    """Whether a quantized operand is what a Softmax computed."""
    source = view.source(operand)
    value = input_of(source.dequantize, 0) if source is not None else None
    quantize = value.producer() if value is not None else None
    value = input_of(quantize, 0) if quantize is not None else None
    producer = value.producer() if value is not None else None
    return producer is not None and producer.op_type == "Softmax"


def float32_product(view: View, node: ir.Node, target: Target) -> Iterator[Violation]:
    """TensorRT-RTX on Turing has no float32 matrix product."""
    if not refuses_float32_products(target):
        return
    types = {view.dtype(value) for value in node.inputs[:2]}
    if node.op_type in MATRIX_PRODUCTS and node.domain in STANDARD and ir.DataType.FLOAT in types:
        message = f"({node.op_type}) is computed in float32; write the graph in float16"
        yield Violation(rule="float32-product", node=label(node), message=message)


def placement(view: View, node: ir.Node) -> Iterator[Violation]:
    """What costs speed or accuracy around one node that is no product."""
    if node.op_type == QUANTIZE:
        yield from _alone(node)
    elif node.op_type == DEQUANTIZE:
        yield from _pair(view, node)
    elif node.op_type == "Add" and all(view.computed(value) for value in node.inputs):
        if any(_dequantizes(view, value) for value in node.inputs):
            yield Violation(rule="residual", node=label(node), message="adds a quantized tensor to another one")
    elif node.op_type in ("Gelu", "Erf") and _is_quantized_gelu(view, node):
        yield Violation(rule="gelu-input", node=label(node), message=f"({node.op_type}) reads a quantized tensor")


def _dequantizes(view: View, value: ir.Value | None) -> bool:
    producer = value.producer() if value is not None else None
    return producer is not None and producer.op_type == DEQUANTIZE and view.computed(value)


def _is_quantized_gelu(view: View, node: ir.Node) -> bool:
    """Directly, or through the division by √2 that stands before a written-out GELU's Erf."""
    value = input_of(node, 0)
    producer = value.producer() if value is not None else None
    if node.op_type == "Erf" and producer is not None and producer.op_type in ("Mul", "Div"):
        return any(_dequantizes(view, operand) for operand in producer.inputs)
    return _dequantizes(view, value)


def _alone(node: ir.Node) -> Iterator[Violation]:
    """Whether something else than DequantizeLinear reads the quantized tensor, reshaped or not."""
    pending, seen = list(node.outputs), 0
    while pending and seen < 1000:
        value = pending.pop()
        seen += 1
        if value.is_graph_output():
            yield Violation(
                rule="quantize-alone", node=label(node), message="is an output of the graph in its quantized form"
            )
            return
        for reader in readers(value):
            if reader.op_type in RESHAPING - {"Cast"}:
                pending.extend(reader.outputs)
            elif reader.op_type != DEQUANTIZE:
                message = f"is read by {label(reader)} ({reader.op_type}) in its quantized form"
                yield Violation(rule="quantize-alone", node=label(node), message=message)
                return


def _pair(view: View, node: ir.Node) -> Iterator[Violation]:
    data = input_of(node, 0)
    quantize = data.producer() if data is not None else None
    if quantize is None or quantize.op_type != QUANTIZE or input_of(quantize, 1) is input_of(node, 1):
        return
    before, after = view.array(input_of(quantize, 1)), view.array(input_of(node, 1))
    if before is None or after is None or before.size != after.size:
        return
    if not np.array_equal(before.astype(np.float64).ravel(), after.astype(np.float64).ravel()):
        yield Violation(rule="pair-scale", node=label(node), message=f"has another scale than {label(quantize)} before it")
