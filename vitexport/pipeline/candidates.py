"""A float export and a precision enter; the graph of that precision, held against PyTorch, leaves as a `Candidate`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vitexport.artifacts import OnnxModel, Outputs, Precision, QuantizedModel, QuantRecipe
from vitexport.datasets import ImageSet
from vitexport.engine import lowered_layernorm
from vitexport.errors import InputError
from vitexport.export import FILE_NAME as EXPORT_NAME
from vitexport.legality import refuse
from vitexport.pipeline.stages import lacks_integers
from vitexport.pipeline.work import Reference, Work, golden_images, over, peak_images, raw_count, reading, repeated
from vitexport.quantize import Calibrated, Calibration, calibrate, output_db, write
from vitexport.quantize.calibrate import FOLD_LIMIT, RESIDUAL_SQNR_DB
from vitexport.quantize.fallback import fewest_float, most_sensitive_first
from vitexport.rewrites import apply, load, remove, save
from vitexport.rewrites.cpu_fusions import cpu_fusions
from vitexport.rewrites.emulate_float16 import EmulateFloat16
from vitexport.rewrites.float16 import Float16
from vitexport.rewrites.float16_weights import Float16Weights
from vitexport.rewrites.stay_float32 import float32_nodes
from vitexport.runtime.backends import Backend, open_onnx
from vitexport.runtime.model import run_in_batches
from vitexport.validate import metrics
from vitexport.validate.numerics import Numerics, compare


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Candidate:
    """One precision, built and judged.

    Attributes:
        onnx: What would ship.
        recipe: Of INT8.
        numerics: Against PyTorch on the images that it is judged on.
        golden: Figures on the golden inputs.
        raw_db: SQNR of each output on those of them that ship as raw files.
        stay_float32: Nodes that are not computed in float16.
        notes: What the reader of the report needs to know.
    """

    onnx: OnnxModel
    recipe: QuantRecipe | None
    numerics: Numerics
    golden: dict[str, Any]
    raw_db: Mapping[str, float]
    stay_float32: frozenset[str]
    notes: tuple[str, ...] = ()


def make_candidate(work: Work, precision: Precision, exported: OnnxModel, reference: Reference) -> Candidate:
    """Build one precision and hold it against PyTorch; INT8 within the budget if any set of its layers is."""
    if precision == "int8":
        return _int8_candidate(work, exported, reference)
    model = cpu_float(work, exported) if work.prepared.target.kind == "cpu" else exported
    if work.prepared.target.app and precision == "fp16":
        model = _float16_weights(work, model)
    return _judge(work, model, None, precision, reference, reference.stay_float32)


def _int8_candidate(work: Work, exported: OnnxModel, reference: Reference) -> Candidate:
    """Every layer that was asked for; where that misses the budget, the fewest go back to float."""
    calibration, calibrated = _calibrate(work, exported)
    # Of the graph that is quantized: equalization moves magnitudes from one tensor to another.
    wide = _float32_nodes(work, calibrated, reference)
    beyond = frozenset(module for node, module in calibrated.modules.items() if node in wide)
    tried: dict[frozenset[str], Candidate] = {}

    def build(stay_float: frozenset[str]) -> Candidate:
        if tried and next(reversed(tried)) == stay_float:
            return tried[stay_float]
        with work.watch.stage("quantize"):
            quantized = write(
                calibration,
                calibrated,
                work.folder,
                stay_float=stay_float | beyond,
                exact_twin=lacks_integers(work.prepared.target),
            )
        tried.pop(stay_float, None)
        tried[stay_float] = _judge(work, quantized.onnx, quantized, "int8", reference, wide)
        return tried[stay_float]

    def accept(stay_float: frozenset[str]) -> bool:
        return (tried.get(stay_float) or build(stay_float)).numerics.within_budget

    replay = work.prepared.replay
    decibels, restored = calibrated.layer_db, frozenset[str]()
    if replay is not None:
        replay.check_layers(calibrated.layer_db)
        restored = replay.stay_float - beyond
    elif not accept(restored):
        decibels = _output_db(work, calibration, calibrated)
        ranking = [name for name in most_sensitive_first(decibels) if name not in beyond]
        restored = fewest_float(ranking, accept) or frozenset()
    # Each trial replaces the file of the one before; the one that is kept need not be the last.
    candidate = build(restored)
    notes = _placement_notes(work, calibrated)
    if calibrated.unequalized:
        change = f"the float outputs would have changed by more than {FOLD_LIMIT:.0e}"
        notes += (f"{calibrated.unequalized} groups of layers were quantized without equalization: with it {change}.",)
    if beyond:
        notes += (f"{len(beyond)} layers stay float, since their results are beyond float16: {', '.join(sorted(beyond))}.",)
    if restored:
        ranking = [name for name in most_sensitive_first(decibels) if name in restored]
        names = ", ".join(f"{name} ({decibels[name]:.1f} dB)" for name in ranking)
        count = len(decibels.keys() - beyond)
        notes += (f"{len(restored)} of {count} layers stay float{_SEARCHED if replay is None else _REPLAYED}: {names}.",)
    return dataclasses.replace(candidate, notes=notes)


_SEARCHED = (
    " to meet the budget, and no single one could be quantized within it. They were found on the images that accuracy is "
    "judged on; in brackets the SQNR of the outputs with this layer alone in INT8"
)
_REPLAYED = ", as the recipe says; in brackets the SQNR of the layer's own output"


def _output_db(work: Work, calibration: Calibration, calibrated: Calibrated) -> Mapping[str, float]:
    with work.watch.stage("sensitivity"):
        return output_db(calibration, calibrated)


def _placement_notes(work: Work, calibrated: Calibrated) -> tuple[str, ...]:
    """What placements B and C found to quantize beyond the layers; C may find that no range allows it."""
    placement = work.prepared.settings.placement
    if placement.base == "A":
        return ()
    if placement.base == "B":
        what = "inputs of attention products"
        folded = sum(calibrated.strengths[group] > 0 for group in {item.group for item in calibrated.inputs})
        detail = f"; q and k were equalized against each other in {folded} attentions"
    else:
        what = "skip operands of residual Adds"
        detail = f"; a skip that rounding leaves at less than {RESIDUAL_SQNR_DB:.0f} dB stays float"
    return (f"Placement {placement} quantizes {len(calibrated.inputs)} {what} beyond the linear layers{detail}.",)


def _float32_nodes(work: Work, calibrated: Calibrated, reference: Reference) -> frozenset[str]:
    """Nodes of the graph that is quantized which float16 cannot compute safely; none for a CPU."""
    if work.prepared.target.typing is None:
        return frozenset()
    with work.watch.stage("float16"):
        return float32_nodes(load(calibrated.folded), peak_images(work, reference.golden_pixels))


def _judge(  # noqa: PLR0913, PLR0917 - what is judged, by what
    work: Work,
    model: OnnxModel,
    quantized: QuantizedModel | None,
    precision: Precision,
    reference: Reference,
    wide: frozenset[str],
) -> Candidate:
    """Bake float16 in where the target wants it, hold the graph against the target's rules, and against PyTorch."""
    target = work.prepared.target
    plain, about = model, reference.about
    if quantized is not None and quantized.exact is not None:
        plain = quantized.exact
        about += "; computed as Q/DQ in float, since this CPU cannot run the target's integer operators"
    judged = float16_twin(work, plain, precision, wide) if target.typing is not None and precision != "fp32" else plain.path
    if target.typing == "strong" and precision != "fp32":
        model = _to_float16(work, model, precision, wide)
    refuse(load(model.path), target)
    work.progress(f"validating {precision}")
    with work.watch.stage(f"validate {precision}"):
        backend = open_onnx(judged, exact=target.kind != "cpu" or judged != model.path)
        golden_outputs = run_in_batches(backend, golden_images(work, reference), work.request.batch)
        outputs = golden_outputs if reference.images is None else _evaluate(work, backend, reference.images, precision)
    if judged != model.path and judged.name != EXPORT_NAME:
        remove(judged)
    budget, specs = work.request.budget, work.prepared.source.outputs
    read = reading(work)
    seen = compare(reference.golden_outputs, golden_outputs, None, budget, specs=specs, where="golden inputs", reading=read)
    count = raw_count(work.request.batch)
    return Candidate(
        raw_db={
            name: metrics.sqnr_db(repeated(reference.golden_outputs[name], count), repeated(golden_outputs[name], count))
            for name in reference.golden_outputs
        },
        onnx=dataclasses.replace(model, precision=precision),
        recipe=quantized.recipe if quantized is not None else None,
        numerics=compare(reference.outputs, outputs, reference.truth, budget, specs=specs, where=about, reading=read),
        golden=seen.figures,
        stay_float32=wide,
    )


