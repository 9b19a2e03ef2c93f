"""A float graph and INT8 numbers for its linear layers enter; explicit quantization that TensorRT accepts leaves.

Per layer: activation → QuantizeLinear → DequantizeLinear → MatMul ← DequantizeLinear ← int8 weight. Nothing stands between
the weight's DequantizeLinear and the MatMul, biases stay float (TensorRT rejects an int32 bias behind DequantizeLinear),
and one pair serves every layer that reads the same activation.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes import InPlacePass, PassResult, PostconditionError

from vitexport.rewrites.graph import add_constant, drop_unused_initializers, make_node, operand


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class QuantizedLinear:
    """INT8 numbers of one MatMul with a constant weight.

    Attributes:
        node: Name of the MatMul.
        activation: Name of the tensor that it reads.
        activation_scale: Positive; with `activation_zero_point` of type uint8 or int8 (0 for TensorRT).
        weight: int8 [in, out].
        weight_scale: float32 [out], positive; weight ≈ weight · weight_scale.
    """

    node: str
    activation: str
    activation_scale: np.float32
    activation_zero_point: np.uint8 | np.int8
    weight: NDArray[np.int8]
    weight_scale: NDArray[np.float32]


class InsertQdq(InPlacePass):
    """Write `layers` into the graph as Q/DQ pairs.

    Args:
        layers: In graph order.
        symmetric: Hold the result against TensorRT's rules. Off only for a graph that judges a CPU variant's numbers.
    """

    def __init__(self, layers: Sequence[QuantizedLinear], *, symmetric: bool = True) -> None:
        self.layers = layers
        self.symmetric = symmetric

    def call(self, model: ir.Model) -> PassResult:
        """Insert pair by pair, in graph order."""
        graph = model.graph
        nodes = {node.name: node for node in graph}
        dequantized: dict[str, ir.Value] = {}
        for layer in self.layers:
            node = nodes[layer.node]
            if layer.activation not in dequantized:
                dequantized[layer.activation] = _activation_pair(graph, operand(node, 0), layer)
            node.replace_input_with(0, dequantized[layer.activation])
            node.replace_input_with(1, _weight(graph, node, layer))
        drop_unused_initializers(graph)
        return PassResult(model, modified=bool(self.layers))

    def ensures(self, model: ir.Model) -> None:
        """TensorRT's rules hold: symmetric, per tensor for activations, axis 1 for weights of MatMul."""
        for node in model.graph:
            if node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
                continue
            scale, zero = (value.const_value for value in node.inputs[1:3] if value is not None)
            if scale is None or zero is None or not bool(np.all(scale.numpy() > 0)):
                raise PostconditionError(f"{node.name} has no constant positive scale")
            if self.symmetric and bool(np.any(zero.numpy())):
                raise PostconditionError(f"{node.name} is not symmetric")
            if scale.numpy().ndim and node.attributes["axis"].as_int() != 1:
                raise PostconditionError(f"{node.name} is per channel on an axis that is not the output's")


def _pair_constants(graph: ir.Graph, name: str, scale: Any, zero: Any) -> list[ir.Value]:
    return [add_constant(graph, f"{name}.scale", scale), add_constant(graph, f"{name}.zero_point", zero)]


def _activation_pair(graph: ir.Graph, value: ir.Value, layer: QuantizedLinear) -> ir.Value:
    constants = _pair_constants(
        graph, f"{value.name}", np.asarray(layer.activation_scale, np.float32), np.asarray(layer.activation_zero_point)
    )
    quantize = make_node(
        "QuantizeLinear",
        [value, *constants],
        name=f"{value.name}/QuantizeLinear",
        dtype=ir.DataType.INT8 if layer.activation_zero_point.dtype == np.int8 else ir.DataType.UINT8,
        shape=value.shape,
    )
    dequantize = make_node(
        "DequantizeLinear",
        [quantize.outputs[0], *constants],
        name=f"{value.name}/DequantizeLinear",
        dtype=ir.DataType.FLOAT,
        shape=value.shape,
    )
    producer = value.producer()
    if producer is None:
        graph.insert_before(graph[0], [quantize, dequantize])
    else:
        graph.insert_after(producer, [quantize, dequantize])
    return dequantize.outputs[0]


def _weight(graph: ir.Graph, node: ir.Node, layer: QuantizedLinear) -> ir.Value:
    name = f"{operand(node, 1).name}"
    int8 = add_constant(graph, f"{name}.int8", layer.weight)
    constants = _pair_constants(graph, name, layer.weight_scale, np.zeros(layer.weight_scale.shape, np.int8))
    dequantize = make_node(
        "DequantizeLinear",
        [int8, *constants],
        name=f"{node.name}.weight/DequantizeLinear",
        dtype=ir.DataType.FLOAT,
        shape=ir.Shape(layer.weight.shape),
        # Absent, the axis is 1 for ONNX and 0 for TensorRT's parser; always written.
        attributes=[ir.AttrInt64("axis", 1)],
    )
    graph.insert_before(node, [dequantize])
    return dequantize.outputs[0]
