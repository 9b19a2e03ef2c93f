from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from graphs import LOGITS, graph_of, operators, run
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import helper

from vitexport.errors import ToolchainError
from vitexport.rewrites import apply
from vitexport.rewrites.cpu_integer import CpuInteger
from vitexport.rewrites.insert_qdq import QuantizedLinear
from vitexport.targets import machine_cpu, misfit, resolve

# Powers of two: products and sums below 2**24 are then exact in float32, and results can be compared bit by bit.
SCALE = np.float32(2.0**-5)
COLUMNS = 5
WEIGHT_SCALE = (2.0 ** np.arange(-8, -8 + COLUMNS)).astype(np.float32)
BIAS = (np.arange(COLUMNS) - 2).astype(np.float32)
# 24 is not a multiple of any vector's width, 256 is of all.
DEPTHS = [2, 24, 256]


def node(op_type: str, inputs: list[str], result: str, name: str) -> onnx.NodeProto:
    return helper.make_node(op_type, inputs, [result], name=name)


def linear(depth: int, bias: NDArray[np.float32] | None = BIAS) -> ir.Model:
    """One linear layer, its float weight all ones: whoever still computes with it is wrong."""
    product = LOGITS if bias is None else "fc/MatMul"
    nodes = [node("MatMul", ["image", "fc.weight"], product, "fc/MatMul")]
    constants = {"fc.weight": np.ones((depth, COLUMNS), np.float32)}
    if bias is not None:
        nodes.append(node("Add", [product, "fc.bias"], LOGITS, "fc/Add"))
        constants["fc.bias"] = bias
    return graph_of(nodes, constants, ["n", depth])


def layer(
    weight: NDArray[np.int8], zero: np.uint8 | np.int8, name: str = "fc", activation: str = "image", **changes: Any
) -> QuantizedLinear:
    return QuantizedLinear(
        node=f"{name}/MatMul",
        activation=activation,
        activation_scale=SCALE,
        activation_zero_point=zero,
        weight=weight,
        weight_scale=WEIGHT_SCALE,
        **changes,
    )


def exact(
    x: NDArray[np.float32], weight: NDArray[np.int8], zero: np.uint8 | np.int8, bias: NDArray[np.float32] | float = BIAS
) -> NDArray[np.float32]:
    """The layer in NumPy's 64-bit integers."""
    limits = np.iinfo(zero.dtype)
    levels = np.clip(np.rint(x / SCALE).astype(np.int64) + int(zero), limits.min, limits.max) - int(zero)
    result: NDArray[np.float32] = (levels @ weight.astype(np.int64)).astype(np.float32) * (SCALE * WEIGHT_SCALE) + bias
    return result


def levels_to_float(levels: NDArray[np.int64], zero: np.uint8 | np.int8) -> NDArray[np.float32]:
    return ((levels - int(zero)) * SCALE).astype(np.float32)


