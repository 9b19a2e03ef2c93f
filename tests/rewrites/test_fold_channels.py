from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from exports import digits, exported, live
from graphs import LOGITS, graph_of, operators, producers, read, run
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import helper

from vitexport.errors import ToolchainError
from vitexport.preprocess import normalize
from vitexport.quantize.fold import Fold, find_folds
from vitexport.quantize.place import linear_sites
from vitexport.rewrites import apply
from vitexport.rewrites.fold_channels import ChannelFold, FoldChannels

LIMIT = 1e-5
# Name, model, opset, and whether LayerNormalization stays an operator.
GRAPHS = {"sample": ("sample", 20, True), "tiny": ("tiny", 20, True), "written out": ("tiny", 17, False)}
KINDS = ("norm", "value", "after")


@functools.cache
def found_in(name: str) -> tuple[bytes, tuple[Fold, ...], NDArray[np.float32]]:
    """The graph, its folds, and images."""
    model, opset, layernorm_op = GRAPHS[name]
    data = exported("1:4:8", opset, layernorm_op=layernorm_op, model=model)
    spec = live(model)[1].preprocess
    images = normalize(digits(4).pixels(spec, [0, 1, 2, 3]), spec)
    graph = read(data)
    return data, find_folds(graph, linear_sites(graph.graph), images[:1]), images


def drawn(fold: Fold, seed: int, spread: float) -> ChannelFold:
    """Scales over `spread` powers of two in each direction, and shifts of the size of an activation."""
    random = np.random.default_rng(seed)
    channels = fold.sites[0].weight.shape[0]
    scale = 2.0 ** random.uniform(-spread, spread, channels) if fold.scales else np.ones(channels)
    shift = random.normal(0, 0.5, channels if fold.shifts_channels else 1)
    if fold.kind == "product":
        shift = np.zeros(1)
    return fold.change(scale, np.broadcast_to(shift, channels).copy())


def difference(before: NDArray[np.float32], after: NDArray[np.float32]) -> float:
    return float(np.abs(after - before).max() / np.abs(before).max())


@pytest.mark.parametrize("name", GRAPHS)
def test_every_group_of_layers_has_a_fold_of_the_right_kind(name: str) -> None:
    folds = found_in(name)[1]
    modules = {kind: [site.module for fold in folds if fold.kind == kind for site in fold.sites] for kind in KINDS}
    blocks = range(3 if name == "sample" else 2)
    assert modules == {
        "norm": [f"blocks.{block}.{layer}" for block in blocks for layer in ("attn.qkv", "mlp.fc1")],
        "value": [f"blocks.{block}.attn.proj" for block in blocks],
        "after": [f"blocks.{block}.mlp.fc2" for block in blocks],
    }
    assert len(folds) == 4 * len(blocks)


@pytest.mark.parametrize("name", GRAPHS)
def test_the_columns_of_v_are_found(name: str) -> None:
    values = [fold for fold in found_in(name)[1] if fold.kind == "value"]
    for block, fold in enumerate(values):
        width = fold.sites[0].weight.shape[0]
        assert fold.producer == f"blocks.{block}.attn.qkv/MatMul"
        assert fold.columns is not None
        # timm stacks q, k and v, each of them head by head, as proj reads them.
        assert fold.columns.tolist() == list(range(2 * width, 3 * width))


@pytest.mark.parametrize("name", GRAPHS)
@pytest.mark.parametrize("kind", KINDS)
def test_the_float_function_stays(name: str, kind: str) -> None:
    data, folds, images = found_in(name)
    chosen = [drawn(fold, index, 3.0) for index, fold in enumerate(folds) if fold.kind == kind]
    model = read(data)
    apply(model, FoldChannels(chosen))
    assert 0 < difference(run(data, images), run(model, images)) <= LIMIT
    added = operators(model) - operators(read(data))
    assert added == ({"Sub": len(chosen)} if kind == "after" else {})
    assert not operators(read(data)) - operators(model)


@settings(deadline=None, max_examples=15)
@given(st.integers(0, 2**32 - 1), st.floats(0, 6))
def test_any_scales_and_shifts_leave_the_float_function(seed: int, spread: float) -> None:
    data, folds, images = found_in("tiny")
    model = read(data)
    apply(model, FoldChannels([drawn(fold, seed + index, spread) for index, fold in enumerate(folds)]))
    assert difference(run(data, images), run(model, images)) <= LIMIT


def test_what_the_layer_reads_is_scaled_and_shifted() -> None:
    data, folds, images = found_in("tiny")
    for kind in KINDS:
        fold = next(fold for fold in folds if fold.kind == kind)
        chosen = drawn(fold, 5, 3.0)
        model = read(data)
        apply(model, FoldChannels([chosen]))
        layer = next(node for node in model.graph if node.name == fold.sites[0].node)
        assert layer.inputs[0] is not None
        before, after = (
            reading(read(data), fold.sites[0].activation, images),
            reading(model, str(layer.inputs[0].name), images),
        )
        np.testing.assert_allclose(after, (before - chosen.shift) / chosen.scale, rtol=1e-4, atol=2e-5)


def reading(model: ir.Model, name: str, images: NDArray[np.float32]) -> NDArray[np.float32]:
    """The tensor called `name`."""
    tensor = producers(model)[name].outputs[0]
    for output in model.graph.outputs:
        output.name = "unread"
    model.graph.outputs.clear()
    tensor.name = LOGITS
    model.graph.outputs.append(tensor)
    return run(model, images)


