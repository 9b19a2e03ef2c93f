"""Input: an onnx-ir model of any origin; output: its constants, types and shapes, and where a tensor comes from.

Nothing here raises on an odd graph: what cannot be known is None, and what cannot be read is noted in `View.unreadable`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

STANDARD = frozenset({"", "ai.onnx"})
QUANTIZE = "QuantizeLinear"
DEQUANTIZE = "DequantizeLinear"
# Operators that hand a tensor on in another shape, type or order.
RESHAPING = frozenset({"Identity", "Cast", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose"})
SCALING = frozenset({"Mul", "Div", "Add", "Sub"})
# The exporter's chains are two or three long; this ends the walk in a graph with a cycle.
LONGEST_CHAIN = 32
# Operators whose first output has the type of their first input.
SAME_TYPE = (
    (RESHAPING - {"Cast"})
    | SCALING
    | {
        *("Abs", "AveragePool", "BatchNormalization", "Clip", "Concat", "Conv", "ConvTranspose", "Cos", "Dropout", "Einsum"),
        *("Elu", "Erf", "Exp", "Expand", "Gather", "GatherElements", "Gelu", "Gemm", "GlobalAveragePool", "HardSigmoid"),
        *("HardSwish", "LayerNormalization", "LeakyRelu", "Log", "MatMul", "Max", "MaxPool", "Min", "Neg", "Pad", "Pow"),
        *("RMSNormalization", "Reciprocal", "ReduceL2", "ReduceMax", "ReduceMean", "ReduceSum", "Relu", "Resize"),
        *("ScatterND", "Sigmoid", "Sin", "Slice", "Softmax", "Split", "Sqrt", "Sum", "Tanh", "Tile"),
    }
)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Source:
    """Where a quantized operand comes from.

    Attributes:
        dequantize: The DequantizeLinear.
        path: The nodes between it and the operand, the nearest to the operand first.
        weight: Whether a constant is dequantized.
    """

    dequantize: ir.Node
    path: tuple[ir.Node, ...]
    weight: bool


class View:
    """What is known about each node and value of `model`, its subgraphs and functions."""

    def __init__(self, model: ir.Model) -> None:
        self.model = model
        self.unreadable: dict[str, str] = {}
        bodies = list(model.functions.values())
        self.nodes: tuple[ir.Node, ...] = (*model.graph.all_nodes(), *(node for body in bodies for node in body.all_nodes()))
        self.opset = opset_of(model.graph.opset_imports)
        self._opsets = {id(node): opset_of(body.opset_imports) for body in bodies for node in body.all_nodes()}
        # What a function is called with is not known inside it.
        self._open = {value for body in bodies for value in body.inputs}
        self._fixed: set[ir.Value] = set()
        self._types: dict[ir.Value, ir.DataType] = {}
        for node in self.nodes:
            self._learn(node)

    def _learn(self, node: ir.Node) -> None:
        inputs = [value for value in node.inputs if value is not None]
        outer = has_subgraph(node)
        if not outer and all(self.fixed(value) for value in inputs) and (inputs or node.op_type.startswith("Constant")):
            self._fixed.update(node.outputs)
        elif any(value in self._open for value in inputs) or (outer and id(node) in self._opsets):
            self._open.update(node.outputs)
        for output in node.outputs[:1]:
            inferred = output.dtype or self._infer(node)
            if inferred is not None:
                self._types[output] = inferred

    def _infer(self, node: ir.Node) -> ir.DataType | None:
        """The type of the first output, where the file does not say it."""
        if node.op_type in SAME_TYPE:
            return self.dtype(input_of(node, 0))
        if node.op_type == "Where":
            return self.dtype(input_of(node, 1))
        if node.op_type == "Cast":
            return data_type(integer(node, "to"))
        if node.op_type == QUANTIZE:
            return self.stored(node)
        if node.op_type == DEQUANTIZE:
            return data_type(integer(node, "output_dtype")) or self.dtype(input_of(node, 1))
        tensor = _attribute_tensor(node)
        return tensor.dtype if tensor is not None else None

    def opset_at(self, node: ir.Node) -> int | None:
        """The version of ONNX's own operators where `node` stands."""
        return self._opsets.get(id(node), self.opset)

    def fixed(self, value: ir.Value | None) -> bool:
        """Whether `value` is a constant or computed from constants alone."""
        return value is not None and (value in self._fixed or self.tensor(value) is not None)

    def computed(self, value: ir.Value | None) -> bool:
        """Whether `value` depends on the model's input; false where that is not known."""
        return value is not None and not self.fixed(value) and value not in self._open

    def dtype(self, value: ir.Value | None) -> ir.DataType | None:
        """The type of `value`'s elements, if known."""
        if value is None:
            return None
        if value.const_value is not None:
            return value.const_value.dtype
        return value.dtype or self._types.get(value)

    def shape(self, value: ir.Value | None) -> tuple[int | None, ...] | None:
        """The sizes of `value`, None for each that is not a number; None if not even their count is known."""
        tensor = self.tensor(value)
        shape = tensor.shape if tensor is not None else value.shape if value is not None else None
        if shape is None:
            return None
        return tuple(size if isinstance(size, int) else None for size in shape)

    def tensor(self, value: ir.Value | None) -> ir.TensorProtocol | None:
        """The constant behind `value`, seen through Identity; its data is not read."""
        for _ in range(LONGEST_CHAIN):
            producer = value.producer() if value is not None else None
            if value is None or producer is None or producer.op_type != "Identity":
                return self.own_tensor(value)
            value = input_of(producer, 0)
        return None

    def own_tensor(self, value: ir.Value | None) -> ir.TensorProtocol | None:
        """The constant that `value` itself is: an initializer, or what a Constant node holds."""
        if value is None or value.const_value is not None:
            return value.const_value if value is not None else None
        producer = value.producer()
        return _attribute_tensor(producer) if producer is not None and producer.op_type == "Constant" else None

    def array(self, value: ir.Value | None) -> NDArray[Any] | None:
        """The numbers behind `value`; None if they are computed, or cannot be read."""
        tensor = self.tensor(value)
        if tensor is None:
            return None
        try:
            return np.asarray(tensor.numpy())
        except (OSError, ValueError, TypeError, KeyError, OverflowError) as error:
            name = tensor.name or (value.name if value is not None else None) or "a constant"
            self.unreadable[name] = _reason(error)
            return None

    def stored(self, node: ir.Node) -> ir.DataType | None:
        """The type of the quantized values of a QuantizeLinear or DequantizeLinear, where it is written."""
        if node.op_type == DEQUANTIZE:
            return self.dtype(input_of(node, 0)) or self.dtype(input_of(node, 2))
        return data_type(integer(node, "output_dtype")) or self.dtype(input_of(node, 2))

    def source(self, operand: ir.Value | None) -> Source | None:
        """The DequantizeLinear that `operand` comes from, through what only reshapes it; None if it is not quantized."""
        path: list[ir.Node] = []
        value = operand
        for _ in range(LONGEST_CHAIN):
            node = value.producer() if value is not None else None
            if node is None:
                return None
            if node.op_type == DEQUANTIZE:
                return Source(dequantize=node, path=tuple(path), weight=self.fixed(input_of(node, 0)))
            through = RESHAPING | SCALING if self.fixed(value) else RESHAPING
            if node.op_type not in through:
                return None
            if node.op_type != "Identity":
                path.append(node)
            value = _principal(self, node)
        return None