def cpu_float(work: Work, exported: OnnxModel) -> OnnxModel:
    """The float graph in ONNX Runtime's own operators, made once."""
    path = work.folder / "model.fp32.fused.onnx"
    if not path.exists():
        with work.watch.stage("fuse"):
            graph = load(exported.path)
            apply(graph, *cpu_fusions())
            save(graph, path)
    return OnnxModel.of(path, opset=exported.opset, batch=exported.batch, precision="fp32")


def _float16_weights(work: Work, model: OnnxModel) -> OnnxModel:
    """What an application loads as ``fp16``: half the file, computed in float32."""
    path = work.folder / "model.fp16.weights.onnx"
    with work.watch.stage("float16"):
        graph = load(model.path)
        apply(graph, Float16Weights())
        save(graph, path)
    return OnnxModel.of(path, opset=model.opset, batch=model.batch, precision="fp16")


def float16_twin(work: Work, plain: OnnxModel, precision: Precision, stay_float32: frozenset[str]) -> Path:
    """A graph that computes on this CPU what the engine computes in float16, to be removed; see `EmulateFloat16`."""
    target = work.prepared.target
    wide = set(stay_float32)
    if target.typing == "weak" and not target.layernorm_op:
        wide |= set(lowered_layernorm(plain.path))
    path = work.folder / f"model.{precision}.judged.onnx"
    with work.watch.stage("float16"):
        graph = load(plain.path)
        apply(graph, EmulateFloat16(wide))
        save(graph, path)
    return path


