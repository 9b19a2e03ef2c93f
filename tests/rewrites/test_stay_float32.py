from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from conftest import TINY
from exports import export_onnx, exported
from graphs import LOGITS, graph_of, read, run
from numpy.typing import NDArray
from onnx import helper

from vitexport.artifacts import BatchRange
from vitexport.preprocess import normalize
from vitexport.rewrites import apply, load
from vitexport.rewrites.emulate_float16 import EmulateFloat16
from vitexport.rewrites.float16 import Float16
from vitexport.rewrites.stay_float32 import by_rule, float32_nodes, peaks
from vitexport.source import load as load_model
from vitexport.validate.metrics import relative_error
from vitexport.validate.probes import probe_pixels

RANDOM = np.random.default_rng(11)
X = RANDOM.normal(0, 1, (2, 5, 8)).astype(np.float32)


def node(op_type: str, inputs: list[str], outputs: list[str], **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(op_type, inputs, outputs, name=outputs[0], **attributes)


def scalar(value: float) -> NDArray[np.float32]:
    return np.asarray(value, np.float32)


def rms_norm() -> ir.Model:
    """x / sqrt(mean(x²) + ε) · γ, between two nodes that float16 computes well."""
    nodes = [
        node("Relu", ["image"], ["before"]),
        node("Mul", ["before", "before"], ["square"]),
        node("ReduceMean", ["square", "axes"], ["mean"]),
        node("Add", ["mean", "epsilon"], ["sum"]),
        node("Sqrt", ["sum"], ["root"]),
        node("Div", ["before", "root"], ["normal"]),
        node("Mul", ["normal", "gamma"], ["scaled"]),
        node("Neg", ["scaled"], [LOGITS]),
    ]
    constants = {"axes": np.asarray([-1]), "epsilon": scalar(1e-12), "gamma": np.full(8, 2, np.float32)}
    return graph_of(nodes, constants, [2, 5, 8])


def test_a_statistic_stays_wide_from_its_squares_to_where_it_is_applied() -> None:
    assert by_rule(rms_norm().graph, {}) == {"square", "mean", "sum", "root", "normal"}


@pytest.mark.parametrize("scale", [1.0, 300.0, 1e-5])
def test_a_normalization_written_out_survives_float16(scale: float) -> None:
    images = X * np.float32(scale)
    expected = run(rms_norm(), images)
    errors = {}
    for wide in (frozenset[str](), by_rule(rms_norm().graph, {})):
        model = rms_norm()
        apply(model, EmulateFloat16(wide))
        with np.errstate(all="ignore"):
            errors[bool(wide)] = relative_error(expected, run(model, images))
    assert errors[True] < 1e-2
    # Without the rule the squares overflow, or ε and what it guards become 0; the plain case needs no rule.
    assert scale == 1.0 or not errors[False] < 1e-2


def test_an_expanded_norm_is_applied_by_the_division_behind() -> None:
    nodes = [
        node("ReduceL2", ["image", "axes"], ["norm"]),
        node("Clip", ["norm", "least"], ["clipped"]),
        node("Expand", ["clipped", "shape"], ["expanded"]),
        node("Div", ["image", "expanded"], ["unit"]),
        node("Mul", ["unit", "image"], [LOGITS]),
    ]
    constants = {"axes": np.asarray([-1]), "least": scalar(1e-12), "shape": np.asarray([2, 5, 8])}
    assert by_rule(graph_of(nodes, constants, [2, 5, 8]).graph, {}) == {"norm", "clipped", "expanded", "unit"}


def of_the_picture(deviation: NDArray[np.float32], *, first: str = "Mul") -> ir.Model:
    """To 0…255, through a fixed transform, over the deviation of each of its results; then whatever the network does."""
    nodes = [
        node(first, ["image", "white"] if first == "Mul" else ["image"], ["pixels"]),
        node("MatMul", ["pixels", "transform"], ["frequencies"]),
        node("Div", ["frequencies", "deviation"], ["normal"]),
        node("Relu", ["normal"], ["after"]),
        helper.make_node("Mul", ["after", "gamma"], [LOGITS], name="last"),
    ]
    # The last two frequencies are differences of neighbours, a thousand times smaller than their sum.
    transform = np.asarray([[1, 1, 0], [1, -1, 1], [1, 0, -1]], np.float32)
    constants = {"white": scalar(255), "transform": transform, "deviation": deviation, "gamma": np.full(3, 2, np.float32)}
    return graph_of(nodes, constants, [2, 5, 3])


DEVIATION = np.asarray([500, 0.5, 0.5], np.float32)


def test_a_picture_that_the_graph_normalizes_stays_wide_up_to_there() -> None:
    model = of_the_picture(DEVIATION)
    wide = by_rule(model.graph, {})
    assert wide == {"pixels", "frequencies", "normal"}
    images = (RANDOM.uniform(0, 1, (2, 5, 1)) + RANDOM.normal(0, 0.002, (2, 5, 3))).astype(np.float32)
    wanted = run(of_the_picture(DEVIATION), images)
    rounded = of_the_picture(DEVIATION)
    apply(rounded, EmulateFloat16(wide))
    assert relative_error(wanted, run(rounded, images)) < 1e-3
    lost = of_the_picture(DEVIATION)
    apply(lost, EmulateFloat16())
    assert relative_error(wanted, run(lost, images)) > 1e-2
    typed = of_the_picture(DEVIATION)
    apply(typed, Float16(wide))
    assert relative_error(wanted, run(typed, images)) < 1e-3


def test_a_division_by_one_number_or_of_what_the_network_computed_does_not() -> None:
    assert by_rule(of_the_picture(np.asarray([2], np.float32)).graph, {}) == set()
    assert by_rule(of_the_picture(DEVIATION, first="Relu").graph, {}) == set()


def test_what_is_large_on_real_images_stays_wide() -> None:
    nodes = [
        node("Relu", ["image"], ["small"]),
        node("Mul", ["small", "factor"], ["large"]),
        node("Tanh", ["large"], [LOGITS]),
    ]
    model = graph_of(nodes, {"factor": np.full((8,), 1e4, np.float32)}, [2, 5, 8])
    reached = peaks(model, X)
    assert reached == {name: pytest.approx(float(np.abs(run(model, X, output=name)).max())) for name in (LOGITS,)} | {
        "small": pytest.approx(float(X.max())),
        "large": pytest.approx(1e4 * float(X.max())),
    }
    # What reads it too: a Cast to float16 in between would make it infinite.
    assert by_rule(model.graph, reached) == {"large", LOGITS}
    assert by_rule(model.graph, {**reached, "large": float("nan")}) == {"large", LOGITS}
    assert by_rule(model.graph, {**reached, "large": 4000.0}) == frozenset()


@pytest.mark.parametrize(("value", "wide"), [(1e-9, True), (1e-6, False), (1e5, True), (-np.inf, False), (-1e32, False)])
def test_a_number_that_float16_does_not_hold_stays_wide(value: float, wide: bool) -> None:  # noqa: FBT001 - of a table
    model = graph_of([node("Max", ["image", "number"], [LOGITS])], {"number": scalar(value)}, [2, 5, 8])
    assert by_rule(model.graph, {}) == ({LOGITS} if wide else frozenset())


def test_a_large_stream_and_what_normalizes_it_stay_wide_but_no_bias() -> None:
    nodes = [
        node("MatMul", ["image", "weight"], ["product"]),
        node("Add", ["product", "bias"], ["biased"]),
        node("Add", ["image", "biased"], ["stream"]),
        node("LayerNormalization", ["stream", "gamma", "beta"], ["norm"]),
        node("Tanh", ["norm"], [LOGITS]),
    ]
    ones = np.ones(8, np.float32)
    constants = {"weight": np.eye(8, dtype=np.float32), "bias": ones, "gamma": ones, "beta": ones}
    model = graph_of(nodes, constants, [2, 5, 8])
    large = {"product": 600.0, "biased": 600.0, "stream": 600.0}
    assert by_rule(model.graph, large) == {"stream", "norm"}
    assert by_rule(model.graph, {**large, "stream": 500.0}) == frozenset()


@pytest.mark.parametrize(("reached", "wide"), [(200.0, {"scores", "biased", "weights"}), (100.0, set())])
def test_large_scores_and_their_softmax_stay_wide(reached: float, wide: set[str]) -> None:
    nodes = [
        node("Relu", ["image"], ["query"]),
        node("MatMul", ["query", "keys"], ["scores"]),
        node("Add", ["scores", "bias"], ["biased"]),
        node("Softmax", ["biased"], ["weights"]),
        node("Neg", ["weights"], [LOGITS]),
    ]
    constants = {"keys": np.eye(8, dtype=np.float32), "bias": np.ones((5, 8), np.float32)}
    model = graph_of(nodes, constants, [2, 5, 8])
    assert by_rule(model.graph, {"scores": reached, "biased": reached}) == wide


def test_probabilities_stay_wide_and_attention_does_not() -> None:
    nodes = [node("Softmax", ["image"], ["attention"]), node("Softmax", ["attention"], [LOGITS])]
    assert by_rule(graph_of(nodes, {}, [2, 5, 8]).graph, {}) == {LOGITS}


def test_a_plain_vision_transformer_needs_none() -> None:
    model = read(exported("2"))
    images = RANDOM.normal(0, 1, (2, 3, 32, 32)).astype(np.float32)
    assert float32_nodes(model, images) == frozenset()


@pytest.mark.parametrize("size", [1e3, 5e3])
@pytest.mark.parametrize("channels", [1, 32])
def test_a_residual_stream_with_large_channels_stays_close_to_float(tmp_path: Any, size: float, channels: int) -> None:
    """One channel that reaches thousands, or all of them about a large mean, which only LayerNorm takes off again."""
    module, source = load_model(TINY)
    with torch.no_grad():
        embedding: Any = module.model.pos_embed
        embedding[..., :channels] += size
    batch = BatchRange.parse("4")
    onnx_model = export_onnx(module, source, tmp_path, opset=20, layernorm_op=True, batch=batch)
    images = normalize(probe_pixels(None, source.preprocess, 4), source.preprocess)
    graph = load(onnx_model.path)
    expected = run(graph, images)
    wide = float32_nodes(graph, images)
    assert {"blocks.0.norm1/LayerNormalization", "norm/LayerNormalization"} <= wide
    twin = load(onnx_model.path)
    apply(twin, EmulateFloat16(wide))
    assert relative_error(expected, run(twin, images)) < 1e-2
    narrow = load(onnx_model.path)
    apply(narrow, EmulateFloat16())
    # One channel drowns the others in float32 as well; a common mean is what float16 alone cannot carry.
    assert channels == 1 or not relative_error(expected, run(narrow, images)) < 1e-1
    typed = load(onnx_model.path)
    apply(typed, Float16(wide))
    assert relative_error(expected, run(typed, images)) < 1e-2
