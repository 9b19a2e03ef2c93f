from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from exports import exported
from graphs import LOGITS, graph_of, operators, read, run
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import helper

from vitexport.rewrites import apply
from vitexport.rewrites.drop_unread_tokens import DropUnreadTokens
from vitexport.rewrites.fuse_attention import FuseAttention
from vitexport.rewrites.split_linear import SplitLinear

RANDOM = np.random.default_rng(6)
TOKENS, WIDTH = 9, 4
IMAGES = RANDOM.normal(0, 1, (2, TOKENS, WIDTH)).astype(np.float32)
Shape = tuple[int, ...]


def node(op_type: str, inputs: list[str], output: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(op_type, inputs, [output], name=f"m/{output}", **attributes)


def floats(*shape: int) -> NDArray[np.float32]:
    return RANDOM.normal(0, 1, shape).astype(np.float32)


def pooled(steps: list[onnx.NodeProto], constants: dict[str, NDArray[Any]], reader: str = "first") -> ir.Model:
    """`steps` from ``image`` [n, tokens, width] to ``last``, and what reads its class token, or all of it."""
    constants |= {"zero": np.asarray(0), "one": np.asarray([1]), "all": np.asarray([2**62]), "begin": np.asarray([0])}
    readers = {
        "first": node("Gather", ["last", "zero"], LOGITS, axis=1),
        "slice": node("Slice", ["last", "begin", "one", "one"], LOGITS),
        "mean": node("ReduceMean", ["last", "one"], LOGITS, keepdims=0),
        "rest": node("Slice", ["last", "one", "all", "one"], LOGITS),
        "whole": node("Identity", ["last"], LOGITS),
    }
    return graph_of([*steps, readers[reader]], constants, ["n", TOKENS, WIDTH])


def block() -> tuple[list[onnx.NodeProto], dict[str, NDArray[Any]]]:
    """An MLP with its norm and residual."""
    constants = {
        "gamma": floats(WIDTH),
        "beta": floats(WIDTH),
        "w1": floats(WIDTH, 8),
        "b1": floats(8),
        "w2": floats(8, WIDTH),
    }
    return [
        node("LayerNormalization", ["image", "gamma", "beta"], "norm", axis=-1),
        node("MatMul", ["norm", "w1"], "fc1"),
        node("Add", ["fc1", "b1"], "hidden"),
        node("Gelu", ["hidden"], "gelu"),
        node("MatMul", ["gelu", "w2"], "fc2"),
        node("Add", ["image", "fc2"], "last"),
    ], constants


def tokens(model: ir.Model, op_type: str) -> set[int]:
    """How many tokens the operators of a type compute."""
    shapes = [each.outputs[0].shape for each in model.graph if each.op_type == op_type]
    return {int(str(shape[1])) for shape in shapes if shape is not None}


def dropped(model: ir.Model, images: NDArray[np.float32] = IMAGES) -> ir.Model:
    """`model` after the rewrite, which computes the same; its declared shapes are those that ONNX infers."""
    expected = run(model, images)
    apply(model, DropUnreadTokens())
    for optimized in (False, True):
        np.testing.assert_allclose(run(model, images, optimized=optimized), expected, rtol=1e-5, atol=1e-6)
    proto = ir.to_proto(model)
    if all(not each.domain for each in model.graph):
        onnx.shape_inference.infer_shapes(proto, check_type=True, strict_mode=True, data_prop=True)
    return model


@pytest.mark.parametrize("reader", ["first", "slice"])
def test_a_block_computes_the_token_that_is_read(reader: str) -> None:
    model = dropped(pooled(*block(), reader))
    for op_type in ("LayerNormalization", "MatMul", "Add", "Gelu"):
        assert tokens(model, op_type) == {1}
    # One cut, which the norm and the residual share.
    assert sum(each.op_type == "Slice" for each in model.graph) == 1 + (reader == "slice")


@pytest.mark.parametrize("reader", ["mean", "rest", "whole"])
def test_all_tokens_stay_where_more_are_read(reader: str) -> None:
    model = pooled(*block(), reader)
    before = operators(model)
    assert operators(dropped(model)) == before
    assert tokens(model, "MatMul") == {TOKENS}


def test_a_second_reader_of_all_tokens_keeps_what_it_needs() -> None:
    steps, constants = block()
    constants["axis"] = np.asarray([1])
    # The mean over the hidden tokens, added behind.
    nodes = [
        *steps,
        node("Gather", ["last", "zero"], "token", axis=1),
        node("ReduceMean", ["norm", "axis"], "mean", keepdims=0),
    ]
    nodes.append(node("Add", ["token", "mean"], LOGITS))
    model = dropped(graph_of(nodes, constants | {"zero": np.asarray(0)}, ["n", TOKENS, WIDTH]))
    assert tokens(model, "LayerNormalization") == {TOKENS}
    assert tokens(model, "Gelu") == {1}


@settings(deadline=None, max_examples=25)
@given(st.lists(st.integers(0, TOKENS - 1), min_size=1, max_size=3))
def test_as_many_first_tokens_as_are_read(read_tokens: list[int]) -> None:
    steps, constants = block()
    constants["indices"] = np.asarray(read_tokens)
    steps.append(node("Gather", ["last", "indices"], LOGITS, axis=1))
    model = dropped(graph_of(steps, constants, ["n", TOKENS, WIDTH]))
    count = max(read_tokens) + 1
    # Cutting off less than half would cost as much as it saves.
    assert tokens(model, "Gelu") == {count if 2 * count <= TOKENS else TOKENS}


@pytest.mark.parametrize("index", [-1, -TOKENS])
def test_a_token_counted_from_the_end_is_not_one_of_the_first(index: int) -> None:
    steps, constants = block()
    steps.append(node("Gather", ["last", "index"], LOGITS, axis=1))
    model = dropped(graph_of(steps, constants | {"index": np.asarray(index)}, ["n", TOKENS, WIDTH]))
    assert tokens(model, "Gelu") == {TOKENS}


@pytest.mark.parametrize(
    ("op_type", "shape"),
    [("Add", (TOKENS, WIDTH)), ("Mul", (1, TOKENS, 1)), ("Sub", (TOKENS, 1)), ("Div", (1, TOKENS, WIDTH))],
)
def test_a_constant_for_each_token_is_not_cut(op_type: str, shape: Shape) -> None:
    model = dropped(pooled([node(op_type, ["image", "each"], "last")], {"each": floats(*shape)}))
    assert tokens(model, op_type) == {TOKENS}


@pytest.mark.parametrize("shape", [(), (1,), (WIDTH,), (1, WIDTH), (1, 1, WIDTH)])
@pytest.mark.parametrize("op_type", ["Add", "Sub", "Mul", "Div"])
def test_a_constant_for_all_tokens_is_none_of_them(op_type: str, shape: Shape) -> None:
    for inputs in (["image", "same"], ["same", "image"]):
        model = dropped(pooled([node("Exp", ["image"], "e"), node(op_type, inputs, "last")], {"same": floats(*shape)}))
        assert tokens(model, op_type) == {1}


@pytest.mark.parametrize(
    ("steps", "constants"),
    [
        ([node("Softmax", ["image"], "last", axis=1)], {}),
        ([node("LayerNormalization", ["image", "gamma"], "last", axis=1)], {"gamma": floats(TOKENS, WIDTH)}),
        ([node("MatMul", ["mix", "image"], "last")], {"mix": floats(TOKENS, TOKENS)}),
        ([node("MatMul", ["image", "many"], "last")], {"many": floats(2, WIDTH, WIDTH)}),
        ([node("Transpose", ["image"], "t", perm=[0, 2, 1]), node("MatMul", ["image", "t"], "last")], {}),
    ],
    ids=["softmax", "norm over tokens", "mix", "a weight for each image", "product of two"],
)
def test_what_mixes_tokens_computes_all(steps: list[onnx.NodeProto], constants: dict[str, NDArray[Any]]) -> None:
    model = pooled(steps, dict(constants))
    assert tokens(dropped(model), steps[-1].op_type) == {TOKENS}


def test_integers_are_cut_too() -> None:
    steps = [
        node("QuantizeLinear", ["image", "scale", "zero_point"], "q"),
        helper.make_node(
            "MatMulIntegerToFloat",
            ["q", "weight", "scale", "weight_scale", "zero_point", "", "bias"],
            ["last"],
            name="m/last",
            domain="com.microsoft",
        ),
        node("Gather", ["last", "zero"], LOGITS, axis=1),
    ]
    constants: dict[str, NDArray[Any]] = {
        "scale": np.asarray(0.02, np.float32),
        "zero_point": np.asarray(120, np.uint8),
        "weight": RANDOM.integers(-64, 65, (WIDTH, 6)).astype(np.int8),
        "weight_scale": np.full(6, 0.1, np.float32),
        "bias": floats(6),
        "zero": np.asarray(0),
    }
    model = with_microsoft(steps, constants, ["n", TOKENS, WIDTH], {"last": ["n", TOKENS, 6]})
    dropped(model)
    assert tokens(model, "QuantizeLinear") == tokens(model, "MatMulIntegerToFloat") == {1}


def with_microsoft(
    nodes: list[onnx.NodeProto],
    constants: dict[str, NDArray[Any]],
    shape: list[int | str],
    known: dict[str, list[int | str]],
) -> ir.Model:
    """A graph with ONNX Runtime's own operators, of which ONNX infers no shapes: those of `known` tensors."""
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("image", onnx.TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(LOGITS, onnx.TensorProto.FLOAT, None)],
        [onnx.numpy_helper.from_array(array, name) for name, array in constants.items()],
        value_info=[helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, extents) for name, extents in known.items()],
    )
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("com.microsoft", 1)]
    return ir.from_proto(onnx.shape_inference.infer_shapes(helper.make_model(graph, opset_imports=opsets, ir_version=10)))


