from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from conftest import VALIDATION, Built
from graphs import LOGITS
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from vitexport.artifacts import BatchRange, Outputs, OutputSpec
from vitexport.bundle import Manifest, hash_files, open_bundle, write_manifest
from vitexport.errors import BundleError, DeviceError, InputError, ToolchainError, UsageError
from vitexport.preprocess import normalize, preprocess
from vitexport.runtime import Model, Prediction, load
from vitexport.runtime.backends.onnx_runtime import OnnxRuntimeBackend
from vitexport.runtime.model import run_in_batches
from vitexport.targets import Target, catalogue, machine_cpu, resolve

HEAVY = ("torch", "timm", "torchvision", "onnx", "onnx_ir", "onnxscript", "click", "rich", "scipy")
ENGINES = ("onnxruntime", "tensorrt", "tensorrt_rtx", "tensorrt_rtx_bindings", "cuda")
DIGITS = sorted(VALIDATION.glob("*/*"))[::37]
has_gpu = Path("/dev/nvidia0").exists()


class FakeBackend:
    """Logits of an image are its first two values, its map its first row: whoever swaps or loses an image is found out."""

    description = "a fake"

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.closed = 0

    def close(self) -> None:
        self.closed += 1

    def run(self, images: NDArray[np.float32]) -> Outputs:
        self.sizes.append(len(images))
        return {LOGITS: images.reshape(len(images), -1)[:, :2], "feature_0": images[:, :, :1]}


@pytest.fixture(scope="module")
def model(cpu_bundle: Built) -> Model:
    return load(cpu_bundle.root)


@pytest.fixture
def copy(cpu_bundle: Built, tmp_path: Path) -> Path:
    return Path(shutil.copytree(cpu_bundle.root, tmp_path / "copy"))


def retarget(root: Path, target: Target) -> Manifest:
    manifest = dataclasses.replace(open_bundle(root).manifest, target=target)
    write_manifest(root, manifest)
    return manifest


ranges = st.lists(st.integers(1, 9), min_size=3, max_size=3).map(sorted)


@settings(max_examples=80, deadline=None)
@given(count=st.integers(1, 30), sizes=ranges)
def test_any_number_of_images_runs_within_the_batch_range(count: int, sizes: list[int]) -> None:
    batch = BatchRange(minimum=sizes[0], optimum=sizes[1], maximum=sizes[2])
    images = np.random.default_rng(count).random((count, 3, 2, 2), np.float32)
    backend = FakeBackend()
    outputs = run_in_batches(backend, images, batch)
    assert set(outputs) == {LOGITS, "feature_0"}
    np.testing.assert_array_equal(outputs[LOGITS], images.reshape(count, -1)[:, :2])
    np.testing.assert_array_equal(outputs["feature_0"], images[:, :, :1])
    assert all(batch.minimum <= size <= batch.maximum for size in backend.sizes)
    assert len(backend.sizes) == math.ceil(count / batch.maximum)


def test_a_static_batch_is_filled_and_a_dynamic_one_is_cut() -> None:
    images = np.zeros((10, 3, 2, 2), np.float32)
    static, dynamic, half = FakeBackend(), FakeBackend(), FakeBackend()
    run_in_batches(static, images, BatchRange.parse("4"))
    run_in_batches(dynamic, images, BatchRange.parse("1:4:8"))
    run_in_batches(half, images, BatchRange.parse("3:4:8"))
    assert (static.sizes, dynamic.sizes, half.sizes) == ([4, 4, 4], [8, 2], [8, 3])


def test_backends_get_contiguous_memory() -> None:
    class Contiguous(FakeBackend):
        def run(self, images: NDArray[np.float32]) -> Outputs:
            assert images.flags.c_contiguous
            return super().run(images)

    strided = np.zeros((6, 3, 4, 4), np.float32)[::2, :, ::2]
    assert run_in_batches(Contiguous(), strided, BatchRange.parse("2"))[LOGITS].shape == (3, 2)


logits_arrays = st.lists(st.lists(st.floats(-1e6, 1e6, width=32), min_size=4, max_size=4), min_size=1, max_size=5).map(
    lambda rows: np.asarray(rows, np.float32)
)


