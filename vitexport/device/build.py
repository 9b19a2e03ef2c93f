"""Build an engine on the device where its bundle will live; what is accepted stays there, with its report.

Needs neither torch nor onnx nor the training data: the bundle's ONNX and recipe, TensorRT, and the golden inputs.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from vitexport.artifacts import EngineRecipe, Progress, silent
from vitexport.bundle import REPORT, Bundle, open_bundle, write_json
from vitexport.datasets import ImageSet
from vitexport.device.judge import PyTorch, is_accepted, judge, locate
from vitexport.device.machine import Machine, builder_options, fitting_machine, read_recipe, with_timings
from vitexport.device.request import EngineRequest, check_request
from vitexport.errors import BundleError, UsageError
from vitexport.report import Check, Report
from vitexport.runtime import engines, inspection
from vitexport.runtime.backends.tensorrt_build import BuilderOptions, Plan, build_plan
from vitexport.runtime.engines import BuiltHere
from vitexport.validate import plausibility
from vitexport.validate.device import GOLDEN


def open_for_engine(path: Path) -> Bundle:
    """The verified bundle, if an engine belongs to it.

    Raises:
        BundleError: It is damaged, foreign or of another format.
        UsageError: It was built for a CPU.
    """
    bundle = open_bundle(path)
    if bundle.manifest.engine is None:
        raise UsageError(
            f"Bundle {path} was built for {bundle.manifest.target.name}, which runs ONNX Runtime; it needs no engine."
        )
    return bundle


def build_here(
    bundle: Bundle,
    request: EngineRequest,
    data: ImageSet | None = None,
    progress: Progress = silent,
    pytorch: PyTorch | None = None,
) -> tuple[Path | None, Report]:
    """Build the engine of `bundle` with this machine's library, check it against PyTorch, and keep it if it is accepted.

    Args:
        bundle: From `open_for_engine`.
        request: How.
        data: Labelled images to judge it on, beside the golden inputs; or None.
        progress: Told what is done.
        pytorch: Gives what is timed beside the engine, where it is timed; None for nothing.

    Returns:
        The engine's folder in the bundle, or None if a check failed and it was not kept; and the report.

    Raises:
        DeviceError: No GPU, another one than the bundle's, or an older library than the bundle was written for.
        MissingDependencyError: TensorRT or the CUDA bindings are not installed.
        ToolchainError: TensorRT refuses the graph or fails.
        InputError: The bundle's folder cannot be written.
    """
    check_request(bundle, request)
    machine = fitting_machine(bundle)
    options = builder_options(request, machine)
    job = _Job(bundle=bundle, machine=machine, onnx=_onnx(bundle), recipe=_recipe_for(bundle, machine), options=options)
    with engines.staging(bundle, machine.fingerprint, job.said) as staged:
        job = dataclasses.replace(job, options=with_timings(options, bundle, machine))
        plan, built = _compile(job, progress)
        engine = BuiltHere(path=staged.folder / engines.ENGINE, fingerprint=machine.fingerprint, options=job.said)
        engine.path.write_bytes(plan.engine)
        if plan.timing_cache is not None:
            (staged.folder / engines.TIMING_CACHE).write_bytes(plan.timing_cache)
        report = judge(bundle, request, engine, data=data, pytorch=pytorch, progress=progress)
        # What is looked for afterwards, in other engines, says nothing against this one.
        staged.keep = is_accepted(report.checks)
        is_wrong = any(check.name == GOLDEN and check.status == "failed" for check in report.checks)
        checks = [built, *report.checks]
        if request.localize or is_wrong:
            checks.append(locate(bundle, engine, _again(job, plan, progress), is_wrong=is_wrong))
        notes = (*report.notes, _unconstrained(plan.unconstrained)) if plan.unconstrained else report.notes
        report = dataclasses.replace(report, checks=tuple(checks), notes=notes)
        write_json(staged.folder / REPORT, report.to_json())
    if not staged.keep:
        note = f"The engine was not kept: {_why_not_kept(report.checks)}."
        return None, dataclasses.replace(report, notes=(*report.notes, note))
    return bundle.root / engines.FOLDER / machine.fingerprint.name, report


def _why_not_kept(checks: Sequence[Check]) -> str:
    failed = {check.name for check in checks if check.status == "failed"} - set(inspection.CHECKS)
    if failed and failed <= {plausibility.NAME, plausibility.EXPECTED}:
        return "it computes what PyTorch computed, and the model itself, or the labels of the images, cannot be right"
    return "it was not shown to compute what PyTorch computed"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Job:
    """What is compiled, how, and where."""

    bundle: Bundle
    machine: Machine
    onnx: Path
    recipe: EngineRecipe
    options: BuilderOptions

    @property
    def said(self) -> dict[str, Any]:
        """The options as JSON values, to be kept with the engine."""
        values = dataclasses.asdict(self.options)
        return {name: value for name, value in values.items() if name not in {"timing_cache", "marked"}}


def _onnx(bundle: Bundle) -> Path:
    path = bundle.artifact("onnx")
    if path is None:
        raise BundleError(f"Bundle {bundle.root} holds no ONNX model; build it again.")
    return path


def _recipe_for(bundle: Bundle, machine: Machine) -> EngineRecipe:
    """The bundle's recipe, for this GPU alone."""
    return dataclasses.replace(read_recipe(bundle), compute_capabilities=(machine.gpu.compute_capability,))


def _compile(job: _Job, progress: Progress) -> tuple[Plan, Check]:
    """The engine, and what is to be said of its making."""
    progress(f"building the engine with {job.machine.library}")
    start = time.monotonic()
    plan = build_plan(job.onnx, job.recipe, job.machine.fingerprint.library, job.options, progress)
    seconds = time.monotonic() - start
    message = f"built on {job.machine} by {job.machine.library} in {seconds:.0f} s, {len(plan.engine) / 2**20:.1f} MiB"
    if plan.timing_cache_used:
        message += "; kernels were chosen by what the build before had measured"
    return plan, Check(name="engine", status="passed", message=message)


def _again(job: _Job, plan: Plan, progress: Progress) -> Callable[[Sequence[str]], bytes]:
    """The same build with some tensors as further outputs; it takes its kernels from what the first build measured."""
    options = dataclasses.replace(job.options, timing_cache=plan.timing_cache, version_compatible=False, strip_weights=False)

    def build(tensors: Sequence[str]) -> bytes:
        progress(f"building it again with the outputs of {len(tensors)} modules")
        marked = dataclasses.replace(options, marked=tuple(tensors))
        return build_plan(job.onnx, job.recipe, job.machine.fingerprint.library, marked, progress).engine

    return build


def _unconstrained(names: tuple[str, ...]) -> str:
    shown = ", ".join(names[:3]) + (" …" if len(names) > 3 else "")
    return (
        f"TensorRT made no layer for {len(names)} nodes that were to stay in FP32 ({shown}); whether it matters, the golden "
        "inputs tell."
    )
