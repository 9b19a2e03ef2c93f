"""Exports of the small models that several tests look at; each is made once a session and handed out as bytes."""

from __future__ import annotations

import dataclasses
import functools
import tempfile
from pathlib import Path

import onnx_ir as ir
from conftest import CALIBRATION, ROOT, TINY

from vitexport import stacks
from vitexport.artifacts import BatchRange, ModelSource, OnnxModel, Progress, QuantRecipe, silent
from vitexport.datasets import ImageSet, open_images
from vitexport.export import export_graph
from vitexport.preprocess import PreprocessSpec
from vitexport.quantize import Calibration, QuantSettings, calibrate, integers, recipe
from vitexport.rewrites import load as load_graph
from vitexport.rewrites import save
from vitexport.source import Exposed, ModelRequest, load
from vitexport.stacks import Stack
from vitexport.stacks.onnxruntime_cpu import OnnxRuntimeCpu
from vitexport.stacks.tensorrt_strong import with_pairs
from vitexport.targets import CpuArithmetic, resolve

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


def export_onnx(
    module: Exposed, source: ModelSource, folder: Path, *, opset: int, layernorm_op: bool, batch: BatchRange
) -> OnnxModel:
    """`export_graph`, written to ``model.float.onnx`` in `folder`."""
    graph = export_graph(module, source, opset=opset, layernorm_op=layernorm_op, batch=batch)
    path = folder / "model.float.onnx"
    save(graph, path)
    return OnnxModel.of(path, opset=opset, batch=batch, precision="fp32")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class QuantizedModel:
    """A written INT8 graph, its recipe, and the same numbers as Q/DQ where they were asked for."""

    onnx: OnnxModel
    recipe: QuantRecipe
    exact: OnnxModel | None = None


class Foreign(OnnxRuntimeCpu):
    """A CPU whose integers no machine has."""

    lacks_integers = True


def quantize(
    model: OnnxModel,
    images: ImageSet,
    spec: PreprocessSpec,
    folder: Path,
    *,
    cpu: CpuArithmetic | None,
    progress: Progress = silent,
    settings: QuantSettings | None = None,
    exact_twin: bool = False,
) -> QuantizedModel:
    """The float `model` in INT8 for TensorRT, or for a CPU, written to `folder` as a build writes it."""
    stack: Stack = stacks.of(resolve("l4"))
    if cpu is not None:
        stack = (Foreign if exact_twin else OnnxRuntimeCpu)(dataclasses.replace(resolve("cpu-x86-avx2"), cpu=cpu))
    work = Calibration(
        graph=load_graph(model.path),
        batch=model.batch.minimum,
        images=images,
        spec=spec,
        arithmetic=stack.arithmetic,
        settings=settings or QuantSettings(),
        progress=progress,
    )
    calibrated = calibrate(work)
    numbers = integers(calibrated)
    if cpu is None:
        return QuantizedModel(
            onnx=_int8(with_pairs(calibrated.folded, numbers), folder / "model.int8.onnx", model),
            recipe=recipe(work, calibrated),
        )
    variant = stack.variant(calibrated.folded, "int8", numbers, frozenset())
    return QuantizedModel(
        onnx=_int8(variant.graph, folder / "model.int8.onnx", model),
        recipe=recipe(work, calibrated),
        exact=_int8(variant.plain, folder / "model.exact.onnx", model) if exact_twin else None,
    )


def _int8(graph: ir.Model, path: Path, model: OnnxModel) -> OnnxModel:
    save(graph, path)
    return OnnxModel.of(path, opset=model.opset, batch=model.batch, precision="int8")
