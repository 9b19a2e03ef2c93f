"""Which backend a bundle is loaded with, and what is said of it."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from conftest import VALIDATION, Built

from vitexport.bundle import write_sealed
from vitexport.errors import BundleError, DeviceError, MissingDependencyError, ToolchainError, UsageError
from vitexport.runtime import load
from vitexport.runtime.backends import onnx_runtime
from vitexport.targets import MachineCpu

DIGIT = VALIDATION / "7" / "digit_0081.png"


class FakeSession:
    """A session on whatever it was asked for first, or on the CPU where that does not start."""

    starts = True
    asked: tuple[Any, ...] = ()

    def __init__(self, model: str, options: Any, providers: list[Any], **_: Any) -> None:
        FakeSession.asked = tuple(providers)
        names = [entry if isinstance(entry, str) else entry[0] for entry in providers]
        self.names = names if FakeSession.starts else names[-1:]

    def get_providers(self) -> list[str]:
        return self.names

    def get_outputs(self) -> list[Any]:
        return [types.SimpleNamespace(name="logits")]

    def run(self, outputs: list[str], feeds: dict[str, np.ndarray[Any, Any]]) -> list[np.ndarray[Any, Any]]:
        return [np.ones((len(feeds["image"]), 10), np.float32)]


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> type[FakeSession]:
    """A GPU that ONNX Runtime finds, and TensorRT's bindings do not."""
    FakeSession.starts = True
    monkeypatch.setattr(onnx_runtime, "why_no_driver", lambda: None)
    monkeypatch.setattr(ort, "preload_dlls", lambda directory: None, raising=False)
    monkeypatch.setattr(ort, "InferenceSession", FakeSession)
    providers = ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(ort, "get_available_providers", lambda: providers)
    return FakeSession


def test_without_an_engine_the_onnx_runs_on_the_gpu_and_says_why(gpu: type[FakeSession], jetson_bundle: Built) -> None:
    model = load(jetson_bundle.root)
    assert model.backend.description == f"ONNX Runtime {onnx_runtime.VERSION}, CUDA provider"
    assert "holds no engine" in str(model.fallback)
    assert model.predict(DIGIT).logits.shape == (1, 10)


def test_without_a_gpu_the_onnx_runs_on_the_cpu_as_it_is_written(
    monkeypatch: pytest.MonkeyPatch, jetson_bundle: Built
) -> None:
    monkeypatch.setattr(onnx_runtime, "why_no_driver", lambda: "there is none")
    model = load(jetson_bundle.root)
    assert model.backend.description.endswith("graph as written")
    assert "holds no engine" in str(model.fallback)


def test_a_library_that_fails_is_no_reason_to_stop_where_nothing_was_asked_for_by_name(
    gpu: type[FakeSession], monkeypatch: pytest.MonkeyPatch, l4_bundle: Built
) -> None:
    def broken(*_: Any) -> Any:
        raise ToolchainError("TensorRT-RTX is installed but cannot be imported: no library")

    monkeypatch.setattr("vitexport.runtime.loading.open_engine", broken)
    assert "cannot be imported" in str(load(l4_bundle.root).fallback)
    with pytest.raises(ToolchainError, match="cannot be imported"):
        load(l4_bundle.root, backend="tensorrt")
    whole = gpu.__init__

    def no_memory(self: FakeSession, model: str, options: Any, providers: list[Any], **words: Any) -> None:
        if len(providers) > 1:
            raise RuntimeError("out of memory")
        whole(self, model, options, providers, **words)

    monkeypatch.setattr(gpu, "__init__", no_memory)
    model = load(l4_bundle.root)
    assert model.backend.description.endswith("graph as written")
    assert re.search(r"cannot be imported.* out of memory", str(model.fallback))


def test_a_bundle_for_a_browser_runs_where_its_integers_are_exact_and_says_so(
    monkeypatch: pytest.MonkeyPatch, web_bundle: Built
) -> None:
    exact = MachineCpu(arch="x86_64", flags=frozenset({"avx2", "avx_vnni"}), model_name="new CPU")
    monkeypatch.setattr("vitexport.runtime.loading.machine_cpu", lambda: exact)
    model = load(web_bundle.root)
    assert str(model.fallback).startswith("the bundle is for Browser")
    assert model.predict(DIGIT).logits.shape == (1, 10)
    assert load(web_bundle.root, backend="onnxruntime").fallback is None
    older = dataclasses.replace(exact, flags=frozenset({"avx2"}))
    monkeypatch.setattr("vitexport.runtime.loading.machine_cpu", lambda: older)
    with pytest.raises(DeviceError, match=r"made for web .* new CPU .* build an fp16 variant"):
        load(web_bundle.root)


