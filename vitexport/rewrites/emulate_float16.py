"""Input: a float32 graph (with or without Q/DQ); output: a float32 graph that computes what float16 would. It never ships.

ONNX Runtime's CPU provider computes float16 operators in float32 and keeps the wide values between them, so running the
float16 graph there would hide every overflow. Here each tensor is cast to float16 and back, explicitly: products still
accumulate in float32, as tensor cores do, and LayerNormalization and Softmax are wide inside and rounded at their ends.
Run it without graph optimization, which would remove the casts.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import InPlacePass, PassResult, PostconditionError

from vitexport.rewrites.float16 import float16_constants, own_constants
from vitexport.rewrites.graph import cast


class EmulateFloat16(InPlacePass):
    """Round every float32 initializer and tensor to float16.

    Args:
        wide: Names of nodes that stay float32. What one of them hands to another is not rounded; what others read is.
    """

    def __init__(self, wide: Collection[str] = ()) -> None:
        self.wide = frozenset(wide)

    def call(self, model: ir.Model) -> PassResult:
        """Round constants, the input, and what each node computes."""
        graph = model.graph
        own_constants(graph, self.wide)
        for value, array in float16_constants(graph, self.wide):
            value.const_value = ir.tensor(array.astype(np.float32), name=value.name)
        nodes = list(graph)
        _round(graph, graph.inputs[0], self.wide, after=None)
        for node in nodes:
            for output in node.outputs:
                if output.dtype in (ir.DataType.FLOAT, None) and node.op_type != "Shape":
                    _round(graph, output, self.wide if node.name in self.wide else (), after=node)
        return PassResult(model, modified=True)

    def ensures(self, model: ir.Model) -> None:
        """As many casts lead back to float32 as lead to float16."""
        targets = [node.attributes["to"].as_int() for node in model.graph if node.op_type == "Cast"]
        if targets.count(ir.DataType.FLOAT16) > targets.count(ir.DataType.FLOAT):
            raise PostconditionError("a tensor is left in float16")


def _round(graph: ir.Graph, value: ir.Value, wide: Collection[str], after: ir.Node | None) -> None:
    """Put Cast → Cast behind `value`; whoever read it, but for nodes called in `wide`, reads the rounded one."""
    readers = [use for use in value.uses() if use.node.op_type != "Shape" and use.node.name not in wide]
    is_output = value.is_graph_output() and not wide
    if not readers and not is_output:
        return
    narrow = cast(value, ir.DataType.FLOAT16, f"{value.name}/narrow")
    back = cast(narrow.outputs[0], ir.DataType.FLOAT, f"{value.name}/wide")
    for use in readers:
        use.node.replace_input_with(use.idx, back.outputs[0])
    if after is None:
        graph.insert_before(graph[0], [narrow, back])
    else:
        graph.insert_after(after, [narrow, back])
    for index, output in enumerate(graph.outputs):
        if output is value and is_output:
            name, value.name = value.name, f"{value.name}/unrounded"
            back.outputs[0].name = name
            graph.outputs[index] = back.outputs[0]
