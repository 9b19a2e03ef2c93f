"""Input: a graph of the export opset; output: the same graph declared for, and valid in, an older opset.

Only what Vision Transformers hold is converted; whatever else changed between the opsets is refused by ONNX's own checker,
with the operator's name. (`onnx.version_converter` has no way down for Gelu, LayerNormalization or the axes inputs.)
"""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
from onnx_ir.passes import InPlacePass, PassResult, PostconditionError

from vitexport.rewrites.graph import add_constant, constant, drop_unused_initializers, make_node, substitute

REDUCTIONS = frozenset({"ReduceMean", "ReduceMax", "ReduceMin", "ReduceL2", "ReduceProd"})


class LowerOpset(InPlacePass):
    """Convert what changed below `opset` and declare it.

    Args:
        opset: 13 to 19.
    """

    def __init__(self, opset: int) -> None:
        self.opset = opset

    def call(self, model: ir.Model) -> PassResult:
        """Convert node by node."""
        for node in list(model.graph):
            if self.opset < 18 and node.op_type in REDUCTIONS:
                _axes_to_attribute(node)
            if self.opset < 18 and node.op_type == "Split":
                _split_sizes(model.graph, node)
            if self.opset < 15 and node.op_type == "Shape":
                _shape_without_range(model.graph, node)
            if self.opset < 14 and node.op_type == "Reshape":
                _without_allowzero(node)
        drop_unused_initializers(model.graph)
        model.graph.opset_imports[""] = self.opset
        return PassResult(model, modified=True)

    def ensures(self, model: ir.Model) -> None:
        """Every operator and attribute exists in that opset."""
        proto = ir.to_proto(model)
        # An IR version newer than the opset's own is refused by the parsers of its time.
        try:
            onnx.checker.check_model(proto)
        except onnx.checker.ValidationError as error:
            raise PostconditionError(f"not valid in opset {self.opset}: {error}") from error


def _axes_to_attribute(node: ir.Node) -> None:
    if len(node.inputs) < 2 or node.inputs[1] is None:
        return
    axes = constant(node.inputs[1])
    if axes is None:
        raise ValueError(f"{node.name} has computed axes, which opsets before 18 do not have")
    node.resize_inputs(1)
    node.attributes.pop("noop_with_empty_axes", None)
    node.attributes["axes"] = ir.AttrInt64s("axes", [int(axis) for axis in axes.reshape(-1)])


def _split_sizes(graph: ir.Graph, node: ir.Node) -> None:
    parts = node.attributes.pop("num_outputs", None)
    if parts is None:
        return
    axis = node.attributes["axis"].as_int() if "axis" in node.attributes else 0
    shape = node.inputs[0].shape if node.inputs[0] is not None else None
    extent = shape[axis] if shape is not None else None
    if not isinstance(extent, int):
        raise TypeError(f"{node.name} splits a dimension of unknown size, which opsets before 18 cannot express")
    size = -(-extent // parts.as_int())
    sizes = [min(size, extent - index * size) for index in range(parts.as_int())]
    node.resize_inputs(2)
    node.replace_input_with(1, add_constant(graph, f"{node.name}.sizes", np.asarray(sizes, np.int64)))


def _without_allowzero(node: ir.Node) -> None:
    allowzero = node.attributes.pop("allowzero", None)
    target = constant(node.inputs[1])
    # Without the attribute a 0 copies the input's extent; the exporter sets it where there is none, too.
    if allowzero is not None and allowzero.as_int() and target is not None and not target.all():
        raise ValueError(f"{node.name} reshapes to an extent of 0, which opsets before 14 cannot express")


def _shape_without_range(graph: ir.Graph, node: ir.Node) -> None:
    start = node.attributes.pop("start", None)
    end = node.attributes.pop("end", None)
    if start is None and end is None:
        return
    output = node.outputs[0]
    whole = make_node("Shape", [node.inputs[0]], name=f"{node.name}.all", dtype=ir.DataType.INT64, shape=None)
    bounds = [
        add_constant(graph, f"{node.name}.start", np.asarray([start.as_int() if start else 0], np.int64)),
        add_constant(graph, f"{node.name}.end", np.asarray([end.as_int() if end else 2**31 - 1], np.int64)),
    ]
    part = make_node(
        "Slice", [whole.outputs[0], *bounds], name=f"{node.name}.range", dtype=ir.DataType.INT64, shape=output.shape
    )
    substitute(graph, node, [whole, part], part.outputs[0])