def _calibrate(work: Work, exported: OnnxModel) -> tuple[Calibration, Calibrated]:
    prepared = work.prepared
    if prepared.calibration is None:
        raise InputError("INT8 needs calibration images; give `calibration`.")
    calibration = Calibration(
        model=exported,
        images=prepared.calibration,
        spec=prepared.source.preprocess,
        cpu=prepared.target.cpu,
        settings=prepared.settings,
        progress=work.progress,
    )
    with work.watch.stage("calibrate"):
        return calibration, calibrate(calibration, work.folder)


def _to_float16(work: Work, model: OnnxModel, precision: Precision, wide: frozenset[str]) -> OnnxModel:
    work.progress("baking float16 into the graph")
    path = work.folder / f"model.{precision}.typed.onnx"
    with work.watch.stage("float16"):
        graph = load(model.path)
        apply(graph, Float16(wide))
        save(graph, path)
        if model.precision == "int8":
            remove(model.path)
        return OnnxModel.of(path, opset=model.opset, batch=model.batch, precision=precision)


def _evaluate(work: Work, backend: Backend, images: ImageSet, precision: str) -> Outputs:
    """Outputs of `backend` for all of `images`."""
    batch = work.request.batch
    return over(images, work, f"validating {precision}", lambda part: run_in_batches(backend, part, batch))
