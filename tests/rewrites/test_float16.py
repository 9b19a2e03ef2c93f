from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from exports import exported
from graphs import LOGITS, graph_of, operators, read, run
from onnx import TensorProto, helper

from vitexport.artifacts import INPUT_NAME
from vitexport.errors import ToolchainError
from vitexport.rewrites import apply
from vitexport.rewrites.float16 import Float16

HALF, FLOAT = TensorProto.FLOAT16, TensorProto.FLOAT
RANDOM = np.random.default_rng(7)
X = RANDOM.normal(0, 1, (2, 6)).astype(np.float32)


def node(op_type: str, inputs: list[str], outputs: list[str], **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(op_type, inputs, outputs, name=f"m/{op_type}", **attributes)


def types(model: ir.Model) -> dict[str, int]:
    """Element type of every tensor, inferred anew from nodes and constants alone, and held against what is declared."""
    proto = ir.to_proto(model)
    declared = {value.name: value.type.tensor_type.elem_type for value in proto.graph.value_info}
    del proto.graph.value_info[:]
    graph = onnx.shape_inference.infer_shapes(proto, check_type=True, strict_mode=True).graph
    inferred = {value.name: value.type.tensor_type.elem_type for value in (*graph.value_info, *graph.input, *graph.output)}
    inferred |= {constant.name: constant.data_type for constant in graph.initializer}
    assert {name: inferred[name] for name in declared} == declared
    return inferred


@pytest.mark.parametrize("batch", ["1:4:8", "2"])
def test_float32_is_left_only_at_the_interface_of_a_vision_transformer(batch: str) -> None:
    model = read(exported(batch))
    apply(model, Float16())
    found = types(model)
    assert {name for name, kind in found.items() if kind == FLOAT} == {INPUT_NAME, LOGITS}
    assert operators(model) == operators(read(exported(batch))) + Counter(Cast=2)


def test_each_output_is_cast_and_keeps_its_name() -> None:
    proto = ir.to_proto(graph_of([node("Relu", ["image"], ["feature_0"]), node("Neg", ["feature_0"], [LOGITS])], {}, [2, 6]))
    proto.graph.output.append(helper.make_tensor_value_info("feature_0", FLOAT, [2, 6]))
    model = ir.from_proto(proto)
    apply(model, Float16())
    found = types(model)
    assert [(value.name, found[str(value.name)]) for value in model.graph.outputs] == [(LOGITS, FLOAT), ("feature_0", FLOAT)]
    # One for the input and one for each output; what another node reads of an output is the float16 before its Cast.
    assert operators(model)["Cast"] == 3
    [negated] = [entry for entry in model.graph if entry.op_type == "Neg"]
    assert [found[str(value.name)] for value in negated.inputs if value is not None] == [HALF]
    np.testing.assert_allclose(run(model, X, output="feature_0"), np.maximum(X, 0), atol=2e-3)
    np.testing.assert_array_equal(run(model, X), -run(model, X, output="feature_0"))


def test_a_vision_transformer_stays_close_to_float32() -> None:
    images = RANDOM.normal(0, 1, (2, 3, 32, 32)).astype(np.float32)
    model = read(exported("2"))
    before = run(model, images)
    apply(model, Float16())
    after = run(model, images)
    assert after.dtype == np.float32
    np.testing.assert_allclose(after, before, atol=5e-3 * float(np.abs(before).max()))


def test_layernorm_keeps_its_statistics_in_float32() -> None:
    model = read(exported("2"))
    apply(model, Float16())
    norms = [entry for entry in model.graph if entry.op_type == "LayerNormalization"]
    assert len(norms) == 5
    assert all("stash_type" not in entry.attributes or entry.attributes["stash_type"].as_int() == 1 for entry in norms)


@pytest.mark.parametrize("masked", [-np.inf, np.finfo(np.float32).min, -1e30])
def test_a_mask_still_masks(masked: float) -> None:
    mask = np.zeros((2, 6), np.float32)
    mask[:, 4:] = masked
    nodes = [node("Add", ["image", "mask"], ["sum"]), node("Softmax", ["sum"], [LOGITS], axis=-1)]
    model = graph_of(nodes, {"mask": mask}, [2, 6])
    before = run(model, X)
    apply(model, Float16())
    np.testing.assert_allclose(run(model, X), before, atol=2e-3)
    assert not run(model, X)[:, 4:].any()


@pytest.mark.parametrize("value", [65520.0, -1e6, 9e29])
def test_a_constant_beyond_float16_is_refused_by_name(value: float) -> None:
    model = graph_of(
        [node("Mul", ["image", "blocks.0.gamma"], [LOGITS])], {"blocks.0.gamma": np.full(6, value, np.float32)}, [2, 6]
    )
    with pytest.raises(ToolchainError, match=r"Float16.*blocks\.0\.gamma holds .* beyond float16's 65504"):
        apply(model, Float16())


def test_the_largest_float16_fits() -> None:
    model = graph_of([node("Min", ["image", "limit"], [LOGITS])], {"limit": np.full(6, 65504, np.float32)}, [2, 6])
    apply(model, Float16())
    np.testing.assert_allclose(run(model, X), X, rtol=1e-3)


def qdq(opset: int) -> ir.Model:
    nodes = [
        helper.make_node("QuantizeLinear", ["image", "scale", "zero"], ["q"], name="QuantizeLinear"),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], [LOGITS], name="DequantizeLinear"),
    ]
    return graph_of(nodes, {"scale": np.asarray(0.015625, np.float32), "zero": np.asarray(0, np.int8)}, [2, 6], opset=opset)


