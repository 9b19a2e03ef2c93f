"""What several tests share: the sample model, and bundles of it that are built once a session."""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from devices import MACHINES, Device
from fakes.fake_cuda import FakeCuda
from fakes.fake_tensorrt import Conduct

from vitexport.artifacts import BatchRange, Task, silent
from vitexport.bundle import Bundle
from vitexport.pipeline import BuildRequest, run
from vitexport.report import Report
from vitexport.source import ModelRequest

ROOT = Path(__file__).resolve().parent.parent
CALIBRATION = ROOT / "calibration" / "digits"
VALIDATION = ROOT / "calibration" / "digits-val"
CHECKPOINT = ROOT / "scripts" / "sample" / "model.safetensors"

SAMPLE = ModelRequest(
    name="vit_tiny_patch16_224",
    checkpoint=CHECKPOINT,
    pretrained=False,
    kwargs={"patch_size": 4, "embed_dim": 128, "depth": 3, "num_heads": 4},
    img_size=32,
    num_classes=10,
    mean=(0.5,),
    std=(0.5,),
    crop_pct=1.0,
)
# The same as words of a command line.
SAMPLE_WORDS = (
    *("vit_tiny_patch16_224", "--checkpoint", str(CHECKPOINT)),
    *("--model-kwarg", "patch_size=4", "--model-kwarg", "embed_dim=128"),
    *("--model-kwarg", "depth=3", "--model-kwarg", "num_heads=4"),
    *("--img-size", "32", "--num-classes", "10", "--mean", "0.5", "--std", "0.5", "--crop-pct", "1.0"),
)
# Small and untrained: for what needs any ViT at all, in a second.
TINY = ModelRequest(
    name="vit_tiny_patch16_224",
    pretrained=False,
    kwargs={"patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2},
    img_size=32,
    num_classes=7,
)


def pytest_configure() -> None:
    """One processor for each worker of pytest-xdist: threads of both on all of them mostly wait for one another."""
    worker = os.environ.get("PYTEST_XDIST_WORKER", "")
    if worker.startswith("gw") and hasattr(os, "sched_setaffinity"):
        processors = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {processors[int(worker[2:]) % len(processors)]})


@dataclasses.dataclass(frozen=True)
class Built:
    """A finished build."""

    bundle: Bundle
    report: Report

    @property
    def root(self) -> Path:
        return self.bundle.root


def sample_request(out: Path, **changes: Any) -> BuildRequest:
    """A build of the sample for this CPU in INT8, with `changes`."""
    values: dict[str, Any] = {
        "model": SAMPLE,
        "target": "cpu",
        "precision": "int8",
        "calibration": CALIBRATION,
        "calibration_size": 64,
        "data": VALIDATION,
        "out": out,
    }
    return BuildRequest(**(values | changes))


def several_request() -> ModelRequest:
    """The sample with two feature maps beside its logits."""
    return dataclasses.replace(SAMPLE, head="classifier", features=(0, 1))


