"""A `BuildRequest` enters; a validated bundle, written whole or not at all, and its `Report` leave."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitexport import bundle as bundles
from vitexport.artifacts import Engine, OnnxModel, Precision, Progress, QuantizedModel, QuantRecipe
from vitexport.bundle import Bundle, Manifest
from vitexport.datasets import ImageSet
from vitexport.engine import lowered_layernorm, make_engine
from vitexport.errors import DeviceError, InputError, MissingDependencyError
from vitexport.export import FILE_NAME as EXPORT_NAME
from vitexport.export import export_onnx
from vitexport.legality import refuse
from vitexport.machine import Stopwatch, describe_machine, library_versions
from vitexport.pipeline.prepare import Prepared, prepare
from vitexport.pipeline.request import BuildRequest
from vitexport.preprocess import normalize
from vitexport.quantize import Calibrated, Calibration, calibrate, write
from vitexport.quantize.calibrate import RESIDUAL_SQNR_DB
from vitexport.quantize.fallback import fewest_float, most_sensitive_first
from vitexport.report import Check, Report, at_least, skipped
from vitexport.rewrites import apply, load, save
from vitexport.rewrites.cpu_fusions import cpu_fusions
from vitexport.rewrites.emulate_float16 import EmulateFloat16
from vitexport.rewrites.float16 import Float16
from vitexport.runtime.backends import Backend, EngineFacts, open_engine, open_onnx
from vitexport.runtime.backends.onnx_runtime import available_threads
from vitexport.runtime.model import run_in_batches
from vitexport.targets import machine_cpu, misfit
from vitexport.validate.latency import Runner, Timing, measure
from vitexport.validate.numerics import Numerics, compare, golden, parity
from vitexport.validate.probes import probe_pixels
from vitexport.validate.reference import description, reference_logits, reference_runner

LATENCY_SECONDS = 6.0
EVALUATION_BATCH = 8
WIDEST_FIRST = ("fp32", "fp16", "int8")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Reference:
    """The images that the result is judged on, and PyTorch's logits for them.

    Attributes:
        images: None where the golden inputs, made from the package's photographs, are all there is.
        logits: float32 [n, classes].
        labels: int64 [n], or None.
        about: What the images are, for messages.
        golden_pixels: uint8 [m, height, width, 3].
        golden_logits: float32 [m, classes].
    """

    images: ImageSet | None
    logits: NDArray[np.float32]
    labels: NDArray[np.int64] | None
    about: str
    golden_pixels: NDArray[np.uint8]
    golden_logits: NDArray[np.float32]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Work:
    """What every stage of one build needs."""

    request: BuildRequest
    prepared: Prepared
    folder: Path
    watch: Stopwatch
    progress: Progress


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Candidate:
    """One precision, built and judged."""

    onnx: OnnxModel
    recipe: QuantRecipe | None
    numerics: Numerics
    golden: dict[str, Any]
    notes: tuple[str, ...] = ()


def run(request: BuildRequest, progress: Progress) -> tuple[Bundle, Report]:
    """Build, validate and write the bundle.

    Raises:
        VitexportError: With nothing left behind. A check that fails is no error: the bundle is written and says so.
    """
    watch = Stopwatch()
    progress("loading the model")
    with watch.stage("source"):
        prepared = prepare(request)
    with bundles.staging(prepared.out, force=request.force) as folder:
        work = _Work(request=request, prepared=prepared, folder=folder, watch=watch, progress=progress)
        report = _build(work)
    return bundles.open_bundle(prepared.out), report


def _build(work: _Work) -> Report:
    target = work.prepared.target
    exported = _export(work)
    reference = _reference(work)
    checks = [_parity(work, exported, reference)]
    candidates = [_candidate(work, precision, exported, reference) for precision in work.prepared.precisions]
    candidates += _instead(work, candidates, exported, reference)
    timing = _time_cpu(work, exported, candidates, reference)
    chosen, notes = _choose(work, candidates, timing)
    notes += chosen.notes
    checks += chosen.numerics.checks
    checks += _refused_int8(candidates, chosen)
    checks += _speed_checks(work, chosen, timing)
    shipped = _ship(chosen, exported, work.folder)
    engine = None
    if timing is not None and timing.caution:
        notes.append(timing.caution)
    if target.typing is not None:
        engine = _engine(work, shipped)
        checks += _engine_checks(work, engine, chosen, reference)
        notes.append(_CPU_NUMERICS)
    figures = _figures(chosen, candidates, exported, shipped, engine, timing, reference)
    report = Report(
        title=f"{work.prepared.source.name} · {shipped.precision} · {target.name}",
        checks=tuple(checks),
        measurements=figures,
        machine=describe_machine(),
        stages=tuple(work.watch.costs),
        notes=(*(finding.message for finding in work.prepared.findings), *notes),
    )
    work.progress("writing the bundle")
    _write(work, chosen, shipped, engine, reference, report)
    return report


def _export(work: _Work) -> OnnxModel:
    work.progress("exporting to ONNX")
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


def _engine(work: _Work, shipped: OnnxModel) -> Engine:
    target = work.prepared.target
    work.progress(f"compiling the engine for {target.name}" if target.engine_here else "writing the engine's recipe")
    with work.watch.stage("engine"):
        return make_engine(shipped, work.prepared.source.preprocess, target, work.folder)


_CPU_NUMERICS = (
    "Accuracy was judged on the CPU from the graph that ships: Q/DQ is computed exactly, and every tensor that the engine "
    "keeps in float16 is rounded to it, with products accumulated in float32. Kernels that TensorRT fuses on the device "
    "were not part of it."
)


def _reference(work: _Work) -> _Reference:
    """Choose the images to judge on, and run PyTorch on them."""
    work.progress("running PyTorch")
    prepared = work.prepared
    spec = prepared.source.preprocess
    with work.watch.stage("reference"):
        golden_pixels = probe_pixels(prepared.data or prepared.calibration, spec)
        golden_logits = reference_logits(prepared.model, normalize(golden_pixels, spec))
        images = prepared.evaluation
        logits, labels = golden_logits, None
        if images is not None:
            logits = _over(images, work, "running PyTorch", lambda batch: reference_logits(prepared.model, batch))
            labels = images.labels
    return _Reference(
        images=images,
        logits=logits,
        labels=labels,
        about=prepared.evaluation_about,
        golden_pixels=golden_pixels,
        golden_logits=golden_logits,
    )


def _over(images: ImageSet, work: _Work, what: str, run: Runner) -> NDArray[np.float32]:
    """`run` over all of `images`, batch by batch, with progress."""
    parts, done = [], 0
    for batch in images.batches(work.prepared.source.preprocess, EVALUATION_BATCH):
        parts.append(run(batch))
        done += len(batch)
        work.progress(what, done, len(images.files))
    return np.concatenate(parts)


def _parity(work: _Work, exported: OnnxModel, reference: _Reference) -> Check:
    """The float ONNX against PyTorch at batch 1, 2 and the largest, as far as the graph takes them."""
    batch = work.request.batch
    sizes = sorted({size for size in (1, 2, batch.minimum, batch.maximum) if batch.minimum <= size <= batch.maximum})
    wanted, seen = [], []
    with work.watch.stage("export check"):
        backend = open_onnx(exported.path)
        for size in sizes:
            images = _golden_batch(work, reference, size)
            wanted.append(reference_logits(work.prepared.model, images))
            seen.append(backend.run(images))
    return parity(wanted, seen)


def _golden_batch(work: _Work, reference: _Reference, size: int) -> NDArray[np.float32]:
    """The first `size` golden inputs, from the start again where they are fewer: float32 [size, 3, height, width]."""
    pixels = np.resize(reference.golden_pixels, (size, *reference.golden_pixels.shape[1:]))
    return normalize(pixels, work.prepared.source.preprocess)


def _candidate(work: _Work, precision: Precision, exported: OnnxModel, reference: _Reference) -> _Candidate:
    """Build one precision and hold it against PyTorch; INT8 within the budget if any set of its layers is."""
    if precision == "int8":
        return _int8_candidate(work, exported, reference)
    model = _cpu_float(work, exported) if work.prepared.target.kind == "cpu" else exported
    return _judge(work, model, None, precision, reference)


def _int8_candidate(work: _Work, exported: OnnxModel, reference: _Reference) -> _Candidate:
    """Every layer that was asked for; where that misses the budget, the fewest go back to float."""
    calibration, calibrated = _calibrate(work, exported)
    ranking = most_sensitive_first(calibrated.layer_db)
    tried: dict[frozenset[str], _Candidate] = {}

    def build(stay_float: frozenset[str]) -> _Candidate:
        if tried and next(reversed(tried)) == stay_float:
            return tried[stay_float]
        with work.watch.stage("quantize"):
            quantized = write(calibration, calibrated, work.folder, stay_float=stay_float, exact_twin=_is_foreign(work))
        tried.pop(stay_float, None)
        tried[stay_float] = _judge(work, quantized.onnx, quantized, "int8", reference)
        return tried[stay_float]

    def accept(stay_float: frozenset[str]) -> bool:
        return (tried.get(stay_float) or build(stay_float)).numerics.within_budget

    replay = work.prepared.replay
    if replay is not None:
        return build(replay.stay_float & set(ranking))
    restored = fewest_float(ranking, accept)
    # Each trial replaces the file of the one before; the one that is kept need not be the last.
    candidate = build(restored if restored is not None else frozenset())
    notes = _placement_notes(work, calibrated)
    if not restored:
        return dataclasses.replace(candidate, notes=notes)
    names = ", ".join(f"{name} ({calibrated.layer_db[name]:.1f} dB)" for name in ranking if name in restored)
    note = (
        f"{len(restored)} of {len(ranking)} layers stay float to meet the budget, and no single one could be quantized "
        f"within it: {names}. They were found on the images that accuracy is judged on; in brackets the SQNR of the layer's "
        "own output."
    )
    return dataclasses.replace(candidate, notes=(*notes, note))


def _placement_notes(work: _Work, calibrated: Calibrated) -> tuple[str, ...]:
    """What placements B and C found to quantize beyond the layers; C may find that no range allows it."""
    placement = work.prepared.settings.placement
    if placement.base == "A":
        return ()
    what = "inputs of attention products" if placement.base == "B" else "skip operands of residual Adds"
    reason = (
        "" if placement.base == "B" else f"; a skip that rounding leaves at less than {RESIDUAL_SQNR_DB:.0f} dB stays float"
    )
    return (f"Placement {placement} quantizes {len(calibrated.inputs)} {what} beyond the linear layers{reason}.",)


def _judge(
    work: _Work, model: OnnxModel, quantized: QuantizedModel | None, precision: Precision, reference: _Reference
) -> _Candidate:
    """Bake float16 in where the target wants it, hold the graph against the target's rules, and against PyTorch."""
    target = work.prepared.target
    plain, about = model, reference.about
    if quantized is not None and quantized.exact is not None:
        plain = quantized.exact
        about += "; computed as Q/DQ in float, since this CPU cannot run the target's integer operators"
    judged = _float16_twin(work, plain, precision) if target.typing is not None and precision != "fp32" else plain.path
    if target.typing == "strong" and precision != "fp32":
        model = _to_float16(work, model, precision)
    refuse(load(model.path), target)
    work.progress(f"validating {precision}")
    with work.watch.stage(f"validate {precision}"):
        backend = open_onnx(judged, exact=target.kind != "cpu" or judged != model.path)
        golden_logits = run_in_batches(backend, _golden_images(work, reference), work.request.batch)
        logits = golden_logits if reference.images is None else _evaluate(work, backend, reference.images, precision)
    if judged != model.path and judged.name != EXPORT_NAME:
        judged.unlink()
    budget = work.request.budget
    return _Candidate(
        onnx=dataclasses.replace(model, precision=precision),
        recipe=quantized.recipe if quantized is not None else None,
        numerics=compare(reference.logits, logits, reference.labels, budget, where=about),
        golden=compare(reference.golden_logits, golden_logits, None, budget, where="golden inputs").figures,
    )


