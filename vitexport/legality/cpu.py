"""Input: a graph and a class of CPUs; output: where ONNX Runtime would compute wrong or slow there."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from vitexport.legality.products import is_product
from vitexport.legality.rules import Violation
from vitexport.legality.view import Source, View, input_of, label, readers
from vitexport.targets import CpuArithmetic

# Where two products are added in a saturating int16, 2 · 255 · 64 still fits.
LARGEST_WEIGHT = 64
SEVEN_BITS = 7
# Which input of an integer operator is its weight.
WEIGHT_INPUTS = {
    "ConvInteger": 1,
    "DynamicQuantizeMatMul": 1,
    "MatMulInteger": 1,
    "MatMulIntegerToFloat": 1,
    "QAttention": 1,
    "QGemm": 3,
    "QLinearConv": 3,
    "QLinearMatMul": 3,
}


def saturation(view: View, node: ir.Node, cpu: CpuArithmetic) -> Iterator[Violation]:
    """Weights that a CPU without VNNI multiplies wrong, in integer operators or in what Q/DQ is fused to."""
    if cpu.weight_bits > SEVEN_BITS:
        return
    weight = _weight(view, node)
    if weight is None or view.dtype(weight) != ir.DataType.INT8:
        return
    values = view.array(weight)
    if values is None or not values.size:
        return
    largest = max(int(values.max()), -int(values.min()))
    if largest > LARGEST_WEIGHT:
        where = "" if node.op_type in WEIGHT_INPUTS else ", and saturates where ONNX Runtime fuses its Q/DQ"
        message = f"({node.op_type}) has int8 weights up to {largest} in size{where}; use 7 bits, or uint8"
        yield Violation(rule="int16-saturation", node=label(node), message=message)


def _weight(view: View, node: ir.Node) -> ir.Value | None:
    """The integer weight that is multiplied with integer activations."""
    if node.op_type in WEIGHT_INPUTS:
        return input_of(node, WEIGHT_INPUTS[node.op_type])
    if not is_product(node):
        return None
    sources = [view.source(input_of(node, index)) for index in (0, 1)]
    weights = [source for source in sources if source is not None and source.weight]
    if None in sources or not weights:
        return None  # a float operand: computed in float
    return _stored(view, weights[0])


def _stored(view: View, source: Source) -> ir.Value | None:
    """The int8 constant; a weight that is quantized within the graph keeps to its own range and is not looked into."""
    value = input_of(source.dequantize, 0)
    return value if view.tensor(value) is not None else None


def slow_pairs(view: View, nodes: tuple[ir.Node, ...]) -> Iterator[Violation]:
    """Q/DQ around MatMul with a bias, which ONNX Runtime does not fuse; said once."""
    slow = [node for node in nodes if node.op_type == "MatMul" and _has_bias(view, node) and _is_quantized(view, node)]
    if slow:
        message = f"has Q/DQ around {len(slow)} MatMul with a bias, the first {label(slow[0])}"
        yield Violation(rule="qdq-slow", node="the graph", message=message)


def _is_quantized(view: View, node: ir.Node) -> bool:
    return all(view.source(input_of(node, index)) is not None for index in (0, 1))


def _has_bias(view: View, node: ir.Node) -> bool:
    """Whether the product goes to an Add of a constant."""
    found = [reader for output in node.outputs for reader in readers(output) if reader.op_type == "Add"]
    return any(view.fixed(value) for reader in found for value in reader.inputs)
