from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from exports import QuantizedModel, digits, exported, live, placed, quantize
from graphs import LOGITS, graph_of, operators, read, run
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from vitexport.artifacts import INPUT_NAME, BatchRange, OnnxModel, silent
from vitexport.errors import InputError, UsageError
from vitexport.legality import qdq_violations
from vitexport.preprocess import normalize
from vitexport.quantize import Observer, Placement, QuantSettings
from vitexport.quantize.degrade import degraded
from vitexport.quantize.fold import find_folds, find_score_folds
from vitexport.quantize.observe import CHANNEL_BINS, with_outputs
from vitexport.quantize.place import attention_points, linear_sites
from vitexport.rewrites import apply, load, save, session
from vitexport.rewrites.fold_channels import FoldChannels
from vitexport.runtime.backends import open_onnx
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
    assert read_by_quantizers == {"LayerNormalization", "Reshape", "Sub"}
    assert len(rules.of_type("QuantizeLinear")) == 3 * 4
    # GELU's result is moved by one number, so that it lies on both sides of 0.
    assert [rules.producer[node.input[0]].op_type for node in rules.of_type("Sub")] == ["Gelu"] * 3
    assert [rules.constants[node.input[1]].shape for node in rules.of_type("Sub")] == [()] * 3
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


@pytest.mark.parametrize("observer", ["minmax", "percentile"])
def test_ranges_are_those_of_the_images_and_of_their_degraded_copies(observer: str, tmp_path: Path) -> None:
    name, spec, images = "blocks.1.mlp.act/Gelu", live("sample")[1].preprocess, digits(IMAGES)
    settings = QuantSettings(equalize=False, observer=Observer.parse(observer))
    result = quantized(tmp_path, "sample", settings=settings)
    backend = session(with_outputs(load(placed(tmp_path, model="sample").path), [name]), outputs=[name])
    clean = images.pixels(spec, list(range(IMAGES)))
    worse = np.stack([degraded(clean[2 * number], number) for number in range(IMAGES // 2)])
    seen = np.concatenate([backend.tensors(normalize(pixels, spec))[0] for pixels in (clean, worse)])
    low, high = result.recipe.ranges["blocks.1.mlp.fc2"]
    share = np.count_nonzero((seen >= low) & (seen <= high)) / seen.size
    if observer == "minmax":
        np.testing.assert_allclose((low, high), (seen.min(), seen.max()), rtol=1e-5)
    else:
        assert 0.9999 <= share < 1
        assert float(seen.min()) <= low < 0 < high < float(seen.max())


def with_threads(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    # By name: `vitexport.quantize.calibrate` is also a function.
    for module in ("observe", "calibrate"):
        monkeypatch.setattr(sys.modules[f"vitexport.quantize.{module}"], "available_threads", lambda: count)


@pytest.mark.parametrize("cpu", [None, "uint8, 7 bits"])
def test_the_same_images_give_the_same_bytes_on_any_number_of_threads(
    cpu: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arithmetic = None if cpu is None else ARITHMETIC[cpu]
    results = []
    for count in (1, 3):
        with_threads(monkeypatch, count)
        results.append(quantized(tmp_path / str(count), "sample", cpu=arithmetic))
    first, second = results
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
    assert first.onnx.path.read_bytes() != alone.onnx.path.read_bytes()


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
    # Half of the images are seen again as degraded copies.
    whole = IMAGES + IMAGES // 2
    assert told[-1] == ("calibrating", whole, whole)
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
    # On many images: in a few of them such a rounding moves others behind it, and eight images may hold one of those few.
    batches = list(digits(128).batches(live("sample")[1].preprocess, 8))
    computed, twins, floats = (
        np.concatenate([run(model, batch) for batch in batches])
        for model in (integer, twin, exported("1:4:8", model="sample"))
    )
    assert rms(computed - twins) < 0.1 * rms(floats - twins)
    assert np.median(np.abs(computed - twins)) < 1e-3 * np.median(np.abs(floats - twins))
    shipped = open_onnx(integer).run(pixels)[LOGITS]
    np.testing.assert_array_equal(shipped.argmax(1), exact.argmax(1))


def test_the_cpu_variant_has_no_float_linear_left(tmp_path: Path) -> None:
    result = quantized(tmp_path, "sample", cpu=ARITHMETIC["uint8, 7 bits"])
    counts = operators(read(result.onnx.path.read_bytes()))
    # qkv is three operators before a fused attention.
    assert (counts["MatMulIntegerToFloat"], counts["MultiHeadAttention"]) == (3 * 6, 3)
    assert (counts["MatMul"], counts["DequantizeLinear"]) == (0, 0)
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
        [helper.make_node("ReduceMean", [INPUT_NAME, "axes"], [LOGITS], name="pool")],
        {"axes": np.asarray([2, 3], np.int64)},
    )
    with pytest.raises(InputError, match=r"no linear layer"):
        quantize(model, digits(IMAGES), live()[1].preprocess, tmp_path, cpu=None, progress=silent)
    assert list(tmp_path.iterdir()) == [model.path]


def test_a_model_that_computes_nan_is_refused(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Log", [INPUT_NAME], ["log"], name="log"),
        helper.make_node("MatMul", ["log", "weight"], ["fc"], name="fc/MatMul"),
        helper.make_node("Neg", ["fc"], [LOGITS], name="Neg"),
    ]
    model = float_model(tmp_path, nodes, {"weight": np.eye(32, dtype=np.float32)})
    with pytest.raises(InputError, match=r"NaN or infinity on a calibration image"):
        quantize(model, digits(IMAGES), live()[1].preprocess, tmp_path, cpu=None, progress=silent)


LINEARS = [f"blocks.{block}.{name}" for block in range(2) for name in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")]


def placement(text: str, **changes: Any) -> QuantSettings:
    return QuantSettings(placement=Placement.parse(text), **changes)


@pytest.mark.parametrize(
    ("text", "layers", "inputs"),
    [
        ("A+patch", ["patch_embed.proj", *LINEARS], set()),
        ("A+head", [*LINEARS, "head"], set()),
        ("A+patch+head", ["patch_embed.proj", *LINEARS, "head"], set()),
        ("B", LINEARS, {"blocks.0.attn/MatMul.2", "blocks.1.attn/MatMul.2"}),
    ],
)
def test_every_placement_gives_a_graph_that_is_legal_and_runs(
    text: str, layers: list[str], inputs: set[str], tmp_path: Path
) -> None:
    result = quantized(tmp_path, settings=placement(text))
    model = load(result.onnx.path)
    assert qdq_violations(model) == ()
    assert list(result.recipe.layers) == layers
    assert len(result.recipe.inputs) == len(set(result.recipe.inputs))
    assert set(result.recipe.inputs) == inputs
    images = normalize(digits(4).pixels(live()[1].preprocess, [0, 1, 2, 3]), live()[1].preprocess)
    wanted, logits = run(exported("1:4:8"), images), run(result.onnx.path, images)
    assert 20 < sqnr(wanted, logits) < 80


@pytest.mark.parametrize("least", [30.0, 80.0])
def test_skip_operands_are_quantized_where_they_lose_no_more_than_the_limit(
    least: float, tmp_path: Path, pixels: NDArray[np.float32], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules["vitexport.quantize.calibrate"], "RESIDUAL_SQNR_DB", least)
    result = quantized(tmp_path, "sample", settings=placement("C"))
    assert qdq_violations(load(result.onnx.path)) == ()
    both = {f"blocks.{block}/Add{number}" for block in range(3) for number in ("", ".2")}
    assert set(result.recipe.inputs) == (both if least == 30.0 else set())
    pairs = len(Rules(result.onnx.path).of_type("QuantizeLinear"))
    assert pairs == 3 * 4 + len(result.recipe.inputs)
    assert 40 < sqnr(run(exported("1:4:8", model="sample"), pixels), run(result.onnx.path, pixels)) < 80


@pytest.mark.parametrize("text", ["B", "C", "A+patch"])
def test_placements_of_tensorrt_are_refused_on_a_cpu(text: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"is TensorRT's.*`placement=A` or A\+head"):
        quantized(tmp_path, cpu=ARITHMETIC["uint8, 7 bits"], settings=placement(text))


def test_the_head_is_computed_in_integers_on_a_cpu_that_is_asked_to(tmp_path: Path) -> None:
    result = quantized(tmp_path, cpu=ARITHMETIC["uint8, 7 bits"], settings=placement("A+head"))
    counts = operators(load(result.onnx.path))
    assert (counts["MatMulIntegerToFloat"], counts["Gemm"], counts["MatMul"]) == (2 * 6 + 1, 0, 0)
    assert result.recipe.layers[-1] == "head"


@pytest.mark.parametrize(
    ("include", "exclude", "layers"),
    [
        ((r"blocks\.0",), (), LINEARS[:4]),
        ((), (r"fc2$", r"qkv"), [name for name in LINEARS if not name.endswith(("fc2", "qkv"))]),
        ((r"mlp",), (r"blocks\.1",), LINEARS[2:4]),
    ],
)
def test_expressions_choose_the_layers(
    include: tuple[str, ...], exclude: tuple[str, ...], layers: list[str], tmp_path: Path
) -> None:
    result = quantized(tmp_path, settings=QuantSettings(include=include, exclude=exclude))
    assert list(result.recipe.layers) == layers
    assert list(result.recipe.ranges) == layers
    rules = Rules(result.onnx.path)
    weights = [node.name for node in rules.of_type("DequantizeLinear") if node.input[0] in rules.constants]
    assert sorted(weights) == sorted(f"{name}/MatMul.weight/DequantizeLinear" for name in layers)
    assert QuantSettings.from_json(result.recipe.settings).include == include


def test_expressions_that_leave_nothing_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"`include` and `exclude` leave no linear layer"):
        quantized(tmp_path, settings=QuantSettings(exclude=(r".",)))


def sqnr(wanted: NDArray[np.float32], found: NDArray[np.float32]) -> float:
    return float(20 * np.log10(rms(wanted) / rms(found - wanted)))


def with_large_channels(folder: Path, images: NDArray[np.float32]) -> OnnxModel:
    """The sample with a few channels of every LayerNorm and of v made larger by powers of two: the same function."""
    model = placed(folder, "1:4:8", model="sample")
    graph, random, folds = load(model.path), np.random.default_rng(0), []
    for fold in find_folds(graph, linear_sites(graph.graph), images[:1]):
        if fold.kind in ("norm", "value"):
            scale = np.ones(fold.sites[0].weight.shape[0])
            large = (64, 256, 1024) if fold.kind == "norm" else (16, 64)
            scale[random.permutation(len(scale))[: len(large)]] /= large
            folds.append(fold.change(scale, np.zeros(len(scale))))
    assert len(folds) == 9
    apply(graph, FoldChannels(folds))
    path = folder / "large.onnx"
    save(graph, path)
    return OnnxModel.of(path, opset=20, batch=model.batch, precision="fp32")


@pytest.mark.parametrize("cpu", [None, "uint8, 7 bits"])
def test_equalization_recovers_large_channels(cpu: str | None, tmp_path: Path, pixels: NDArray[np.float32]) -> None:
    model, spec = with_large_channels(tmp_path, pixels), live("sample")[1].preprocess
    wanted = run(model.path, pixels)
    np.testing.assert_allclose(wanted, run(exported("1:4:8", model="sample"), pixels), atol=1e-4)
    found = {}
    for equalize in (True, False):
        result = quantize(
            model,
            digits(64),
            spec,
            tmp_path,
            cpu=None if cpu is None else ARITHMETIC[cpu],
            settings=QuantSettings(equalize=equalize),
        )
        found[equalize] = sqnr(wanted, run(result.onnx.path, pixels))
    assert found[True] >= (45 if cpu is None else 40), found
    assert found[False] < 30, found


@pytest.mark.parametrize("wanted", [True, False])
def test_degraded_copies_are_looked_at_unless_they_are_not_wanted(
    *, wanted: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked_at: list[int] = []

    def counted(pixels: NDArray[np.uint8], number: int) -> NDArray[np.uint8]:
        looked_at.append(number)
        return degraded(pixels, number)

    monkeypatch.setattr(sys.modules["vitexport.quantize.calibrate"], "degraded", counted)
    told: list[tuple[int, int]] = []
    quantized(
        tmp_path,
        settings=QuantSettings(degraded=wanted),
        progress=lambda _, done=0, total=0: told.append((done, total)),
    )
    assert looked_at == (list(range(IMAGES // 2)) if wanted else [])
    assert told[-1] == ((IMAGES * 3 // 2,) * 2 if wanted else (IMAGES,) * 2)


def test_the_least_work_gives_the_same_ranges_as_counting_every_value(tmp_path: Path) -> None:
    """Min-max alone counts nothing; a percentile of 100 counts everything, and ends in the same bin."""
    least = QuantSettings(observer=Observer.parse("minmax"), degraded=False, equalize=False, rounding="nearest")
    counting = dataclasses.replace(least, observer=Observer.parse("percentile:100"))
    fast = quantized(tmp_path / "fast", "sample", settings=least).recipe.ranges
    slow = quantized(tmp_path / "slow", "sample", settings=counting).recipe.ranges
    assert fast.keys() == slow.keys()
    for module, (low, high) in fast.items():
        # A bin is at most this wide: its channel's limit is a power of two.
        width = 4 * max(-low, high) / CHANNEL_BINS
        np.testing.assert_allclose(slow[module], (low, high), rtol=0, atol=width)


def test_q_and_k_are_equalized_against_each_other_where_their_product_is_quantized(
    tmp_path: Path, pixels: NDArray[np.float32], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some channels of q are made 64 times larger and those of k smaller: the same function, but not for one scale."""
    calibrate = sys.modules["vitexport.quantize.calibrate"]
    # Only the products of q and k: those of the softmax would hide what is looked at.
    monkeypatch.setattr(
        calibrate,
        "attention_points",
        lambda *words: tuple(p for p in attention_points(*words) if p.node.endswith("/MatMul")),
    )
    model, spec = placed(tmp_path, "1:4:8", model="sample"), live("sample")[1].preprocess
    graph = load(model.path)
    for fold in find_score_folds(graph, attention_points(graph.graph, placement("B")), pixels[:1]):
        scale = np.ones(fold.q.shape)
        scale[:, ::8] = 1 / 64
        apply(graph, FoldChannels(fold.changes(scale, np.zeros(scale.shape))))
    save(graph, tmp_path / "large.onnx")
    large = OnnxModel.of(tmp_path / "large.onnx", opset=20, batch=model.batch, precision="fp32")
    wanted = run(large.path, pixels)
    np.testing.assert_allclose(wanted, run(exported("1:4:8", model="sample"), pixels), atol=1e-4)
    found = {}
    for equalize in (True, False):
        result = quantize(large, digits(64), spec, tmp_path, cpu=None, settings=placement("B", equalize=equalize))
        found[equalize] = sqnr(wanted, run(result.onnx.path, pixels))
        strengths = [result.recipe.strengths[f"blocks.{block}.attn/MatMul.2"] for block in range(3)]
        assert all(strengths) == equalize
    assert found[True] >= 42, found
    assert found[False] < 30, found


def test_the_recipe_gives_the_same_bytes_again(tmp_path: Path) -> None:
    settings = QuantSettings(observer=Observer.parse("mse"), rounding="nearest", exclude=(r"blocks\.0\.mlp",))
    first = quantized(tmp_path / "a", settings=settings)
    again = quantized(tmp_path / "b", settings=QuantSettings.from_json(first.recipe.settings))
    assert first.onnx.path.read_bytes() == again.onnx.path.read_bytes()
    other = quantized(tmp_path / "c", settings=dataclasses.replace(settings, rounding="gptq"))
    assert first.onnx.path.read_bytes() != other.onnx.path.read_bytes()


def test_only_the_quantized_file_is_left(tmp_path: Path) -> None:
    quantized(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.float.onnx", "model.int8.onnx"]
