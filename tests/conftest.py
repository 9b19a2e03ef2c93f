"""What several tests share: the sample model, and bundles of it that are built once a session."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from vitexport.artifacts import BatchRange, silent
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
