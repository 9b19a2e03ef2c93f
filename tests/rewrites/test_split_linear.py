from __future__ import annotations

import itertools
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
from vitexport.rewrites.insert_qdq import QuantizedLinear
from vitexport.rewrites.split_linear import SplitLinear

RANDOM = np.random.default_rng(3)
DEPTH, WIDTH = 8, 12
IMAGES = RANDOM.normal(0, 1, (2, 5, DEPTH)).astype(np.float32)


def node(op_type: str, inputs: list[str], output: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(op_type, inputs, [output], name=f"m/{output}", **attributes)


def sliced(parts: list[tuple[int, int]], *, bias: bool = True, axis: int = 2, others: bool = False) -> ir.Model:
    """A linear layer, the columns of which are read in `parts`, and put side by side again."""
    whole = "sum" if bias else "product"
    nodes = [node("MatMul", ["image", "weight"], "product")]
    constants: dict[str, NDArray[Any]] = {"weight": RANDOM.normal(0, 1, (DEPTH, WIDTH)).astype(np.float32)}
    constants["axis"] = np.asarray([axis])
    if bias:
        nodes.append(node("Add", ["bias", "product"], "sum"))
        constants["bias"] = RANDOM.normal(0, 1, WIDTH).astype(np.float32)
    for index, (first, end) in enumerate(parts):
        constants |= {f"{index}.first": np.asarray([first]), f"{index}.end": np.asarray([end])}
        nodes.append(node("Slice", [whole, f"{index}.first", f"{index}.end", "axis"], f"{index}.part"))
    inputs = [f"{index}.part" for index in range(len(parts))] + ([whole] if others else [])
    nodes.append(node("Concat", inputs, LOGITS, axis=2))
    return graph_of(nodes, constants, ["n", 5, DEPTH])


def layer(model: ir.Model) -> QuantizedLinear:
    weight = model.graph.initializers["weight"].const_value
    assert weight is not None
    scale = np.abs(weight.numpy()).max(0) / 63
    return QuantizedLinear(
        node="m/product",
        activation="image",
        activation_scale=np.float32(0.02),
        activation_zero_point=np.uint8(120),
        weight=np.rint(weight.numpy() / scale).astype(np.int8),
        weight_scale=scale.astype(np.float32),
    )


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("parts", [[(0, 4), (4, 8), (8, 12)], [(4, 12), (0, 4)], [(2, 5)], [(0, 12)], [(0, 8), (4, 12)]])
def test_a_layer_for_each_part(parts: list[tuple[int, int]], *, bias: bool) -> None:
    model = sliced(parts, bias=bias)
    expected = run(model, IMAGES)
    apply(model, SplitLinear())
    assert operators(model) == {"MatMul": len(parts), "Concat": 1} | ({"Add": len(parts)} if bias else {})
    np.testing.assert_allclose(run(model, IMAGES), expected, rtol=1e-6, atol=1e-6)
    # The weight as a whole is not kept beside its parts.
    assert "weight" not in model.graph.initializers


@settings(deadline=None, max_examples=20)
@given(st.lists(st.integers(0, WIDTH), min_size=2, max_size=5, unique=True), st.booleans())
def test_integers_are_split_without_any_change(cuts: list[int], bias: bool) -> None:  # noqa: FBT001 - hypothesis
    cuts.sort()
    model = sliced(list(itertools.pairwise(cuts)), bias=bias)
    apply(model, CpuInteger([layer(model)]))
    expected = run(model, IMAGES)
    apply(model, SplitLinear())
    assert operators(model) == {"QuantizeLinear": 1, "MatMulIntegerToFloat": len(cuts) - 1, "Concat": 1}
    np.testing.assert_array_equal(run(model, IMAGES), expected)


@pytest.mark.parametrize(
    "model",
    [
        sliced([(0, 4), (4, 12)], others=True),
        sliced([(0, 2), (2, 4)], axis=1),
        sliced([(0, 4), (-4, 12)]),
        sliced([(0, 4), (4, 2**62)]),
    ],
    ids=["read as a whole", "tokens", "from the end", "beyond"],
)
def test_other_readers_keep_the_layer(model: ir.Model) -> None:
    assert_stays(model, SplitLinear(), IMAGES)


def test_a_layer_that_others_share_the_bias_with_keeps_theirs() -> None:
    model = sliced([(0, 4), (4, 12)])
    nodes = list(model.graph)
    again = ir.Node("", "Add", [nodes[-1].outputs[0], model.graph.initializers["bias"]], name="again")
    again.outputs[0].name, again.outputs[0].type = "more", nodes[-1].outputs[0].type
    model.graph.append(again)
    model.graph.outputs[0].name, again.outputs[0].name = "inner", LOGITS
    model.graph.outputs[0] = again.outputs[0]
    expected = run(model, IMAGES)
    apply(model, SplitLinear())
    np.testing.assert_allclose(run(model, IMAGES), expected, rtol=1e-6, atol=1e-6)
    assert operators(model)["Slice"] == 0
