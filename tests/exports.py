"""Exports of the small models that several tests look at; each is made once a session and handed out as bytes."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path

from conftest import CALIBRATION, ROOT, TINY

from vitexport.artifacts import BatchRange, ModelSource, OnnxModel
from vitexport.datasets import ImageSet, open_images
from vitexport.export import export_onnx
from vitexport.source import Exposed, ModelRequest, load

REQUESTS = {"tiny": TINY, "sample": ModelRequest(name=f"local-dir:{ROOT / 'scripts' / 'sample'}")}


def live(model: str = "tiny") -> tuple[Exposed, ModelSource]:
    """The module itself, and its description."""
    return _live(model)


@functools.cache
def _live(model: str) -> tuple[Exposed, ModelSource]:
    return load(REQUESTS[model])


def exported(batch: str = "1:4:8", opset: int = 20, *, layernorm_op: bool = True, model: str = "tiny") -> bytes:
    """The float ONNX."""
    return _exported(batch, opset, layernorm_op, model)


@functools.cache
def _exported(batch: str, opset: int, layernorm_op: bool, model: str) -> bytes:  # noqa: FBT001 - a cache tells keywords apart
    module, source = live(model)
    with tempfile.TemporaryDirectory() as folder:
        limits = BatchRange.parse(batch)
        onnx = export_onnx(module, source, Path(folder), opset=opset, layernorm_op=layernorm_op, batch=limits)
        return onnx.path.read_bytes()


def placed(folder: Path, batch: str = "1:4:8", *, model: str = "tiny") -> OnnxModel:
    """The float ONNX of opset 20 as a file in `folder`."""
    path = folder / "model.float.onnx"
    path.write_bytes(exported(batch, model=model))
    return OnnxModel.of(path, opset=20, batch=BatchRange.parse(batch), precision="fp32")


@functools.cache
def digits(count: int) -> ImageSet:
    """Calibration images, spread over all classes."""
    return open_images(CALIBRATION, limit=count)
