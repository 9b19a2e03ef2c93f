"""A `BuildRequest` enters; a validated bundle, written whole or not at all, and its `Report` leave."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitexport import bundle as bundles
from vitexport.artifacts import ONNX_APP, Engine, OnnxModel, Outputs, QuantRecipe
from vitexport.bundle import Bundle, Manifest
from vitexport.engine import RAW_INPUT, make_engine, raw_output, write_check
from vitexport.errors import DeviceError, InputError, MissingDependencyError, NothingToQuantizeError
from vitexport.export import export_onnx
from vitexport.legality.counts import graph_products
from vitexport.machine import Stopwatch, describe_machine, library_versions
from vitexport.pipeline.candidates import Candidate, cpu_float, make_candidate
from vitexport.pipeline.checkpoints import keep_checkpoints
from vitexport.pipeline.embed import Embedded, embed
from vitexport.pipeline.prepare import prepare
from vitexport.pipeline.reference_checks import expectation, reference_checks
from vitexport.pipeline.request import BuildRequest
from vitexport.pipeline.requires import requirements
from vitexport.pipeline.stages import EXPORTING, REFERENCE, TIMING, WRITING, Stages, delivering, is_timed, trying
from vitexport.pipeline.work import (
    Reference,
    Work,
    golden_batch,
    golden_images,
    over,
    peak_images,
    raw_count,
    reading,
    repeated,
)
from vitexport.preprocess import normalize
from vitexport.quantize.fallback import most_sensitive_first
from vitexport.report import Check, Report, at_least, skipped
from vitexport.rewrites import load, move, remove
from vitexport.rewrites.stay_float32 import float32_nodes
from vitexport.roofline import Prediction, predict
from vitexport.runtime.backends import EngineFacts, open_engine, open_onnx
from vitexport.runtime.backends.onnx_runtime import available_threads
from vitexport.runtime.model import run_in_batches
from vitexport.validate.answers import Truth
from vitexport.validate.latency import Runner, Timing, measure
from vitexport.validate.numerics import GOLDEN_CEILING_DB, GOLDEN_SLACK_DB, golden, parity
from vitexport.validate.preprocessing import preprocessed
from vitexport.validate.probes import golden_count, probe_pixels
from vitexport.validate.reference import description, reference_outputs, reference_runner

LATENCY_SECONDS = 6.0
WIDEST_FIRST = ("fp32", "fp16", "int8")


def run(request: BuildRequest, stages: Stages) -> tuple[Bundle, Report]:
    """As `vitexport.pipeline.entry.run`, which begins the stages."""
    watch = Stopwatch()
    with watch.stage("source"):
        prepared = prepare(request)
    with bundles.staging(prepared.out, force=request.force) as folder:
        work = Work(request=request, prepared=prepared, folder=folder, watch=watch, progress=stages)
        report = _build(work)
    return bundles.open_bundle(prepared.out), report


def _build(work: Work) -> Report:
    target = work.prepared.target
    exported = _export(work)
    reference = _reference(work, exported)
    checks = [_parity(work, exported, reference)]
    found, reference_figures = reference_checks(work, reference)
    checks += found
    candidates, left_out = _candidates(work, exported, reference)
    candidates += _instead(work, candidates, exported, reference)
    timing = _time_cpu(work, exported, candidates, reference)
    prediction = _predict(work, candidates)
    chosen, notes = _choose(work, candidates, timing, prediction)
    notes += [*left_out, *chosen.notes]
    notes.insert(0, f"Preprocessing: {work.prepared.source.preparation}.")
    if (loading := work.prepared.source.loading) is not None:
        notes.insert(0, f"Weights from {loading}.")
    checks += chosen.numerics.checks
    checks += expectation(work, chosen.numerics.figures)
    checks += _refused_int8(candidates, chosen)
    checks += _speed_checks(work, chosen, timing)
    shipped = _ship(chosen, exported, work.folder)
    checkpoints = keep_checkpoints(work, _float(work.folder, shipped), shipped, chosen, reference)
    engine = None
    if timing is not None and timing.caution:
        notes.append(timing.caution)
    if target.typing is not None:
        engine = _engine(work, shipped, chosen)
        checks += _engine_checks(work, engine, chosen, reference)
        notes.append(_CPU_NUMERICS)
    embedded = embed(work, shipped) if work.request.embeds(target) else None
    figures = _figures(chosen, candidates, exported, shipped, engine, timing, reference)
    if reference_figures:
        figures["reference"] = reference_figures
    if prediction.estimates:
        figures["estimate"] = prediction.to_json()
        notes.append(f"What a call takes at least is estimated {prediction.about}.")
    if embedded is not None:
        checks += embedded.checks
        notes += embedded.notes
        figures["embedded"] = dict(embedded.figures)
        if embedded.onnx is not None:
            figures["size"]["onnx_app_bytes"] = embedded.onnx.size
    report = Report(
        title=f"{work.prepared.source.name} · {shipped.precision} · {target.name}",
        checks=tuple(checks),
        measurements=figures,
        machine=describe_machine(),
        stages=tuple(work.watch.costs),
        notes=(*(finding.message for finding in work.prepared.findings), *notes),
    )
    work.progress.begin(WRITING)
    _write(work, chosen, shipped, engine, embedded, reference, checkpoints, report)
    return report


def _candidates(work: Work, exported: OnnxModel, reference: Reference) -> tuple[list[Candidate], list[str]]:
    """Every precision that is to be tried; ``auto`` goes on without INT8 where nothing can be quantized, and says so."""
    candidates, left_out = [], []
    for precision in work.prepared.precisions:
        work.progress.begin(trying(precision))
        try:
            candidates.append(make_candidate(work, precision, exported, reference))
        except NothingToQuantizeError as error:
            if work.request.precision != "auto":
                raise
            left_out.append(f"INT8 was left out: {error}")
    return candidates, left_out


def _export(work: Work) -> OnnxModel:
    work.progress.begin(EXPORTING)
    target = work.prepared.target
    with work.watch.stage("export"):
        return export_onnx(
            work.prepared.model,
            work.prepared.source,
            work.folder,
            opset=target.opset,
            layernorm_op=target.layernorm_op,
            batch=work.request.batch,
        )


def _engine(work: Work, shipped: OnnxModel, chosen: Candidate) -> Engine:
    target = work.prepared.target
    work.progress.begin(delivering(target))
    with work.watch.stage("engine"):
        return make_engine(shipped, work.prepared.source.preprocess, target, work.folder, stay_float32=chosen.stay_float32)


_CPU_NUMERICS = (
    "Accuracy was judged on the CPU from the graph that ships: Q/DQ is computed exactly, and every tensor that the engine "
    "keeps in float16 is rounded to it, with products accumulated in float32. Kernels that TensorRT fuses on the device "
    "were not part of it."
)


def _reference(work: Work, exported: OnnxModel) -> Reference:
    """Choose the images to judge on, and run PyTorch on them."""
    work.progress.begin(REFERENCE)
    prepared = work.prepared
    spec = prepared.source.preprocess
    with work.watch.stage("reference"):
        # Without images to judge on, those of calibration are of no use either.
        shown = prepared.data or prepared.calibration if prepared.evaluation is not None else None
        golden_pixels = probe_pixels(shown, spec, golden_count(prepared.source.outputs))
        golden_outputs = _pytorch(work, normalize(golden_pixels, spec))
        images = prepared.evaluation
        outputs: Outputs = golden_outputs
        truth: Truth | None = None
        if images is not None:
            outputs = over(images, work, REFERENCE, lambda batch: _pytorch(work, batch))
            truth = images.labels if images.targets is None else images.targets
    wide: frozenset[str] = frozenset()
    if prepared.target.typing is not None:
        with work.watch.stage("float16"):
            wide = float32_nodes(load(exported.path), peak_images(work, golden_pixels))
    return Reference(
        images=images,
        outputs=outputs,
        truth=truth,
        about=prepared.evaluation_about,
        golden_pixels=golden_pixels,
        golden_outputs=golden_outputs,
        stay_float32=wide,
    )


def _pytorch(work: Work, images: NDArray[np.float32]) -> Outputs:
    return reference_outputs(work.prepared.model, work.prepared.source.outputs, images)


def _parity(work: Work, exported: OnnxModel, reference: Reference) -> Check:
    """The float ONNX against PyTorch at batch 1, 2 and the largest, as far as the graph takes them."""
    batch = work.request.batch
    sizes = sorted({size for size in (1, 2, batch.minimum, batch.maximum) if batch.minimum <= size <= batch.maximum})
    wanted, seen = [], []
    with work.watch.stage("export check"):
        backend = open_onnx(exported.path)
        for size in sizes:
            images = golden_batch(work, reference, size)
            wanted.append(_pytorch(work, images))
            seen.append(backend.run(images))
    # One number of one picture may be near 0; what its error is measured by is what it reaches on all of them.
    single = [spec.name for spec in work.prepared.source.outputs if spec.is_binary or spec.kind == "values"]
    scales = {name: float(np.abs(reference.golden_outputs[name]).max()) for name in single}
    return parity(wanted, seen, scales)


def _instead(work: Work, candidates: Sequence[Candidate], exported: OnnxModel, reference: Reference) -> list[Candidate]:
    """Float, where INT8 alone was asked for and no set of its layers meets the budget."""
    if work.request.precision != "int8" or candidates[0].numerics.within_budget:
        return []
    offered = work.prepared.target.precisions
    return [make_candidate(work, "fp16" if "fp16" in offered else "fp32", exported, reference)]


def _refused_int8(candidates: Sequence[Candidate], chosen: Candidate) -> list[Check]:
    """A failed check where INT8 was asked for and float ships."""
    asked = candidates[0]
    if asked is chosen or asked.onnx.precision != "int8" or asked.numerics.within_budget:
        return []
    missed = "; ".join(check.message for check in asked.numerics.checks if check.status == "failed")
    message = f"no set of INT8 layers meets the budget, so {chosen.onnx.precision} ships; with all of them: {missed}"
    return [Check(name="int8", status="failed", message=message)]


def _time_cpu(work: Work, exported: OnnxModel, candidates: Sequence[Candidate], reference: Reference) -> Timing | None:
    """Latency of every candidate, the float ONNX and PyTorch, in turn in one run; None where it would not count."""
    target = work.prepared.target
    if not is_timed(target):
        return None
    work.progress.begin(TIMING)
    with work.watch.stage("latency"):
        images = golden_batch(work, reference, work.request.batch.optimum)
        backends = {candidate.onnx.precision: open_onnx(candidate.onnx.path) for candidate in candidates}
        if "fp32" not in backends:
            backends["fp32"] = open_onnx(cpu_float(work, exported).path)
        threads = available_threads()
        runners: dict[str, Runner] = {"pytorch": reference_runner(work.prepared.model, threads)}
        runners |= {name: backend.run for name, backend in backends.items()}
        timing = measure(runners, images, seconds=LATENCY_SECONDS)
    for name, backend in backends.items():
        timing.figures[name]["runtime"] = backend.description
    timing.figures["pytorch"]["runtime"] = f"{description()}, {threads} threads"
    return timing


def _predict(work: Work, candidates: Sequence[Candidate]) -> Prediction:
    """What the target takes at least for each candidate, from the graph that would ship."""
    try:
        products = {candidate.onnx.precision: graph_products(load(candidate.onnx.path)) for candidate in candidates}
    except InputError as error:
        return Prediction(skipped=str(error))
    return predict(work.prepared.target, products, work.request.batch.optimum)


def _choose(
    work: Work, candidates: Sequence[Candidate], timing: Timing | None, prediction: Prediction
) -> tuple[Candidate, list[str]]:
    """The fastest candidate within the budget; float if none is, so that its failed check is seen."""
    request, prepared = work.request, work.prepared
    if request.precision != "auto":
        # The last one is float where INT8 was asked for and does not meet the budget.
        return candidates[-1], []
    within = [candidate for candidate in candidates if candidate.numerics.within_budget]
    if timing is not None:
        figures = timing.figures
        within.sort(key=lambda candidate: figures[candidate.onnx.precision]["p50_ms"])
        how = "measured here, side by side"
    elif len(prediction.estimates) == len(candidates):
        within.sort(key=lambda candidate: prediction.seconds(candidate.onnx.precision) or 0.0)
        how = f"ordered by what the peak rates of {prepared.target.name} allow; nothing was measured on the device"
    else:
        how = f"INT8 presumed to be faster on {prepared.target.name}; nothing was measured there"
    # Nothing within the budget: the widest, so that what ships is at least as close to PyTorch as can be.
    chosen = within[0] if within else min(candidates, key=lambda candidate: WIDEST_FIRST.index(candidate.onnx.precision))
    tried = ", ".join(candidate.onnx.precision for candidate in candidates)
    reason = "the fastest within the budget" if within else "none was within the budget"
    note = f"Precision auto chose {chosen.onnx.precision} among {tried}: {reason} ({how})."
    if len(candidates) == 1:
        why = "no calibration images were given (`calibration`)" if request.calibration is None else "no other fits"
        note = f"Precision auto took {tried}: {why}."
    return chosen, [note]


def _speed_checks(work: Work, chosen: Candidate, timing: Timing | None) -> list[Check]:
    """INT8 that is not faster than float on its own CPU has failed at what it is for."""
    target = work.prepared.target
    if target.kind != "cpu":
        return []
    if target.app:
        return [skipped("latency", f"{target.name} is not this machine; what vitexport app writes shows it there")]
    if timing is None:
        return [
            skipped("latency", f"this machine cannot run the variant for {target.name}; time it there with vitexport bench")
        ]
    precision = chosen.onnx.precision
    if precision != "int8":
        return []
    fast, slow = timing.figures["int8"]["p50_ms"], timing.figures["fp32"]["p50_ms"]
    ratio = slow / fast
    return [
        at_least(
            "faster_than_float",
            ratio,
            1.0,
            f"INT8 is {ratio:.2f} x as fast as the float ONNX in the same runtime ({fast:.2f} ms against {slow:.2f} ms)",
            "ratio",
        )
    ]


def _engine_checks(work: Work, engine: Engine, chosen: Candidate, reference: Reference) -> list[Check]:
    """Whether the engine was compiled, and what it computes where it can run here."""
    request, prepared = work.request, work.prepared
    name = prepared.target.name
    if engine.path is None:
        reason = engine.skipped or ""
        return [skipped("engine", reason), skipped("latency", f"there is no engine yet; measure it on {name}")]
    size = engine.path.stat().st_size
    built = Check(
        name="engine",
        status="passed",
        message=f"compiled for compute capability {', '.join(engine.recipe.compute_capabilities)} by TensorRT-RTX "
        f"{engine.library_version}, {size / 2**20:.1f} MiB",
    )
    try:
        backend = open_engine(engine.path, engine_facts(engine, name))
    except (DeviceError, MissingDependencyError) as error:
        return [
            built,
            skipped("engine_output", str(error)),
            skipped("latency", f"the engine cannot run here; {name} can"),
        ]
    outputs = run_in_batches(backend, golden_images(work, reference), request.batch)
    specs, where = prepared.source.outputs, backend.description
    check, _ = golden(
        reference.golden_outputs,
        outputs,
        chosen.golden,
        specs=specs,
        name="engine_output",
        where=where,
        reading=reading(work),
    )
    return [built, check, skipped("latency", "time the engine with vitexport bench")]


def engine_facts(engine: Engine, target_name: str) -> EngineFacts:
    """What has to fit before `engine` may be loaded."""
    return EngineFacts(
        library=engine.library,
        library_version=engine.library_version,
        compute_capabilities=engine.recipe.compute_capabilities,
        target=target_name,
    )


def _ship(chosen: Candidate, exported: OnnxModel, folder: Path) -> OnnxModel:
    """Give the chosen graph its final name; candidates that were not chosen go."""
    final = folder / "model.onnx"
    if chosen.onnx.path == exported.path:
        move(exported.path, final)
    else:
        move(chosen.onnx.path, final)
    for path in folder.glob("model.*.onnx"):
        if path != exported.path:
            remove(path)
    shipped = chosen.onnx
    return OnnxModel.of(final, opset=shipped.opset, batch=shipped.batch, precision=shipped.precision)


def _float(folder: Path, shipped: OnnxModel) -> Path:
    """The float export, which may be what ships."""
    path = folder / "model.float.onnx"
    return path if path.exists() else shipped.path


def _figures(  # noqa: PLR0913, PLR0917 - the report gathers from every stage
    chosen: Candidate,
    candidates: Sequence[Candidate],
    exported: OnnxModel,
    shipped: OnnxModel,
    engine: Engine | None,
    timing: Timing | None,
    reference: Reference,
) -> dict[str, Any]:
    """Measurements of the report, as JSON values."""
    accuracy = dict(chosen.numerics.figures)
    if reference.images is not None:
        accuracy |= {
            "data": reference.images.name,
            "data_sha256": reference.images.sha256,
            "skipped_images": dict(reference.images.skipped),
        }
    sizes = {"onnx_bytes": shipped.size, "onnx_float_bytes": exported.size}
    if engine is not None and engine.path is not None:
        sizes["engine_bytes"] = engine.path.stat().st_size
    return {
        "accuracy": accuracy,
        "golden": chosen.golden,
        "layers": _layers(chosen.recipe),
        "candidates": {candidate.onnx.precision: candidate.numerics.figures for candidate in candidates},
        "latency": timing.figures if timing is not None else {},
        "others_percent": timing.others_percent if timing is not None else None,
        "size": sizes,
    }


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


def _write(  # noqa: PLR0913, PLR0917 - a bundle gathers from every stage
    work: Work,
    chosen: Candidate,
    shipped: OnnxModel,
    engine: Engine | None,
    embedded: Embedded | None,
    reference: Reference,
    checkpoints: Mapping[str, str],
    report: Report,
) -> None:
    """Write golden arrays, reports and, last, the manifest that hashes them all."""
    folder, source = work.folder, work.prepared.source
    (folder / "golden").mkdir(exist_ok=True)
    np.save(folder / bundles.GOLDEN_PIXELS, reference.golden_pixels)
    np.save(folder / bundles.PREPROCESSED, preprocessed(source.preprocess))
    golden_files = {f"golden_{name}": f"golden/{name}.npy" for name in reference.golden_outputs}
    for name, values in reference.golden_outputs.items():
        np.save(folder / golden_files[f"golden_{name}"], values)
    bundles.write_json(folder / bundles.REPORT, report.to_json())
    (folder / bundles.REPORT_PAGE).write_text(report.to_markdown(), encoding="utf-8")
    raw_files = _write_raw(work, chosen, reference) if engine is not None and engine.library == "tensorrt" else {}
    artifacts = {
        "onnx": shipped.path.name,
        "onnx_float": _float(folder, shipped).name,
        "golden_pixels": bundles.GOLDEN_PIXELS,
        "golden_preprocessed": bundles.PREPROCESSED,
        **golden_files,
        **checkpoints,
        **raw_files,
    }
    if engine is not None and engine.path is not None:
        artifacts["engine"] = engine.path.name
    if embedded is not None and embedded.onnx is not None:
        artifacts[ONNX_APP] = embedded.onnx.path.name
    bundles.write_manifest(
        folder,
        Manifest(
            versions=library_versions(),
            model=source.to_json(),
            target=work.prepared.target,
            precision=shipped.precision,
            batch=work.request.batch,
            preprocess=source.preprocess,
            task=source.task,
            threshold=work.request.threshold,
            labels=work.prepared.labels,
            synsets=work.prepared.synsets,
            outputs=source.outputs,
            artifacts=artifacts,
            engine=_engine_json(engine),
            recipe=dataclasses.asdict(chosen.recipe) if chosen.recipe is not None else None,
            requires=requirements(folder, artifacts, work.prepared.target, engine),
            files=bundles.hash_files(folder),
        ),
    )


def _write_raw(work: Work, chosen: Candidate, reference: Reference) -> dict[str, str]:
    """One call's golden inputs and PyTorch's outputs as trtexec reads them, and the script that holds both together.

    Returns:
        Role to path in the bundle.
    """
    count = raw_count(work.request.batch)
    images = golden_batch(work, reference, count)
    images.astype("<f4").tofile(work.folder / RAW_INPUT)
    roles = {"raw_image": RAW_INPUT}
    for name, values in reference.golden_outputs.items():
        roles[f"raw_{name}"] = raw_output(name)
        repeated(values, count).astype("<f4").tofile(work.folder / raw_output(name))
    limits = {name: min(value - GOLDEN_SLACK_DB, GOLDEN_CEILING_DB) for name, value in chosen.raw_db.items()}
    if all(map(math.isfinite, limits.values())):
        classes = {
            spec.name: spec.shape[0] if spec.names_classes or spec.is_binary else 0 for spec in work.prepared.source.outputs
        }
        write_check(work.folder, work.prepared.target, images.shape, limits, classes)
    return roles


def _engine_json(engine: Engine | None) -> dict[str, Any] | None:
    if engine is None:
        return None
    data = dataclasses.asdict(engine)
    del data["path"]
    return data
