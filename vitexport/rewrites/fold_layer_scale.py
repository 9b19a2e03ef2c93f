"""Input: a graph that multiplies what a linear layer computes by one constant a channel; output: the layer alone.

DeiT-III, BEiT and others scale each residual branch so (CaiT's LayerScale, https://arxiv.org/abs/2103.17239). In float the
weight takes the factors. In integers the weight's scales do, and where a factor is negative the integers change their sign,
so that no integer is rounded anew.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes import InPlacePass, PassResult, PostconditionError

from vitexport.rewrites.graph import (
    add_constant,
    constant,
    drop_unused_initializers,
    only_consumer,
    operand,
    take_over,
)
from vitexport.rewrites.linear_layer import BIAS, WEIGHT, WEIGHT_SCALE, WEIGHT_ZERO_POINT, LinearLayer, linear_layer


class FoldLayerScale(InPlacePass):
    """Fold every Mul by one number for each column into the linear layer before it."""

    def call(self, model: ir.Model) -> PassResult:
        """Fold layer by layer."""
        graph = model.graph
        found = _found(graph)
        for layer, scale in found:
            factors = _factors(scale, layer)
            if factors is not None:
                _fold(graph, layer, factors)
                take_over(scale.outputs[0], layer.output)
                graph.remove(scale, safe=True)
        drop_unused_initializers(graph)
        return PassResult(model, modified=bool(found))

    def ensures(self, model: ir.Model) -> None:
        """None is left."""
        for _, scale in _found(model.graph):
            raise PostconditionError(f"{scale.name} is left behind a linear layer")


def _found(graph: ir.Graph) -> list[tuple[LinearLayer, ir.Node]]:
    """Linear layers, and the Mul behind each that can be folded into it."""
    layers = [layer for layer in map(linear_layer, graph) if layer is not None]
    readers = [only_consumer(layer.output) for layer in layers]
    return [
        (layer, reader)
        for layer, reader in zip(layers, readers, strict=True)
        if reader is not None and reader.op_type == "Mul" and _factors(reader, layer) is not None
    ]


def _factors(scale: ir.Node, layer: LinearLayer) -> NDArray[np.float64] | None:
    """The constants of `scale`, one for each column; None if it is something else, or they do not fit into integers."""
    arrays = [array for array in map(constant, scale.inputs) if array is not None]
    if len(arrays) != 1 or arrays[0].shape[-1:] != (layer.width,) or arrays[0].size != layer.width:
        return None
    factors: NDArray[np.float64] = arrays[0].reshape(-1).astype(np.float64)
    return factors if layer.product.op_type == "MatMul" or _fits_integers(layer, factors) else None


def _fits_integers(layer: LinearLayer, factors: NDArray[np.float64]) -> bool:
    """Whether scales stay positive, and -128, which has no opposite, need not change its sign."""
    weight = np.asarray(constant(operand(layer.product, WEIGHT)))
    zero = constant(layer.product.inputs[WEIGHT_ZERO_POINT]) if len(layer.product.inputs) > WEIGHT_ZERO_POINT else None
    is_symmetric = weight.dtype == np.int8 and (zero is None or not zero.any())
    return bool((factors > 0).all() or ((factors != 0).all() and is_symmetric and weight.min() > -128))


def _fold(graph: ir.Graph, layer: LinearLayer, factors: NDArray[np.float64]) -> None:
    if layer.product.op_type == "MatMul":
        _give(graph, layer.product, WEIGHT, lambda weight: weight * factors)
        if layer.add is not None:
            _give(graph, layer.add, layer.add.inputs.index(layer.bias), lambda bias: bias * factors)
        return
    _give(graph, layer.product, WEIGHT_SCALE, lambda scale: scale * np.abs(factors))
    if (factors < 0).any():
        _give(graph, layer.product, WEIGHT, lambda weight: weight * np.sign(factors))
    if len(layer.product.inputs) > BIAS and layer.product.inputs[BIAS] is not None:
        _give(graph, layer.product, BIAS, lambda bias: bias * factors)


def _give(graph: ir.Graph, node: ir.Node, index: int, change: Any) -> None:
    """Let `node` read what `change` makes of the constant at `index`; whoever else reads that keeps it."""
    value = operand(node, index)
    before = np.asarray(constant(value))
    after = np.asarray(change(before.astype(np.float64))).astype(before.dtype)
    node.replace_input_with(index, add_constant(graph, f"{value.name}.scaled", after))
