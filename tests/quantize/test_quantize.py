from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from exports import digits, exported, live, placed
from graphs import graph_of, operators, read, run
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from vitexport.artifacts import INPUT_NAME, OUTPUT_NAME, BatchRange, OnnxModel, QuantizedModel, silent
from vitexport.errors import InputError
from vitexport.quantize import quantize, with_outputs
from vitexport.rewrites import save
from vitexport.runtime.backends import open_onnx
from vitexport.runtime.backends.onnx_runtime import OnnxRuntimeBackend
from vitexport.targets import CpuArithmetic, machine_cpu, misfit, resolve

IMAGES = 16


def quantized(folder: Path, model: str = "tiny", images: Any = None, **changes: Any) -> QuantizedModel:
    folder.mkdir(exist_ok=True)
    arguments: dict[str, Any] = {"cpu": None, "progress": silent, **changes}
    calibration = digits(IMAGES) if images is None else images
    return quantize(placed(folder, "1:4:8", model=model), calibration, live(model)[1].preprocess, folder, **arguments)


@pytest.fixture(scope="module")
def for_tensorrt(tmp_path_factory: pytest.TempPathFactory) -> QuantizedModel:
    return quantized(tmp_path_factory.mktemp("tensorrt"), "sample")


@pytest.fixture(scope="module")
def pixels() -> NDArray[np.float32]:
    (batch,) = digits(8).batches(live("sample")[1].preprocess, 8)
    return batch


class Rules:
    """TensorRT's rules for explicit quantization, read anew from the file."""

    def __init__(self, path: Path) -> None:
        self.graph = onnx.load(path).graph
        self.constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in self.graph.initializer}
        self.producer = {name: node for node in self.graph.node for name in node.output}
        self.readers: dict[str, list[onnx.NodeProto]] = {}
        for node in self.graph.node:
            for name in node.input:
                self.readers.setdefault(name, []).append(node)

    def of_type(self, op_type: str) -> list[onnx.NodeProto]:
        return [node for node in self.graph.node if node.op_type == op_type]

    def broken(self) -> list[str]:
        weights = [node for node in self.of_type("DequantizeLinear") if node.input[0] in self.constants]
        pairs = [node for node in self.of_type("DequantizeLinear") if node.input[0] not in self.constants]
        return [
            *(problem for node in (*self.of_type("QuantizeLinear"), *pairs, *weights) for problem in self.numbers(node)),
            *(problem for node in weights for problem in self.weight(node)),
            *(problem for node in pairs for problem in self.activation(node)),
            *(
                f"{node.name} is not supported"
                for node in self.graph.node
                if "Integer" in node.op_type or "QLinear" in node.op_type
            ),
        ]

    def numbers(self, node: onnx.NodeProto) -> list[str]:
        scale, zero = (self.constants.get(name) for name in node.input[1:3])
        if scale is None or zero is None:
            return [f"{node.name} has no constant scale and zero point"]
        problems = []
        if zero.dtype != np.int8 or zero.any():
            problems.append(f"{node.name} is not symmetric int8")
        if not np.all(np.isfinite(scale)) or not np.all(scale > 0):
            problems.append(f"{node.name} has a scale that is not positive")
        if not np.array_equal(scale, scale.astype(np.float16).astype(np.float32)):
            problems.append(f"{node.name} has a scale that float16 does not hold")
        return problems

    def weight(self, node: onnx.NodeProto) -> list[str]:
        weight, scale = self.constants[node.input[0]], self.constants[node.input[1]]
        axes = [entry.i for entry in node.attribute if entry.name == "axis"]
        problems = []
        if weight.dtype != np.int8:
            problems.append(f"{node.name} dequantizes {weight.dtype}")
        if axes != [1] or scale.shape != (weight.shape[1],):
            problems.append(f"{node.name} is not per output channel on axis 1")
        if [(reader.op_type, list(reader.input).index(node.output[0])) for reader in self.readers[node.output[0]]] != [
            ("MatMul", 1)
        ]:
            problems.append(f"{node.name} does not feed one MatMul's weight directly")
        return problems

    def activation(self, node: onnx.NodeProto) -> list[str]:
        quantize = self.producer[node.input[0]]
        problems = []
        if quantize.op_type != "QuantizeLinear" or list(quantize.input[1:]) != list(node.input[1:]):
            problems.append(f"{node.name} does not undo a QuantizeLinear with the same numbers")
        if self.constants[node.input[1]].ndim:
            problems.append(f"{node.name} is not per tensor")
        problems += [
            f"{node.name} feeds {reader.op_type}" for reader in self.readers[node.output[0]] if reader.op_type != "MatMul"
        ]
        return problems


def test_tensorrts_rules_hold(for_tensorrt: QuantizedModel) -> None:
    assert Rules(for_tensorrt.onnx.path).broken() == []