def _instead(work: _Work, candidates: Sequence[_Candidate], exported: OnnxModel, reference: _Reference) -> list[_Candidate]:
    """Float, where INT8 alone was asked for and no set of its layers meets the budget."""
    if work.request.precision != "int8" or candidates[0].numerics.within_budget:
        return []
    offered = work.prepared.target.precisions
    return [_candidate(work, "fp16" if "fp16" in offered else "fp32", exported, reference)]


def _refused_int8(candidates: Sequence[_Candidate], chosen: _Candidate) -> list[Check]:
    """A failed check where INT8 was asked for and float ships."""
    asked = candidates[0]
    if asked is chosen or asked.onnx.precision != "int8" or asked.numerics.within_budget:
        return []
    missed = "; ".join(check.message for check in asked.numerics.checks if check.status == "failed")
    message = f"no set of INT8 layers meets the budget, so {chosen.onnx.precision} ships; with all of them: {missed}"
    return [Check(name="int8", status="failed", message=message)]


def _cpu_float(work: _Work, exported: OnnxModel) -> OnnxModel:
    """The float graph in ONNX Runtime's own operators, made once."""
    path = work.folder / "model.fp32.fused.onnx"
    if not path.exists():
        with work.watch.stage("fuse"):
            graph = load(exported.path)
            apply(graph, *cpu_fusions())
            save(graph, path)
    return OnnxModel.of(path, opset=exported.opset, batch=exported.batch, precision="fp32")


