from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from graphs import LOGITS, graph_of, operators, run, valid_in
from onnx import helper

from vitexport.rewrites import apply
from vitexport.rewrites.lower_gelu import LowerGelu

# Fine where GELU bends, and out to where it is 0 or x.
VALUES = np.concatenate([np.linspace(-6, 6, 1001), [-1e4, -50, 0, 50, 1e4]]).astype(np.float32)


def gelu(name: str, source: str, result: str, **attributes: Any) -> Any:
    return helper.make_node("Gelu", [source], [result], name=name, **attributes)


@pytest.mark.parametrize(
    ("attributes", "gate"), [({}, "Erf"), ({"approximate": "none"}, "Erf"), ({"approximate": "tanh"}, "Tanh")]
)
def test_the_written_out_form_computes_what_the_operator_does(attributes: dict[str, str], gate: str) -> None:
    model = graph_of([gelu("mlp.act/Gelu", "image", LOGITS, **attributes)], {}, ["n"])
    before = run(model, VALUES)
    apply(model, LowerGelu())
    # The erf and the tanh form differ by up to 5e-4: the tolerance tells them apart.
    np.testing.assert_allclose(run(model, VALUES), before, rtol=1e-6, atol=1e-6)
    assert operators(model)[gate] == 1
    assert operators(model)["Gelu"] == 0
    valid_in(model, 13)


def test_every_gelu_is_replaced_under_its_own_name() -> None:
    model = graph_of([gelu("a/Gelu", "image", "inner"), gelu("b/Gelu", "inner", LOGITS)], {}, ["n"])
    before = run(model, VALUES)
    apply(model, LowerGelu())
    np.testing.assert_allclose(run(model, VALUES), before, rtol=1e-6, atol=1e-6)
    names = [str(node.name) for node in model.graph]
    assert len(set(names)) == len(names)
    assert {name.rpartition("/")[0] for name in names} == {"a/Gelu", "b/Gelu"}


def test_a_graph_without_gelu_is_left_alone() -> None:
    model = graph_of([helper.make_node("Erf", ["image"], [LOGITS], name="Erf")], {}, ["n"])
    apply(model, LowerGelu())
    assert operators(model) == {"Erf": 1}
