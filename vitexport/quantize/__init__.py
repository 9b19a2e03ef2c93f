"""A float `OnnxModel`, calibration images and a target enter; a `QuantizedModel` leaves.

observe (ranges) → place (which layers) → round (integers) → write (Q/DQ for TensorRT, integer operators for a CPU).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import onnx_ir as ir

from vitexport.artifacts import OnnxModel, Progress, QuantizedModel, QuantRecipe
from vitexport.datasets import ImageSet
from vitexport.errors import InputError
from vitexport.preprocess import PreprocessSpec
from vitexport.quantize.observe import Histogram, observe
from vitexport.quantize.place import Site, linear_sites
from vitexport.quantize.round import asymmetric, quantize_weight, symmetric_int8
from vitexport.rewrites import InPlacePass, apply, load, save
from vitexport.rewrites.cpu_integer import CpuInteger
from vitexport.rewrites.insert_qdq import InsertQdq, QuantizedLinear
from vitexport.runtime.backends.onnx_runtime import OnnxRuntimeBackend
from vitexport.targets import CpuArithmetic

PERCENTILE = 99.999
CALIBRATION_BATCH = 8
FILE_NAME = "model.int8.onnx"
TWIN_NAME = "model.exact.onnx"


def quantize(  # noqa: PLR0913 - the values of one stage
    model: OnnxModel,
    calibration: ImageSet,
    spec: PreprocessSpec,
    folder: Path,
    *,
    cpu: CpuArithmetic | None,
    progress: Progress,
    exact_twin: bool = False,
) -> QuantizedModel:
    """Write the INT8 form of `model` to `folder`.

    Args:
        model: The float model, as exported.
        calibration: Images from where the model will work.
        spec: The model's preprocessing.
        folder: Where ``model.int8.onnx`` goes.
        cpu: Arithmetic of a CPU target; None for TensorRT's symmetric Q/DQ.
        progress: Told after each batch.
        exact_twin: Also write the same numbers as Q/DQ, for a machine that cannot run the CPU variant.

    Raises:
        InputError: The graph has no layer to quantize, or computes NaN on a calibration image.
        ToolchainError: ONNX Runtime or a rewrite fails.
    """
    graph = load(model.path)
    sites = linear_sites(graph.graph)
    if not sites:
        raise InputError("The model has no linear layer with a constant weight; there is nothing to quantize.")
    ranges = _ranges(model, sites, calibration, spec, progress)
    layers = [_layer(site, ranges[site.activation], cpu) for site in sites]
    rewrite: InPlacePass = InsertQdq(layers) if cpu is None else CpuInteger(layers)
    apply(graph, rewrite)
    path = folder / FILE_NAME
    save(graph, path)
    exact = None
    if exact_twin:
        twin = load(model.path)
        apply(twin, InsertQdq(layers, symmetric=False))
        save(twin, folder / TWIN_NAME)
        exact = OnnxModel.of(folder / TWIN_NAME, opset=model.opset, batch=model.batch, precision="int8")
    recipe = QuantRecipe(
        placement="A",
        arithmetic="tensorrt" if cpu is None else "onnxruntime-cpu",
        activation_observer=f"percentile:{PERCENTILE}",
        weight_bits=8 if cpu is None else cpu.weight_bits,
        activation_type="int8" if cpu is None else cpu.activation,
        images={file.relative: file.sha256 for file in calibration.files},
        skipped_images=dict(calibration.skipped),
        layers=tuple(site.module for site in sites),
        ranges={site.module: ranges[site.activation] for site in sites},
    )
    quantized = OnnxModel.of(path, opset=model.opset, batch=model.batch, precision="int8")
    return QuantizedModel(onnx=quantized, recipe=recipe, exact=exact)


def _ranges(
    model: OnnxModel, sites: Sequence[Site], calibration: ImageSet, spec: PreprocessSpec, progress: Progress
) -> Mapping[str, tuple[float, float]]:
    """The range of each activation that a layer reads, by its tensor's name."""
    tensors = list(dict.fromkeys(site.activation for site in sites))
    backend = OnnxRuntimeBackend(with_outputs(model.path, tensors), outputs=tensors)
    size = min(max(CALIBRATION_BATCH, model.batch.minimum), model.batch.maximum)
    batches = calibration.batches(spec, size, whole=not model.batch.is_dynamic)
    histograms: Mapping[str, Histogram] = observe(backend, tensors, batches, len(calibration.files), progress)
    return {name: histogram.percentile_range(PERCENTILE) for name, histogram in histograms.items()}


def with_outputs(path: Path, tensors: Sequence[str]) -> bytes:
    """The model at `path`, serialized, with `tensors` as its outputs."""
    model = load(path)
    values = {output.name: output for node in model.graph for output in node.outputs}
    model.graph.outputs.clear()
    model.graph.outputs.extend(values[name] for name in tensors)
    serialized: bytes = ir.to_proto(model).SerializeToString()
    return serialized


def _layer(site: Site, limits: tuple[float, float], cpu: CpuArithmetic | None) -> QuantizedLinear:
    scale, zero = symmetric_int8(*limits) if cpu is None else asymmetric(*limits, cpu.activation)
    weight, weight_scale = quantize_weight(site.weight, 8 if cpu is None else cpu.weight_bits)
    return QuantizedLinear(
        node=site.node,
        activation=site.activation,
        activation_scale=scale,
        activation_zero_point=zero,
        weight=weight,
        weight_scale=weight_scale,
    )