def test_all_linears_of_all_blocks_are_quantized(for_tensorrt: QuantizedModel) -> None:
    rules = Rules(for_tensorrt.onnx.path)
    inputs = {
        node.name: [rules.producer[name].op_type for name in node.input if name in rules.producer]
        for node in rules.of_type("MatMul")
    }
    both = {name for name, kinds in inputs.items() if kinds == ["DequantizeLinear"] * 2}
    names = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
    assert both == {f"blocks.{block}.{name}/MatMul" for block in range(3) for name in names}
    # The two products inside attention take floats on both sides.
    assert len(inputs) - len(both) == 3 * 2
    assert all("DequantizeLinear" not in kinds for name, kinds in inputs.items() if name not in both)
    assert for_tensorrt.recipe.layers == tuple(f"blocks.{block}.{name}" for block in range(3) for name in names)


def test_what_must_stay_float_does(for_tensorrt: QuantizedModel) -> None:
    rules = Rules(for_tensorrt.onnx.path)
    quantizers = {"QuantizeLinear", "DequantizeLinear"}
    for op_type in ("Add", "Gelu", "Softmax", "LayerNormalization", "Conv", "Gemm"):
        nodes = rules.of_type(op_type)
        assert nodes, op_type
        for node in nodes:
            producers = {rules.producer[name].op_type for name in node.input if name in rules.producer}
            assert not producers & quantizers, node.name
    # Only what a linear layer reads is rounded: norms, attention's result, GELU's result. No residual, no softmax.
    read_by_quantizers = {rules.producer[node.input[0]].op_type for node in rules.of_type("QuantizeLinear")}
    assert read_by_quantizers == {"LayerNormalization", "Reshape", "Gelu"}
    assert len(rules.of_type("QuantizeLinear")) == 3 * 4
    biases = [name for node in rules.of_type("Add") for name in node.input if name in rules.constants]
    assert {rules.constants[name].dtype for name in biases} == {np.dtype(np.float32)}


def test_the_file_shrinks_to_about_a_quarter(for_tensorrt: QuantizedModel) -> None:
    assert 0.24 < for_tensorrt.onnx.size / len(exported("1:4:8", model="sample")) < 0.32
    assert for_tensorrt.onnx.size == for_tensorrt.onnx.path.stat().st_size


def test_the_classes_stay(for_tensorrt: QuantizedModel, pixels: NDArray[np.float32]) -> None:
    before, after = run(exported("1:4:8", model="sample"), pixels), run(for_tensorrt.onnx.path, pixels)
    np.testing.assert_array_equal(after.argmax(1), before.argmax(1))
    assert np.abs(after - before).max() < 0.1 * np.abs(before).max()
    assert not np.array_equal(after, before)


def test_ranges_are_those_of_the_images(for_tensorrt: QuantizedModel) -> None:
    name = "blocks.1.mlp.act/Gelu"
    session = OnnxRuntimeBackend(
        with_outputs(placed(for_tensorrt.onnx.path.parent, model="sample").path, [name]), outputs=[name]
    )
    seen = np.concatenate([session.tensors(batch)[0] for batch in digits(IMAGES).batches(live("sample")[1].preprocess, 5)])
    low, high = for_tensorrt.recipe.ranges["blocks.1.mlp.fc2"]
    share = np.count_nonzero((seen >= low) & (seen <= high)) / seen.size
    assert 0.99998 <= share <= 1
    assert float(seen.min()) <= low < 0 < high <= float(seen.max())


def test_the_same_images_give_the_same_bytes(tmp_path: Path) -> None:
    first, second = (quantized(tmp_path / name) for name in "ab")
    assert first.onnx.path.read_bytes() == second.onnx.path.read_bytes()
    assert first.recipe == second.recipe


def test_another_image_changes_recipe_and_numbers(tmp_path: Path) -> None:
    images = digits(IMAGES)
    fewer = dataclasses.replace(images, files=images.files[1:])
    first, second = quantized(tmp_path / "a"), quantized(tmp_path / "b", images=fewer)
    assert set(first.recipe.images) - set(second.recipe.images) == {images.files[0].relative}
    assert first.recipe.ranges != second.recipe.ranges
    # Steps are rounded to float16, so that one image of many need not show in the file; one image alone does.
    alone = quantized(tmp_path / "c", images=dataclasses.replace(images, files=images.files[:1]))
    assert first.onnx.sha256 != alone.onnx.sha256


def test_the_order_of_the_images_does_not_change_the_numbers(tmp_path: Path) -> None:
    images = digits(IMAGES)
    turned = dataclasses.replace(images, files=images.files[::-1])
    first, second = quantized(tmp_path / "a"), quantized(tmp_path / "b", images=turned)
    assert first.recipe.ranges == second.recipe.ranges
    assert first.onnx.sha256 == second.onnx.sha256