def _float16_twin(work: _Work, plain: OnnxModel, precision: Precision) -> Path:
    """A graph that computes on this CPU what the engine computes in float16; see `EmulateFloat16`."""
    target = work.prepared.target
    wide = lowered_layernorm(plain.path) if target.typing == "weak" and not target.layernorm_op else ()
    path = work.folder / f"model.{precision}.judged.onnx"
    with work.watch.stage("float16"):
        graph = load(plain.path)
        apply(graph, EmulateFloat16(wide))
        save(graph, path)
    return path


def _is_foreign(work: _Work) -> bool:
    """Whether the target is a CPU whose integer operators this machine cannot run."""
    target = work.prepared.target
    return target.kind == "cpu" and misfit(target, machine_cpu(), precision="int8") is not None


def _calibrate(work: _Work, exported: OnnxModel) -> tuple[Calibration, Calibrated]:
    prepared = work.prepared
    if prepared.calibration is None:
        raise InputError("INT8 needs calibration images; give --calibration DIR.")
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


def _to_float16(work: _Work, model: OnnxModel, precision: Precision) -> OnnxModel:
    work.progress("baking float16 into the graph")
    path = work.folder / f"model.{precision}.typed.onnx"
    with work.watch.stage("float16"):
        graph = load(model.path)
        apply(graph, Float16())
        save(graph, path)
        if model.precision == "int8":
            model.path.unlink()
        return OnnxModel.of(path, opset=model.opset, batch=model.batch, precision=precision)