def test_a_bias_that_others_read_stays_for_them() -> None:
    shared = np.linspace(-1, 1, 8).astype(np.float32)
    model = norm_graph(
        [
            helper.make_node("Add", ["fc", "shared"], ["fc/Add"], name="fc/Add"),
            helper.make_node("Add", ["fc/Add", "shared"], [LOGITS], name="Add"),
        ],
        {"shared": shared},
    )
    images = np.random.default_rng(3).normal(0, 1, (2, 3, 8, 8)).astype(np.float32)
    before = run(model, images)
    fold = ChannelFold(
        kind="norm",
        producer="norm",
        columns=None,
        layers=("fc/MatMul",),
        scale=np.exp2(np.arange(8.0)),
        shift=np.arange(8.0),
    )
    apply(model, FoldChannels([fold]))
    assert difference(before, run(model, images)) <= LIMIT


def norm_graph(tail: list[onnx.NodeProto], constants: dict[str, NDArray[np.float32]]) -> ir.Model:
    """LayerNormalization → fc, and what is behind it."""
    random = np.random.default_rng(2)
    vectors = {name: random.normal(1, 0.3, 8).astype(np.float32) for name in ("gamma", "beta")}
    nodes = [
        helper.make_node("LayerNormalization", ["image", "gamma", "beta"], ["norm"], name="norm", axis=-1),
        helper.make_node("MatMul", ["norm", "weight"], ["fc"], name="fc/MatMul"),
        *tail,
    ]
    weight = random.normal(0, 1, (8, 8)).astype(np.float32)
    return graph_of(nodes, {**vectors, "weight": weight, **constants}, [2, 3, 8, 8])


def folds_of(model: ir.Model) -> tuple[Fold, ...]:
    return find_folds(model, linear_sites(model.graph), np.zeros((2, 3, 8, 8), np.float32))


def test_a_norm_that_only_the_layer_reads_is_folded() -> None:
    (fold,) = folds_of(norm_graph([helper.make_node("Neg", ["fc"], [LOGITS], name="Neg")], {}))
    assert (fold.kind, fold.producer) == ("norm", "norm")


@pytest.mark.parametrize(
    "tail",
    [
        lambda: [helper.make_node("Add", ["fc", "norm"], [LOGITS], name="Add")],
        lambda: [
            helper.make_node("Transpose", ["norm"], ["turned"], name="Transpose", perm=[0, 1, 3, 2]),
            helper.make_node("MatMul", ["fc", "turned"], [LOGITS], name="product"),
        ],
    ],
)
def test_a_norm_that_others_read_too_is_not_folded(tail: Callable[[], list[onnx.NodeProto]]) -> None:
    model = norm_graph(tail(), {})
    (fold,) = folds_of(model)
    assert (fold.kind, fold.producer, fold.scales) == ("after", "norm", False)
    # One number may still be taken off for the layer alone.
    images = np.random.default_rng(3).normal(0, 1, (2, 3, 8, 8)).astype(np.float32)
    before = run(model, images)
    apply(model, FoldChannels([drawn(fold, 0, 0.0)]))
    assert difference(before, run(model, images)) <= LIMIT


def test_a_layer_that_is_not_quantized_keeps_its_norm_unfolded() -> None:
    model = norm_graph(
        [
            helper.make_node("MatMul", ["norm", "weight"], ["fc2"], name="fc2/MatMul"),
            helper.make_node("Sub", ["fc", "fc2"], [LOGITS], name="Sub"),
        ],
        {},
    )
    both = linear_sites(model.graph)
    image = np.zeros((2, 3, 8, 8), np.float32)
    assert [(fold.kind, len(fold.sites)) for fold in find_folds(model, both, image)] == [("norm", 2)]
    assert [fold.kind for fold in find_folds(model, both[:1], image)] == ["after"]


def test_a_gated_unit_takes_the_scales_in_one_factor() -> None:
    nodes = [
        helper.make_node("Relu", ["image"], ["relu"], name="relu"),
        helper.make_node("MatMul", ["relu", "gate"], ["g"], name="gate/MatMul"),
        helper.make_node("MatMul", ["relu", "up"], ["u"], name="up/MatMul"),
        helper.make_node("Add", ["u", "bias"], ["u/Add"], name="up/Add"),
        helper.make_node("Sigmoid", ["g"], ["s"], name="act"),
        helper.make_node("Mul", ["s", "u/Add"], ["product"], name="Mul"),
        helper.make_node("MatMul", ["product", "down"], ["d"], name="down/MatMul"),
        helper.make_node("Neg", ["d"], [LOGITS], name="Neg"),
    ]
    random = np.random.default_rng(4)
    constants = {name: random.normal(0, 1, (8, 8)).astype(np.float32) for name in ("gate", "up", "down")}
    constants["bias"] = random.normal(0, 1, 8).astype(np.float32)
    model = graph_of(nodes, constants, [2, 3, 8, 8])
    folds = folds_of(model)
    (fold,) = (fold for fold in folds if fold.kind == "product")
    assert (fold.producer, [site.node for site in fold.sites]) == ("up/MatMul", ["down/MatMul"])
    images = random.normal(0, 1, (2, 3, 8, 8)).astype(np.float32)
    before = run(model, images)
    apply(model, FoldChannels([drawn(fold, 1, 4.0)]))
    assert difference(before, run(model, images)) <= LIMIT


def test_a_scale_that_leaves_no_number_is_refused() -> None:
    model = norm_graph([helper.make_node("Neg", ["fc"], [LOGITS], name="Neg")], {})
    fold = ChannelFold(
        kind="norm", producer="norm", columns=None, layers=("fc/MatMul",), scale=np.full(8, np.nan), shift=np.zeros(8)
    )
    with pytest.raises(ToolchainError, match=r"FoldChannels.*holds NaN"):
        apply(model, FoldChannels([fold]))