def test_a_static_graph_with_a_larger_batch_than_images_is_calibrated(tmp_path: Path) -> None:
    model = placed(tmp_path, "2")
    three = dataclasses.replace(digits(IMAGES), files=digits(IMAGES).files[:3])
    result = quantize(model, three, live()[1].preprocess, tmp_path, cpu=None, progress=silent)
    assert run(result.onnx.path, np.zeros((2, 3, 32, 32), np.float32)).shape == (2, 7)
    assert len(result.recipe.images) == 3


def test_progress_is_told_up_to_the_last_image(tmp_path: Path) -> None:
    told: list[tuple[str, int, int]] = []

    def note(what: str, done: int = 0, total: int = 0) -> None:
        told.append((what, done, total))

    quantized(tmp_path, progress=note)
    assert told[-1] == ("calibrating", IMAGES, IMAGES)
    assert [done for _, done, _ in told] == sorted(done for _, done, _ in told)


def rms(values: NDArray[np.float32]) -> float:
    return float(np.sqrt(np.mean(values.astype(np.float64) ** 2)))


ARITHMETIC = {
    "uint8, 7 bits": CpuArithmetic(activation="uint8", weight_bits=7, required_flags=(), arch="x86_64"),
    "uint8, 8 bits": CpuArithmetic(activation="uint8", weight_bits=8, required_flags=("avx512_vnni",), arch="x86_64"),
    "int8, 8 bits": CpuArithmetic(activation="int8", weight_bits=8, required_flags=("asimddp",), arch="aarch64"),
}


@pytest.mark.parametrize("arithmetic", ARITHMETIC)
def test_the_exact_twin_holds_the_numbers_of_the_cpu_variant(
    arithmetic: str, tmp_path: Path, pixels: NDArray[np.float32]
) -> None:
    cpu = ARITHMETIC[arithmetic]
    result = quantized(tmp_path, "sample", cpu=cpu, exact_twin=True)
    assert result.exact is not None
    assert (result.recipe.arithmetic, result.recipe.weight_bits) == ("onnxruntime-cpu", cpu.weight_bits)
    integer, twin = result.onnx.path, result.exact.path
    # Without fusions ONNX Runtime computes the integer operators exactly as far as this machine's kernels do.
    if cpu.weight_bits == 8 and (reason := misfit(resolve("cpu-x86-vnni"), machine_cpu(), precision="int8")):
        pytest.skip(reason)
    logits, exact = run(integer, pixels), run(twin, pixels)
    scale = float(np.abs(exact).max())
    # A rounding that falls the other way shows a little; another number anywhere would show as much as INT8 itself does.
    np.testing.assert_allclose(logits, exact, atol=2e-3 * scale)
    assert rms(logits - exact) < 0.1 * rms(run(exported("1:4:8", model="sample"), pixels) - exact)
    shipped = open_onnx(integer).run(pixels)
    np.testing.assert_array_equal(shipped.argmax(1), exact.argmax(1))


def test_the_cpu_variant_has_no_float_linear_left(tmp_path: Path) -> None:
    result = quantized(tmp_path, "sample", cpu=ARITHMETIC["uint8, 7 bits"])
    counts = operators(read(result.onnx.path.read_bytes()))
    assert (counts["MatMulIntegerToFloat"], counts["MatMul"], counts["DequantizeLinear"]) == (12, 6, 0)
    assert result.exact is None
    largest = {
        int(np.abs(value).max()) for name, value in Rules(result.onnx.path).constants.items() if name.endswith(".int8")
    }
    assert largest == {64}


def float_model(folder: Path, nodes: list[onnx.NodeProto], constants: dict[str, NDArray[Any]]) -> OnnxModel:
    path = folder / "float.onnx"
    save(graph_of(nodes, constants, ["batch", 3, 32, 32]), path)
    return OnnxModel.of(path, opset=20, batch=BatchRange.parse("1:4:8"), precision="fp32")


def test_a_model_without_linear_layers_is_refused(tmp_path: Path) -> None:
    model = float_model(
        tmp_path,
        [helper.make_node("ReduceMean", [INPUT_NAME, "axes"], [OUTPUT_NAME], name="pool")],
        {"axes": np.asarray([2, 3], np.int64)},
    )
    with pytest.raises(InputError, match=r"no linear layer"):
        quantize(model, digits(IMAGES), live()[1].preprocess, tmp_path, cpu=None, progress=silent)
    assert list(tmp_path.iterdir()) == [model.path]


def test_a_model_that_computes_nan_is_refused(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Log", [INPUT_NAME], ["log"], name="log"),
        helper.make_node("MatMul", ["log", "weight"], [OUTPUT_NAME], name="fc/MatMul"),
    ]
    model = float_model(tmp_path, nodes, {"weight": np.eye(32, dtype=np.float32)})
    with pytest.raises(InputError, match=r"NaN or infinity on a calibration image"):
        quantize(model, digits(IMAGES), live()[1].preprocess, tmp_path, cpu=None, progress=silent)
