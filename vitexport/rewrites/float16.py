"""Input: a float32 graph (with or without Q/DQ); output: the strongly typed float16 graph that TensorRT takes as it is.

The interface stays float32: one Cast after ``image`` and one before each output. What stays safe, and how:

- LayerNormalization keeps ``stash_type=1``: its mean and variance are computed in float32 from float16 values, by
  TensorRT (the parser sets the layer's compute precision from it) and by ONNX Runtime alike.
- What `vitexport.rewrites.stay_float32` names: statistics written out as single operators, values near float16's end, and
  the residual stream where a channel of it is large.
- Softmax subtracts the row's maximum first, so its exponentials stay at or below 1; its input is scaled on q before the
  product with k, where the exporter's source model put the scale.
- Q/DQ scales become float16, the only type that TensorRT 10.3 accepts beside float16 tensors; they were rounded to
  float16 when they were chosen, so this changes no number.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes import InPlacePass, PassResult, PostconditionError, PreconditionError

from vitexport.artifacts import INPUT_NAME
from vitexport.rewrites.graph import add_constant, cast, constant

LARGEST = float(np.finfo(np.float16).max)
# A number of this size is none that is computed with: it masks.
MASK = 1e30
# Inputs that ONNX wants in float32 whatever the data's type is: Resize's regions and scales.
FLOAT32_INPUTS = {"Resize": frozenset({1, 2})}


class Float16(InPlacePass):
    """Convert every float32 initializer and tensor to float16.

    Args:
        wide: Names of nodes that stay float32, with what they read and compute.
    """

    def __init__(self, wide: Collection[str] = ()) -> None:
        self.wide = frozenset(wide)

    def requires(self, model: ir.Model) -> None:
        """Q/DQ with float16 scales exists from opset 19."""
        has_qdq = any(node.op_type == "QuantizeLinear" for node in model.graph)
        opset = model.graph.opset_imports[""]
        if has_qdq and opset < 19:
            raise PreconditionError(f"float16 Q/DQ scales need opset 19; the graph has opset {opset}")

    def call(self, model: ir.Model) -> PassResult:
        """Convert constants, then types, then put the two Casts in."""
        graph = model.graph
        own_constants(graph, self.wide)
        for value, array in float16_constants(graph, self.wide):
            value.const_value = ir.tensor(array, name=value.name)
            value.type = ir.TensorType(ir.DataType.FLOAT16)
        for node in graph:
            if node.name in self.wide:
                continue
            _convert_attributes(node)
            for output in node.outputs:
                if output.dtype in (ir.DataType.FLOAT, None) and node.op_type not in ("QuantizeLinear", "Shape"):
                    output.type = ir.TensorType(ir.DataType.FLOAT16)
        _cast_input(graph, self.wide)
        _cast_at_borders(graph, self.wide)
        _cast_outputs(graph)
        return PassResult(model, modified=True)

    def ensures(self, model: ir.Model) -> None:
        """Float32 is left only at the interface and where ONNX demands it."""
        keep = kept_in_float32(model.graph, self.wide)
        for name, value in model.graph.initializers.items():
            if value.dtype == ir.DataType.FLOAT and name not in keep:
                raise PostconditionError(f"initializer {name} is still float32")


def own_constants(graph: ir.Graph, wide: Collection[str]) -> None:
    """Give nodes that stay float32 copies of the constants that other nodes read too."""
    for value in list(graph.initializers.values()):
        readers = list(value.uses())
        staying = [use for use in readers if use.node.name in wide]
        array = constant(value)
        if array is None or value.dtype != ir.DataType.FLOAT or not staying or len(staying) == len(readers):
            continue
        own = add_constant(graph, f"{value.name}.float32", array)
        for use in staying:
            use.node.replace_input_with(use.idx, own)


def float16_constants(graph: ir.Graph, wide: Collection[str] = ()) -> Iterator[tuple[ir.Value, NDArray[np.float16]]]:
    """Every float32 initializer that becomes float16, with what it becomes."""
    keep = kept_in_float32(graph, wide)
    for name, value in list(graph.initializers.items()):
        array = constant(value)
        if value.dtype == ir.DataType.FLOAT and name not in keep and array is not None:
            yield value, to_float16(array, name)


def to_float16(array: NDArray[Any], name: str) -> NDArray[np.float16]:
    """`array` in float16; infinities and the masks near float32's limit become float16's own limit.

    Raises:
        ValueError: A finite value that is no mask does not fit.
    """
    mask = np.abs(array) >= MASK
    if bool(np.any(np.abs(array[~mask]) > LARGEST)):
        raise ValueError(f"{name} holds {np.abs(array[~mask]).max():.3g}, beyond float16's {LARGEST:.0f}")
    result: NDArray[np.float16] = np.clip(array, -LARGEST, LARGEST).astype(np.float16)
    return result


def kept_in_float32(graph: ir.Graph, wide: Collection[str] = ()) -> set[str]:
    """Names of the values that `wide` nodes read, or that ONNX wants in float32 whatever the data's type is."""
    return {
        str(value.name)
        for node in graph
        for index, value in enumerate(node.inputs)
        if value is not None and (node.name in wide or index in FLOAT32_INPUTS.get(node.op_type, ()))
    }


