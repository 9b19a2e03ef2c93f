"""Input: a graph whose attention scales its scores; output: the same attention with the scale on q: one form for all.

``softmax(s · (q kᵀ) + bias)`` becomes ``softmax((s · q) kᵀ + bias)``. timm's networks have it both ways; TensorRT's fused
attention is documented for a scale on q or k, and in float16 the product of unscaled q and k overflows first.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import InPlacePass, PassResult, PostconditionError

from vitexport.rewrites.graph import add_constant, make_node, only_consumer, operand
from vitexport.rewrites.origin import computed, factor


class ScaleQuery(InPlacePass):
    """Move every constant number that multiplies the scores of a softmax to the first operand of their product."""

    def call(self, model: ir.Model) -> PassResult:
        """Move one by one."""
        found = [match for node in model.graph if node.op_type == "Softmax" and (match := _match(node)) is not None]
        for product, scale, number in found:
            _move(model.graph, product, scale, number)
        return PassResult(model, modified=bool(found))

    def ensures(self, model: ir.Model) -> None:
        """None is left between a product and its softmax."""
        for node in model.graph:
            if node.op_type == "Softmax" and _match(node) is not None:
                raise PostconditionError(f"the scores of {node.name} are still scaled")


def _match(softmax: ir.Node) -> tuple[ir.Node, ir.Node, float] | None:
    """The product, the node behind it that scales it, and by what; None where there is no such node.

    Only Adds may stand between the scale and the softmax: what they add is not scaled, and stays as it is.
    """
    node = operand(softmax, 0).producer()
    while node is not None and node.op_type == "Add" and only_consumer(node.outputs[0]) is not None:
        behind = [producer for value in computed(node) if (producer := value.producer()) is not None]
        scaled = [producer for producer in behind if producer.op_type in ("Mul", "Div", "Add")]
        node = scaled[0] if len(scaled) == 1 else None
    if node is None or node.op_type not in ("Mul", "Div") or only_consumer(node.outputs[0]) is None:
        return None
    number = factor(node)
    product = computed(node)[0].producer() if number is not None and number.size == 1 else None
    if number is None or product is None or product.op_type != "MatMul" or only_consumer(product.outputs[0]) is not node:
        return None
    return (product, node, float(number.flat[0])) if len(computed(product)) == 2 else None


def _move(graph: ir.Graph, product: ir.Node, scale: ir.Node, number: float) -> None:
    query = operand(product, 0)
    factor = add_constant(graph, f"{product.name}.scale", np.asarray(number, np.float32))
    scaled = make_node("Mul", [query, factor], name=f"{product.name}/query", dtype=ir.DataType.FLOAT, shape=query.shape)
    graph.insert_before(product, [scaled])
    product.replace_input_with(0, scaled.outputs[0])
    scale.outputs[0].replace_all_uses_with(product.outputs[0])
    graph.remove(scale, safe=True)
