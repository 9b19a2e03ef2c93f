"""Input: a float graph and INT8 numbers for its linear layers; output: ONNX Runtime's own integer operators for CPUs.

Per layer: activation → QuantizeLinear → com.microsoft.MatMulIntegerToFloat (with bias) → float. Plain Q/DQ would be slower
than float there: ONNX Runtime first fuses MatMul and Add into Gemm, its Q/DQ pattern then no longer matches, and every
weight is dequantized at every run (measured with ONNX Runtime 1.31.1; no upstream issue was found).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import InPlacePass, PassResult, PostconditionError

from vitexport.rewrites.graph import (
    MICROSOFT,
    add_constant,
    bias_index,
    change_bias,
    drop_unused_initializers,
    make_node,
    only_consumer,
    operand,
    take_over,
)
from vitexport.rewrites.insert_qdq import QuantizedLinear

TYPES = {"uint8": ir.DataType.UINT8, "int8": ir.DataType.INT8}


class CpuInteger(InPlacePass):
    """Replace each MatMul of `layers` with the Add of its bias, or Gemm, by the integer operator."""

    def __init__(self, layers: Sequence[QuantizedLinear]) -> None:
        self.layers = layers

    def call(self, model: ir.Model) -> PassResult:
        """Replace layer by layer; one QuantizeLinear serves every layer that reads the same activation."""
        graph = model.graph
        model.opset_imports[MICROSOFT] = 1
        nodes = {node.name: node for node in graph}
        quantized: dict[str, ir.Node] = {}
        for layer in self.layers:
            node = nodes[layer.node]
            if (change := layer.bias_change) is not None:
                change_bias(graph, node, len(change), change.__add__)
            if layer.activation not in quantized:
                quantized[layer.activation] = _quantize(graph, node, layer)
            _replace(graph, node, quantized[layer.activation], layer)
        drop_unused_initializers(graph)
        return PassResult(model, modified=bool(self.layers))

    def ensures(self, model: ir.Model) -> None:
        """None of the replaced nodes is left."""
        replaced = {layer.node for layer in self.layers}
        for node in model.graph:
            if node.op_type in ("MatMul", "Gemm") and node.name in replaced:
                raise PostconditionError(f"{node.name} is still float")


def _quantize(graph: ir.Graph, node: ir.Node, layer: QuantizedLinear) -> ir.Node:
    value = operand(node, 0)
    zero = np.asarray(layer.activation_zero_point)
    quantize = make_node(
        "QuantizeLinear",
        [
            value,
            add_constant(graph, f"{value.name}.scale", np.asarray(layer.activation_scale, np.float32)),
            add_constant(graph, f"{value.name}.zero_point", zero),
        ],
        name=f"{value.name}/QuantizeLinear",
        dtype=TYPES[zero.dtype.name],
        shape=value.shape,
    )
    graph.insert_before(node, [quantize])
    return quantize


def _replace(graph: ir.Graph, node: ir.Node, quantize: ir.Node, layer: QuantizedLinear) -> None:
    name = f"{operand(node, 1).name}"
    add = only_consumer(node.outputs[0])
    index = bias_index(add, layer.weight.shape[1])
    if node.op_type == "Gemm":
        bias, last = node.inputs[2] if len(node.inputs) > 2 else None, node
    elif add is not None and index is not None:
        bias, last = operand(add, index), add
    else:
        bias, last = None, node
    output = last.outputs[0]
    integer = make_node(
        "MatMulIntegerToFloat",
        [
            quantize.outputs[0],
            add_constant(graph, f"{name}.int8", layer.weight),
            quantize.inputs[1],
            add_constant(graph, f"{name}.scale", layer.weight_scale),
            quantize.inputs[2],
            None,
            bias,
        ],
        name=f"{node.name}IntegerToFloat",
        dtype=ir.DataType.FLOAT,
        shape=output.shape,
        domain=MICROSOFT,
    )
    graph.insert_before(node, [integer])
    take_over(output, integer.outputs[0])
    if last is not node:
        graph.remove(last, safe=True)
    graph.remove(node, safe=True)