def _principal(view: View, node: ir.Node) -> ir.Value | None:
    """The input that is handed on; of a scaling, the one that is not a plain constant."""
    first, second = input_of(node, 0), input_of(node, 1)
    return second if node.op_type in SCALING and view.tensor(first) is not None else first


def input_of(node: ir.Node, index: int) -> ir.Value | None:
    """The input at `index`, None if it is absent."""
    return node.inputs[index] if index < len(node.inputs) else None


def integer(node: ir.Node, name: str) -> int | None:
    """The whole number in attribute `name`; None if there is none."""
    attribute = node.attributes.get(name)
    if attribute is None or attribute.is_ref() or attribute.type != ir.AttributeType.INT:
        return None
    return int(attribute.value)


def integers(node: ir.Node, name: str) -> tuple[int, ...] | None:
    """The whole numbers in attribute `name`; None if there is none."""
    attribute = node.attributes.get(name)
    if attribute is None or attribute.is_ref() or attribute.type != ir.AttributeType.INTS:
        return None
    return tuple(int(number) for number in attribute.value)


def data_type(number: int | None) -> ir.DataType | None:
    """ONNX's number of a type as its member; None for 0 (not written) and for numbers that onnx-ir does not know."""
    try:
        return ir.DataType(number) if number else None
    except ValueError:
        return None


def opset_of(imports: Any) -> int | None:
    """The version of ONNX's own operators among `imports`; None if they are not imported."""
    return next((imports[domain] for domain in sorted(STANDARD) if domain in imports), None)


def label(node: ir.Node) -> str:
    """The node's name; where it has none, what it is and what it computes."""
    if node.name:
        return node.name
    results = ", ".join(output.name for output in node.outputs if output.name)
    return f"{node.op_type} → {results or 'nothing'}"


def readers(value: ir.Value) -> Iterator[ir.Node]:
    """The nodes that read `value`."""
    for use in value.uses():
        yield use.node


def has_subgraph(node: ir.Node) -> bool:
    """Whether `node` is an If, a Loop, a Scan or the like."""
    return any(attribute.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for attribute in node.attributes.values())


def _attribute_tensor(node: ir.Node) -> ir.TensorProtocol | None:
    """What a Constant (or the filling of a ConstantOfShape) holds, in whichever attribute it was written."""
    if node.op_type not in ("Constant", "ConstantOfShape"):
        return None
    for name, attribute in node.attributes.items():
        if attribute.is_ref():
            continue
        if name == "value" and attribute.type == ir.AttributeType.TENSOR:
            tensor: ir.TensorProtocol = attribute.value
            return tensor
        if name in ("value_float", "value_floats"):
            return ir.tensor(np.asarray(attribute.value, np.float32), name=node.outputs[0].name)
        if name in ("value_int", "value_ints"):
            return ir.tensor(np.asarray(attribute.value, np.int64), name=node.outputs[0].name)
    return None


def _reason(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return f"the file {error.filename!r} beside the model is missing"
    return " ".join(str(error).split())[:160] or type(error).__name__
