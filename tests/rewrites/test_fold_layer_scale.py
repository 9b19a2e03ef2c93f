from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from graphs import LOGITS, assert_stays, graph_of, operators, run
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import helper

from vitexport.rewrites import apply
from vitexport.rewrites.cpu_integer import CpuInteger
from vitexport.rewrites.fold_layer_scale import FoldLayerScale
from vitexport.rewrites.insert_qdq import QuantizedLinear

RANDOM = np.random.default_rng(4)
DEPTH, WIDTH = 8, 6
IMAGES = RANDOM.normal(0, 1, (2, 5, DEPTH)).astype(np.float32)
WEIGHT = RANDOM.normal(0, 1, (DEPTH, WIDTH)).astype(np.float32)
BIAS = RANDOM.normal(0, 1, WIDTH).astype(np.float32)
INTEGERS = RANDOM.integers(-64, 65, (DEPTH, WIDTH)).astype(np.int8)
MIXED = np.asarray([1.5, -0.5, 2.0, -1.0, 1e-5, 3.0], np.float32)


def node(op_type: str, inputs: list[str], output: str) -> onnx.NodeProto:
    return helper.make_node(op_type, inputs, [output], name=f"m/{output}")


def scaled(factors: NDArray[np.float32], *, bias: bool = True, first: bool = False) -> ir.Model:
    """A linear layer and the Mul behind it, in a residual branch."""
    nodes = [node("MatMul", ["image", "weight"], "product")]
    constants: dict[str, NDArray[Any]] = {"weight": WEIGHT, "gamma": factors, "back": WEIGHT.T.copy()}
    if bias:
        nodes.append(node("Add", ["product", "bias"], "sum"))
        constants["bias"] = BIAS
    whole = "sum" if bias else "product"
    nodes += [
        node("Mul", ["gamma", whole] if first else [whole, "gamma"], "scaled"),
        node("MatMul", ["scaled", "back"], "branch"),
        node("Add", ["image", "branch"], LOGITS),
    ]
    return graph_of(nodes, constants, ["n", 5, DEPTH])


def integers(model: ir.Model, weight: NDArray[np.int8] = INTEGERS) -> ir.Model:
    layer = QuantizedLinear(
        node="m/product",
        activation="image",
        activation_scale=np.float32(0.02),
        activation_zero_point=np.uint8(120),
        weight=weight,
        weight_scale=np.linspace(0.01, 0.03, WIDTH).astype(np.float32),
    )
    apply(model, CpuInteger([layer]))
    return model


@pytest.mark.parametrize("shape", [(WIDTH,), (1, WIDTH), (1, 1, WIDTH)])
@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_weight_and_bias_take_the_factors(shape: tuple[int, ...], *, bias: bool, first: bool) -> None:
    factors = np.asarray([1.5, -0.5, 2.0, 0.0, 1e-5, 3.0], np.float32).reshape(shape)
    model = scaled(factors, bias=bias, first=first)
    expected = run(model, IMAGES)
    apply(model, FoldLayerScale())
    assert operators(model) == {"MatMul": 2, "Add": 1 + bias}
    np.testing.assert_allclose(run(model, IMAGES), expected, rtol=1e-5, atol=1e-5)


@settings(deadline=None, max_examples=30)
@given(st.lists(st.sampled_from([-2.0, -0.3, 1e-6, 0.7, 1.0, 5.0]), min_size=WIDTH, max_size=WIDTH), st.booleans())
def test_integers_are_not_rounded_anew(factors: list[float], bias: bool) -> None:  # noqa: FBT001 - hypothesis
    model = integers(scaled(np.asarray(factors, np.float32), bias=bias))
    expected = run(model, IMAGES)
    apply(model, FoldLayerScale())
    assert operators(model)["Mul"] == 0
    np.testing.assert_allclose(run(model, IMAGES), expected, rtol=1e-5, atol=1e-5)
    stored = next(value.const_value for value in model.graph.initializers.values() if value.dtype == ir.DataType.INT8)
    assert stored is not None
    np.testing.assert_array_equal(np.abs(stored.numpy()), np.abs(INTEGERS))
    scales = [each.inputs[3] for each in model.graph if each.op_type == "MatMulIntegerToFloat"]
    assert all(
        value is not None and value.const_value is not None and (value.const_value.numpy() > 0).all() for value in scales
    )


def lowest() -> NDArray[np.int8]:
    weight = INTEGERS.copy()
    weight[0, 1] = -128
    return weight


@pytest.mark.parametrize(
    "model",
    [
        scaled(np.asarray([2.0], np.float32)),
        scaled(np.full((5, WIDTH), 2.0, np.float32)),
        integers(scaled(np.asarray([1, 1, 0, 1, 1, 1], np.float32))),
        integers(scaled(MIXED), lowest()),
    ],
    ids=["one number", "one for each token", "a scale of 0", "-128 has no opposite"],
)
def test_what_does_not_fit_stays(model: ir.Model) -> None:
    assert_stays(model, FoldLayerScale(), IMAGES)


def test_who_shares_a_constant_keeps_it() -> None:
    # The same weight twice, of which only one layer is scaled.
    nodes = [
        node("MatMul", ["image", "weight"], "one"),
        node("Mul", ["one", "gamma"], "scaled"),
        node("MatMul", ["image", "weight"], "two"),
        node("Add", ["scaled", "two"], LOGITS),
    ]
    model = graph_of(nodes, {"weight": WEIGHT, "gamma": MIXED}, ["n", 5, DEPTH])
    expected = run(model, IMAGES)
    apply(model, FoldLayerScale())
    assert operators(model) == {"MatMul": 2, "Add": 1}
    np.testing.assert_allclose(run(model, IMAGES), expected, rtol=1e-5, atol=1e-5)


def test_a_result_that_is_read_without_the_factors_too_stays() -> None:
    nodes = [
        node("MatMul", ["image", "weight"], "one"),
        node("Mul", ["one", "gamma"], "scaled"),
        node("Add", ["scaled", "one"], LOGITS),
    ]
    model = graph_of(nodes, {"weight": WEIGHT, "gamma": MIXED}, ["n", 5, DEPTH])
    expected = run(model, IMAGES)
    apply(model, FoldLayerScale())
    assert operators(model)["Mul"] == 1
    np.testing.assert_array_equal(run(model, IMAGES), expected)
