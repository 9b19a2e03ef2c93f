from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from graphs import LOGITS, graph_of, operators, producers, run, valid_in
from numpy.typing import NDArray
from onnx import helper

from vitexport.errors import ToolchainError
from vitexport.rewrites import apply
from vitexport.rewrites.insert_qdq import InsertQdq, QuantizedInput, QuantizedLinear

WIDTH = 8
RANDOM = np.random.default_rng(11)
X = RANDOM.normal(0, 1, (5, WIDTH)).astype(np.float32)
# Square, so that a wrong axis would parse and compute nonsense.
WEIGHT = {name: RANDOM.integers(-127, 128, (WIDTH, WIDTH)).astype(np.int8) for name in "ab"}
WEIGHT_SCALE = (2.0 ** RANDOM.integers(-9, -3, WIDTH)).astype(np.float32)
SCALE = np.float32(2.0**-6)


def node(op_type: str, inputs: list[str], result: str, name: str) -> onnx.NodeProto:
    return helper.make_node(op_type, inputs, [result], name=name)


def two_linears(first_input: str = "norm/Neg") -> ir.Model:
    """Two linear layers that read the same activation, and a bias that stays float."""
    nodes = [
        node("Neg", ["image"], "norm/Neg", "norm/Neg"),
        node("MatMul", [first_input, "a.weight"], "a/MatMul", "a/MatMul"),
        node("MatMul", ["norm/Neg", "b.weight"], "b/MatMul", "b/MatMul"),
        node("Add", ["a/MatMul", "a.bias"], "a/Add", "a/Add"),
        node("Sub", ["a/Add", "b/MatMul"], LOGITS, "Sub"),
    ]
    weights = {f"{name}.weight": WEIGHT[name] * WEIGHT_SCALE for name in "ab"}
    return graph_of(nodes, {**weights, "a.bias": np.linspace(-1, 1, WIDTH, dtype=np.float32)}, ["n", WIDTH])


def layer(name: str, activation: str = "norm/Neg", **changes: Any) -> QuantizedLinear:
    values: dict[str, Any] = {
        "node": f"{name}/MatMul",
        "activation": activation,
        "activation_scale": SCALE,
        "activation_zero_point": np.int8(0),
        "weight": WEIGHT[name],
        "weight_scale": WEIGHT_SCALE,
    }
    return QuantizedLinear(**(values | changes))


def rounded(x: NDArray[np.float32], zero: int = 0, low: int = -128, high: int = 127) -> NDArray[np.float32]:
    levels = np.clip(np.rint(x / SCALE) + zero, low, high) - zero
    result: NDArray[np.float32] = (levels * SCALE).astype(np.float32)
    return result


def expected(x: NDArray[np.float32]) -> NDArray[np.float32]:
    a, b = (x @ (WEIGHT[name] * WEIGHT_SCALE) for name in "ab")
    result: NDArray[np.float32] = a + np.linspace(-1, 1, WIDTH, dtype=np.float32) - b
    return result


def test_the_graph_computes_with_the_rounded_numbers() -> None:
    model = two_linears()
    apply(model, InsertQdq([layer("a"), layer("b")]))
    wide = np.concatenate([X, [[1e3] * WIDTH, [-1e3] * WIDTH]]).astype(np.float32)
    np.testing.assert_allclose(run(model, wide), expected(rounded(-wide)), rtol=1e-5, atol=1e-5)
    valid_in(model, 20)


def test_layers_that_read_the_same_tensor_share_one_pair() -> None:
    model = two_linears()
    apply(model, InsertQdq([layer("a"), layer("b")]))
    assert operators(model) == {"Neg": 1, "QuantizeLinear": 1, "DequantizeLinear": 3, "MatMul": 2, "Add": 1, "Sub": 1}


def test_the_weight_is_int8_and_its_axis_is_written() -> None:
    model = two_linears()
    apply(model, InsertQdq([layer("a"), layer("b")]))
    for matmul in (entry for entry in model.graph if entry.op_type == "MatMul"):
        dequantize = producers(model)[str(matmul.inputs[1].name)] if matmul.inputs[1] else matmul
        assert dequantize.op_type == "DequantizeLinear"
        assert dequantize.attributes["axis"].as_int() == 1
        assert dequantize.inputs[0] is not None
        assert dequantize.inputs[0].dtype == ir.DataType.INT8
        assert dequantize.inputs[0].const_value is not None
    assert {str(name) for name, value in model.graph.initializers.items() if value.dtype == ir.DataType.FLOAT} == {
        *("a.bias", "norm/Neg.scale", "a.weight.scale", "b.weight.scale")
    }


def test_only_the_named_layers_change() -> None:
    model = two_linears()
    apply(model, InsertQdq([layer("b")]))
    assert operators(model)["DequantizeLinear"] == 2
    assert "a.weight" in model.graph.initializers
    a, b = rounded(-X), -X
    np.testing.assert_allclose(run(model, X) - expected(b), -(a - b) @ (WEIGHT["b"] * WEIGHT_SCALE), atol=1e-5)


def test_the_graph_input_itself_can_be_quantized() -> None:
    model = two_linears(first_input="image")
    apply(model, InsertQdq([layer("a", activation="image")]))
    difference = run(model, X) - run(two_linears(first_input="image"), X)
    np.testing.assert_allclose(difference, (rounded(X) - X) @ (WEIGHT["a"] * WEIGHT_SCALE), atol=1e-5)


