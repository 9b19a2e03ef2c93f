"""Input: a new engine; output: what it computes, what TensorRT made of it and how long it takes in a `Report`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeAlias

from vitexport.artifacts import Outputs, Progress
from vitexport.bundle import Bundle, Manifest, open_bundle
from vitexport.datasets import ImageSet
from vitexport.device.request import EngineRequest
from vitexport.errors import BundleError, InputError, ToolchainError, VitexportError
from vitexport.preprocess import normalize
from vitexport.report import Check, Report, skipped
from vitexport.runtime import inspection
from vitexport.runtime.backends import Inspectable, open_engine
from vitexport.runtime.backends.tensorrt_build import marked_name
from vitexport.runtime.checkpoints import IMAGES, read_checkpoints
from vitexport.runtime.engines import BuiltHere
from vitexport.runtime.loading import built_facts
from vitexport.runtime.model import Model, run_in_batches
from vitexport.validate import localize
from vitexport.validate.bench import BenchRequest, Beside, bench_bundle, with_bench
from vitexport.validate.device import GOLDEN, title, validate_bundle

# What the engine inspector says, beside the engine.
LAYERS = "layers.json"
# PyTorch of the same architecture, to be timed beside the engine; or why there is none.
PyTorch: TypeAlias = Callable[[Manifest], Beside]


def judge(  # noqa: PLR0913 - what is judged, how, on what and beside what
    bundle: Bundle,
    request: EngineRequest,
    built: BuiltHere,
    *,
    data: ImageSet | None,
    pytorch: PyTorch | None,
    progress: Progress,
) -> Report:
    """What the new engine computes, through the runtime that will load it, what it is made of, and how long it takes."""
    # Kernels of an engine that may not be kept are not kept either.
    facts = dataclasses.replace(built_facts(bundle, built, built.fingerprint), kernel_cache=None)
    with Model(bundle, open_engine(built.path, facts)) as model:
        report = validate_bundle(model, data, request.budget, progress, expect_top1=request.expect_top1)
        if isinstance(model.backend, Inspectable):
            report = _inspected(report, model.backend, built.path.with_name(LAYERS), bundle)
        if request.bench_seconds is not None and is_accepted(report.checks):
            report = _timed(report, model, request.bench_seconds, pytorch, progress)
        return dataclasses.replace(report, title=f"{title(model)} · {built.fingerprint}")


def is_accepted(checks: Sequence[Check]) -> bool:
    """Whether an engine may be kept: it was judged, and nothing failed but what costs speed alone."""
    failed = {check.name for check in checks if check.status == "failed"}
    judged = any(check.name == GOLDEN and check.status == "passed" for check in checks)
    return judged and failed <= set(inspection.CHECKS)


def _inspected(report: Report, backend: Inspectable, path: Path, bundle: Bundle) -> Report:
    """`report` with what the engine is made of, which `path` gets too; an engine that tells nothing is still one."""
    try:
        layers = backend.layer_information()
    except ToolchainError as error:
        return dataclasses.replace(report, checks=(*report.checks, skipped(inspection.CHECKS[0], str(error))))
    path.write_text(layers, encoding="utf-8", errors="replace")
    return with_inspection(report, layers, bundle)


def _timed(report: Report, model: Model, seconds: float, pytorch: PyTorch | None, progress: Progress) -> Report:
    """`report` with how long the engine takes; what cannot be timed is still an engine."""
    try:
        beside = pytorch(model.manifest) if pytorch is not None else None
        timed = bench_bundle(model, BenchRequest(seconds=seconds), pytorch=beside, progress=progress)
    except Exception as error:  # noqa: BLE001 - PyTorch and timm of a device's own releases run here, and raise anything
        return dataclasses.replace(report, checks=(*report.checks, skipped("latency", _sentence(error))))
    return _with_estimate(with_bench(report, timed), model.bundle)


def _with_estimate(report: Report, bundle: Bundle) -> Report:
    """What the build estimated, to stand beside what was measured here."""
    estimate = bundle.report().measurements.get("estimate")
    if not estimate:
        return report
    return dataclasses.replace(report, measurements={**report.measurements, "estimate": estimate})


def with_inspection(report: Report, layers: str, bundle: Bundle | None) -> Report:
    """`report` with what the engine inspector's `layers` say of the blocks, and whether it is what `bundle` asks for."""
    try:
        found = inspection.inspect_engine(layers)
    except InputError as error:
        return dataclasses.replace(report, checks=(*report.checks, skipped(inspection.CHECKS[0], str(error))))
    recipe = (bundle.manifest.recipe if bundle is not None else None) or {}
    checks = inspection.checks(found, [str(module) for module in recipe.get("layers", ())])
    measurements = {**report.measurements, **found.to_json()}
    return dataclasses.replace(report, checks=(*report.checks, *checks), measurements=measurements)


def locate(bundle: Bundle, built: BuiltHere, build: Callable[[Sequence[str]], bytes], *, is_wrong: bool) -> Check:
    """Where the engine departs from PyTorch; what `build` makes is run once each and not kept.

    A library, or a disk, that fails at these larger engines says nothing of the one that was built: the search is then
    skipped.
    """
    try:
        checkpoints = read_checkpoints(bundle)
    except BundleError as error:
        return skipped(localize.NAME, str(error))
    if checkpoints is None:
        return skipped(localize.NAME, "the bundle keeps no outputs of its modules; build it again with this vitexport")
    pixels, _ = bundle.golden()
    images = normalize(pixels[:IMAGES], bundle.manifest.preprocess)
    options = {"dla_core": built.options.get("dla_core")}
    marked = BuiltHere(path=built.path.with_name("marked.engine"), fingerprint=built.fingerprint, options=options)
    facts = dataclasses.replace(built_facts(bundle, marked, built.fingerprint), kernel_cache=None)

    def run(tensors: Sequence[str]) -> Outputs:
        marked.path.write_bytes(build(tensors))
        try:
            with Model(bundle, open_engine(marked.path, facts)) as model:
                outputs = run_in_batches(model.backend, images, bundle.manifest.batch)
        finally:
            marked.path.unlink(missing_ok=True)
        names = {marked_name(tensor): tensor for tensor in tensors}
        return {names[name]: values for name, values in outputs.items() if name in names}

    try:
        return localize.localize(checkpoints, run, is_wrong=is_wrong)
    except (VitexportError, OSError) as error:
        return skipped(localize.NAME, f"the engine with the modules' outputs cannot be had: {_sentence(error)}")


def _sentence(error: Exception) -> str:
    """What `error` says; of one that is none of ours, its kind too."""
    return str(error) if isinstance(error, VitexportError) else f"{type(error).__name__}: {error}"


def inspect_file(path: Path, bundle: Path | None) -> Report:
    """What an engine inspector's file says of an engine's blocks.

    Args:
        path: The file.
        bundle: What the engine was built from; None to check it against no recipe.

    Raises:
        InputError: `path` cannot be read, or is something else.
        BundleError: `bundle` is damaged or foreign.
    """
    opened = open_bundle(bundle) if bundle is not None else None
    try:
        text = path.read_text(encoding="utf-8")
        inspection.read_layers(text)
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read: {error}") from None
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    return with_inspection(Report(title=path.name, checks=(), measurements={}, machine={}), text, opened)
