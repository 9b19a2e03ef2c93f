"""Input: a graph with ``LayerNormalization`` operators (opset 17); output: the same function in operators of opset 13.

For stacks whose TensorRT has no such operator (before 8.6). The names of the new nodes go into the engine recipe: under
the FP16 flag their variance must be constrained to FP32, or it overflows (https://github.com/NVIDIA/TensorRT/issues/2709).
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import InPlacePass, PassResult, PostconditionError, PreconditionError

from vitexport.rewrites.graph import add_constant, make_node, operand, substitute

MARK = "LayerNormalization.lowered"


class LowerLayerNorm(InPlacePass):
    """(x - mean) / √(variance + ε) · γ + β, each node named after its LayerNormalization and marked with `MARK`."""

    def requires(self, model: ir.Model) -> None:
        """All are over the last axis, as in every Vision Transformer."""
        for node in _targets(model):
            axis = node.attributes.get("axis")
            if axis is not None and axis.as_int() != -1:
                raise PreconditionError(f"{node.name} normalizes from axis {axis.as_int()}; expected -1")

    def call(self, model: ir.Model) -> PassResult:
        """Replace every LayerNormalization."""
        targets = _targets(model)
        for node in targets:
            _replace(model.graph, node)
        return PassResult(model, modified=bool(targets))

    def ensures(self, model: ir.Model) -> None:
        """None is left."""
        if _targets(model):
            raise PostconditionError("a LayerNormalization is left")


def _targets(model: ir.Model) -> list[ir.Node]:
    return [node for node in model.graph if node.op_type == "LayerNormalization"]


def _replace(graph: ir.Graph, node: ir.Node) -> None:
    x, gamma = operand(node, 0), operand(node, 1)
    beta = node.inputs[2] if len(node.inputs) > 2 else None
    epsilon = node.attributes["epsilon"].as_float() if "epsilon" in node.attributes else 1e-5
    prefix = f"{node.name}/{MARK}"
    steps: list[ir.Node] = []

    def step(op_type: str, *inputs: ir.Value | None, attributes: tuple[ir.Attr, ...] = ()) -> ir.Value:
        steps.append(
            make_node(
                op_type,
                inputs,
                name=f"{prefix}/{op_type}.{len(steps)}",
                dtype=ir.DataType.FLOAT,
                shape=None,
                attributes=attributes,
            )
        )
        return steps[-1].outputs[0]

    # Until opset 17 ReduceMean takes its axes as an attribute.
    over_last = (ir.AttrInt64s("axes", [-1]), ir.AttrInt64("keepdims", 1))
    centred = step("Sub", x, step("ReduceMean", x, attributes=over_last))
    variance = step("ReduceMean", step("Mul", centred, centred), attributes=over_last)
    deviation = step(
        "Sqrt", step("Add", variance, add_constant(graph, f"{prefix}.epsilon", np.asarray(epsilon, np.float32)))
    )
    result = step("Mul", step("Div", centred, deviation), gamma)
    if beta is not None:
        result = step("Add", result, beta)
    substitute(graph, node, steps, result)
