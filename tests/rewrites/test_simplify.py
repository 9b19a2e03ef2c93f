from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from graphs import LOGITS, graph_of, operators, run
from onnx import TensorProto, helper

from vitexport.rewrites import apply
from vitexport.rewrites.simplify import FREE_BYTES, GROWTH, Simplify

RANDOM = np.random.default_rng(3)
X = RANDOM.normal(0, 1, (2, 3, 4, 4)).astype(np.float32)


def node(op_type: str, inputs: list[str], outputs: list[str], **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(op_type, inputs, outputs, name=f"m/{op_type}/{outputs[0]}", **attributes)


def test_a_position_embedding_that_is_resampled_in_the_graph_becomes_a_constant() -> None:
    table = RANDOM.normal(0, 1, (1, 3, 2, 2)).astype(np.float32)
    nodes = [
        node("Resize", ["table", "", "", "sizes"], ["resized"], mode="cubic", coordinate_transformation_mode="half_pixel"),
        node("Sin", ["resized"], ["waves"]),
        node("Add", ["image", "waves"], [LOGITS]),
    ]
    model = graph_of(nodes, {"table": table, "sizes": np.asarray([1, 3, 4, 4])}, [2, 3, 4, 4])
    before = run(model, X)
    apply(model, Simplify())
    assert operators(model) == {"Add": 1}
    np.testing.assert_allclose(run(model, X), before, atol=1e-6)
    assert set(model.graph.initializers) == {"waves"}


def test_a_constant_that_grows_much_stays_computed() -> None:
    width = FREE_BYTES // 4
    nodes = [node("Expand", ["one", "shape"], ["many"]), node("Mul", ["image", "many"], [LOGITS])]
    constants = {"one": np.full((1, 1), 1.5, np.float32), "shape": np.asarray([2, width])}
    model = graph_of(nodes, constants, [2, width])
    apply(model, Simplify())
    assert operators(model) == {"Expand": 1, "Mul": 1}


def test_a_position_embedding_is_resampled_now_however_much_it_grows() -> None:
    side = 1024
    table = RANDOM.normal(0, 1, (1, 1, 4, 4)).astype(np.float32)
    constants = {"table": table, "sizes": np.asarray([1, 1, side, side])}
    nodes = [
        node("Resize", ["table", "", "", "sizes"], ["resized"], mode="cubic", antialias=1),
        node("Add", ["image", "resized"], [LOGITS]),
    ]
    model = graph_of(nodes, constants, [1, 1, side, side])
    assert side * side * 4 > FREE_BYTES + GROWTH * sum(array.nbytes for array in constants.values())
    apply(model, Simplify())
    assert operators(model) == {"Add": 1}


def test_a_constant_output_keeps_its_name() -> None:
    nodes = [node("Neg", ["five"], [LOGITS]), node("Relu", ["image"], ["unread"])]
    model = graph_of(nodes, {"five": np.full(3, 5, np.float32)}, [2, 3])
    apply(model, Simplify())
    assert [value.name for value in model.graph.outputs] == [LOGITS]
    np.testing.assert_array_equal(run(model, X[:, :, 0, 0]), np.full(3, -5))


@pytest.mark.parametrize(("low", "high"), [(-np.inf, np.inf), (-np.inf, 1.0), (-1.0, np.inf)])
def test_only_bounds_at_infinity_are_dropped(low: float, high: float) -> None:
    nodes = [node("Max", ["image", "low"], ["m"]), node("Min", ["high", "m"], ["n"]), node("Neg", ["n"], [LOGITS])]
    constants = {"low": np.asarray(low, np.float32), "high": np.asarray(high, np.float32)}
    model = graph_of(nodes, constants, [2, 3, 4, 4])
    before = run(model, X)
    apply(model, Simplify())
    expected = {"Neg": 1} | ({"Max": 1} if np.isfinite(low) else {}) | ({"Min": 1} if np.isfinite(high) else {})
    assert operators(model) == expected
    np.testing.assert_array_equal(run(model, X), before)


def test_what_depends_on_the_input_is_not_folded() -> None:
    nodes = [
        node("Shape", ["image"], ["shape"]),
        node("ConstantOfShape", ["shape"], ["ones"], value=helper.make_tensor("v", TensorProto.FLOAT, [1], [1.0])),
        node("Add", ["image", "ones"], [LOGITS]),
    ]
    model = graph_of(nodes, {}, ["batch", 3])
    apply(model, Simplify())
    images = X[:, :, 0, 0]
    np.testing.assert_array_equal(run(model, images), images + 1)