def _cast_at_borders(graph: ir.Graph, wide: Collection[str]) -> None:
    """Casts where a float16 tensor is read by a node that stays float32, and the other way round; one for all readers."""
    for node in list(graph):
        for value in node.outputs:
            if value.dtype not in (ir.DataType.FLOAT16, ir.DataType.FLOAT):
                continue
            is_wide = value.dtype == ir.DataType.FLOAT
            others = [
                use
                for use in value.uses()
                if (use.node.name in wide) != is_wide
                and use.node.op_type not in ("Shape", "Cast")
                and use.idx not in FLOAT32_INPUTS.get(use.node.op_type, ())
            ]
            if not others:
                continue
            to = ir.DataType.FLOAT16 if is_wide else ir.DataType.FLOAT
            border = cast(value, to, f"{value.name}/{'narrow' if is_wide else 'wide'}")
            graph.insert_after(node, [border])
            for use in others:
                use.node.replace_input_with(use.idx, border.outputs[0])


def _convert_attributes(node: ir.Node) -> None:
    if node.op_type == "Cast" and node.attributes["to"].as_int() == ir.DataType.FLOAT:
        node.attributes["to"] = ir.AttrInt64("to", int(ir.DataType.FLOAT16))
    if node.op_type == "ConstantOfShape":
        value = node.attributes["value"].as_tensor() if "value" in node.attributes else ir.tensor(np.zeros(1, np.float32))
        if value.dtype == ir.DataType.FLOAT:
            node.attributes["value"] = ir.AttrTensor("value", ir.tensor(value.numpy().astype(np.float16)))


def _cast_input(graph: ir.Graph, wide: Collection[str]) -> None:
    image = graph.inputs[0]
    readers = [use for use in image.uses() if use.node.name not in wide]
    if not readers:
        return
    narrow = cast(image, ir.DataType.FLOAT16, f"{INPUT_NAME}/Cast")
    for use in readers:
        if use.node.op_type != "Shape":
            use.node.replace_input_with(use.idx, narrow.outputs[0])
    graph.insert_before(graph[0], [narrow])


def _cast_outputs(graph: ir.Graph) -> None:
    for index, inner in enumerate(graph.outputs):
        name, producer = str(inner.name), inner.producer()
        if producer is None:
            raise ValueError(f"{name} is not computed by any node")
        if inner.dtype != ir.DataType.FLOAT16:
            continue
        inner.name = f"{producer.name}"
        wide = cast(inner, ir.DataType.FLOAT, f"{name}/Cast")
        wide.outputs[0].name = name
        graph.outputs[index] = wide.outputs[0]
        graph.append(wide)
