"""A classifier enters; the same with its answer as outputs of its own, ``probabilities`` and ``top_indices``, leaves.

What an application shows is then read off, not computed again: the probability of every class, float32 [batch, classes],
and the likeliest `count` of them, int64 [batch, count], likeliest first.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import InPlacePass, PassResult, PreconditionError

from vitexport.artifacts import OutputSpec
from vitexport.rewrites.graph import add_constant, make_node

PROBABILITIES = "probabilities"
TOP_INDICES = "top_indices"


class RankClasses(InPlacePass):
    """Append Softmax and TopK behind `scores`, the output that names classes.

    Args:
        scores: Logits, or probabilities that the graph computes already.
        count: How many classes ``top_indices`` names; at most as many as there are.
    """

    def __init__(self, scores: OutputSpec, count: int) -> None:
        self.scores = scores
        self.count = min(count, scores.shape[0])

    def requires(self, model: ir.Model) -> None:
        """The output is there, and none has the new names."""
        names = [output.name for output in model.graph.outputs]
        new = {TOP_INDICES} if self.scores.kind == PROBABILITIES else {PROBABILITIES, TOP_INDICES}
        if self.scores.name not in names or new & set(names):
            raise PreconditionError(f"outputs are {names}; expected {self.scores.name} and none of {sorted(new)}")

    def call(self, model: ir.Model) -> PassResult:
        """Rank by the scores themselves: softmax can round two of them to one probability."""
        graph = model.graph
        scores = next(output for output in graph.outputs if output.name == self.scores.name)
        added: list[ir.Node] = []
        if self.scores.kind != PROBABILITIES:
            softmax = make_node(
                "Softmax",
                [scores],
                name=PROBABILITIES,
                dtype=ir.DataType.FLOAT,
                shape=scores.shape,
                attributes=[ir.AttrInt64("axis", -1)],
            )
            added.append(softmax)
        count = add_constant(graph, f"{TOP_INDICES}.count", np.asarray([self.count], np.int64))
        top = ir.Node("", "TopK", [scores, count], num_outputs=2, name=TOP_INDICES)
        batch = scores.shape[0] if scores.shape is not None else None
        values, indices = top.outputs
        values.name = f"{TOP_INDICES}.scores"
        indices.name, indices.type = TOP_INDICES, ir.TensorType(ir.DataType.INT64)
        indices.shape = ir.Shape([batch, self.count])
        added.append(top)
        graph.extend(added)
        graph.outputs.extend(node.outputs[-1] for node in added)
        return PassResult(model, modified=True)
