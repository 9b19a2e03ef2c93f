"""Blocks made of convolutions: which are quantized, and how their channels are seen, shifted and rounded."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from exports import digits, quantize
from graphs import LOGITS, graph_of, run
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper

from vitexport.artifacts import BatchRange, OnnxModel
from vitexport.errors import NothingToQuantizeError
from vitexport.legality import qdq_violations
from vitexport.preprocess import PreprocessSpec, normalize
from vitexport.quantize import QuantSettings
from vitexport.quantize.fold import find_folds
from vitexport.quantize.observe import Batch, Tensor, observe
from vitexport.quantize.place import find_sites
from vitexport.quantize.settings import Placement
from vitexport.rewrites import apply, load, save, session
from vitexport.rewrites.fold_channels import FoldChannels
from vitexport.targets import CpuArithmetic
from vitexport.validate.metrics import sqnr_db

SPEC = PreprocessSpec(height=16, width=16, mean=(0.5,) * 3, std=(0.5,) * 3, interpolation="bicubic", crop_pct=1.0)
CHANNELS, WIDE, CLASSES = 8, 24, 5
CPU = CpuArithmetic(activation="uint8", weight_bits=8, required_flags=(), arch="x86_64")


def conv(name: str, source: str, weight: str, **attributes: Any) -> onnx.NodeProto:
    inputs = [source, f"{weight}.weight", f"{weight}.bias"]
    return helper.make_node("Conv", inputs, [f"{name}/Conv"], name=f"{name}/Conv", **attributes)


def node(op_type: str, inputs: list[str], name: str, output: str | None = None, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(op_type, inputs, [output or name], name=name, **attributes)


def network() -> ir.Model:
    """A stem, a block of depthwise, pointwise and dense convolutions, and a head."""
    nodes = [
        conv("stem", "image", "stem", strides=[2, 2], pads=[1, 1, 1, 1]),
        conv("block.depthwise", "stem/Conv", "depthwise", group=CHANNELS, pads=[1, 1, 1, 1]),
        conv("block.fc1", "block.depthwise/Conv", "fc1"),
        node("Gelu", ["block.fc1/Conv"], "block.act/Gelu"),
        conv("block.fc2", "block.act/Gelu", "fc2"),
        node("Add", ["block.fc2/Conv", "stem/Conv"], "block/Add"),
        conv("block.dense", "block/Add", "dense", pads=[1, 1, 1, 1]),
        node("Relu", ["block.dense/Conv"], "block.dense/Relu"),
        conv("block.padded", "block.dense/Relu", "padded", pads=[1, 1, 1, 1]),
        node("ReduceMean", ["block.padded/Conv", "axes"], "pool/ReduceMean", keepdims=0),
        node("Gemm", ["pool/ReduceMean", "head.weight", "head.bias"], "head/Gemm", LOGITS),
    ]
    random = np.random.default_rng(4)
    shapes = {
        "stem": (CHANNELS, 3, 3, 3),
        "depthwise": (CHANNELS, 1, 3, 3),
        "fc1": (WIDE, CHANNELS, 1, 1),
        "fc2": (CHANNELS, WIDE, 1, 1),
        "dense": (CHANNELS, CHANNELS, 3, 3),
        "padded": (CHANNELS, CHANNELS, 1, 1),
        "head": (CHANNELS, CLASSES),
    }
    constants: dict[str, Any] = {"axes": np.asarray([2, 3])}
    for name, shape in shapes.items():
        fan_in = int(np.prod(shape[1:])) if name != "head" else shape[0]
        constants[f"{name}.weight"] = random.normal(0, fan_in**-0.5, shape).astype(np.float32)
        constants[f"{name}.bias"] = random.normal(0, 0.1, shape[0] if name != "head" else shape[1]).astype(np.float32)
    return graph_of(nodes, constants, ["batch", 3, 16, 16])


def images(count: int) -> Any:
    return normalize(digits(count).pixels(SPEC, list(range(count))), SPEC)


def test_convolutions_that_mix_all_channels_are_placed() -> None:
    graph = network().graph
    layouts = {site.module: site.layout for site in find_sites(graph, QuantSettings())}
    # A border of zeros is read by the padded one as well: its inputs have no channel that a shift could be taken off.
    assert layouts == {"block.fc1": "pointwise", "block.fc2": "pointwise", "block.dense": "conv", "block.padded": "conv"}
    patch = find_sites(graph, QuantSettings(placement=Placement(patch=True)))
    assert next(site.module for site in patch) == "stem"
    assert find_sites(graph, QuantSettings(), convolutions=False) == ()


def test_channels_of_a_map_are_seen_one_by_one() -> None:
    model = network()
    name = "block.act/Gelu"
    values = run(model, images(6), output=LOGITS)
    assert values.shape == (6, CLASSES)
    copy = network()
    copy.graph.outputs.append(next(node.outputs[0] for node in copy.graph if node.name == name))
    backend = session(copy, threads=1)
    tensor = Tensor(name=name, per_channel=True, channels_first=True, moments=True)
    batches = [Batch(images=images(6)[index : index + 1], first=index, rows=64) for index in range(6)]
    seen = observe(backend, [tensor], [LOGITS], batches, 6, lambda *_: None).activations[name]
    maps = backend.run(images(6))[name]
    assert seen.histogram.low.shape == (WIDE,)
    np.testing.assert_allclose(seen.histogram.low, maps.min(axis=(0, 2, 3)), atol=1e-6)
    np.testing.assert_allclose(seen.histogram.high, maps.max(axis=(0, 2, 3)), atol=1e-6)


@settings(deadline=None, max_examples=10)
@given(st.floats(-2, 2))
def test_a_shift_before_a_pointwise_convolution_leaves_the_float_function(shift: float) -> None:
    model = network()
    expected = run(model, images(2))
    folds = find_folds(model, find_sites(model.graph, QuantSettings()), images(2))
    assert sorted(site.module for fold in folds for site in fold.sites) == ["block.fc1", "block.fc2"]
    assert {fold.kind for fold in folds} == {"after"}
    changes = [fold.change(np.ones(len(fold.sites[0].weight)), np.full(len(fold.sites[0].weight), shift)) for fold in folds]
    apply(model, FoldChannels(changes))
    np.testing.assert_allclose(run(model, images(2)), expected, atol=1e-5 * float(np.abs(expected).max()))


@pytest.mark.parametrize("kwargs", [{}, {"rounding": "nearest"}, {"equalize": False}, {"placement": Placement(patch=True)}])
def test_they_are_written_as_tensorrt_takes_them_and_stay_close(tmp_path: Path, kwargs: dict[str, Any]) -> None:
    path = tmp_path / "model.float.onnx"
    save(network(), path)
    model = OnnxModel.of(path, opset=20, batch=BatchRange.parse("1:2:4"), precision="fp32")
    quantized = quantize(model, digits(32), SPEC, tmp_path, cpu=None, settings=QuantSettings(**kwargs))
    graph = load(quantized.onnx.path)
    assert qdq_violations(graph, symmetric=True) == ()
    wanted = 5 if "placement" in kwargs else 4
    assert len(quantized.recipe.layers) == wanted
    behind = Counter(
        (producer.op_type, "axis" in producer.attributes and producer.attributes["axis"].as_int())
        for entry in graph.graph
        if entry.op_type == "Conv"
        for producer in [entry.inputs[1].producer() if entry.inputs[1] is not None else None]
        if producer is not None
    )
    assert behind == {("DequantizeLinear", 0): wanted}
    assert sqnr_db(run(path, images(16)), run(quantized.onnx.path, images(16))) > 35


def test_a_cpu_has_nothing_to_quantize_in_convolutions(tmp_path: Path) -> None:
    path = tmp_path / "model.float.onnx"
    save(network(), path)
    model = OnnxModel.of(path, opset=20, batch=BatchRange.parse("1"), precision="fp32")
    with pytest.raises(NothingToQuantizeError, match="no linear layer with a constant weight"):
        quantize(model, digits(32), SPEC, tmp_path, cpu=CPU)


def test_windows_of_several_images_keep_their_channels() -> None:
    """The first axis of a map may be windows: all of one image, then all of the next."""

    class Windows:
        def run(self, batch: Any) -> dict[str, Any]:
            values = np.arange(2 * len(batch) * 3 * 4, dtype=np.float32).reshape(2 * len(batch), 3, 2, 2) % 4
            return {"x": values + 100 * np.arange(3, dtype=np.float32)[:, None, None], LOGITS: np.ones((len(batch), 2))}

    backend: Any = Windows()
    batches = [Batch(images=np.zeros((2, 3, 1, 1), np.float32), first=0, rows=8)]
    tensor = Tensor(name="x", per_channel=True, channels_first=True)
    seen = observe(backend, [tensor], [LOGITS], batches, 2, lambda *_: None).activations["x"]
    np.testing.assert_array_equal(seen.histogram.low, [0, 100, 200])
    np.testing.assert_array_equal(seen.histogram.high, [3, 103, 203])