@pytest.mark.parametrize("zero", [np.int8(-3), np.uint8(128)])
def test_an_asymmetric_activation_is_refused_for_tensorrt(zero: np.int8 | np.uint8) -> None:
    with pytest.raises(ToolchainError, match=r"InsertQdq.*norm/Neg/.* is not symmetric"):
        apply(two_linears(), InsertQdq([layer("a", activation_zero_point=zero)]))


@pytest.mark.parametrize(("zero", "low", "high"), [(np.int8(-3), -128, 127), (np.uint8(131), 0, 255)])
def test_an_asymmetric_activation_is_computed_where_it_is_asked_for(zero: Any, low: int, high: int) -> None:
    model = two_linears()
    layers = [layer(name, activation_zero_point=zero) for name in "ab"]
    apply(model, InsertQdq(layers, symmetric=False))
    np.testing.assert_allclose(run(model, 4 * X), expected(rounded(-4 * X, int(zero), low, high)), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("scale", [0.0, -0.5])
def test_a_scale_that_is_not_positive_is_refused(scale: float) -> None:
    with pytest.raises(ToolchainError, match=r"InsertQdq.*no constant positive scale"):
        apply(two_linears(), InsertQdq([layer("a", activation_scale=np.float32(scale))]))
    scales = np.where(np.arange(WIDTH) == 3, np.float32(scale), WEIGHT_SCALE)
    with pytest.raises(ToolchainError, match=r"InsertQdq.*a/MatMul\.weight/DequantizeLinear has no constant positive scale"):
        apply(two_linears(), InsertQdq([layer("a", weight_scale=scales)]))


def test_a_layer_that_the_graph_does_not_have_is_refused_by_name() -> None:
    with pytest.raises(ToolchainError, match=r"InsertQdq.*c/MatMul"):
        apply(two_linears(), InsertQdq([dataclasses.replace(layer("a"), node="c/MatMul")]))


CHANGE = RANDOM.normal(0, 1, WIDTH)


def test_a_changed_bias_is_added_whether_the_layer_has_one_or_not() -> None:
    model = two_linears()
    apply(model, InsertQdq([layer("a", bias_change=CHANGE), layer("b", bias_change=2 * CHANGE)]))
    # The second layer's result is taken off.
    np.testing.assert_allclose(run(model, X), expected(rounded(-X)) + CHANGE - 2 * CHANGE, rtol=1e-5, atol=1e-5)
    assert operators(model)["Add"] == 2


def test_a_gemm_that_holds_its_weight_turned_keeps_it_turned() -> None:
    gemm = helper.make_node("Gemm", ["image", "a.weight", "a.bias"], [LOGITS], name="a/MatMul", transB=1)
    bias = np.linspace(-1, 1, WIDTH, dtype=np.float32)
    model = graph_of([gemm], {"a.weight": np.ones((WIDTH, WIDTH), np.float32), "a.bias": bias}, ["n", WIDTH])
    apply(model, InsertQdq([layer("a", activation="image", layout="nk", bias_change=CHANGE)]))
    wanted = rounded(X) @ (WEIGHT["a"] * WEIGHT_SCALE) + bias + CHANGE
    np.testing.assert_allclose(run(model, X), wanted, rtol=1e-5, atol=1e-5)
    dequantize = producers(model)["a/MatMul.weight/DequantizeLinear"]
    assert dequantize.attributes["axis"].as_int() == 0


def test_a_convolution_keeps_its_kernels_shape_and_gets_a_bias() -> None:
    conv = helper.make_node("Conv", ["image", "a.weight"], [LOGITS], name="a/MatMul", strides=[2, 2])
    model = graph_of([conv], {"a.weight": np.ones((WIDTH, 2, 2, 2), np.float32)}, ["n", 2, 4, 4])
    apply(model, InsertQdq([layer("a", activation="image", layout="conv", bias_change=CHANGE)]))
    images = RANDOM.normal(0, 1, (3, 2, 4, 4)).astype(np.float32)
    patches = rounded(images).reshape(3, 2, 2, 2, 2, 2).transpose(0, 2, 4, 1, 3, 5).reshape(3, 2, 2, WIDTH)
    wanted = (patches @ (WEIGHT["a"] * WEIGHT_SCALE) + CHANGE).transpose(0, 3, 1, 2)
    np.testing.assert_allclose(run(model, images), wanted, rtol=1e-5, atol=1e-5)
    int8 = producers(model)["a/MatMul.weight/DequantizeLinear"].inputs[0]
    assert int8 is not None
    assert int8.shape == (WIDTH, 2, 2, 2)


def test_further_inputs_of_the_same_tensor_and_scale_share_one_pair() -> None:
    nodes = [
        node("Neg", ["image"], "left", "left"),
        node("MatMul", ["left", "image"], "first", "first"),
        node("MatMul", ["left", "first"], LOGITS, "second"),
    ]
    model = graph_of(nodes, {}, [WIDTH, WIDTH])
    coarse = np.float32(2.0**-3)
    inputs = [
        QuantizedInput(node=name, index=index, scale=scale, group="attention")
        for name, index, scale in (("first", 0, SCALE), ("first", 1, SCALE), ("second", 0, SCALE), ("second", 1, coarse))
    ]
    apply(model, InsertQdq([], inputs))
    assert operators(model) == {"Neg": 1, "MatMul": 2, "QuantizeLinear": 3, "DequantizeLinear": 3}
    x = RANDOM.uniform(-1, 1, (WIDTH, WIDTH)).astype(np.float32)
    first = rounded(-x) @ rounded(x)
    wanted = rounded(-x) @ (np.clip(np.rint(first / coarse), -128, 127) * coarse)
    np.testing.assert_allclose(run(model, x), wanted, rtol=1e-5, atol=1e-5)
