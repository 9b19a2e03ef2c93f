from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from exports import exported
from graphs import LOGITS, graph_of, operators, read, run, valid_in
from onnx import TensorProto, helper

from vitexport.errors import ToolchainError
from vitexport.rewrites import InPlacePass, apply
from vitexport.rewrites.lower_gelu import LowerGelu
from vitexport.rewrites.lower_layernorm import LowerLayerNorm
from vitexport.rewrites.lower_opset import LowerOpset

IMAGES = np.random.default_rng(3).normal(0, 1, (2, 3, 32, 32)).astype(np.float32)
SMALL = np.arange(2 * 7 * 5, dtype=np.float32).reshape(2, 7, 5)


@pytest.mark.parametrize("opset", [13, 15, 17, 19])
def test_a_vision_transformer_computes_the_same_in_an_older_opset(opset: int) -> None:
    data = exported()
    model = read(data)
    rewrites: list[InPlacePass] = [LowerGelu(), *([LowerLayerNorm()] if opset < 17 else []), LowerOpset(opset)]
    apply(model, *rewrites)
    valid_in(model, opset)
    assert model.graph.opset_imports[""] == opset
    np.testing.assert_allclose(run(model, IMAGES), run(data, IMAGES), atol=1e-5)
    # Types and shapes still follow from the graph alone.
    onnx.shape_inference.infer_shapes(ir.to_proto(model), check_type=True, strict_mode=True)


def node(op_type: str, inputs: list[str], outputs: list[str], **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(op_type, inputs, outputs, name=f"m/{op_type}", **attributes)


@pytest.mark.parametrize("op_type", ["ReduceMean", "ReduceMax", "ReduceMin", "ReduceL2", "ReduceProd"])
@pytest.mark.parametrize(("axes", "keepdims"), [([1], 1), ([-1], 0), ([0, 2], 0)])
def test_the_axes_of_a_reduction_become_an_attribute(op_type: str, axes: list[int], keepdims: int) -> None:
    reduce = node(op_type, ["image", "axes"], [LOGITS], keepdims=keepdims)
    model = graph_of([reduce], {"axes": np.asarray(axes, np.int64)}, SMALL.shape)
    before = run(model, SMALL)
    apply(model, LowerOpset(17))
    np.testing.assert_array_equal(run(model, SMALL), before)
    assert "axes" not in model.graph.initializers


@pytest.mark.parametrize(("axis", "sizes"), [(1, [3, 3, 1]), (-1, [2, 2, 1])])
def test_a_split_into_a_number_of_parts_gets_their_sizes(axis: int, sizes: list[int]) -> None:
    split = node("Split", ["image"], ["a", "b", "c"], axis=axis, num_outputs=3)
    joined = node("Concat", ["c", "a", "b"], [LOGITS], axis=axis)
    model = graph_of([split, joined], {}, SMALL.shape)
    before = run(model, SMALL)
    apply(model, LowerOpset(13))
    np.testing.assert_array_equal(run(model, SMALL), before)
    assert [list(value.const_value.numpy()) for value in model.graph.initializers.values() if value.const_value] == [sizes]


@pytest.mark.parametrize(
    "bounds", [{}, {"start": 1}, {"start": -1}, {"end": 2}, {"end": -1}, {"start": 1, "end": 2}, {"start": -2, "end": -1}]
)
def test_a_part_of_a_shape_becomes_a_slice(bounds: dict[str, int]) -> None:
    model = graph_of([node("Shape", ["image"], [LOGITS], **bounds)], {}, SMALL.shape, output_type=TensorProto.INT64)
    before = run(model, SMALL)
    apply(model, LowerOpset(13))
    np.testing.assert_array_equal(run(model, SMALL), before)
    assert operators(model)["Slice"] == (1 if bounds else 0)


def test_a_part_of_a_shape_stays_where_the_opset_has_it() -> None:
    model = graph_of([node("Shape", ["image"], [LOGITS], start=1)], {}, SMALL.shape, output_type=TensorProto.INT64)
    apply(model, LowerOpset(15))
    assert operators(model) == {"Shape": 1}


def reshape(target: list[int]) -> ir.Model:
    nodes = [node("Reshape", ["image", "target"], [LOGITS], allowzero=1)]
    return graph_of(nodes, {"target": np.asarray(target, np.int64)}, SMALL.shape)


def test_allowzero_without_a_zero_is_dropped() -> None:
    model = reshape([-1, 5])
    apply(model, LowerOpset(13))
    np.testing.assert_array_equal(run(model, SMALL), SMALL.reshape(-1, 5))


def test_allowzero_that_means_something_is_not_dropped_silently() -> None:
    model = graph_of(
        [node("Reshape", ["image", "target"], [LOGITS], allowzero=1)], {"target": np.asarray([0, 4], np.int64)}, [0, 5]
    )
    with pytest.raises(ToolchainError, match=r"LowerOpset.*m/Reshape"):
        apply(model, LowerOpset(13))


def test_computed_axes_are_refused_by_name() -> None:
    axes = helper.make_node("Shape", ["image"], ["axes"], name="Shape", start=2)
    flat = node("Reshape", ["mean", "flat"], [LOGITS])
    reduce = node("ReduceMean", ["image", "axes"], ["mean"])
    model = graph_of([axes, reduce, flat], {"flat": np.asarray([-1], np.int64)}, [2, 2, 1])
    with pytest.raises(ToolchainError, match=r"LowerOpset.*m/ReduceMean has computed axes"):
        apply(model, LowerOpset(17))


def test_a_split_of_unknown_extent_is_refused_by_name() -> None:
    split = node("Split", ["image"], ["a", "b"], axis=0, num_outputs=2)
    model = graph_of([split, node("Add", ["a", "b"], [LOGITS])], {}, ["n", 4])
    with pytest.raises(ToolchainError, match=r"LowerOpset.*m/Split splits a dimension of unknown size"):
        apply(model, LowerOpset(17))


@pytest.mark.parametrize(
    ("op_type", "inputs", "opset"), [("Gelu", ["image"], 19), ("LayerNormalization", ["image", "gamma"], 16)]
)
def test_an_operator_that_the_opset_lacks_is_refused_by_name(op_type: str, inputs: list[str], opset: int) -> None:
    model = graph_of([node(op_type, inputs, [LOGITS])], {"gamma": np.ones(4, np.float32)}, [2, 4])
    with pytest.raises(ToolchainError, match=rf"LowerOpset.*opset {opset}.*{op_type}"):
        apply(model, LowerOpset(opset))
