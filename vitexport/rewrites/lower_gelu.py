"""Input: a graph with ``Gelu`` operators (opset 20); output: the same function in operators of opset 13."""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import InPlacePass, PassResult, PostconditionError

from vitexport.rewrites.graph import add_constant, make_node, operand, substitute


class LowerGelu(InPlacePass):
    """x · 0.5 · (1 + erf(x / √2)), the form that TensorRT 8 recognises and fuses; or the tanh form where asked."""

    def call(self, model: ir.Model) -> PassResult:
        """Replace every Gelu."""
        targets = [node for node in model.graph if node.op_type == "Gelu"]
        for node in targets:
            _replace(model.graph, node)
        return PassResult(model, modified=bool(targets))

    def ensures(self, model: ir.Model) -> None:
        """No Gelu is left."""
        if any(node.op_type == "Gelu" for node in model.graph):
            raise PostconditionError("a Gelu is left")


def _replace(graph: ir.Graph, node: ir.Node) -> None:
    x, y, name = operand(node, 0), node.outputs[0], node.name or "Gelu"
    steps: list[ir.Node] = []

    def step(op_type: str, left: ir.Value, right: float | ir.Value | None = None) -> ir.Value:
        other = (
            add_constant(graph, f"{name}/{len(steps)}.operand", np.asarray(right, np.float32))
            if isinstance(right, float)
            else right
        )
        inputs = [left] if other is None else [left, other]
        step_name = f"{name}/{op_type}.{len(steps)}"
        steps.append(make_node(op_type, inputs, name=step_name, dtype=ir.DataType.FLOAT, shape=y.shape))
        return steps[-1].outputs[0]

    approximate = node.attributes.get("approximate")
    if approximate is not None and approximate.as_string() == "tanh":
        cube = step("Mul", step("Mul", x, x), x)
        inner = step("Mul", step("Add", x, step("Mul", cube, 0.044715)), math.sqrt(2 / math.pi))
        gate = step("Tanh", inner)
    else:
        gate = step("Erf", step("Div", x, math.sqrt(2)))
    result = step("Mul", step("Mul", x, step("Add", gate, 1.0)), 0.5)
    substitute(graph, node, steps, result)
