"""Input: a float graph and INT8 numbers for its linear layers; output: explicit quantization that TensorRT accepts.

Per layer: activation → QuantizeLinear → DequantizeLinear → MatMul ← DequantizeLinear ← int8 weight. Nothing stands between
the weight's DequantizeLinear and the MatMul, biases stay float (TensorRT rejects an int32 bias behind DequantizeLinear),
and one pair serves every layer that reads the same activation.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes import InPlacePass, PassResult, PostconditionError

from vitexport.legality import qdq_violations
from vitexport.rewrites.graph import (
    add_constant,
    change_bias,
    constant,
    drop_unused_initializers,
    make_node,
    operand,
    unique_name,
)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class QuantizedLinear:
    """INT8 numbers of one MatMul with a constant weight.

    Attributes:
        node: Name of the MatMul.
        activation: Name of the tensor that it reads.
        activation_scale: Positive; with `activation_zero_point` of type uint8 or int8 (0 for TensorRT).
        weight: int8 [in, out].
        weight_scale: float32 [out], positive; weight ≈ weight · weight_scale.
        layout: How the node holds its weight: ``kn`` [in, out], ``nk`` [out, in], ``conv`` or ``pointwise`` [out, in,
            height, width].
        bias_change: float64 [out] to add to the layer's bias, or None.
    """

    node: str
    activation: str
    activation_scale: np.float32
    activation_zero_point: np.uint8 | np.int8
    weight: NDArray[np.int8]
    weight_scale: NDArray[np.float32]
    layout: str = "kn"
    bias_change: NDArray[np.float64] | None = None

    @property
    def axis(self) -> int:
        """Axis of the output channels in the weight as the node holds it."""
        return 1 if self.layout == "kn" else 0


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class QuantizedInput:
    """A computed input of a node that gets a pair of its own: of an attention's products, or of a residual Add.

    Attributes:
        node: Name of the node.
        index: Which of its inputs.
        scale: Positive; symmetric int8.
        group: Name of what is quantized as a whole or not at all.
    """

    node: str
    index: int
    scale: np.float32
    group: str


class InsertQdq(InPlacePass):
    """Write `layers` into the graph as Q/DQ pairs.

    Args:
        layers: In graph order.
        inputs: Further inputs that get a pair.
        symmetric: Check the result against TensorRT's rules. Off only for a graph that judges a CPU variant's numbers.
    """

    def __init__(
        self, layers: Sequence[QuantizedLinear], inputs: Sequence[QuantizedInput] = (), *, symmetric: bool = True
    ) -> None:
        self.layers = layers
        self.inputs = inputs
        self.symmetric = symmetric

    def call(self, model: ir.Model) -> PassResult:
        """Insert pair by pair, in graph order."""
        graph = model.graph
        nodes = {node.name: node for node in graph}
        names = {str(node.name) for node in graph}
        dequantized: dict[str, ir.Value] = {}
        for layer in self.layers:
            node = nodes[layer.node]
            if layer.activation not in dequantized:
                dequantized[layer.activation] = _pair(
                    graph, operand(node, 0), layer.activation_scale, layer.activation_zero_point, names
                )
            node.replace_input_with(0, dequantized[layer.activation])
            node.replace_input_with(1, _weight(graph, node, layer))
            if (change := layer.bias_change) is not None:
                change_bias(graph, node, len(change), change.__add__)
        self._insert_inputs(graph, nodes, names)
        drop_unused_initializers(graph)
        return PassResult(model, modified=bool(self.layers))

    def _insert_inputs(self, graph: ir.Graph, nodes: Mapping[str | None, ir.Node], names: set[str]) -> None:
        """One pair for each tensor and scale: q, k and v of one attention read different tensors."""
        pairs: dict[tuple[ir.Value, float], ir.Value] = {}
        for item in self.inputs:
            node = nodes[item.node]
            value = operand(node, item.index)
            key = (value, float(item.scale))
            if key not in pairs:
                pairs[key] = _pair(graph, value, item.scale, np.int8(0), names)
            node.replace_input_with(item.index, pairs[key])

    def ensures(self, model: ir.Model) -> None:
        """No rule of `vitexport.legality` that every TensorRT has for Q/DQ is broken."""
        broken = qdq_violations(model, symmetric=self.symmetric)
        if broken:
            raise PostconditionError(str(broken[0]))


def _pair_constants(graph: ir.Graph, name: str, scale: Any, zero: Any) -> list[ir.Value]:
    return [add_constant(graph, f"{name}.scale", scale), add_constant(graph, f"{name}.zero_point", zero)]


def _pair(graph: ir.Graph, value: ir.Value, scale: np.float32, zero_point: np.uint8 | np.int8, names: set[str]) -> ir.Value:
    """Quantize and dequantize `value`; a second pair of the same value, which a skip may need, gets other `names`."""
    constants = _pair_constants(graph, f"{value.name}", np.asarray(scale, np.float32), np.asarray(zero_point))
    quantize = make_node(
        "QuantizeLinear",
        [value, *constants],
        name=_fresh(f"{value.name}/QuantizeLinear", names),
        dtype=ir.DataType.INT8 if zero_point.dtype == np.int8 else ir.DataType.UINT8,
        shape=value.shape,
    )
    dequantize = make_node(
        "DequantizeLinear",
        [quantize.outputs[0], *constants],
        name=_fresh(f"{value.name}/DequantizeLinear", names),
        dtype=ir.DataType.FLOAT,
        shape=value.shape,
    )
    producer = value.producer()
    if producer is None:
        graph.insert_before(graph[0], [quantize, dequantize])
    else:
        graph.insert_after(producer, [quantize, dequantize])
    return dequantize.outputs[0]


def _fresh(name: str, names: set[str]) -> str:
    unique = unique_name(name, names)
    names.add(unique)
    return unique


def _weight(graph: ir.Graph, node: ir.Node, layer: QuantizedLinear) -> ir.Value:
    old = operand(node, 1)
    name = f"{old.name}"
    held = np.ascontiguousarray(layer.weight if layer.layout == "kn" else layer.weight.T)
    if layer.layout in ("conv", "pointwise") and (array := constant(old)) is not None:
        held = held.reshape(array.shape)
    int8 = add_constant(graph, f"{name}.int8", held)
    constants = _pair_constants(graph, name, layer.weight_scale, np.zeros(layer.weight_scale.shape, np.int8))
    dequantize = make_node(
        "DequantizeLinear",
        [int8, *constants],
        name=f"{node.name}.weight/DequantizeLinear",
        dtype=ir.DataType.FLOAT,
        shape=ir.Shape(held.shape),
        # Absent, the axis is 1 for ONNX and 0 for TensorRT's parser; always written.
        attributes=[ir.AttrInt64("axis", layer.axis)],
    )
    graph.insert_before(node, [dequantize])
    return dequantize.outputs[0]