@settings(max_examples=60, deadline=None)
@given(logits=logits_arrays, count=st.integers(1, 6))
def test_probabilities_sum_to_one_and_the_likeliest_comes_first(logits: NDArray[np.float32], count: int) -> None:
    prediction = Prediction(outputs={LOGITS: logits}, class_names=("a", "b", "c", "d"))
    np.testing.assert_allclose(prediction.probabilities.sum(axis=1), 1, atol=1e-5)
    assert (prediction.probabilities >= 0).all()
    for row, best in zip(logits, prediction.top(count), strict=True):
        assert len(best) == min(count, 4)
        assert best[0][0] == "abcd"[int(row.argmax())]
        values = [value for _, value in best]
        assert values == sorted(values, reverse=True)
        assert len({label for label, _ in best}) == len(best)


def test_probabilities_are_the_softmax() -> None:
    prediction = Prediction(outputs={LOGITS: np.log(np.array([[1, 2, 5]], np.float32))}, class_names=("x", "y", "z"))
    [[(first, likeliest), (second, next_best)]] = prediction.top(2)
    assert (first, second) == ("z", "y")
    assert (likeliest, next_best) == pytest.approx((0.625, 0.25))


def test_probabilities_from_the_graph_are_taken_as_they_are() -> None:
    given = np.array([[0.2, 0.7, 0.1]], np.float32)
    prediction = Prediction(outputs={"probabilities": given}, class_names=("x", "y", "z"))
    np.testing.assert_array_equal(prediction.probabilities, given)
    assert prediction.labels == ("y",)
    assert [label for label, _ in prediction.top(3)[0]] == ["y", "x", "z"]
    with pytest.raises(UsageError, match=r"no output logits; it has probabilities\."):
        _ = prediction.logits


@pytest.mark.parametrize("ask", ["logits", "probabilities", "labels", "top"])
def test_without_classes_there_is_nothing_to_rank(ask: str) -> None:
    prediction = Prediction(
        outputs={"embedding": np.ones((2, 4), np.float32), "feature_0": np.ones((2, 4, 1, 1), np.float32)}
    )
    assert prediction.class_names == ()
    with pytest.raises(UsageError, match=r"The model has no output logits; it has embedding, feature_0\."):
        _ = prediction.top() if ask == "top" else getattr(prediction, ask)


def test_path_text_pillow_array_and_list_give_the_same_logits(model: Model) -> None:
    path = DIGITS[3]
    with Image.open(path) as opened:
        picture = opened.convert("RGB")
    wanted = model.predict(path).logits
    assert wanted.shape == (1, 10)
    for image in (str(path), picture, np.asarray(picture), [path], (path,), [np.asarray(picture)]):
        np.testing.assert_array_equal(model.predict(image).logits, wanted)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", [LOGITS, "feature_0"])
def test_outputs_that_are_no_numbers_are_no_prediction(name: str, bad: float, cpu_bundle: Built) -> None:
    class Broken(FakeBackend):
        def run(self, images: NDArray[np.float32]) -> Outputs:
            outputs = {key: values.copy() for key, values in super().run(images).items()}
            outputs[name][-1].flat[-1] = bad
            return outputs

    broken = Model(cpu_bundle.bundle, Broken())
    with pytest.raises(ToolchainError, match=f"a fake computed NaN or infinity in {name} of 3 of 3 images"):
        broken.predict(DIGITS[:3])
    with pytest.raises(ToolchainError, match=f"in {name} of 1 of 1 images"):
        broken.predict_tensor(np.zeros((1, 3, 32, 32), np.float32))


def test_closing_a_model_closes_what_runs_it(cpu_bundle: Built) -> None:
    backend = FakeBackend()
    Model(cpu_bundle.bundle, backend).close()
    assert backend.closed == 1


def test_a_model_is_closed_at_the_end_of_its_block_and_when_the_block_fails(cpu_bundle: Built) -> None:
    fine, failing = FakeBackend(), FakeBackend()
    with Model(cpu_bundle.bundle, fine) as model:
        assert model.backend is fine
        assert fine.closed == 0
    with pytest.raises(RuntimeError, match="inside"), Model(cpu_bundle.bundle, failing):
        raise RuntimeError("inside")
    assert (fine.closed, failing.closed) == (1, 1)


def test_several_images_keep_their_order(model: Model) -> None:
    alone = np.concatenate([model.predict(path).logits for path in DIGITS])
    np.testing.assert_array_equal(model.predict(DIGITS).logits, alone)


def test_the_likeliest_label_is_the_digit(model: Model) -> None:
    right = [best[0][0] == path.parent.name for path, best in zip(DIGITS, model.predict(DIGITS).top(1), strict=True)]
    assert sum(right) >= len(DIGITS) - 1