def test_scales_become_float16_and_integers_stay() -> None:
    model = qdq(19)
    before = run(model, X)
    apply(model, Float16())
    found = types(model)
    assert (found["scale"], found["zero"], found["q"]) == (HALF, TensorProto.INT8, TensorProto.INT8)
    # Steps are far apart; a value beside the middle of two may go the other way when it is rounded to float16 first.
    np.testing.assert_allclose(run(model, X), before, atol=0.015626)


def test_scales_in_float16_before_opset_19_are_refused() -> None:
    with pytest.raises(ToolchainError, match=r"Float16.*need opset 19; the graph has opset 17"):
        apply(qdq(17), Float16())


def test_the_scales_of_a_resize_stay_float32() -> None:
    resize = node("Resize", ["image", "", "scales"], [LOGITS], mode="linear")
    model = graph_of([resize], {"scales": np.asarray([1, 1, 2, 2], np.float32)}, [1, 3, 4, 4])
    image = RANDOM.normal(0, 1, (1, 3, 4, 4)).astype(np.float32)
    before = run(model, image)
    apply(model, Float16())
    assert types(model)["scales"] == FLOAT
    np.testing.assert_allclose(run(model, image), before, atol=5e-3)


def test_filled_and_cast_tensors_are_converted() -> None:
    nodes = [
        node("Shape", ["image"], ["shape"]),
        node("ConstantOfShape", ["shape"], ["zeros"]),
        helper.make_node(
            "ConstantOfShape", ["shape"], ["ones"], value=helper.make_tensor("v", FLOAT, [1], [1.0]), name="ones"
        ),
        node("Cast", ["shape"], ["extent"], to=FLOAT),
        node("ReduceMax", ["extent"], ["largest"], keepdims=0),
        node("Sum", ["image", "zeros", "ones", "largest"], [LOGITS]),
    ]
    model = graph_of(nodes, {}, [2, 6])
    apply(model, Float16())
    assert {types(model)[name] for name in ("zeros", "ones", "extent", "largest")} == {HALF}
    assert types(model)["shape"] == TensorProto.INT64
    np.testing.assert_allclose(run(model, X), X + 7, atol=1e-2)
