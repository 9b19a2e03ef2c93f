"""Input: a graph that slices the output of a linear layer by columns; output: one linear layer for each slice.

timm computes q, k and v in one layer, and ONNX Runtime's MultiHeadAttention takes them apart. The columns of a linear layer
do not depend on one another: splitting its weight changes no number, saves the copies, and lets the last block compute q for
fewer tokens than k and v.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import InPlacePass, PassResult

from vitexport.rewrites.graph import add_constant, constant, drop_unused_initializers, make_node, take_over
from vitexport.rewrites.linear_layer import LinearLayer, by_column, linear_layer
from vitexport.rewrites.movement import integers, is_movement


class SplitLinear(InPlacePass):
    """Split every linear layer of which all readers slice columns."""

    def call(self, model: ir.Model) -> PassResult:
        """Split layer by layer."""
        graph = model.graph
        layers = [layer for layer in map(linear_layer, graph) if layer is not None and _parts(layer)]
        for layer in layers:
            for reader, part in _parts(layer):
                _split(graph, layer, reader, part)
            if layer.add is not None:
                graph.remove(layer.add, safe=True)
            graph.remove(layer.product, safe=True)
        drop_unused_initializers(graph)
        return PassResult(model, modified=bool(layers))


def _parts(layer: LinearLayer) -> list[tuple[ir.Node, slice]]:
    """Who reads which columns of `layer`; nothing if anyone reads it in another way."""
    readers = [use.node for use in layer.output.uses()]
    columns = [_columns(reader, layer) for reader in readers]
    found = [(reader, part) for reader, part in zip(readers, columns, strict=True) if part is not None]
    return found if len(found) == len(readers) and not layer.output.is_graph_output() else []


def _columns(reader: ir.Node, layer: LinearLayer) -> slice | None:
    """The columns that `reader` takes out, if that is all it does."""
    shape = layer.output.shape
    if reader.op_type != "Slice" or not is_movement(reader) or shape is None or reader.outputs[0].is_graph_output():
        return None
    starts, ends, axes, steps = (integers(reader, index) for index in range(1, 5))
    if starts is None or ends is None or axes not in ((-1,), (len(shape) - 1,)) or steps not in (None, (1,)):
        return None
    return slice(starts[0], ends[0]) if 0 <= starts[0] < ends[0] <= layer.width else None


def _split(graph: ir.Graph, layer: LinearLayer, reader: ir.Node, part: slice) -> None:
    output = reader.outputs[0]
    cut = by_column(layer.product)
    inputs = [_part(graph, value, part) if value is not None and value in cut else value for value in layer.product.inputs]
    steps = [_like(layer.product, inputs, part, output.shape)]
    if layer.add is not None and layer.bias is not None:
        both = [steps[0].outputs[0], _part(graph, layer.bias, part)]
        steps.append(_like(layer.add, both, part, output.shape))
    graph.insert_before(layer.product, steps)
    take_over(output, steps[-1].outputs[0])
    graph.remove(reader, safe=True)


def _like(node: ir.Node, inputs: Sequence[ir.Value | None], part: slice, shape: ir.Shape | None) -> ir.Node:
    name = f"{node.name}[{part.start}:{part.stop}]"
    return make_node(node.op_type, inputs, name=name, dtype=ir.DataType.FLOAT, shape=shape, domain=node.domain)


def _part(graph: ir.Graph, value: ir.Value, part: slice) -> ir.Value:
    """The columns `part` of a constant; the constant itself if one number stands for all."""
    array = constant(value)
    if array is None or array.size == 1:
        return value
    return add_constant(graph, f"{value.name}[{part.start}:{part.stop}]", np.ascontiguousarray(array[..., part]))
