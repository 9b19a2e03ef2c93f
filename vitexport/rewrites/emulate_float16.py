"""A float32 graph (with or without Q/DQ) enters; a float32 graph that computes what float16 would leaves. It never ships.

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

from vitexport.rewrites.float16 import float16_constants
from vitexport.rewrites.graph import cast


class EmulateFloat16(InPlacePass):
    """Round every float32 initializer and tensor to float16.

    Args:
        wide: Names of nodes whose results stay float32, as a weakly typed engine is told to keep them.
    """

    def __init__(self, wide: Collection[str] = ()) -> None:
        self.wide = frozenset(wide)

    def call(self, model: ir.Model) -> PassResult:
        """Round constants, the input, and what each node computes."""
        graph = model.graph
        for value, array in float16_constants(graph):
            value.const_value = ir.tensor(array.astype(np.float32), name=value.name)
        nodes = list(graph)
        _round(graph, graph.inputs[0], after=None)
        for node in nodes:
            for output in node.outputs:
                if output.dtype in (ir.DataType.FLOAT, None) and node.op_type != "Shape" and node.name not in self.wide:
                    _round(graph, output, after=node)
        return PassResult(model, modified=True)

    def ensures(self, model: ir.Model) -> None:
        """As many casts lead back to float32 as lead to float16."""
        targets = [node.attributes["to"].as_int() for node in model.graph if node.op_type == "Cast"]
        if targets.count(ir.DataType.FLOAT16) > targets.count(ir.DataType.FLOAT):
            raise PostconditionError("a tensor is left in float16")


def _round(graph: ir.Graph, value: ir.Value, after: ir.Node | None) -> None:
    """Put Cast → Cast behind `value`; whoever read it reads the rounded one."""
    readers = [use for use in value.uses() if use.node.op_type != "Shape"]
    narrow = cast(value, ir.DataType.FLOAT16, f"{value.name}/narrow")
    wide = cast(narrow.outputs[0], ir.DataType.FLOAT, f"{value.name}/wide")
    for use in readers:
        use.node.replace_input_with(use.idx, wide.outputs[0])
    if after is None:
        graph.insert_before(graph[0], [narrow, wide])
    else:
        graph.insert_after(after, [narrow, wide])
    for index, output in enumerate(graph.outputs):
        if output is value:
            name, value.name = value.name, f"{value.name}/unrounded"
            wide.outputs[0].name = name
            graph.outputs[index] = wide.outputs[0]
