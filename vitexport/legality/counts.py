"""Input: an onnx-ir model; output: the size of each of its matrix products and convolutions for one image."""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable, Mapping

import onnx_ir as ir

from vitexport.artifacts import Product
from vitexport.errors import InputError
from vitexport.legality.products import is_product
from vitexport.legality.view import View, input_of, label

OPERATORS: Mapping[type[ast.operator], Callable[[int, int], int]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
}


def graph_products(model: ir.Model) -> tuple[Product, ...]:
    """Every product that reads what is computed, in graph order; ``int8`` where both operands come out of Q/DQ.

    Raises:
        InputError: The graph does not say the shapes, or multiplies in a way that is not counted here.
    """
    view = View(model)
    batch, symbol = _batch(model)
    found = []
    for node in view.nodes:
        if node.op_type == "Einsum":
            raise InputError(f"{label(node)} is an Einsum, whose multiply-adds are not counted.")
        operands = [input_of(node, index) for index in (0, 1)]
        if not is_product(node) or all(view.fixed(value) for value in operands):
            continue
        sizes = [_sizes(node, value, symbol) for value in (*operands, node.outputs[0])]
        inner = math.prod(sizes[1][1:]) if node.op_type == "Conv" else _inner(node, sizes[0])
        sources = [view.source(value) for value in operands]
        weights = sum(
            math.prod(shape)
            for value, shape, source in zip(operands, sizes[:2], sources, strict=True)
            if view.fixed(value) or (source is not None and source.weight)
        )
        quantized = all(source is not None for source in sources)
        macs = math.prod(sizes[2]) * inner // batch
        found.append(Product(module=(node.name or "").rpartition("/")[0], macs=macs, weights=weights, int8=quantized))
    return tuple(found)


def _batch(model: ir.Model) -> tuple[int, str]:
    """The batch that the graph is for and the name that stands for it; a name counts as one image."""
    shape = model.graph.inputs[0].shape
    first = shape[0] if shape is not None and len(shape) else None
    if isinstance(first, int):
        return first, ""
    return 1, str(first.value) if first is not None else ""


def _inner(node: ir.Node, left: tuple[int, ...]) -> int:
    """How many products each number of the result sums."""
    if node.op_type == "ConvTranspose":
        raise InputError(f"{label(node)} is a ConvTranspose, whose multiply-adds are not counted.")
    transposed = "transA" in node.attributes and node.attributes["transA"].as_int() == 1
    return left[0 if transposed else -1]


def _sizes(node: ir.Node, value: ir.Value | None, symbol: str) -> tuple[int, ...]:
    if value is not None and value.const_value is not None:
        return tuple(value.const_value.numpy().shape)
    shape = value.shape if value is not None else None
    if shape is None or value is None:
        raise InputError(f"The graph does not say the shapes of {label(node)}, so its multiply-adds are not known.")
    try:
        return tuple(
            size if isinstance(size, int) else _evaluate(ast.parse(str(size.value), mode="eval").body, symbol)
            for size in shape
        )
    except (ValueError, SyntaxError, ZeroDivisionError) as error:
        raise InputError(f"The shape of {value.name} is {shape}, which cannot be counted: {error}.") from None


def _evaluate(expression: ast.expr, symbol: str) -> int:
    """A size such as ``64*batch``, for one image.

    Raises:
        ValueError: It is made of something else than whole numbers, `symbol` and sums and products of them.
    """
    if isinstance(expression, ast.Constant) and type(expression.value) is int:
        return expression.value
    if isinstance(expression, ast.Name) and expression.id == symbol:
        return 1
    if isinstance(expression, ast.BinOp) and type(expression.op) in OPERATORS:
        left, right = _evaluate(expression.left, symbol), _evaluate(expression.right, symbol)
        return OPERATORS[type(expression.op)](left, right)
    raise ValueError(f"{ast.unparse(expression)} is no size of one image")