def test_a_preprocessed_tensor_gives_the_same_logits(model: Model) -> None:
    tensor = np.stack([preprocess(path, model.manifest.preprocess) for path in DIGITS])
    np.testing.assert_array_equal(model.predict_tensor(tensor).logits, model.predict(DIGITS).logits)


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 32, 32, 3), (1, 3, 32, 31), (0, 3, 32, 32), (1, 1, 32, 32)], ids=str)
def test_a_tensor_of_another_shape_is_refused_with_both_shapes(shape: tuple[int, ...], model: Model) -> None:
    with pytest.raises(InputError, match=r"expected \[n, 3, 32, 32\]") as caught:
        model.predict_tensor(np.zeros(shape, np.float32))
    assert str(shape) in str(caught.value)


def test_no_images_and_a_bad_image_among_good_ones_are_input_errors(model: Model, tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_text("text")
    with pytest.raises(InputError, match="No images were given"):
        model.predict([])
    with pytest.raises(InputError, match=r"bad\.png is not an image"):
        model.predict([DIGITS[0], tmp_path / "bad.png"])


def test_a_bundle_without_names_numbers_its_classes(cpu_bundle: Built) -> None:
    outputs = (OutputSpec(name=LOGITS, kind="logits", shape=(2,)),)
    manifest = dataclasses.replace(cpu_bundle.bundle.manifest, labels=None, outputs=outputs)
    unnamed = Model(dataclasses.replace(cpu_bundle.bundle, manifest=manifest), FakeBackend())
    assert unnamed.predict(DIGITS[0]).class_names == ("0", "1")


def test_the_runtime_imports_nothing_heavy_and_no_engine() -> None:
    code = "import json, sys, vitexport.runtime; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    roots = {name.partition(".")[0] for name in json.loads(done.stdout)}
    assert not roots.intersection((*HEAVY, *ENGINES))


CLASSIFY = """
import json, sys
from vitexport.runtime import load
top = load(sys.argv[1], threads=1).predict(sys.argv[2]).top(1)
print(json.dumps([top[0][0][0], sorted(sys.modules)]))
"""


def test_classifying_needs_one_engine_library_and_nothing_heavy(cpu_bundle: Built) -> None:
    command = [sys.executable, "-c", CLASSIFY, str(cpu_bundle.root), str(DIGITS[0])]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    label, modules = json.loads(done.stdout)
    roots = {name.partition(".")[0] for name in modules}
    assert label == DIGITS[0].parent.name
    assert roots.intersection(ENGINES) == {"onnxruntime"}
    assert not roots.intersection(HEAVY)


def test_a_bundle_for_another_instruction_set_is_refused_naming_both(copy: Path) -> None:
    here = machine_cpu()
    foreign = next(row for row in catalogue().values() if row.kind == "cpu" and row.arch != here.arch)
    retarget(copy, resolve(foreign.id))
    with pytest.raises(DeviceError, match="this machine is") as caught:
        load(copy)
    assert foreign.id in str(caught.value)
    assert here.arch in str(caught.value)
    assert caught.value.exit_code == 5


def test_an_int8_bundle_is_refused_where_its_arithmetic_could_be_wrong(copy: Path) -> None:
    target = open_bundle(copy).manifest.target
    assert target.cpu is not None
    needy = dataclasses.replace(target, cpu=dataclasses.replace(target.cpu, required_flags=("avx1024_vnni",)))
    manifest = retarget(copy, needy)
    with pytest.raises(DeviceError, match=r"avx1024_vnni, and this machine, .* wrong results") as caught:
        load(copy)
    assert target.id in str(caught.value)
    write_manifest(copy, dataclasses.replace(manifest, precision="fp32", recipe=None))
    assert load(copy).predict(DIGITS[0]).logits.shape == (1, 10)


@pytest.mark.skipif(has_gpu, reason="this machine has a GPU")
def test_an_engine_is_refused_without_a_gpu_naming_both(l4_bundle: Built) -> None:
    message = r"NVIDIA L4 \(compute capability 8\.9\), but this machine has no CUDA"
    with pytest.raises(DeviceError, match=message) as caught:
        load(l4_bundle.root, backend="tensorrt")
    assert caught.value.exit_code == 5
    # Where nothing was asked for by name, what runs instead says why.
    instead = load(l4_bundle.root)
    assert re.search(message, str(instead.fallback))
    assert "CPU" in instead.backend.description


def test_an_engines_numbers_can_be_looked_at_on_the_cpu(l4_bundle: Built) -> None:
    model = load(l4_bundle.root, backend="onnxruntime")
    pixels, wanted = l4_bundle.bundle.golden()
    seen, reference = model.predict_tensor(normalize(pixels, model.manifest.preprocess)).logits, wanted[LOGITS]
    assert (seen.argmax(axis=1) == reference.argmax(axis=1)).mean() >= 0.96
    noise = np.linalg.norm(seen - reference) / np.linalg.norm(reference)
    assert 0 < noise < 0.03
    assert "graph as written" in model.backend.description


def test_a_dynamic_graph_gives_an_image_the_same_logits_in_any_batch(l4_bundle: Built) -> None:
    model = load(l4_bundle.root, backend="onnxruntime")
    alone = np.concatenate([model.predict(path).logits for path in DIGITS])
    np.testing.assert_allclose(model.predict(DIGITS).logits, alone, rtol=0, atol=0.05)


def test_a_bundle_whose_engine_is_not_built_yet_says_how(jetson_bundle: Built) -> None:
    message = r"holds no engine: .*engine\.sh, which calls trtexec"
    with pytest.raises(DeviceError, match=message):
        load(jetson_bundle.root, backend="tensorrt")
    for instead in (load(jetson_bundle.root), load(jetson_bundle.root, backend="onnxruntime")):
        assert instead.predict(DIGITS[0]).logits.shape == (1, 10)
    assert re.search(message, str(load(jetson_bundle.root).fallback))


def test_an_engine_cannot_be_insisted_on_for_a_cpu(cpu_bundle: Built) -> None:
    with pytest.raises(UsageError, match="runs ONNX Runtime, not an engine"):
        load(cpu_bundle.root, backend="tensorrt")


def test_an_unknown_backend_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="'cuda' is unknown; use auto, tensorrt, onnxruntime, onnxruntime-cuda or onnx"):
        load(tmp_path, backend="cuda")  # type: ignore[arg-type]


