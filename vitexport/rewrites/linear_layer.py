"""Input: a node that multiplies by a constant weight; output: the linear layer that it belongs to, with its bias."""

from __future__ import annotations

import dataclasses

import onnx_ir as ir

from vitexport.rewrites.graph import bias_index, constant, only_consumer

WEIGHT, WEIGHT_SCALE, WEIGHT_ZERO_POINT, BIAS = 1, 3, 5, 6
# Inputs with one number for each column, or one for all. MatMulIntegerToFloat: weight, its scale and zero point, bias.
COLUMN_INPUTS = {"MatMul": (WEIGHT,), "MatMulIntegerToFloat": (WEIGHT, WEIGHT_SCALE, WEIGHT_ZERO_POINT, BIAS)}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LinearLayer:
    """A linear layer with constant weights.

    Attributes:
        product: MatMul, or MatMulIntegerToFloat with all that belongs to it.
        add: The Add of the bias, where that is a node of its own.
        bias: The constant that `add` adds.
        output: What the layer computes.
        width: Its number of columns.
    """

    product: ir.Node
    add: ir.Node | None
    bias: ir.Value | None
    output: ir.Value
    width: int


def linear_layer(product: ir.Node) -> LinearLayer | None:
    """The layer of `product`; None if that is no product with constants, or its weight is no matrix."""
    if product.op_type not in COLUMN_INPUTS or any(constant(value) is None for value in by_column(product)):
        return None
    weight = constant(product.inputs[WEIGHT])
    if weight is None or weight.ndim != 2:
        return None
    width = weight.shape[1]
    add = only_consumer(product.outputs[0])
    index = bias_index(add, width) if product.op_type == "MatMul" else None
    if add is None or index is None:
        return LinearLayer(product=product, add=None, bias=None, output=product.outputs[0], width=width)
    return LinearLayer(product=product, add=add, bias=add.inputs[index], output=add.outputs[0], width=width)


def by_column(product: ir.Node) -> list[ir.Value]:
    """The inputs of `product` that have one number for each column, or one for all."""
    values = [product.inputs[index] for index in COLUMN_INPUTS[product.op_type] if index < len(product.inputs)]
    return [value for value in values if value is not None]
