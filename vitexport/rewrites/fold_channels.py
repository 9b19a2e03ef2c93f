"""Input: a float graph and scales and shifts per channel; output: a graph of the same float function, with other channels.

A tensor x that layers read becomes (x - shift) / scale: what computes it is changed to give that, and the layers' weights
and biases undo it; or, of q and k, each undoes the other and no layer has to. Only constants change, but for one Sub where
nothing in front can take a shift.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Literal

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes import InPlacePass, PassResult, PostconditionError

from vitexport.rewrites.graph import (
    Vector,
    add_constant,
    change_bias,
    constant,
    drop_unused_initializers,
    float64,
    give_constant,
    make_node,
    operand,
)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ChannelFold:
    """One tensor's scale and shift.

    Attributes:
        kind: ``norm``, ``value``, ``product`` or ``after``, as `vitexport.quantize.fold` explains them.
        producer: Name of the node that takes them; for ``after`` the name of the tensor.
        columns: Column of the producer's weight by channel, for ``value`` and ``product``.
        layers: Names of the MatMuls, or for ``after`` pointwise Convs, that read the tensor; none for q and k.
        scale: float64 [channels], positive.
        shift: float64 [channels].
    """

    kind: Literal["norm", "value", "product", "after"]
    producer: str
    columns: NDArray[np.int64] | None
    layers: tuple[str, ...]
    scale: Vector
    shift: Vector


class FoldChannels(InPlacePass):
    """Apply `folds`, each in float64, rounded to float32 behind each."""

    def __init__(self, folds: Sequence[ChannelFold]) -> None:
        self.folds = folds

    def call(self, model: ir.Model) -> PassResult:
        """Change the producers first, then the layers that read."""
        graph = model.graph
        nodes = {str(node.name): node for node in graph}
        for fold in self.folds:
            if fold.kind == "norm":
                _norm(graph, nodes[fold.producer], fold)
            elif fold.kind == "after":
                _after(graph, [nodes[name] for name in fold.layers], fold)
            else:
                _columns(graph, nodes[fold.producer], fold)
            for name in fold.layers:
                _undo(graph, nodes[name], fold)
        drop_unused_initializers(graph)
        return PassResult(model, modified=bool(self.folds))

    def ensures(self, model: ir.Model) -> None:
        """Every constant is finite, but for the infinities that a mask may hold."""
        for name, value in model.graph.initializers.items():
            array = constant(value)
            if array is not None and array.dtype == np.float32 and bool(np.isnan(array).any()):
                raise PostconditionError(f"initializer {name} holds NaN")


def _norm(graph: ir.Graph, node: ir.Node, fold: ChannelFold) -> None:
    if node.op_type == "LayerNormalization":
        gamma, beta = (node, 1), (node, 2)
    else:
        scaled = operand(node, 0).producer()
        if scaled is None:
            raise ValueError(f"{node.name} does not end a LayerNormalization")
        gamma, beta = (scaled, 1), (node, 1)
    give_constant(graph, *gamma, float64(*gamma) / fold.scale)
    give_constant(graph, *beta, (float64(*beta) - fold.shift) / fold.scale)


def _columns(graph: ir.Graph, node: ir.Node, fold: ChannelFold) -> None:
    """Scale and shift some of the columns that a linear layer computes."""
    weight = float64(node, 1)
    scale, shift = np.ones(weight.shape[1]), np.zeros(weight.shape[1])
    scale[fold.columns], shift[fold.columns] = fold.scale, fold.shift
    give_constant(graph, node, 1, weight / scale)
    change_bias(graph, node, weight.shape[1], lambda bias: (bias - shift) / scale)


def _undo(graph: ir.Graph, node: ir.Node, fold: ChannelFold) -> None:
    weight = float64(node, 1)
    transposed = node.op_type == "Gemm" and "transB" in node.attributes and node.attributes["transB"].as_int() == 1
    # A Conv of height and width 1 is a linear layer that holds [out, in, 1, 1].
    transposed = transposed or node.op_type == "Conv"
    matrix = weight.reshape(weight.shape[:2]).T if transposed else weight
    correction = fold.shift @ matrix
    scaled = matrix * fold.scale[:, None]
    give_constant(graph, node, 1, (scaled.T if transposed else scaled).reshape(weight.shape))
    change_bias(graph, node, matrix.shape[1], lambda bias: bias + correction)


def _after(graph: ir.Graph, layers: Sequence[ir.Node], fold: ChannelFold) -> None:
    """Take one number off, behind whatever computes the tensor."""
    if not fold.shift.any():
        return
    value = operand(layers[0], 0)
    number = add_constant(graph, f"{value.name}.shift", np.asarray(fold.shift[0], np.float32))
    sub = make_node("Sub", [value, number], name=f"{value.name}/Sub", dtype=ir.DataType.FLOAT, shape=value.shape)
    producer = value.producer()
    if producer is None:
        graph.insert_before(graph[0], [sub])
    else:
        graph.insert_after(producer, [sub])
    for node in layers:
        node.replace_input_with(0, sub.outputs[0])