def test_what_was_asked_for_by_name_is_not_replaced(gpu: type[FakeSession], jetson_bundle: Built) -> None:
    gpu.starts = False
    with pytest.raises(DeviceError, match=r"CUDA provider of ONNX Runtime .* does not start on this machine"):
        load(jetson_bundle.root, backend="onnxruntime-cuda")
    assert load(jetson_bundle.root, backend="onnxruntime").fallback is None


@pytest.mark.parametrize("backend", ["onnxruntime-cuda", "onnxruntime-tensorrt"])
def test_a_machine_without_a_driver_is_refused_in_one_sentence(
    backend: Any, monkeypatch: pytest.MonkeyPatch, jetson_bundle: Built
) -> None:
    monkeypatch.setattr(onnx_runtime, "why_no_driver", lambda: "this machine has no NVIDIA driver")
    providers = ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(ort, "get_available_providers", lambda: providers)
    with pytest.raises(DeviceError, match=r"needs a CUDA GPU, and this machine has no NVIDIA driver\.$"):
        load(jetson_bundle.root, backend=backend)


@pytest.mark.parametrize("backend", ["onnxruntime-cuda", "onnxruntime-tensorrt"])
def test_a_build_of_onnx_runtime_without_the_provider_is_refused(
    backend: Any, monkeypatch: pytest.MonkeyPatch, jetson_bundle: Built
) -> None:
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(DeviceError, match=r"has no (CUDA|TensorRT) provider, only CPU\. On x86-64 Linux onnxruntime-gpu"):
        load(jetson_bundle.root, backend=backend)


def test_the_tensorrt_provider_may_use_the_graphs_types_and_keeps_nothing(
    gpu: type[FakeSession], l4_bundle: Built, cpu_bundle: Built
) -> None:
    model = load(l4_bundle.root, backend="onnxruntime-tensorrt")
    assert model.backend.description.endswith("TensorRT provider")
    (name, settings), cuda, cpu = gpu.asked
    assert (name, cuda, cpu) == ("TensorrtExecutionProvider", ("CUDAExecutionProvider", {}), "CPUExecutionProvider")
    assert (settings["trt_fp16_enable"], settings["trt_int8_enable"]) == ("1", "1")
    assert settings["trt_profile_max_shapes"] == "image:8x3x32x32"
    # What it kept, it would load again unverified.
    assert not any("cache" in name for name in settings)
    with pytest.raises(UsageError, match="ONNX Runtime's CPU provider, and onnxruntime-tensorrt has no use for it"):
        load(cpu_bundle.root, backend="onnxruntime-tensorrt")


def test_where_nothing_is_installed_that_could_run_it_the_first_reason_is_told(
    monkeypatch: pytest.MonkeyPatch, jetson_bundle: Built
) -> None:
    def absent(*_: Any, **__: Any) -> Any:
        raise MissingDependencyError("onnxruntime is not here")

    monkeypatch.setattr("vitexport.runtime.loading.open_onnx", absent)
    with pytest.raises(DeviceError, match="holds no engine"):
        load(jetson_bundle.root)


def test_a_bundle_whose_runtime_does_not_run_on_its_target_is_refused(cpu_bundle: Built, tmp_path: Path) -> None:
    folder = tmp_path / "bundle"
    shutil.copytree(cpu_bundle.root, folder)
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    manifest["target"]["runtime"] = "tensorrt"
    del manifest["sha256"]
    write_sealed(folder / "manifest.json", manifest)
    with pytest.raises(BundleError, match="is for a CPU and for tensorrt"):
        load(folder)


@pytest.mark.parametrize(("given", "used"), [(None, "1"), ("0", "0")])
def test_onnx_runtime_tells_nobody_of_a_prediction_unless_the_user_wants_it(
    given: str | None, used: str, cpu_bundle: Built, tmp_path: Path
) -> None:
    """ONNX Runtime keeps what it sends, and a device id, below HOME."""
    environment = {key: value for key, value in os.environ.items() if key != "ORT_DISABLE_TELEMETRY"}
    environment |= {"HOME": str(tmp_path)} | ({"ORT_DISABLE_TELEMETRY": given} if given is not None else {})
    program = (
        "import os, sys; from vitexport.runtime import load\n"
        "load(sys.argv[1]).predict(sys.argv[2]); print(os.environ['ORT_DISABLE_TELEMETRY'])"
    )
    picture = VALIDATION / "7" / "digit_0081.png"
    words = [sys.executable, "-c", program, str(cpu_bundle.root), str(picture)]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == used
    if given is None:
        assert list(tmp_path.iterdir()) == []
