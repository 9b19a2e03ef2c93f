from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from graphs import LOGITS, graph_of, operators, run, valid_in
from numpy.typing import NDArray
from onnx import helper

from vitexport.errors import ToolchainError
from vitexport.rewrites import apply
from vitexport.rewrites.lower_layernorm import MARK, LowerLayerNorm

WIDTH = 24
RANDOM = np.random.default_rng(5)
GAMMA = RANDOM.normal(1, 0.3, WIDTH).astype(np.float32)
BETA = RANDOM.normal(0, 0.3, WIDTH).astype(np.float32)


def layernorm(inputs: list[str], shape: list[int | str], **attributes: Any) -> ir.Model:
    node = helper.make_node("LayerNormalization", ["image", *inputs], [LOGITS], name="norm/LayerNormalization", **attributes)
    constants: dict[str, NDArray[np.float32]] = {"gamma": GAMMA, "beta": BETA}
    # Of the opsets with the operator, the one whose ReduceMean still has the form that the rewrite writes.
    return graph_of([node], {name: constants[name] for name in inputs}, shape, opset=17)


def reference(x: NDArray[np.float32], epsilon: float, beta: NDArray[np.float32] | float) -> NDArray[np.float64]:
    wide = x.astype(np.float64)
    centred = wide - wide.mean(-1, keepdims=True)
    result: NDArray[np.float64] = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + epsilon) * GAMMA + beta
    return result


@pytest.mark.parametrize("lead", [(5,), (2, 5), (2, 3, 5)])
@pytest.mark.parametrize("inputs", [["gamma"], ["gamma", "beta"]])
# The small inputs make epsilon count, the large mean makes a variance of squares minus squared mean fail.
@pytest.mark.parametrize(("offset", "spread", "epsilon"), [(0, 1, 1e-6), (0, 1e-3, 1e-5), (300, 1, 1e-6)])
def test_the_written_out_form_normalizes(
    lead: tuple[int, ...], inputs: list[str], offset: float, spread: float, epsilon: float
) -> None:
    x = np.random.default_rng(1).normal(offset, spread, (*lead, WIDTH)).astype(np.float32)
    model = layernorm(inputs, [*lead, WIDTH], epsilon=epsilon)
    before = run(model, x)
    apply(model, LowerLayerNorm())
    after = run(model, x)
    tolerance = 1e-5 if offset == 0 else 1e-3
    np.testing.assert_allclose(after, reference(x, epsilon, BETA if "beta" in inputs else 0.0), atol=tolerance)
    np.testing.assert_allclose(after, before, atol=tolerance)
    assert operators(model)["LayerNormalization"] == 0
    valid_in(model, 13)


def test_an_absent_epsilon_is_the_operators_default() -> None:
    x = np.random.default_rng(2).normal(0, 1e-3, (4, WIDTH)).astype(np.float32)
    model = layernorm(["gamma", "beta"], [4, WIDTH])
    before = run(model, x)
    apply(model, LowerLayerNorm())
    np.testing.assert_allclose(run(model, x), before, atol=1e-5)


def test_new_nodes_carry_the_mark_that_the_engine_recipe_looks_for() -> None:
    model = layernorm(["gamma", "beta"], [4, WIDTH])
    apply(model, LowerLayerNorm())
    names = [str(node.name) for node in model.graph]
    assert all(name.startswith(f"norm/LayerNormalization/{MARK}/") for name in names)
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("axis", [0, 1])
def test_another_axis_is_refused_by_name(axis: int) -> None:
    shape: list[int | str] = [2, 3, WIDTH]
    node = helper.make_node("LayerNormalization", ["image", "gamma"], [LOGITS], name="odd/LayerNormalization", axis=axis)
    model = graph_of([node], {"gamma": np.ones((3, WIDTH)[axis - 1 :] if axis else (2, 3, WIDTH), np.float32)}, shape)
    with pytest.raises(ToolchainError, match=rf"LowerLayerNorm.*odd/LayerNormalization normalizes from axis {axis}"):
        apply(model, LowerLayerNorm())