def test_a_bundle_without_a_graph_is_refused(copy: Path) -> None:
    manifest = open_bundle(copy).manifest
    artifacts = {role: path for role, path in manifest.artifacts.items() if role != "onnx"}
    write_manifest(copy, dataclasses.replace(manifest, artifacts=artifacts))
    with pytest.raises(BundleError, match="holds no ONNX model"):
        load(copy)


def test_a_changed_model_is_not_loaded(copy: Path) -> None:
    with (copy / "model.onnx").open("ab") as stream:
        stream.write(b"\0")
    with pytest.raises(BundleError, match=r"model\.onnx"):
        load(copy)


@pytest.mark.parametrize("keep", [0, 1, 100, -1000])
def test_a_broken_onnx_file_is_a_toolchain_error_that_names_it(keep: int, copy: Path) -> None:
    path = copy / "model.onnx"
    path.write_bytes(path.read_bytes()[:keep])
    write_manifest(copy, dataclasses.replace(open_manifest(copy), files=hash_files(copy)))
    with pytest.raises(ToolchainError, match=r"ONNX Runtime .* cannot load model\.onnx") as caught:
        load(copy)
    assert caught.value.exit_code == 5
    assert "\n" not in str(caught.value)


def open_manifest(root: Path) -> Manifest:
    return Manifest.from_json(json.loads((root / "manifest.json").read_text(encoding="utf-8")))


def test_what_onnx_runtime_refuses_to_compute_is_a_toolchain_error(model: Model) -> None:
    with pytest.raises(ToolchainError, match=r"failed on input \(1, 3, 16, 16\)"):
        model.backend.run(np.zeros((1, 3, 16, 16), np.float32))


def test_threads_are_those_that_were_asked_for(cpu_bundle: Built) -> None:
    backend = load(cpu_bundle.root, threads=1).backend
    assert isinstance(backend, OnnxRuntimeBackend)
    assert backend.description.endswith("CPU, 1 threads")


@contextlib.contextmanager
def read_only(folder: Path) -> Iterator[None]:
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    yield
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_loading_and_running_write_nothing_into_the_bundle(cpu_bundle: Built) -> None:
    with read_only(cpu_bundle.root):
        load(cpu_bundle.root).predict(DIGITS[0])