@pytest.mark.parametrize("bias", [(1, 2, TOKENS, TOKENS), None])
def test_queries_are_cut_and_keys_and_values_are_not(bias: Shape | None) -> None:
    attention = helper.make_node(
        "MultiHeadAttention",
        ["q", "image", "v", "", "", "bias"] if bias else ["q", "image", "v"],
        ["last"],
        name="attention",
        domain="com.microsoft",
        num_heads=2,
    )
    steps = [node("Gelu", ["image"], "q"), node("Sigmoid", ["image"], "v"), attention]
    constants: dict[str, NDArray[Any]] = {"zero": np.asarray(0)} | ({"bias": floats(*bias)} if bias else {})
    steps.append(node("Gather", ["last", "zero"], LOGITS, axis=1))
    model = dropped(with_microsoft(steps, constants, ["n", TOKENS, WIDTH], {"last": ["n", TOKENS, WIDTH]}))
    assert tokens(model, "MultiHeadAttention") == tokens(model, "Gelu") == {1}
    assert tokens(model, "Sigmoid") == {TOKENS}


def test_a_tensor_that_is_query_and_key_stays() -> None:
    attention = helper.make_node(
        "MultiHeadAttention", ["q", "q", "q"], ["last"], name="attention", domain="com.microsoft", num_heads=2
    )
    steps = [node("Gelu", ["image"], "q"), attention, node("Gather", ["last", "zero"], LOGITS, axis=1)]
    model = with_microsoft(steps, {"zero": np.asarray(0)}, ["n", TOKENS, WIDTH], {"last": ["n", TOKENS, WIDTH]})
    assert tokens(dropped(model), "Gelu") == {TOKENS}


@pytest.mark.parametrize("batch", ["1:4:8", "2"])
def test_the_last_block_of_a_vision_transformer_computes_the_class_token(batch: str) -> None:
    model = read(exported(batch))
    apply(model, FuseAttention(), SplitLinear())
    for number in (1, 2, 3) if batch != "2" else (2,):
        dropped(model, RANDOM.normal(0, 1, (number, 3, 32, 32)).astype(np.float32))
    shapes = {str(each.name): each.outputs[0].shape for each in model.graph}
    extents = {name: shape[1] for name, shape in shapes.items() if shape is not None and len(shape) == 3}
    for name in ("attn/MultiHeadAttention", "attn.proj/MatMul", "norm2/LayerNormalization", "mlp.fc1/MatMul", "mlp.fc2/Add"):
        assert (extents[f"blocks.0.{name}"], extents[f"blocks.1.{name}"]) == (17, 1), name
    assert [extents[f"blocks.1.attn.qkv/MatMul[{part}]"] for part in ("0:32", "32:64", "64:96")] == [1, 17, 17]
