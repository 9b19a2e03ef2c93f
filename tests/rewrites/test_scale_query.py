from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from graphs import LOGITS, assert_stays, graph_of, operators, run
from numpy.typing import NDArray
from onnx import helper

from vitexport.rewrites import apply
from vitexport.rewrites.scale_query import ScaleQuery

RANDOM = np.random.default_rng(8)
X = RANDOM.normal(0, 1, (2, 3, 5, 4)).astype(np.float32)
SCALE: dict[str, NDArray[Any]] = {
    "scale": np.asarray(0.3, np.float32),
    "bias": RANDOM.normal(0, 1, (1, 3, 5, 5)).astype(np.float32),
    "each": RANDOM.normal(1, 0.1, (1, 3, 1, 1)).astype(np.float32),
}


def node(op_type: str, inputs: list[str], output: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(op_type, inputs, [output], name=output, **attributes)


def attention(*between: onnx.NodeProto, last: str) -> ir.Model:
    """Scores of the input with itself, what is `between`, the softmax of `last`, and the product with v."""
    nodes = [
        node("Transpose", ["image"], "keys", perm=[0, 1, 3, 2]),
        node("MatMul", ["image", "keys"], "scores"),
        *between,
        node("Softmax", [last], "weights", axis=-1),
        node("MatMul", ["weights", "image"], LOGITS),
    ]
    used = {name for entry in between for name in entry.input}
    return graph_of(nodes, {name: array for name, array in SCALE.items() if name in used}, [2, 3, 5, 4])


FORMS = {
    "scaled": attention(node("Mul", ["scores", "scale"], "scaled"), last="scaled"),
    "scale first": attention(node("Mul", ["scale", "scores"], "scaled"), last="scaled"),
    "divided": attention(node("Div", ["scores", "scale"], "scaled"), last="scaled"),
    "scaled, then biased": attention(
        node("Mul", ["scores", "scale"], "scaled"), node("Add", ["bias", "scaled"], "biased"), last="biased"
    ),
}


@pytest.mark.parametrize("name", FORMS)
def test_the_scale_moves_to_q(name: str) -> None:
    model = FORMS[name].clone()
    before = run(model, X)
    apply(model, ScaleQuery())
    [scores] = [entry for entry in model.graph if entry.name == "scores"]
    query = scores.inputs[0].producer() if scores.inputs[0] is not None else None
    assert query is not None
    assert query.op_type == "Mul"
    assert operators(model)["Mul"] == 1
    assert operators(model)["Div"] == 0
    np.testing.assert_allclose(run(model, X), before, atol=1e-6)


STAYS = {
    "biased, then scaled": attention(
        node("Add", ["scores", "bias"], "biased"), node("Mul", ["biased", "scale"], "scaled"), last="scaled"
    ),
    "a number for each head": attention(node("Mul", ["scores", "each"], "scaled"), last="scaled"),
    "no scale": attention(last="scores"),
}


@pytest.mark.parametrize("name", STAYS)
def test_what_is_no_plain_scale_stays(name: str) -> None:
    assert_stays(STAYS[name].clone(), ScaleQuery(), X)
