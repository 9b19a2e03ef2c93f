"""Build a bundle: export, reference, every precision made and judged, the fastest chosen, written once and checked."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from vitexport import bundle as bundles
from vitexport.artifacts import Precision, QuantRecipe
from vitexport.bundle import Bundle
from vitexport.errors import InputError, NothingToQuantizeError
from vitexport.export import export_graph
from vitexport.machine import Stopwatch, describe_machine
from vitexport.pipeline.candidates import Candidate, Judge, float_candidate, int8_candidate
from vitexport.pipeline.checkpoints import keep_checkpoints
from vitexport.pipeline.choose import choose, predict_there, refused_int8, time_here
from vitexport.pipeline.deliver import deliver
from vitexport.pipeline.embed import embed
from vitexport.pipeline.prepare import Prepared, prepare
from vitexport.pipeline.reference import Reference, make_reference
from vitexport.pipeline.reference_checks import expectation, reference_checks
from vitexport.pipeline.request import BuildRequest
from vitexport.pipeline.session import Session
from vitexport.pipeline.ship import Shipped, write_bundle, write_graphs
from vitexport.pipeline.stages import EXPORTING, WRITING, Stages, trying
from vitexport.quantize import Calibration
from vitexport.quantize.fallback import most_sensitive_first
from vitexport.report import Check, Report
from vitexport.rewrites import session as open_session
from vitexport.roofline import Prediction
from vitexport.validate.budget import Reading
from vitexport.validate.latency import Timing
from vitexport.validate.numerics import parity
from vitexport.validate.reference import reference_outputs


def run(request: BuildRequest, stages: Stages) -> tuple[Bundle, Report]:
    """As `vitexport.pipeline.entry.run`, which begins the stages."""
    watch = Stopwatch()
    with watch.stage("source"):
        prepared = prepare(request)
    with bundles.staging(prepared.out, force=request.force) as folder:
        report = _build(request, prepared, Session(folder=folder, watch=watch, progress=stages))
    return bundles.open_bundle(prepared.out), report


def _build(request: BuildRequest, prepared: Prepared, session: Session) -> Report:
    stack = prepared.stack
    exported = _export(prepared, session)
    reference = make_reference(prepared, session)
    checks = [_parity(prepared, exported, reference, session)]
    found, reference_figures = reference_checks(request, prepared, reference, session)
    judge = Judge(
        stack=stack,
        reference=reference,
        source=prepared.source,
        batch=prepared.batch,
        budget=request.budget,
        reading=Reading(names=prepared.labels, threshold=prepared.threshold),
        session=session,
    )
    candidates, notes = _candidates(request, prepared, exported, judge)
    timing = time_here(prepared, exported, candidates, reference, session)
    prediction = predict_there(stack.target, candidates, prepared.batch)
    chosen, why = choose(request, stack.target, candidates, timing, prediction)
    checks += [*found, *chosen.numerics.checks, *expectation(request.expect_top1, chosen.numerics.figures)]
    checks += [*refused_int8(candidates, chosen), *stack.speed_checks(chosen.precision, timing)]
    with session.watch.stage("write"):
        shipped = write_graphs(chosen, exported, prepared, session.folder)
    kept = keep_checkpoints(exported, chosen.variant, judge)
    engine, engine_checks = deliver(judge, shipped.onnx, chosen)
    embedded = embed(request, prepared, session, shipped.onnx, chosen.variant.graph) if request.embeds(stack) else None
    shipped = dataclasses.replace(shipped, checkpoints=kept, engine=engine, embedded=embedded)
    checks += [*engine_checks, *(embedded.checks if embedded is not None else ())]
    figures = _figures(chosen, candidates, shipped, timing, reference)
    if reference_figures:
        figures["reference"] = reference_figures
    if prediction.estimates:
        figures["estimate"] = prediction.to_json()
    report = Report(
        title=f"{prepared.source.name} · {chosen.precision} · {stack.target.name}",
        checks=tuple(checks),
        measurements=figures,
        machine=describe_machine(),
        # What a stack has no need of takes no time.
        stages=tuple(cost for cost in session.watch.costs if cost.seconds > 0),
        notes=(*_notes_on_source(prepared), *why, *notes, *chosen.notes, *_notes(prepared, timing, prediction, shipped)),
    )
    session.progress.begin(WRITING)
    write_bundle(prepared, shipped, chosen, reference, report)
    return report


def _notes_on_source(prepared: Prepared) -> list[str]:
    """What is known before anything is measured."""
    loading = prepared.source.loading
    return [
        *(finding.message for finding in prepared.findings),
        *([f"Weights from {loading}."] if loading is not None else []),
        f"Preprocessing: {prepared.source.preparation}.",
    ]


def _notes(prepared: Prepared, timing: Timing | None, prediction: Prediction, shipped: Shipped) -> list[str]:
    """What the reader of the figures has to know."""
    return [
        *([timing.caution] if timing is not None and timing.caution else []),
        *([prepared.stack.numerics_note] if prepared.stack.numerics_note is not None else []),
        *([f"Lower bound on latency, estimated {prediction.about}."] if prediction.estimates else []),
        *(shipped.embedded.notes if shipped.embedded is not None else ()),
    ]


def _export(prepared: Prepared, session: Session) -> ir.Model:
    session.progress.begin(EXPORTING)
    target = prepared.target
    with session.watch.stage("export"):
        return export_graph(
            prepared.model,
            prepared.source,
            opset=target.opset,
            layernorm_op=target.layernorm_op,
            batch=prepared.batch,
        )


def _parity(prepared: Prepared, exported: ir.Model, reference: Reference, session: Session) -> Check:
    """The float graph against PyTorch at batch 1, 2 and the largest, as far as the graph takes them."""
    batch = prepared.batch
    sizes = sorted({size for size in (1, 2, batch.minimum, batch.maximum) if batch.minimum <= size <= batch.maximum})
    wanted, seen = [], []
    with session.watch.stage("export check"):
        backend = open_session(exported)
        for size in sizes:
            images = reference.golden_batch(size)
            wanted.append(reference_outputs(prepared.model, prepared.source.outputs, images))
            seen.append(backend.run(images))
    # One number of one picture may be near 0; what its error is measured by is what it reaches on all of them.
    single = [spec.name for spec in prepared.source.outputs if spec.is_binary or spec.kind == "values"]
    scales = {name: float(np.abs(reference.golden_outputs[name]).max()) for name in single}
    return parity(wanted, seen, scales)


def _candidates(
    request: BuildRequest, prepared: Prepared, exported: ir.Model, judge: Judge
) -> tuple[list[Candidate], list[str]]:
    """Every precision that is to be tried; ``auto`` goes on without INT8 where nothing can be quantized, and says so.

    Where INT8 alone was asked for and no set of its layers meets the budget, float comes behind it.
    """
    session = judge.session
    wide = judge.stay_float32(exported)
    candidates, left_out = list[Candidate](), list[str]()
    for precision in prepared.precisions:
        session.progress.begin(trying(precision))
        if precision != "int8":
            candidates.append(float_candidate(exported, precision, judge, wide))
            continue
        try:
            candidates.append(int8_candidate(_calibration(prepared, exported, session), judge, prepared.replay))
        except NothingToQuantizeError as error:
            if request.precision != "auto":
                raise
            left_out.append(f"INT8 was left out: {error}")
    if request.precision == "int8" and not candidates[0].numerics.within_budget:
        instead: Precision = "fp16" if "fp16" in prepared.target.precisions else "fp32"
        candidates.append(float_candidate(exported, instead, judge, wide))
    return candidates, left_out


def _calibration(prepared: Prepared, exported: ir.Model, session: Session) -> Calibration:
    if prepared.calibration is None:
        raise InputError("INT8 needs calibration images; give `calibration`.")
    return Calibration(
        graph=exported,
        batch=prepared.batch.minimum,
        images=prepared.calibration,
        spec=prepared.source.preprocess,
        arithmetic=prepared.stack.arithmetic,
        settings=prepared.settings,
        progress=session.progress,
    )


def _figures(
    chosen: Candidate, candidates: Sequence[Candidate], shipped: Shipped, timing: Timing | None, reference: Reference
) -> dict[str, Any]:
    """Measurements of the report, as JSON values."""
    accuracy: dict[str, Any] = dict(chosen.numerics.figures)
    if reference.images is not None:
        accuracy |= {
            "data": reference.images.name,
            "data_sha256": reference.images.sha256,
            "skipped_images": dict(reference.images.skipped),
        }
    figures = {
        "accuracy": accuracy,
        "golden": chosen.golden,
        "layers": _layers(chosen.recipe),
        "candidates": {candidate.precision: candidate.numerics.figures for candidate in candidates},
        "latency": timing.figures if timing is not None else {},
        "others_percent": timing.others_percent if timing is not None else None,
        "size": _sizes(shipped),
    }
    if shipped.embedded is not None:
        figures["embedded"] = dict(shipped.embedded.figures)
    return figures


def _sizes(shipped: Shipped) -> Mapping[str, int]:
    sizes = {"onnx_bytes": shipped.onnx.size, "onnx_float_bytes": shipped.onnx_float.size}
    if shipped.engine is not None and shipped.engine.path is not None:
        sizes["engine_bytes"] = shipped.engine.path.stat().st_size
    if shipped.embedded is not None and shipped.embedded.onnx is not None:
        sizes["onnx_app_bytes"] = shipped.embedded.onnx.size
    return sizes


def _layers(recipe: QuantRecipe | None) -> dict[str, Any]:
    """Every layer that was to be quantized, the most sensitive first by the SQNR of its own output."""
    if recipe is None:
        return {}
    return {
        module: {
            "own_db": recipe.layer_db[module],
            "strength": recipe.strengths[module],
            "precision": "float" if module in recipe.stay_float else "int8",
        }
        for module in most_sensitive_first(recipe.layer_db)
    }
