"""Repositories that ``vitexport triton`` writes, held against Triton's own schema; the engines in them are fakes."""

from __future__ import annotations

import dataclasses
import importlib.util
import py_compile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Built
from google.protobuf import text_format

import vitexport.triton
from vitexport.artifacts import BatchRange
from vitexport.bundle import Bundle
from vitexport.errors import InputError, UsageError
from vitexport.preprocess import normalize
from vitexport.runtime import engines
from vitexport.runtime.backends.onnx_runtime import OnnxRuntimeBackend
from vitexport.runtime.engines import BuiltHere, Fingerprint
from vitexport.triton import ServeRequest, write_repository

SPEC = importlib.util.find_spec("tritonclient")
pytestmark = pytest.mark.skipif(SPEC is None, reason="tritonclient is missing; source scripts/environment installs it")
DEFAULT = ServeRequest(name="digits")


def schema() -> Any:
    """Triton's protobuf schema, out of tritonclient; the package itself would import gRPC."""
    assert SPEC is not None
    assert SPEC.submodule_search_locations is not None
    path = Path(SPEC.submodule_search_locations[0]) / "grpc" / "model_config_pb2.py"
    spec = importlib.util.spec_from_file_location("model_config_pb2", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


MODEL_CONFIG = schema() if SPEC is not None else None


def config(repository: Path, name: str = "digits") -> Any:
    """The configuration, as Triton parses it: an unknown field or word is an error."""
    assert MODEL_CONFIG is not None
    text = (repository / name / "config.pbtxt").read_text(encoding="utf-8")
    parsed = text_format.Parse(text, MODEL_CONFIG.ModelConfig())
    assert parsed.name == name
    return parsed


def dynamic(built: Built, batch: str = "1:4:8") -> Bundle:
    manifest = dataclasses.replace(built.bundle.manifest, batch=BatchRange.parse(batch))
    return dataclasses.replace(built.bundle, manifest=manifest)


def test_a_model_that_takes_the_picture_is_one_model(web_bundle: Built, tmp_path: Path) -> None:
    assert write_repository([web_bundle.bundle], tmp_path / "models", DEFAULT) == ("digits/1",)
    parsed = config(tmp_path / "models")
    assert (parsed.backend, parsed.max_batch_size) == ("onnxruntime", 0)
    assert [(entry.name, list(entry.dims)) for entry in parsed.input] == [("image", [1, -1, -1, 3])]
    assert [(entry.name, list(entry.dims), entry.label_filename) for entry in parsed.output] == [
        ("logits", [1, 10], "labels.txt"),
        ("probabilities", [1, 10], "labels.txt"),
        ("top_indices", [1, 5], ""),
    ]
    folder = tmp_path / "models" / "digits"
    assert (folder / "labels.txt").read_text(encoding="utf-8").split() == list("0123456789")
    warm_up = parsed.model_warmup[0].inputs["image"]
    golden = np.fromfile(folder / "warmup" / warm_up.input_data_file, np.uint8).reshape(tuple(warm_up.dims))
    pixels, _ = web_bundle.bundle.golden()
    np.testing.assert_array_equal(golden, pixels[:1])
    seen = OnnxRuntimeBackend(folder / "1" / "model.onnx").run(golden)
    assert {name: list(values.shape) for name, values in seen.items()} == {
        entry.name: list(entry.dims) for entry in parsed.output
    }
    (client,) = (tmp_path / "models").glob("client-*.py")
    py_compile.compile(str(client), cfile=str(tmp_path / "client.pyc"), doraise=True)
    serving = (tmp_path / "models" / "SERVING.md").read_text(encoding="utf-8")
    assert "perf_analyzer -m digits" in serving
    assert "--shape image:1,480,640,3" in serving
    assert "@@" not in client.read_text(encoding="utf-8") + serving


def test_a_batch_range_becomes_dynamic_batching(web_bundle: Built, tmp_path: Path) -> None:
    write_repository([dynamic(web_bundle)], tmp_path, dataclasses.replace(DEFAULT, instances=2, queue_delay_us=750))
    parsed = config(tmp_path)
    assert parsed.max_batch_size == 8
    assert list(parsed.dynamic_batching.preferred_batch_size) == [4]
    assert parsed.dynamic_batching.max_queue_delay_microseconds == 750
    assert list(parsed.input[0].dims) == [-1, -1, 3]
    assert parsed.instance_group[0].count == 2
    assert parsed.model_warmup[0].batch_size == 4


def test_versions_are_added_and_what_is_there_stays(web_bundle: Built, tmp_path: Path) -> None:
    write_repository([web_bundle.bundle], tmp_path, DEFAULT)
    tuned = (tmp_path / "digits" / "config.pbtxt").read_text(encoding="utf-8").replace("count: 1", "count: 3")
    (tmp_path / "digits" / "config.pbtxt").write_text(tuned, encoding="utf-8")
    (tmp_path / "digits" / "1" / "model.onnx").write_bytes(b"older")
    assert write_repository([web_bundle.bundle], tmp_path, DEFAULT) == ("digits/2",)
    assert (tmp_path / "digits" / "1" / "model.onnx").read_bytes() == b"older"
    assert (tmp_path / "digits" / "config.pbtxt").read_text(encoding="utf-8") == tuned
    assert not list((tmp_path / "digits").glob(".*"))


def test_another_model_of_that_name_is_refused(web_bundle: Built, several_bundle: Built, tmp_path: Path) -> None:
    write_repository([web_bundle.bundle], tmp_path, DEFAULT)
    with pytest.raises(InputError, match="other inputs, outputs or batches"):
        write_repository([several_bundle.bundle], tmp_path, DEFAULT)
    labels = tmp_path / "digits" / "labels.txt"
    labels.write_text("other\n", encoding="utf-8")
    with pytest.raises(InputError, match="other names"):
        write_repository([web_bundle.bundle], tmp_path, DEFAULT)
    (tmp_path / "strange").mkdir()
    with pytest.raises(InputError, match=r"no config.pbtxt"):
        write_repository([web_bundle.bundle], tmp_path, ServeRequest(name="strange"))
    assert sorted(path.name for path in (tmp_path / "digits").iterdir() if path.is_dir()) == ["1", "warmup"]


def test_without_such_a_model_the_preprocessing_stands_before_it(l4_bundle: Built, tmp_path: Path) -> None:
    added = write_repository([l4_bundle.bundle], tmp_path, DEFAULT)
    assert added == ("digits-preprocess/1", "digits-engine/1", "digits/1")
    first, second, whole = (config(tmp_path, name) for name in ("digits-preprocess", "digits-engine", "digits"))
    assert whole.platform == "ensemble"
    steps = whole.ensemble_scheduling.step
    assert [step.model_name for step in steps] == ["digits-preprocess", "digits-engine"]
    assert dict(steps[0].output_map) == {"pixels": "pixels"}
    assert dict(steps[1].input_map) == {"image": "pixels"}
    assert [list(entry.dims) for entry in first.output] == [list(entry.dims) for entry in second.input] == [[3, 32, 32]]
    assert (first.max_batch_size, second.max_batch_size, whole.max_batch_size) == (8, 8, 8)
    assert second.optimization.execution_accelerators.gpu_execution_accelerator[0].name == "tensorrt"
    assert second.instance_group[0].kind == second.instance_group[0].KIND_GPU
    spec = l4_bundle.bundle.manifest.preprocess
    golden = np.fromfile(tmp_path / "digits-preprocess" / "warmup" / "golden", np.uint8).reshape(32, 32, 3)
    pixels = OnnxRuntimeBackend(tmp_path / "digits-preprocess" / "1" / "model.onnx").tensors(golden[None])[0]
    np.testing.assert_allclose(pixels[0], normalize(golden, spec), atol=1e-6)
    warmed = np.fromfile(tmp_path / "digits-engine" / "warmup" / "golden", np.float32)
    np.testing.assert_array_equal(warmed, normalize(golden, spec).ravel())


def test_engines_of_several_gpus_become_plans(jetson_bundle: Built, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def built(capability: str) -> BuiltHere:
        path = tmp_path / f"{capability}.engine"
        path.write_bytes(capability.encode())
        where = Fingerprint(
            library="tensorrt",
            version="10.3.0",
            compute_capability=capability,
            gpu="gpu-8",
            system="linux-x86_64",
            driver="12.8",
        )
        return BuiltHere(path=path, fingerprint=where)

    monkeypatch.setattr(engines, "every", lambda _: (built("9.0"), built("8.7")))
    write_repository([jetson_bundle.bundle], tmp_path / "models", DEFAULT)
    parsed = config(tmp_path / "models", "digits-engine")
    assert parsed.platform == "tensorrt_plan"
    assert dict(parsed.cc_model_filenames) == {"8.7": "model.sm8.7.plan", "9.0": "model.sm9.0.plan"}
    assert parsed.default_model_filename == "model.sm8.7.plan"
    version = tmp_path / "models" / "digits-engine" / "1"
    assert {path.name: path.read_bytes() for path in version.iterdir()} == {
        "model.sm8.7.plan": b"8.7",
        "model.sm9.0.plan": b"9.0",
    }
    with pytest.raises(UsageError, match=r"Two engines are for compute capability 9.0"):
        write_repository([jetson_bundle.bundle, jetson_bundle.bundle], tmp_path / "models", DEFAULT)


def test_what_is_no_one_model_is_refused(web_bundle: Built, embedding_bundle: Built, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="not of one model"):
        write_repository([web_bundle.bundle, embedding_bundle.bundle], tmp_path, DEFAULT)
    with pytest.raises(UsageError, match="hold no engine"):
        write_repository([web_bundle.bundle, web_bundle.bundle], tmp_path, DEFAULT)
    with pytest.raises(UsageError, match="is not a model name"):
        write_repository([web_bundle.bundle], tmp_path, ServeRequest(name="../digits"))
    with pytest.raises(UsageError, match="--instances"):
        write_repository([web_bundle.bundle], tmp_path, ServeRequest(instances=0))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize("there", [False, True])
def test_what_is_cut_short_is_taken_back_whole(
    cpu_bundle: Built, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, *, there: bool
) -> None:
    repository = tmp_path / "models"
    if there:
        write_repository([cpu_bundle.bundle], repository, DEFAULT)
    before = sorted(tmp_path.rglob("*"))
    write, calls = vitexport.triton._write, []

    def third_fails(*words: Any) -> Path:
        calls.append(words)
        if len(calls) == 3:
            raise error
        return write(*words)

    monkeypatch.setattr(vitexport.triton, "_write", third_fails)
    with pytest.raises(InputError if isinstance(error, OSError) else KeyboardInterrupt):
        write_repository([cpu_bundle.bundle], repository, DEFAULT)
    assert sorted(tmp_path.rglob("*")) == before