def _golden_images(work: _Work, reference: _Reference) -> NDArray[np.float32]:
    return normalize(reference.golden_pixels, work.prepared.source.preprocess)


def _evaluate(work: _Work, backend: Backend, images: ImageSet, precision: str) -> NDArray[np.float32]:
    """Logits of `backend` for all of `images`."""
    batch = work.request.batch
    return _over(images, work, f"validating {precision}", lambda part: run_in_batches(backend, part, batch))


def _time_cpu(work: _Work, exported: OnnxModel, candidates: Sequence[_Candidate], reference: _Reference) -> Timing | None:
    """Latency of every candidate, the float ONNX and PyTorch, in turn in one run; None where it would not count."""
    target = work.prepared.target
    if target.kind != "cpu" or _is_foreign(work):
        return None
    work.progress("timing beside PyTorch")
    with work.watch.stage("latency"):
        images = _golden_batch(work, reference, work.request.batch.optimum)
        backends = {candidate.onnx.precision: open_onnx(candidate.onnx.path) for candidate in candidates}
        if "fp32" not in backends:
            backends["fp32"] = open_onnx(_cpu_float(work, exported).path)
        threads = available_threads()
        runners: dict[str, Runner] = {"pytorch": reference_runner(work.prepared.model, threads)}
        runners |= {name: backend.run for name, backend in backends.items()}
        timing = measure(runners, images, seconds=LATENCY_SECONDS)
    for name, backend in backends.items():
        timing.figures[name]["runtime"] = backend.description
    timing.figures["pytorch"]["runtime"] = f"{description()}, {threads} threads"
    return timing


