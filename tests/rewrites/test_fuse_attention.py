from __future__ import annotations

import copy
import math
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
from vitexport.rewrites.fuse_attention import FuseAttention

RANDOM = np.random.default_rng(11)
TOKENS, HEADS, CHANNELS = 5, 3, 4
WIDTH = HEADS * CHANNELS
SCORES = (HEADS, TOKENS, TOKENS)


def node(op_type: str, inputs: list[str], output: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(op_type, inputs, [output], name=f"attn/{output}", **attributes)


class Written:
    """Attention as exporters write it, over a tensor ``image`` that holds q, k and v in its columns.

    Each step can be replaced by a test: `nodes` are in order, `constants` by name.
    """

    def __init__(self, order: str = "qkv", batch: int | str = "n") -> None:
        leading = batch if isinstance(batch, int) else -1
        self.batch = batch
        self.constants: dict[str, NDArray[Any]] = {
            "split.shape": np.asarray([leading, TOKENS, 3, HEADS, CHANNELS]),
            "merged.shape": np.asarray([leading, TOKENS, WIDTH]),
            "scale": np.asarray(0.5, np.float32),
        }
        self.nodes = [
            node("Reshape", ["image", "split.shape"], "split"),
            node("Transpose", ["split"], "parts", perm=[2, 0, 3, 1, 4]),
        ]
        for name in "qkv":
            self.constants[f"{name}.index"] = np.asarray(order.index(name))
            self.nodes.append(node("Gather", ["parts", f"{name}.index"], name, axis=0))
        self.nodes += [
            node("Mul", ["q", "scale"], "scaled"),
            node("Transpose", ["k"], "turned", perm=[0, 1, 3, 2]),
            node("MatMul", ["scaled", "turned"], "scores"),
            node("Softmax", ["scores"], "weights", axis=-1),
            node("MatMul", ["weights", "v"], "heads"),
            node("Transpose", ["heads"], "tokens", perm=[0, 2, 1, 3]),
            node("Reshape", ["tokens", "merged.shape"], LOGITS),
        ]

    def insert(self, op_type: str, tensor: str, constant: NDArray[Any] | None = None, **attributes: Any) -> Written:
        """Put an operator, with `constant` as its second input, behind `tensor`."""
        changed = copy.deepcopy(self)
        position = 1 + next((index for index, each in enumerate(changed.nodes) if tensor in each.output), -1)
        name = f"{tensor}.{op_type}"
        for later in changed.nodes[position:]:
            later.input[:] = [name if value == tensor else value for value in later.input]
        inputs = [tensor]
        if constant is not None:
            changed.constants[f"{name}.constant"] = constant
            inputs.append(f"{name}.constant")
        changed.nodes.insert(position, node(op_type, inputs, name, **attributes))
        return changed

    def with_attribute(self, tensor: str, name: str, value: Any) -> Written:
        """The same with another attribute on the node that computes `tensor`."""
        changed = copy.deepcopy(self)
        target = next(each for each in changed.nodes if tensor in each.output)
        del target.attribute[:]
        target.attribute.append(helper.make_attribute(name, value))
        return changed

    def graph(self) -> ir.Model:
        return graph_of(self.nodes, self.constants, [self.batch, TOKENS, 3 * WIDTH])


def images(batch: int) -> NDArray[np.float32]:
    return RANDOM.normal(0, 1, (batch, TOKENS, 3 * WIDTH)).astype(np.float32)


def fused(written: Written) -> ir.Model:
    """The graph after the rewrite, which computes the same at several batches."""
    model = written.graph()
    apply(model, FuseAttention())
    for batch in (1, 2, 3) if isinstance(written.batch, str) else (written.batch,):
        x = images(batch)
        expected = run(written.graph(), x)
        for optimized in (False, True):
            np.testing.assert_allclose(run(model, x, optimized=optimized), expected, rtol=1e-5, atol=1e-6)
    return model


def attention(model: ir.Model) -> ir.Node:
    assert operators(model)["Softmax"] == operators(model)["Transpose"] == 0
    (found,) = (each for each in model.graph if each.op_type == "MultiHeadAttention")
    return found


# ---- what is fused


@pytest.mark.parametrize("batch", ["n", 1, 2])
@pytest.mark.parametrize("order", ["qkv", "kvq", "vqk"])
def test_columns_are_found_in_any_order(order: str, batch: int | str) -> None:
    found = attention(fused(Written(order, batch)))
    assert (found.attributes["num_heads"].as_int(), found.attributes["scale"].as_float()) == (HEADS, 0.5)
    slices = [value.producer() for value in found.inputs[:3] if value is not None]
    starts = [int(each.inputs[1].const_value.numpy()[0]) for each in slices]  # type: ignore[union-attr]
    assert starts == [WIDTH * order.index(name) for name in "qkv"]


@pytest.mark.parametrize(
    "written",
    [
        Written().insert("Mul", "k", np.asarray(0.3, np.float32)),
        Written().insert("Div", "k", np.asarray([3.0], np.float32)),
        Written().insert("Mul", "scores", np.asarray(0.3, np.float32)),
        Written().insert("Div", "scores", np.asarray(4.0, np.float32)),
        Written().insert("Mul", "turned", np.asarray(-0.3, np.float32)),
        Written().insert("Mul", "split", np.asarray(1.0, np.float32)),
    ],
    ids=["k", "1 / k", "scores", "1 / scores", "transposed", "all by 1"],
)
def test_the_scale_is_the_product_of_all(written: Written) -> None:
    attention(fused(written))


@pytest.mark.parametrize("shape", [(1, *SCORES), SCORES, (1, 1, TOKENS, TOKENS), (TOKENS,), (1, HEADS, 1, 1)])
def test_a_constant_bias_is_passed_on(shape: tuple[int, ...]) -> None:
    bias = RANDOM.normal(0, 2, shape).astype(np.float32)
    written = Written().insert("Add", "scores", bias)
    found = attention(fused(written))
    assert len(found.inputs) == 6
    # A factor behind the bias scales it too; one before it does not.
    for tensor in ("scores", "scores.Add"):
        attention(fused(written.insert("Mul", tensor, np.asarray(0.4, np.float32))))


def test_a_mask_of_infinity_masks() -> None:
    mask = np.where(np.tri(TOKENS) == 0, -np.inf, 0).astype(np.float32)
    attention(fused(Written().insert("Add", "scores", mask)))


def test_a_bias_of_zeros_is_none() -> None:
    found = attention(fused(Written().insert("Add", "scores", np.zeros((1, *SCORES), np.float32))))
    assert len(found.inputs) == 3


@settings(deadline=None, max_examples=25)
@given(
    heads=st.integers(1, 4),
    channels=st.integers(1, 9),
    value_channels=st.integers(1, 9),
    tokens=st.integers(1, 6),
    scale=st.floats(0.01, 4),
    batch=st.integers(1, 3),
)
def test_other_sizes(heads: int, channels: int, value_channels: int, tokens: int, scale: float, batch: int) -> None:  # noqa: PLR0917
    # v may have other channels than q and k: LeViT and others do.
    widths = {"q": heads * channels, "k": heads * channels, "v": heads * value_channels}
    constants: dict[str, NDArray[Any]] = {"sizes": np.asarray(list(widths.values()))}
    constants |= {name: np.asarray([-1, tokens, heads, width // heads]) for name, width in widths.items()}
    constants |= {"scale": np.asarray(scale, np.float32), "merged.shape": np.asarray([-1, tokens, widths["v"]])}
    nodes = [helper.make_node("Split", ["image", "sizes"], ["q0", "k0", "v0"], axis=2, name="split")]
    nodes += [node("Reshape", [f"{name}0", name], f"{name}1") for name in "qkv"]
    nodes += [
        node("Transpose", ["q1"], "q2", perm=[0, 2, 1, 3]),
        node("Transpose", ["k1"], "k2", perm=[0, 2, 3, 1]),
        node("Transpose", ["v1"], "v2", perm=[0, 2, 1, 3]),
        node("MatMul", ["q2", "k2"], "product"),
        node("Mul", ["product", "scale"], "scores"),
        node("Softmax", ["scores"], "weights"),
        node("MatMul", ["weights", "v2"], "heads"),
        node("Transpose", ["heads"], "tokens", perm=[0, 2, 1, 3]),
        node("Reshape", ["tokens", "merged.shape"], LOGITS),
    ]
    width = sum(widths.values())
    model = graph_of(nodes, constants, ["n", tokens, width])
    x = np.random.default_rng(0).normal(0, 1, (batch, tokens, width)).astype(np.float32)
    expected = run(model, x)
    apply(model, FuseAttention())
    assert operators(model)["MultiHeadAttention"] == 1
    np.testing.assert_allclose(run(model, x), expected, rtol=2e-5, atol=1e-5)


def rotary(written: Written, *, interleaved: bool, class_tokens: int = 1) -> Written:
    """The same with q and k rotated, but for the first tokens, in the operators that timm exports to."""
    changed = copy.deepcopy(written)
    angles = RANDOM.normal(0, 2, (TOKENS - class_tokens, CHANNELS // 2))

    def spread(table: NDArray[np.float64]) -> NDArray[np.float32]:
        return (np.repeat(table, 2, axis=1) if interleaved else np.tile(table, 2)).astype(np.float32)

    changed.constants |= {
        "cosine": spread(np.cos(angles)),
        "sine": spread(np.sin(angles)),
        "zero": np.asarray([0]),
        "class": np.asarray([class_tokens]),
        "end": np.asarray([2**63 - 1]),
        "token.axis": np.asarray([2]),
        "last": np.asarray([-1]),
        "one": np.asarray([1]),
        "two": np.asarray([2]),
        "channel.axis": np.asarray([3]),
        "back": np.asarray([-1, HEADS, TOKENS - class_tokens, CHANNELS]),
    }
    position = next(index for index, each in enumerate(changed.nodes) if "scaled" in each.output)
    for later in changed.nodes[position:]:
        later.input[:] = [f"{value}.rotated" if value in ("q", "k") else value for value in later.input]
    steps = []
    for name in "qk":
        steps += [
            node("Slice", [name, "zero", "class", "token.axis"], f"{name}.class"),
            node("Slice", [name, "class", "end", "token.axis"], f"{name}.rest"),
        ]
        if interleaved:
            steps += [
                node("Slice", [f"{name}.rest", "one", "end", "channel.axis", "two"], f"{name}.odd"),
                node("Slice", [f"{name}.rest", "zero", "end", "channel.axis", "two"], f"{name}.even"),
                node("Neg", [f"{name}.odd"], f"{name}.negative"),
                node("Unsqueeze", [f"{name}.negative", "last"], f"{name}.left"),
                node("Unsqueeze", [f"{name}.even", "last"], f"{name}.right"),
                node("Concat", [f"{name}.left", f"{name}.right"], f"{name}.pairs", axis=-1),
                node("Reshape", [f"{name}.pairs", "back"], f"{name}.turned"),
            ]
        else:
            steps += [
                helper.make_node(
                    "Split", [f"{name}.rest"], [f"{name}.first", f"{name}.second"], name=name, axis=3, num_outputs=2
                ),
                node("Neg", [f"{name}.second"], f"{name}.negative"),
                node("Concat", [f"{name}.negative", f"{name}.first"], f"{name}.turned", axis=-1),
            ]
        steps += [
            node("Mul", [f"{name}.turned", "sine"], f"{name}.sine"),
            node("Mul", [f"{name}.rest", "cosine"], f"{name}.cosine"),
            # Either order of the sum.
            node("Add", [f"{name}.cosine", f"{name}.sine"][:: 1 if name == "q" else -1], f"{name}.sum"),
            node("Concat", [f"{name}.class", f"{name}.sum"], f"{name}.rotated", axis=2),
        ]
    changed.nodes[position:position] = steps
    return changed


@pytest.mark.parametrize("batch", ["n", 2])
@pytest.mark.parametrize("interleaved", [True, False])
def test_a_rotary_embedding_is_fused_too(*, interleaved: bool, batch: int | str) -> None:
    model = fused(rotary(Written(batch=batch), interleaved=interleaved))
    attention(model)
    found = [each for each in model.graph if each.op_type == "RotaryEmbedding"]
    assert [each.attributes["interleaved"].as_int() for each in found] == [int(interleaved)] * 2


def test_what_mixes_channels_in_another_way_is_no_rotation() -> None:
    written = rotary(Written(), interleaved=True)
    sine = written.constants["sine"]
    # Each channel of a pair by an angle of its own.
    written.constants["sine"] = np.concatenate([sine[:, :1] * 2, sine[:, 1:]], axis=1)
    model = fused(written)
    assert operators(model)["MultiHeadAttention"] == 0


# ---- what is not


@pytest.mark.parametrize(
    "written",
    [
        Written().insert("Mul", "v", np.asarray(0.5, np.float32)),
        Written().with_attribute("weights", "axis", 2),
        Written().insert("Mul", "weights", RANDOM.normal(0, 1, (HEADS, 1, 1)).astype(np.float32)),
        Written().insert("Mul", "scores", RANDOM.normal(0, 1, (HEADS, 1, 1)).astype(np.float32)),
        Written().insert("Mul", "k", RANDOM.normal(0, 1, CHANNELS).astype(np.float32)),
        Written().insert("Mul", "q", np.asarray(0.0, np.float32)),
        Written().insert("Relu", "q"),
        Written().insert("Relu", "scores"),
        Written().insert("Add", "q", RANDOM.normal(0, 1, CHANNELS).astype(np.float32)),
        Written(batch=2).insert("Add", "scores", RANDOM.normal(0, 1, (2, *SCORES)).astype(np.float32)),
        Written().with_attribute("parts", "perm", [2, 0, 4, 1, 3]).insert("Relu", "scaled"),
    ],
    ids=["v", "axis", "weights", "heads", "channels", "zero", "relu q", "relu", "bias of q", "windows", "layout"],
)
def test_anything_else_stays_as_it_is(written: Written) -> None:
    before = operators(written.graph())
    assert operators(fused(written)) == before


def test_columns_that_are_not_head_after_head_stay() -> None:
    # [batch, tokens, 3, channels, heads] in the columns.
    written = Written().with_attribute("parts", "perm", [2, 0, 4, 1, 3])
    written.constants["split.shape"] = np.asarray([-1, TOKENS, 3, CHANNELS, HEADS])
    assert operators(fused(written)) == operators(written.graph())


def test_tokens_in_another_order_stay() -> None:
    written = Written().insert("Gather", "k", np.arange(TOKENS)[::-1].copy(), axis=2)
    assert operators(fused(written))["MultiHeadAttention"] == 0


def test_heads_that_are_merged_in_another_order_stay() -> None:
    written = Written().with_attribute("tokens", "perm", [0, 2, 3, 1])
    assert operators(fused(written))["MultiHeadAttention"] == 0


@pytest.mark.parametrize("tensor", ["scores", "weights", "heads", "tokens"])
def test_what_others_read_too_stays(tensor: str) -> None:
    written = Written()
    written.nodes[-1] = node("Reshape", ["tokens", "merged.shape"], "merged")
    # [n] + [n, tokens, width], the first as [n, 1, 1].
    written.constants |= {"axes": np.asarray([1, 2, 3]), "new": np.asarray([1, 2])}
    written.nodes += [
        node("ReduceMean", [tensor, "axes"], "mean", keepdims=0),
        node("Unsqueeze", ["mean", "new"], "other"),
        node("Add", ["merged", "other"], LOGITS),
    ]
    assert operators(fused(written)) == operators(written.graph())


# ---- whole models


@pytest.mark.parametrize(("model", "depth", "size"), [("tiny", 2, 32), ("sample", 3, 32)])
@pytest.mark.parametrize("batch", ["1:4:8", "2"])
def test_every_block_of_a_vision_transformer_is_fused(model: str, depth: int, size: int, batch: str) -> None:
    graph = read(exported(batch, model=model))
    apply(graph, FuseAttention())
    assert operators(graph)["MultiHeadAttention"] == depth
    assert operators(graph)["Softmax"] == 0
    for found in (each for each in graph.graph if each.op_type == "MultiHeadAttention"):
        assert found.outputs[0].shape is not None
        channels = int(str(found.outputs[0].shape[2])) / found.attributes["num_heads"].as_int()
        assert found.attributes["scale"].as_float() == pytest.approx(1 / math.sqrt(channels))
    for number in (1, 2, 3) if batch != "2" else (2,):
        x = RANDOM.normal(0, 1, (number, 3, size, size)).astype(np.float32)
        expected = run(read(exported(batch, model=model)), x)
        np.testing.assert_allclose(run(graph, x), expected, atol=1e-5 * float(np.abs(expected).max()))


def test_a_graph_without_attention_stays() -> None:
    model = graph_of([node("Relu", ["image"], LOGITS)], {}, ["n", 4])
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    apply(model, FuseAttention())
    assert ir.to_proto(model).SerializeToString(deterministic=True) == before
