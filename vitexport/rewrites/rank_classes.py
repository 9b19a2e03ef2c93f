"""Add a classifier's answer as outputs of its own, ``probabilities`` and ``top_indices``.

What an application shows is then read off, not computed again: the probability of every class or label, float32 [batch,
classes], and the most probable `count` of them, int64 [batch, count], in falling order. Classes share one whole (softmax);
each label has a probability of its own (sigmoid), and these need not sum to 1. One logit gives the probabilities of two
classes, of the negative one first.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import InPlacePass, PassResult, PreconditionError

from vitexport.artifacts import BINARY_NAMES, OutputSpec
from vitexport.rewrites.graph import add_constant, make_node

PROBABILITIES = "probabilities"
TOP_INDICES = "top_indices"


class RankClasses(InPlacePass):
    """Append probabilities and TopK after `scores`, the output that decides on classes or labels.

    Args:
        scores: Logits of classes or of labels, or probabilities that the graph computes already.
        count: How many of them ``top_indices`` names; at most as many as there are.
    """

    def __init__(self, scores: OutputSpec, count: int) -> None:
        self.scores = scores
        self.classes = len(BINARY_NAMES) if scores.is_binary else scores.shape[0]
        self.count = min(count, self.classes)

    def requires(self, model: ir.Model) -> None:
        """The output is there, and none has the new names."""
        names = [output.name for output in model.graph.outputs]
        new = {TOP_INDICES} if self.scores.kind == PROBABILITIES else {PROBABILITIES, TOP_INDICES}
        if self.scores.name not in names or new & set(names):
            raise PreconditionError(f"outputs are {names}; expected {self.scores.name} and none of {sorted(new)}")

    def call(self, model: ir.Model) -> PassResult:
        """Rank by the scores themselves: softmax and sigmoid can round two of them to one probability."""
        graph = model.graph
        scores = next(output for output in graph.outputs if output.name == self.scores.name)
        added: list[ir.Node] = []
        if self.scores.is_binary:
            added += self._both_sides(scores)
            scores = added[-1].outputs[0]
        if self.scores.kind != PROBABILITIES:
            added.append(self._probabilities(scores))
        shown = added[-1:] if self.scores.kind != PROBABILITIES else []
        count = add_constant(graph, f"{TOP_INDICES}.count", np.asarray([self.count], np.int64))
        top = ir.Node("", "TopK", [scores, count], num_outputs=2, name=TOP_INDICES)
        batch = scores.shape[0] if scores.shape is not None else None
        values, indices = top.outputs
        values.name = f"{TOP_INDICES}.scores"
        indices.name, indices.type = TOP_INDICES, ir.TensorType(ir.DataType.INT64)
        indices.shape = ir.Shape([batch, self.count])
        added.append(top)
        graph.extend(added)
        graph.outputs.extend(node.outputs[-1] for node in [*shown, top])
        return PassResult(model, modified=True)

    def _probabilities(self, scores: ir.Value) -> ir.Node:
        """Of one whole for classes, each by itself for labels and for the two sides of one logit."""
        shared = self.scores.names_classes
        return make_node(
            "Softmax" if shared else "Sigmoid",
            [scores],
            name=PROBABILITIES,
            dtype=ir.DataType.FLOAT,
            shape=scores.shape,
            attributes=[ir.AttrInt64("axis", -1)] if shared else [],
        )

    def _both_sides(self, logit: ir.Value) -> list[ir.Node]:
        """The logit's negative and itself: the scores of the negative and the positive class, float32 [batch, 2]."""
        batch = logit.shape[0] if logit.shape is not None else None
        name, dtype = f"{PROBABILITIES}.scores", ir.DataType.FLOAT
        negative = make_node("Neg", [logit], name=f"{name}.negative", dtype=dtype, shape=logit.shape)
        shape = ir.Shape([batch, self.classes])
        axis = [ir.AttrInt64("axis", -1)]
        return [
            negative,
            make_node("Concat", [negative.outputs[0], logit], name=name, dtype=dtype, shape=shape, attributes=axis),
        ]