def _choose(work: _Work, candidates: Sequence[_Candidate], timing: Timing | None) -> tuple[_Candidate, list[str]]:
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
    elif prepared.target.peaks:
        how = f"ordered by the peak rates of {prepared.target.name}; nothing was measured on the device"
    else:
        how = f"INT8 presumed to be faster on {prepared.target.name}; nothing was measured there"
    # Nothing within the budget: the widest, so that what ships is at least as close to PyTorch as can be.
    chosen = within[0] if within else min(candidates, key=lambda candidate: WIDEST_FIRST.index(candidate.onnx.precision))
    tried = ", ".join(candidate.onnx.precision for candidate in candidates)
    reason = "the fastest within the budget" if within else "none was within the budget"
    note = f"Precision auto chose {chosen.onnx.precision} among {tried}: {reason} ({how})."
    if len(candidates) == 1:
        why = "no calibration images were given (--calibration DIR)" if request.calibration is None else "no other fits"
        note = f"Precision auto took {tried}: {why}."
    return chosen, [note]


def _speed_checks(work: _Work, chosen: _Candidate, timing: Timing | None) -> list[Check]:
    """INT8 that is not faster than float on its own CPU has failed at what it is for."""
    target = work.prepared.target
    if target.kind != "cpu":
        return []
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


def _engine_checks(work: _Work, engine: Engine, chosen: _Candidate, reference: _Reference) -> list[Check]:
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
    logits = run_in_batches(backend, _golden_images(work, reference), request.batch)
    where = backend.description
    check, _ = golden(reference.golden_logits, logits, chosen.golden["sqnr_db"], name="engine_output", where=where)
    return [built, check, skipped("latency", "time the engine with vitexport bench")]


def engine_facts(engine: Engine, target_name: str) -> EngineFacts:
    """What has to fit before `engine` may be loaded."""
    return EngineFacts(
        library=engine.library,
        library_version=engine.library_version,
        compute_capabilities=engine.recipe.compute_capabilities,
        target=target_name,
    )


def _ship(chosen: _Candidate, exported: OnnxModel, folder: Path) -> OnnxModel:
    """Give the chosen graph its final name; candidates that were not chosen go."""
    final = folder / "model.onnx"
    if chosen.onnx.path == exported.path:
        shutil.copyfile(exported.path, final)
    else:
        chosen.onnx.path.rename(final)
    for path in folder.glob("model.*.onnx"):
        if path != exported.path or chosen.onnx.path == exported.path:
            path.unlink()
    return dataclasses.replace(chosen.onnx, path=final)


def _figures(  # noqa: PLR0913, PLR0917 - the report gathers from every stage
    chosen: _Candidate,
    candidates: Sequence[_Candidate],
    exported: OnnxModel,
    shipped: OnnxModel,
    engine: Engine | None,
    timing: Timing | None,
    reference: _Reference,
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
    work: _Work,
    chosen: _Candidate,
    shipped: OnnxModel,
    engine: Engine | None,
    reference: _Reference,
    report: Report,
) -> None:
    """Write golden arrays, reports and, last, the manifest that hashes them all."""
    folder, source = work.folder, work.prepared.source
    (folder / "golden").mkdir()
    np.save(folder / bundles.GOLDEN_PIXELS, reference.golden_pixels)
    np.save(folder / bundles.GOLDEN_LOGITS, reference.golden_logits)
    bundles.write_json(folder / bundles.REPORT, report.to_json())
    (folder / bundles.REPORT_PAGE).write_text(report.to_markdown(), encoding="utf-8")
    float_name = "model.float.onnx" if (folder / "model.float.onnx").exists() else shipped.path.name
    artifacts = {
        "onnx": shipped.path.name,
        "onnx_float": float_name,
        "golden_pixels": bundles.GOLDEN_PIXELS,
        "golden_logits": bundles.GOLDEN_LOGITS,
    }
    if engine is not None and engine.path is not None:
        artifacts["engine"] = engine.path.name
    bundles.write_manifest(
        folder,
        Manifest(
            versions=library_versions(),
            model=source.to_json(),
            target=work.prepared.target,
            precision=shipped.precision,
            batch=work.request.batch,
            preprocess=source.preprocess,
            labels=work.prepared.labels,
            synsets=source.synsets if work.request.labels is None else None,
            num_classes=source.num_classes,
            artifacts=artifacts,
            engine=_engine_json(engine),
            recipe=dataclasses.asdict(chosen.recipe) if chosen.recipe is not None else None,
            files=bundles.hash_files(folder),
        ),
    )


def _engine_json(engine: Engine | None) -> dict[str, Any] | None:
    if engine is None:
        return None
    data = dataclasses.asdict(engine)
    del data["path"]
    return data
