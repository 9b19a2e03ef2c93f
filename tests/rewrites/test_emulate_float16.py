from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from conftest import CHECKPOINT, SAMPLE, sample_request
from exports import exported
from graphs import LOGITS, graph_of, operators, read, run
from numpy.typing import ArrayLike, NDArray
from onnx import helper
from safetensors.torch import load_file, save_file

from vitexport.artifacts import INPUT_NAME, silent
from vitexport.bundle import Bundle
from vitexport.errors import ToolchainError
from vitexport.pipeline import run as build
from vitexport.preprocess import normalize
from vitexport.report import Check
from vitexport.rewrites import apply, load
from vitexport.rewrites.emulate_float16 import EmulateFloat16
from vitexport.rewrites.float16 import Float16

RANDOM = np.random.default_rng(5)
FLOATS = NDArray[np.floating[Any]]


def node(op_type: str, inputs: list[str], output: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(op_type, inputs, [output], name=f"m/{output}", **attributes)


def scalar(value: float) -> NDArray[np.float32]:
    return np.asarray(value, np.float32)


def half(values: ArrayLike) -> NDArray[np.float32]:
    """Rounded to float16, held in float32."""
    with np.errstate(over="ignore"):
        return np.asarray(np.asarray(values).astype(np.float16), np.float32)


def emulated(model: ir.Model, images: FLOATS, *, wide: tuple[str, ...] = ()) -> FLOATS:
    apply(model, EmulateFloat16(wide))
    return run(model, images.astype(np.float32))


def squared() -> ir.Model:
    """x * x * 1e-3: harmless in float32, and at its end in float16."""
    nodes = [node("Mul", [INPUT_NAME, INPUT_NAME], "square"), node("Mul", ["square", "small"], LOGITS)]
    return graph_of(nodes, {"small": scalar(1e-3)}, [1, 3])


def test_what_overflows_on_the_way_is_infinite_though_the_result_would_fit() -> None:
    result = emulated(squared(), np.array([[300.0, -300.0, 200.0]]))
    assert result[0, :2].tolist() == [np.inf, np.inf]
    assert result[0, 2] == half(half(40000.0) * half(1e-3))


def test_the_float16_graph_itself_hides_that_overflow_on_a_cpu() -> None:
    # Why there is an emulation. The day ONNX Runtime rounds between nodes, it can go.
    model = squared()
    apply(model, Float16())
    assert np.isfinite(run(model, np.array([[300.0, -300.0, 200.0]], np.float32), optimized=True)).all()


def test_what_one_wide_node_hands_to_another_is_not_rounded() -> None:
    images = np.array([[300.0, -300.0, 0.1]])
    result = emulated(squared(), images, wide=("m/square", f"m/{LOGITS}"))
    wanted = np.square(images.astype(np.float32)) * np.float32(1e-3)
    np.testing.assert_array_equal(result, wanted)
    # Nor is what a wide node gives as an output of the graph: the interface is float32.
    assert not np.array_equal(wanted, half(wanted))


def test_what_a_wide_node_hands_to_others_is_rounded() -> None:
    result = emulated(squared(), np.array([[300.0, -300.0, 0.1]]), wide=("m/square",))
    assert result[0, :2].tolist() == [np.inf, np.inf]
    assert result[0, 2] == half(half(np.float32(0.1) * np.float32(0.1)) * half(1e-3))


def test_neither_the_input_nor_the_constants_of_a_wide_node_are_rounded() -> None:
    model = graph_of([node("Mul", [INPUT_NAME, "third"], LOGITS)], {"third": scalar(1 / 3)}, [1, 2])
    result = emulated(model, np.array([[0.1, 3.0]]), wide=(f"m/{LOGITS}",))
    wanted = np.array([0.1, 3.0], np.float32) * np.float32(1 / 3)
    np.testing.assert_array_equal(result[0], wanted)
    assert not np.array_equal(wanted, half([0.1, 3.0]) * np.float32(1 / 3))


@pytest.mark.parametrize("wide", [(), ("m/a",), (f"m/{LOGITS}",), ("m/a", f"m/{LOGITS}")])
def test_a_constant_is_as_wide_as_each_node_that_reads_it(wide: tuple[str, ...]) -> None:
    nodes = [node("Add", [INPUT_NAME, "third"], "a"), node("Mul", ["a", "third"], LOGITS)]
    result = emulated(graph_of(nodes, {"third": scalar(1 / 3)}, [1, 2]), np.array([[0.1, 3.0]]), wide=wide)
    first, second = (np.float32(1 / 3) if name in wide else half(1 / 3) for name in ("m/a", f"m/{LOGITS}"))
    total = (np.array([0.1, 3.0], np.float32) if "m/a" in wide else half([0.1, 3.0])) + first
    product = (total if len(wide) == 2 else half(total)) * second
    np.testing.assert_array_equal(result[0], product if f"m/{LOGITS}" in wide else half(product))


def test_a_tenth_comes_back_as_float16_has_it() -> None:
    model = graph_of([node("Mul", [INPUT_NAME, "one"], LOGITS)], {"one": scalar(1)}, [1, 1])
    assert float(emulated(model, np.array([[0.1]]))[0, 0]) == float(np.float16(0.1)) != float(np.float32(0.1))


def test_every_step_is_numpys_own_float16() -> None:
    weight, bias = (RANDOM.normal(0, 2, shape).astype(np.float32) for shape in ((24, 10), (10,)))
    nodes = [
        node("Mul", [INPUT_NAME, INPUT_NAME], "square"),
        node("MatMul", ["square", "weight"], "product"),
        node("Add", ["product", "bias"], "sum"),
        node("Sub", ["sum", "product"], LOGITS),
    ]
    model = graph_of(nodes, {"weight": weight, "bias": bias}, [6, 24])
    images = RANDOM.normal(0, 3, (6, 24)).astype(np.float32)
    image = half(images)
    # Products of float16 are exact in float32; sums are taken wide, as tensor cores take them, and rounded once.
    product = half(half(image * image).astype(np.float64) @ half(weight).astype(np.float64))
    wanted = half(half(product + half(bias)) - product)
    result = emulated(model, images)
    # A float32 sum in another order may round to the neighbour; its own last bit is all that may differ.
    step = np.spacing(np.abs(product).astype(np.float16)).astype(np.float32)
    assert (np.abs(result - wanted) <= 2 * step).all()
    assert (result == wanted).mean() > 0.95


def test_a_sum_of_many_is_taken_in_float32() -> None:
    # In float16, 2048 + 1 is 2048.
    model = graph_of([node("MatMul", [INPUT_NAME, "ones"], LOGITS)], {"ones": np.ones((4096, 1), np.float32)}, [1, 4096])
    assert emulated(model, np.ones((1, 4096)))[0, 0] == 4096


@pytest.mark.parametrize("batch", ["1:4:8", "2"])
def test_names_and_types_at_the_interface_are_as_before(batch: str) -> None:
    model = read(exported(batch))
    before = ir.to_proto(model).graph
    interface = [value.SerializeToString() for value in (*before.input, *before.output)]
    apply(model, EmulateFloat16())
    proto = ir.to_proto(model)
    assert [value.name for value in (*proto.graph.input, *proto.graph.output)] == [INPUT_NAME, LOGITS]
    assert [value.SerializeToString() for value in (*proto.graph.input, *proto.graph.output)] == interface
    onnx.checker.check_model(proto)


def test_a_vision_transformer_is_as_near_to_float32_as_float16_is() -> None:
    images = RANDOM.normal(0, 1, (2, 3, 32, 32)).astype(np.float32)
    wide = run(read(exported("2")), images)
    noise = emulated(read(exported("2")), images) - wide
    ratio = 20 * np.log10(np.linalg.norm(wide) / np.linalg.norm(noise))
    assert 40 < ratio < 90


def test_every_float_tensor_is_rounded_but_what_stays_among_wide_nodes() -> None:
    plain = read(exported("2"))
    floats = [entry for entry in plain.graph if entry.outputs[0].dtype == ir.DataType.FLOAT]
    block = {str(entry.name) for entry in floats if str(entry.name).startswith(("blocks.1.", "blocks.1/"))}
    inside = [
        entry for entry in floats if entry.name in block and all(use.node.name in block for use in entry.outputs[0].uses())
    ]
    # The last Add of the block alone is read by others.
    assert len(inside) == len(block) - 1 > 10
    for wide, rounded in (((), len(floats)), (tuple(block), len(floats) - len(inside))):
        model = read(exported("2"))
        before = operators(model)["Cast"]
        apply(model, EmulateFloat16(wide))
        # Two casts for each tensor, and two for the input.
        assert operators(model)["Cast"] - before == 2 * (rounded + 1)


def test_integers_and_quantization_scales_stay_what_they_are() -> None:
    nodes = [
        node("QuantizeLinear", [INPUT_NAME, "scale", "zero"], "q"),
        node("DequantizeLinear", ["q", "scale", "zero"], LOGITS),
    ]
    model = graph_of(nodes, {"scale": scalar(0.015625), "zero": np.asarray(3, np.int8)}, [2, 6])
    images = RANDOM.normal(0, 1, (2, 6)).astype(np.float32)
    wanted = (np.clip(np.rint(half(images) / 0.015625) + 3, -128, 127) - 3) * 0.015625
    np.testing.assert_array_equal(emulated(model, images), wanted)


def test_a_constant_beyond_float16_is_refused_by_name() -> None:
    model = graph_of([node("Mul", [INPUT_NAME, "gamma"], LOGITS)], {"gamma": scalar(1e6)}, [2, 6])
    with pytest.raises(ToolchainError, match=r"gamma holds 1e\+06, beyond float16's 65504"):
        apply(model, EmulateFloat16())


def test_an_output_that_another_node_reads_too_is_rounded_for_both() -> None:
    # The shape of a tensor needs no value: it is read from before the rounding.
    nodes = [node("Shape", [INPUT_NAME], "shape"), node("Reshape", [INPUT_NAME, "shape"], LOGITS)]
    model = graph_of(nodes, {}, [2, 6])
    images = RANDOM.normal(0, 1, (2, 6)).astype(np.float32)
    np.testing.assert_array_equal(emulated(model, images), half(images))


# ---- end to end: a model that float16 cannot hold

RESIDUAL = ("attn.proj", "mlp.fc2")


@functools.cache
def scaled_state() -> dict[str, Any]:
    """The sample with a residual stream 2**15 times larger: the same function, for LayerNorm divides by it again."""
    state = load_file(CHECKPOINT)
    depth = SAMPLE.kwargs["depth"]
    modules = ["patch_embed.proj", *(f"blocks.{index}.{name}" for index in range(depth) for name in RESIDUAL)]
    names = ["cls_token", "pos_embed", *(f"{name}.{part}" for name in modules for part in ("weight", "bias"))]
    return {**state, **{name: state[name] * 2.0**15 for name in names}}


def built(tmp_path: Path, target: str, precision: str, jetpack: str | None = None) -> tuple[Bundle, dict[str, Check]]:
    save_file(scaled_state(), tmp_path / "scaled.safetensors")
    model = dataclasses.replace(SAMPLE, checkpoint=tmp_path / "scaled.safetensors")
    changes = {"model": model, "target": target, "precision": precision, "jetpack": jetpack, "calibration": None}
    bundle, report = build(sample_request(tmp_path / "out", **changes), silent)
    assert report.measurements["accuracy"]["images"] == 400
    return bundle, {check.name: check for check in report.checks}


@pytest.mark.parametrize(("target", "jetpack"), [("l4", None), ("jetson-orin-nano-8gb", "5.1")], ids=["strong", "weak"])
def test_a_residual_stream_that_float16_cannot_hold_stays_float32(target: str, jetpack: str | None, tmp_path: Path) -> None:
    bundle, checks = built(tmp_path, target, "fp16", jetpack)
    assert bundle.manifest.precision == "fp16"
    assert checks["accuracy"].status == "passed", checks["accuracy"].message
    assert checks["accuracy"].measured == pytest.approx(0, abs=0.3)
    exported_path, shipped, engine = bundle.artifact("onnx_float"), bundle.artifact("onnx"), bundle.manifest.engine
    assert exported_path is not None
    assert shipped is not None
    assert engine is not None
    stream = {f"blocks.{block}/{name}" for block in range(SAMPLE.kwargs["depth"]) for name in ("Add", "Add.2")}
    if jetpack is None:
        kinds = {node.name: node.outputs[0].dtype for node in load(shipped).graph}
        assert {kinds[name] for name in stream} == {ir.DataType.FLOAT}
        assert kinds["blocks.0.attn/Softmax"] == ir.DataType.FLOAT16
    else:
        assert stream <= set(engine["recipe"]["fp32_layers"])
        assert "blocks.0.attn/Softmax" not in engine["recipe"]["fp32_layers"]


def test_without_nodes_that_stay_float32_that_model_computes_no_numbers(tmp_path: Path) -> None:
    bundle, _ = built(tmp_path, "h100-sxm", "fp32")
    path = bundle.artifact("onnx")
    assert path is not None
    pixels, outputs = bundle.golden()
    images = normalize(pixels[:1], bundle.manifest.preprocess)
    np.testing.assert_allclose(run(path, images), outputs[LOGITS][:1], atol=1e-3)
    assert not np.isfinite(emulated(load(path), images)).all()


def test_the_same_model_in_float32_is_the_sample(tmp_path: Path) -> None:
    _, checks = built(tmp_path, "h100-sxm", "fp32")
    assert {check.status for check in checks.values()} == {"passed", "skipped"}
    assert checks["accuracy"].measured == pytest.approx(0, abs=0.3)
    assert "PyTorch 99.25 %" in checks["accuracy"].message