@pytest.fixture(scope="session")
def cpu_bundle(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """The sample, INT8, for this machine's CPU class, batch 1."""
    return Built(*run(sample_request(tmp_path_factory.mktemp("cpu") / "digits-cpu"), silent))


@pytest.fixture(scope="session")
def embedding_bundle(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """The tiny model without its classifier, in float32 for this machine's CPU class: it names no classes."""
    model = dataclasses.replace(TINY, head="features")
    return Built(*run(BuildRequest(model=model, target="cpu", out=tmp_path_factory.mktemp("embedding") / "tiny"), silent))


@pytest.fixture(scope="session")
def several_bundle(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """The sample with its classifier and two feature maps, INT8, for this machine's CPU class."""
    out = tmp_path_factory.mktemp("several") / "digits-several"
    return Built(*run(sample_request(out, model=several_request(), calibration_size=32), silent))


@pytest.fixture(scope="session")
def l4_bundle(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """The sample, INT8, with a TensorRT-RTX engine for an L4, batch 1 to 8."""
    batch = BatchRange.parse("1:4:8")
    return Built(*run(sample_request(tmp_path_factory.mktemp("l4") / "digits-l4", target="l4", batch=batch), silent))


@pytest.fixture(scope="session")
def jetson_bundle(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """The sample, INT8, for an Orin Nano with JetPack 6.2: no engine yet."""
    out = tmp_path_factory.mktemp("jetson") / "digits-orin"
    return Built(*run(sample_request(out, target="jetson-orin-nano-8gb", jetpack="6.2"), silent))


@pytest.fixture(scope="session")
def weak_bundle(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """The sample, INT8, for the TensorRT 8.5 of JetPack 5.1: opset 17 and weak typing."""
    out = tmp_path_factory.mktemp("weak") / "digits-xavier"
    return Built(*run(sample_request(out, target="jetson-xavier-nx", jetpack="5.1.2"), silent))


@pytest.fixture(scope="session")
def web_bundle(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """The sample, INT8, for a browser: a model that takes the picture itself is in it."""
    return Built(*run(sample_request(tmp_path_factory.mktemp("web") / "digits-web", target="web"), silent))


def tiny(folder: Path, **words: Any) -> Built:
    """The tiny model in float16."""
    return Built(*run(BuildRequest(model=TINY, precision="fp16", out=folder / "tiny", **words), silent))


@pytest.fixture(scope="session")
def orin_6_0(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """For the TensorRT 8.6 of JetPack 6.0."""
    return tiny(tmp_path_factory.mktemp("orin60"), target="jetson-orin-nx-16gb", jetpack="6.0")


@pytest.fixture(scope="session")
def orin_7_2(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """For the TensorRT 10.16 of JetPack 7.2."""
    return tiny(tmp_path_factory.mktemp("orin72"), target="jetson-orin-nx-16gb", jetpack="7.2")


@pytest.fixture(scope="session")
def hopper(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """For a Hopper server with TensorRT 11."""
    return tiny(tmp_path_factory.mktemp("hopper"), target="h100-sxm")


@pytest.fixture
def make_device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str], Device]:
    """The machine of a generation."""

    def make(generation: str) -> Device:
        fixture, capability = MACHINES[generation]
        root = tmp_path / "bundle"
        shutil.copytree(request.getfixturevalue(fixture).root, root)
        cuda = FakeCuda(capability=capability, memory=1 << 28)
        device = Device(monkeypatch, root, Conduct(computes_onnx=True), cuda)
        device.install(generation)
        return device

    return make


@pytest.fixture
def orin(make_device: Callable[[str], Device]) -> Device:
    """An Orin Nano with JetPack 6.2."""
    return make_device("10.3")


TRAINED: tuple[Task, ...] = ("classification", "multi-label", "regression")


@pytest.fixture(scope="session")
def task_requests(tmp_path_factory: pytest.TempPathFactory) -> dict[Task, ModelRequest]:
    """A trained model of each task: one logit, several labels, a number."""
    from task_models import train

    folder = tmp_path_factory.mktemp("tasks")
    return {task: train(task, folder / f"{task}.safetensors") for task in TRAINED}


@pytest.fixture(scope="session")
def task_bundles(task_requests: dict[Task, ModelRequest], tmp_path_factory: pytest.TempPathFactory) -> dict[Task, Built]:
    """Each model in float for a browser, judged on labelled pictures."""
    from task_models import LABELS, digits_csv, request

    folder = tmp_path_factory.mktemp("built")
    for digit in ("3", "4"):
        (folder / "odd" / {"3": "odd", "4": "even"}[digit]).mkdir(parents=True)
        for path in sorted((VALIDATION / digit).glob("*.png"))[:12]:
            (folder / "odd" / {"3": "odd", "4": "even"}[digit] / path.name).symlink_to(path)
    (folder / "odd.txt").write_text("even\nodd\n", encoding="utf-8")
    data: dict[Task, dict[str, Path]] = {
        "classification": {"data": folder / "odd", "labels": folder / "odd.txt"},
        "multi-label": {"data": digits_csv(folder / "labels.csv", "multi-label", LABELS, every=8)},
        "regression": {"data": digits_csv(folder / "values.csv", "regression", ("digit",), every=8)},
    }
    words: dict[str, Any] = {"precision": "fp32", "target": "web", "calibration": None}
    return {
        task: Built(*run(request(model, folder / task, **words, **data[task]), silent))
        for task, model in task_requests.items()
    }


@pytest.fixture(scope="session")
def grey_bundle(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """An untrained model of one channel, in float for a browser."""
    model = dataclasses.replace(TINY, kwargs={**TINY.kwargs, "in_chans": 1})
    request = BuildRequest(model=model, target="web", precision="fp32", out=tmp_path_factory.mktemp("grey") / "grey")
    return Built(*run(request, silent))