def extreme_weights(depth: int, largest: int) -> NDArray[np.int8]:
    """Columns whose neighbouring rows add up, cancel, or alternate in pairs, each at the limit."""
    rows = np.arange(depth)
    columns = [np.ones(depth), -np.ones(depth), (-1.0) ** rows, -((-1.0) ** rows), (-1.0) ** (rows // 2)]
    return (np.stack(columns, axis=1) * largest).astype(np.int8)


@pytest.mark.parametrize("depth", DEPTHS)
@pytest.mark.parametrize("optimized", [False, True])
@pytest.mark.parametrize("zero", [np.uint8(0), np.uint8(128), np.uint8(255)])
def test_seven_bit_weights_never_saturate(depth: int, zero: np.uint8, *, optimized: bool) -> None:
    # 2 x 255 x 64 = 32,640 is the largest sum of two products; an instruction that saturates at 32,767 must not show.
    weight = extreme_weights(depth, 64)
    images = np.stack([levels_to_float(np.full(depth, level), zero) for level in (255, 254, 1, 0)])
    model = linear(depth)
    apply(model, CpuInteger([layer(weight, zero)]))
    np.testing.assert_array_equal(run(model, images, optimized=optimized), exact(images, weight, zero))


@pytest.mark.parametrize(
    ("target", "zero", "level"),
    [("cpu-x86-vnni", np.uint8(0), 255), ("cpu-arm64-dotprod", np.int8(-128), 127), ("cpu-arm64-i8mm", np.int8(0), -128)],
)
def test_eight_bit_weights_do_not_saturate_on_a_cpu_of_their_class(target: str, zero: Any, level: int) -> None:
    if reason := misfit(resolve(target), machine_cpu(), precision="int8"):
        pytest.skip(reason)
    weight = extreme_weights(256, 127)
    images = np.full((2, 256), levels_to_float(np.asarray(level), zero))
    model = linear(256)
    apply(model, CpuInteger([layer(weight, zero)]))
    np.testing.assert_array_equal(run(model, images, optimized=True), exact(images, weight, zero))


@settings(deadline=None, max_examples=40)
@given(
    st.integers(1, 40),
    st.integers(0, 2**32 - 1),
    st.sampled_from([np.uint8(0), np.uint8(77), np.uint8(255), np.int8(-128), np.int8(5)]),
)
def test_any_layer_is_exact_in_seven_bits(depth: int, seed: int, zero: np.uint8 | np.int8) -> None:
    random = np.random.default_rng(seed)
    weight = random.integers(-64, 65, (depth, COLUMNS)).astype(np.int8)
    # Beyond both ends of the range too.
    images = random.normal(0, 160 * SCALE, (3, depth)).astype(np.float32)
    model = linear(depth)
    apply(model, CpuInteger([layer(weight, zero)]))
    np.testing.assert_array_equal(run(model, images), exact(images, weight, zero))


WEIGHT = np.random.default_rng(0).integers(-64, 65, (24, COLUMNS)).astype(np.int8)
IMAGES = np.random.default_rng(1).normal(0, 2, (3, 24)).astype(np.float32)
ZERO = np.uint8(100)


def test_product_and_bias_become_one_operator() -> None:
    model = linear(24)
    apply(model, CpuInteger([layer(WEIGHT, ZERO)]))
    assert operators(model) == {"QuantizeLinear": 1, "MatMulIntegerToFloat": 1}
    assert [str(value.name) for value in model.graph.outputs] == [LOGITS]
    # The float weight is gone from the file.
    assert all(
        value.dtype != ir.DataType.FLOAT or value.shape != (24, COLUMNS) for value in model.graph.initializers.values()
    )


def test_a_layer_without_bias_has_none() -> None:
    model = linear(24, bias=None)
    apply(model, CpuInteger([layer(WEIGHT, ZERO)]))
    assert operators(model) == {"QuantizeLinear": 1, "MatMulIntegerToFloat": 1}
    np.testing.assert_array_equal(run(model, IMAGES), exact(IMAGES, WEIGHT, ZERO, 0.0))


@pytest.mark.parametrize("bias", [np.asarray([3], np.float32), np.asarray(3, np.float32), np.full((3, 1), 3, np.float32)])
def test_a_constant_that_is_no_bias_stays_an_add(bias: NDArray[np.float32]) -> None:
    model = linear(24, bias=bias)
    apply(model, CpuInteger([layer(WEIGHT, ZERO)]))
    assert operators(model)["Add"] == 1
    np.testing.assert_array_equal(run(model, IMAGES), exact(IMAGES, WEIGHT, ZERO, 3.0))


def test_a_product_that_others_read_too_keeps_its_add() -> None:
    nodes = [
        node("MatMul", ["image", "fc.weight"], "fc/MatMul", "fc/MatMul"),
        node("Add", ["fc/MatMul", "fc.bias"], "fc/Add", "fc/Add"),
        node("Sub", ["fc/Add", "fc/MatMul"], LOGITS, "Sub"),
    ]
    model = graph_of(nodes, {"fc.weight": np.ones((24, COLUMNS), np.float32), "fc.bias": BIAS}, ["n", 24])
    apply(model, CpuInteger([layer(WEIGHT, ZERO)]))
    product = exact(IMAGES, WEIGHT, ZERO, 0.0)
    np.testing.assert_array_equal(run(model, IMAGES), (product + BIAS) - product)


def test_layers_that_read_the_same_tensor_quantize_it_once() -> None:
    nodes = [
        node("MatMul", ["image", "q.weight"], "q/MatMul", "q/MatMul"),
        node("MatMul", ["image", "k.weight"], "k/MatMul", "k/MatMul"),
        node("Add", ["q/MatMul", "k/MatMul"], LOGITS, "Add"),
    ]
    model = graph_of(nodes, {name: np.ones((24, COLUMNS), np.float32) for name in ("q.weight", "k.weight")}, ["n", 24])
    other = np.flip(WEIGHT, axis=0)
    apply(model, CpuInteger([layer(WEIGHT, ZERO, "q"), layer(other, ZERO, "k")]))
    assert operators(model) == {"QuantizeLinear": 1, "MatMulIntegerToFloat": 2, "Add": 1}
    both = exact(IMAGES, WEIGHT, ZERO, 0.0) + exact(IMAGES, other, ZERO, 0.0)
    np.testing.assert_array_equal(run(model, IMAGES), both)


@pytest.mark.parametrize("bias", [None, BIAS])
def test_a_changed_bias_becomes_the_operators_own(bias: NDArray[np.float32] | None) -> None:
    change = np.arange(COLUMNS) * 0.5 + 1
    model = linear(24, bias=bias)
    apply(model, CpuInteger([layer(WEIGHT, ZERO, bias_change=change)]))
    assert operators(model) == {"QuantizeLinear": 1, "MatMulIntegerToFloat": 1}
    both = change.astype(np.float32) + (0 if bias is None else bias)
    np.testing.assert_array_equal(run(model, IMAGES), exact(IMAGES, WEIGHT, ZERO, both))


@pytest.mark.parametrize("has_bias", [True, False])
def test_a_gemm_becomes_the_same_operator(*, has_bias: bool) -> None:
    inputs = ["image", "fc.weight", *(["fc.bias"] if has_bias else [])]
    gemm = helper.make_node("Gemm", inputs, [LOGITS], name="fc/MatMul", transB=1)
    constants = {"fc.weight": np.ones((COLUMNS, 24), np.float32), **({"fc.bias": BIAS} if has_bias else {})}
    model = graph_of([gemm], constants, ["n", 24])
    change = np.arange(COLUMNS) * 0.5 + 1
    apply(model, CpuInteger([layer(WEIGHT, ZERO, layout="nk", bias_change=change)]))
    assert operators(model) == {"QuantizeLinear": 1, "MatMulIntegerToFloat": 1}
    both = change.astype(np.float32) + (BIAS if has_bias else 0)
    np.testing.assert_array_equal(run(model, IMAGES), exact(IMAGES, WEIGHT, ZERO, both))


def test_a_layer_that_the_graph_does_not_have_is_refused_by_name() -> None:
    with pytest.raises(ToolchainError, match=r"CpuInteger.*nowhere/MatMul"):
        apply(linear(24), CpuInteger([layer(WEIGHT, ZERO, "nowhere")]))
