"""What only a GPU can show: engines that run, CUDA graphs, the GPU's own time, ONNX Runtime's providers, PyTorch beside."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from conftest import Built, sample_request

from vitexport.artifacts import BatchRange, silent
from vitexport.device import EngineRequest, build_here, open_for_engine
from vitexport.errors import DeviceError, MissingDependencyError
from vitexport.pipeline import run
from vitexport.preprocess import normalize
from vitexport.runtime import Model, load
from vitexport.runtime.backends import GpuTimer
from vitexport.runtime.backends.cuda import why_no_driver
from vitexport.targets import Device
from vitexport.targets.catalogue import nearest
from vitexport.validate.budget import Budget
from vitexport.validate.device import validate_bundle

torch = pytest.importorskip("torch")
NO_DRIVER = why_no_driver()
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(NO_DRIVER is not None, reason=str(NO_DRIVER))]


@pytest.fixture(scope="module")
def device() -> Device:
    """The row of the catalogue for this machine's GPU: by its name, else another one of its compute capability."""
    if not torch.cuda.is_available():
        pytest.skip(f"PyTorch {torch.__version__} finds no CUDA GPU that it was built for")
    capability = ".".join(map(str, torch.cuda.get_device_capability()))
    found = nearest(torch.cuda.get_device_name(), capability)
    if found is None:
        pytest.skip(f"the catalogue has no device of compute capability {capability}")
    return found


@pytest.fixture(scope="module", params=["fp16", "int8"])
def bundle(request: pytest.FixtureRequest, device: Device, tmp_path_factory: pytest.TempPathFactory) -> Built:
    """The sample for this GPU, batch 1 to 8; with full TensorRT, its engine is built here."""
    out = tmp_path_factory.mktemp("gpu") / request.param
    words: dict[str, Any] = {"target": device.id, "precision": request.param, "batch": BatchRange.parse("1:4:8")}
    return Built(*run(sample_request(out, **words), silent))


@pytest.fixture
def model(bundle: Built) -> Iterator[Model]:
    """The bundle with its engine; skipped where what runs it is not installed."""
    try:
        if bundle.bundle.manifest.target.runtime == "tensorrt":
            folder, report = build_here(open_for_engine(bundle.root), EngineRequest())
            assert folder is not None, [check.message for check in report.checks]
        loaded = load(bundle.root, backend="tensorrt")
    except MissingDependencyError as error:
        pytest.skip(str(error))
    with loaded:
        yield loaded


def test_the_engine_computes_what_pytorch_computed(model: Model) -> None:
    report = validate_bundle(model, None, Budget(max_drop=1.0), silent)
    assert [check.status for check in report.checks if check.name == "golden"] == ["passed"], report.checks


def test_a_cuda_graph_computes_the_same(model: Model) -> None:
    backend = model.backend
    assert isinstance(backend, GpuTimer)
    pixels, _ = model.bundle.golden()
    images = normalize(pixels[:4], model.manifest.preprocess)
    backend.use_cuda_graph = False
    plain = model.predict_tensor(images).logits
    backend.use_cuda_graph = True
    for _ in range(4):
        recorded = model.predict_tensor(images).logits
    assert backend.graph_refusal is None
    np.testing.assert_array_equal(recorded, plain)


def test_every_batch_of_the_profile_runs(model: Model) -> None:
    pixels, _ = model.bundle.golden()
    images = normalize(pixels[:8], model.manifest.preprocess)
    whole = model.predict_tensor(images).logits
    for size in (1, 2, 3, 5, 8):
        part = model.predict_tensor(images[:size]).logits
        np.testing.assert_allclose(part, whole[:size], rtol=0, atol=0.02 * np.abs(whole).max())


def test_the_gpus_time_is_part_of_the_whole(model: Model) -> None:
    backend = model.backend
    assert isinstance(backend, GpuTimer)
    pixels, _ = model.bundle.golden()
    images = normalize(pixels[:4], model.manifest.preprocess)
    times = [backend.gpu_time(images) for _ in range(20)]
    assert 0 < np.median(times) < 1000


@pytest.mark.parametrize("backend", ["onnxruntime-cuda", "onnxruntime-tensorrt"])
def test_onnx_runtime_computes_it_on_the_gpu_too(backend: Any, bundle: Built) -> None:
    try:
        loaded = load(bundle.root, backend=backend)
    except (DeviceError, MissingDependencyError) as error:
        pytest.skip(str(error))
    report = validate_bundle(loaded, None, Budget(max_drop=1.0), silent)
    assert [check.status for check in report.checks if check.name == "golden"] == ["passed"], report.checks


def test_an_engine_for_another_gpu_is_refused_here(device: Device, l4_bundle: Built) -> None:
    if device.compute_capability == "8.9":
        pytest.skip("this GPU is one that the engine is for")
    with pytest.raises((DeviceError, MissingDependencyError)):
        load(l4_bundle.root, backend="tensorrt")
    assert load(l4_bundle.root).fallback is not None
