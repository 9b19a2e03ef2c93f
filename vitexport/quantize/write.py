"""Put what calibration decided into a graph: Q/DQ for TensorRT, integer operators for a CPU."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

from vitexport.artifacts import OnnxModel, Progress, QuantizedModel, QuantRecipe, silent
from vitexport.datasets import ImageSet
from vitexport.preprocess import PreprocessSpec
from vitexport.quantize.calibrate import Calibrated, Calibration, calibrate
from vitexport.quantize.settings import QuantSettings
from vitexport.rewrites import InPlacePass, apply, load, remove, save
from vitexport.rewrites.cpu_fusions import cpu_fusions
from vitexport.rewrites.cpu_integer import CpuInteger
from vitexport.rewrites.insert_qdq import InsertQdq
from vitexport.targets import CpuArithmetic

FILE_NAME = "model.int8.onnx"
TWIN_NAME = "model.exact.onnx"


def quantize(  # noqa: PLR0913 - the values of one stage
    model: OnnxModel,
    calibration: ImageSet,
    spec: PreprocessSpec,
    folder: Path,
    *,
    cpu: CpuArithmetic | None,
    progress: Progress = silent,
    settings: QuantSettings | None = None,
    exact_twin: bool = False,
) -> QuantizedModel:
    """Write the INT8 form of `model` to `folder`, with every layer that `settings` asks for.

    Args:
        model: The float model, as exported.
        calibration: Images from where the model will work.
        spec: The model's preprocessing.
        folder: Where ``model.int8.onnx`` goes.
        cpu: Arithmetic of a CPU target; None for TensorRT's symmetric Q/DQ.
        progress: Told after each batch.
        settings: How; None for the defaults.
        exact_twin: Also write the same numbers as Q/DQ, for a machine that cannot run the CPU variant.

    Raises:
        InputError: The graph has no layer to quantize, or computes NaN on a calibration image.
        UsageError: The settings do not go with the target.
        ToolchainError: ONNX Runtime or a rewrite fails.
    """
    work = Calibration(
        model=model, images=calibration, spec=spec, cpu=cpu, settings=settings or QuantSettings(), progress=progress
    )
    calibrated = calibrate(work, folder)
    try:
        return write(work, calibrated, folder, exact_twin=exact_twin)
    finally:
        remove(calibrated.folded)


def write(
    work: Calibration, calibrated: Calibrated, folder: Path, *, stay_float: Collection[str] = (), exact_twin: bool = False
) -> QuantizedModel:
    """Put what `calibrate` decided into a graph.

    Args:
        work: What was calibrated.
        calibrated: The result.
        folder: Where the file goes; one of the same name is replaced.
        stay_float: timm modules, and groups of further inputs, that are not quantized.
        exact_twin: As for `quantize`.
    """
    model = work.model
    layers = [layer for layer in calibrated.layers if calibrated.modules[layer.node] not in stay_float]
    inputs = [item for item in calibrated.inputs if item.group not in stay_float]
    rewrites: tuple[InPlacePass, ...] = (InsertQdq(layers, inputs),)
    if work.cpu is not None:
        rewrites = (CpuInteger(layers), *cpu_fusions())
    path = _written(calibrated.folded, rewrites, folder / FILE_NAME)
    exact = None
    if exact_twin:
        twin = _written(calibrated.folded, (InsertQdq(layers, symmetric=False),), folder / TWIN_NAME)
        exact = OnnxModel.of(twin, opset=model.opset, batch=model.batch, precision="int8")
    quantized = OnnxModel.of(path, opset=model.opset, batch=model.batch, precision="int8")
    return QuantizedModel(onnx=quantized, recipe=_recipe(work, calibrated, stay_float), exact=exact)


def _written(source: Path, rewrites: Sequence[InPlacePass], path: Path) -> Path:
    graph = load(source)
    apply(graph, *rewrites)
    save(graph, path)
    return path


def _recipe(work: Calibration, calibrated: Calibrated, stay_float: Collection[str]) -> QuantRecipe:
    modules = [calibrated.modules[layer.node] for layer in calibrated.layers]
    groups = dict.fromkeys(item.group for item in calibrated.inputs)
    return QuantRecipe(
        settings=work.settings.to_json(),
        arithmetic="tensorrt" if work.cpu is None else "onnxruntime-cpu",
        weight_bits=work.weight_bits,
        activation_type="int8" if work.cpu is None else work.cpu.activation,
        images={file.relative: file.sha256 for file in work.images.files},
        skipped_images=dict(work.images.skipped),
        layers=tuple(module for module in modules if module not in stay_float),
        stay_float=tuple(name for name in (*modules, *groups) if name in stay_float),
        inputs=tuple(group for group in groups if group not in stay_float),
        ranges=dict(calibrated.ranges),
        strengths=dict(calibrated.strengths),
        layer_db=dict(calibrated.layer_db),
    )
