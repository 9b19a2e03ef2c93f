"""A bundle enters on the device where it will live; an engine that was built and accepted there leaves, with its report.

Needs neither torch nor onnx nor the training data: the bundle's ONNX and recipe, TensorRT, and the golden inputs.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from vitexport.artifacts import EngineRecipe, Outputs, Progress, silent
from vitexport.bundle import REPORT, Bundle, open_bundle, write_json
from vitexport.datasets import ImageSet
from vitexport.errors import BundleError, DeviceError, InputError, UsageError
from vitexport.machine import l4t_release
from vitexport.preprocess import normalize
from vitexport.report import Check, Report, skipped
from vitexport.runtime import engines, inspection
from vitexport.runtime.backends import Inspectable, open_engine
from vitexport.runtime.backends.cuda import Gpu, cuda_runtime, current_gpu, why_no_gpu
from vitexport.runtime.backends.tensorrt_api import EXTRAS, TITLES
from vitexport.runtime.backends.tensorrt_build import BuilderOptions, build_plan, library_version, marked_name
from vitexport.runtime.checkpoints import IMAGES, read_checkpoints
from vitexport.runtime.engines import BuiltHere, Fingerprint
from vitexport.runtime.loading import built_facts
from vitexport.runtime.model import Model, run_in_batches
from vitexport.targets.rows import packaged
from vitexport.targets.target import version_key
from vitexport.validate import localize
from vitexport.validate.device import title, validate_bundle

# What the engine inspector says, beside the engine.
LAYERS = "layers.json"
# Of the device's free memory; the network's own tensors and the engine need the rest.
WORKSPACE_SHARE = 0.5


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class EngineRequest:
    """What ``vitexport engine`` is asked for.

    Attributes:
        workspace_mib: Most scratch memory for one layer; None for half of what the device has free.
        optimization_level: 0 to 5; None leaves it to TensorRT.
        version_compatible: Later versions of TensorRT shall run the engine too.
        hardware_compatible: Every GPU from Ampere on shall run it.
        dla_core: Deep Learning Accelerator to use; None for the GPU alone.
        strip_weights: Leave weights out of the engine; they come back from the bundle's ONNX when it is loaded.
        max_drop: Top-1 that may be lost against PyTorch on labelled images, in percentage points.
        localize: Look for the first module that departs even if the golden outputs do not.
    """

    workspace_mib: int | None = None
    optimization_level: int | None = None
    version_compatible: bool = False
    hardware_compatible: bool = False
    dla_core: int | None = None
    strip_weights: bool = False
    max_drop: float = 1.0
    localize: bool = False


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Machine:
    gpu: Gpu
    fingerprint: Fingerprint


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
    bundle: Bundle, request: EngineRequest, data: ImageSet | None = None, progress: Progress = silent
) -> tuple[Path | None, Report]:
    """Build the engine of `bundle` with this machine's library, hold it against PyTorch, and keep it if it is accepted.

    Args:
        bundle: From `open_for_engine`.
        request: How.
        data: Labelled images to judge it on, beside the golden inputs; or None.
        progress: Told what is done.

    Returns:
        The engine's folder in the bundle, or None if a check failed and it was not kept; and the report.

    Raises:
        DeviceError: No GPU, another one than the bundle's, or an older library than the bundle was written for.
        MissingDependencyError: TensorRT or the CUDA bindings are not installed.
        ToolchainError: TensorRT refuses the graph or fails.
        InputError: The bundle's folder cannot be written.
    """
    _check_request(bundle, request)
    machine = _machine(bundle)
    recipe = dataclasses.replace(_recipe(bundle), compute_capabilities=(machine.gpu.compute_capability,))
    options = _options(bundle, request, machine)
    said = {name: value for name, value in dataclasses.asdict(options).items() if name not in {"timing_cache", "marked"}}
    onnx = bundle.artifact("onnx")
    if onnx is None:
        raise BundleError(f"Bundle {bundle.root} holds no ONNX model; build it again.")
    library = f"{TITLES[machine.fingerprint.library]} {machine.fingerprint.version}"
    with engines.staging(bundle, machine.fingerprint, said) as staged:
        progress(f"building the engine with {library}")
        start = time.monotonic()
        plan = build_plan(onnx, recipe, machine.fingerprint.library, options, progress)
        seconds = time.monotonic() - start
        path = staged.folder / engines.ENGINE
        path.write_bytes(plan.engine)
        if plan.timing_cache is not None:
            (staged.folder / engines.TIMING_CACHE).write_bytes(plan.timing_cache)
        size = f"{len(plan.engine) / 2**20:.1f} MiB"
        message = f"built on {machine.gpu.name}{_jetpack_here()} by {library} in {seconds:.0f} s, {size}"
        if plan.timing_cache_used:
            message += "; kernels were chosen by what the build before had measured"
        built_here = BuiltHere(path=path, fingerprint=machine.fingerprint, options=said)
        report = _judged(bundle, request, built_here, data, progress)
        is_wrong = any(check.name == "golden" and check.status == "failed" for check in report.checks)
        if request.localize or is_wrong:
            again = dataclasses.replace(
                options, timing_cache=plan.timing_cache, version_compatible=False, strip_weights=False
            )

            def build_marked(tensors: Sequence[str]) -> bytes:
                progress(f"building it again with the outputs of {len(tensors)} modules")
                marked = dataclasses.replace(again, marked=tuple(tensors))
                return build_plan(onnx, recipe, machine.fingerprint.library, marked, progress).engine

            found = _localized(bundle, built_here, build_marked, is_wrong=is_wrong)
            report = dataclasses.replace(report, checks=(*report.checks, found))
        built = Check(name="engine", status="passed", message=message)
        notes = (*report.notes, _unconstrained(plan.unconstrained)) if plan.unconstrained else report.notes
        report = dataclasses.replace(report, checks=(built, *report.checks), notes=notes)
        write_json(staged.folder / REPORT, report.to_json())
        staged.keep = not any(check.status == "failed" and check.name not in inspection.CHECKS for check in report.checks)
    if not staged.keep:
        note = "The engine was not kept: it does not compute what PyTorch computed."
        return None, dataclasses.replace(report, notes=(*report.notes, note))
    return bundle.root / engines.FOLDER / machine.fingerprint.name, report


def _unconstrained(names: tuple[str, ...]) -> str:
    shown = ", ".join(names[:3]) + (" …" if len(names) > 3 else "")
    return (
        f"TensorRT made no layer for {len(names)} nodes that were to stay in FP32 ({shown}); whether it matters, the golden "
        "inputs tell."
    )


def _check_request(bundle: Bundle, request: EngineRequest) -> None:
    """What cannot be done on any machine is refused before one is looked at.

    Raises:
        UsageError: The options contradict the target, the precision or the batch.
    """
    manifest = bundle.manifest
    target, library = manifest.target, (manifest.engine or {})["library"]
    if library == "tensorrt-rtx" and (request.version_compatible or request.hardware_compatible):
        raise UsageError(
            "--version-compatible and --hardware-compatible are for full TensorRT; an engine of TensorRT-RTX runs with the "
            "version that built it, on the GPUs that it was built for (build --target l4 --target a10 for several)."
        )
    if request.hardware_compatible and target.kind == "jetson":
        raise UsageError(
            f"--hardware-compatible is not for {target.name}: TensorRT's hardware compatibility does not support JetPack."
        )
    if request.dla_core is None:
        return
    if target.kind != "jetson":
        raise UsageError(f"--dla is for Jetsons; {target.name} has no Deep Learning Accelerator.")
    if manifest.precision == "fp32":
        raise UsageError("--dla: a Deep Learning Accelerator computes float16 and int8; build the bundle with one of these.")
    if manifest.batch.is_dynamic:
        raise UsageError(
            f"--dla: a Deep Learning Accelerator takes one shape, and the bundle takes batches of {manifest.batch}; "
            "build it with one --batch size."
        )


def _machine(bundle: Bundle) -> _Machine:
    """The GPU and the library, once both fit the bundle."""
    manifest, target = bundle.manifest, bundle.manifest.target
    library = (manifest.engine or {})["library"]
    cuda = cuda_runtime("Building the engine", EXTRAS[library])
    if (reason := why_no_gpu(cuda)) is not None:
        raise DeviceError(
            f"The engine of {bundle.root} is built on {target.name} itself, and this machine has no CUDA GPU ({reason}). "
            "Copy the bundle to the device and run vitexport engine there."
        )
    gpu = current_gpu(cuda)
    served = _recipe(bundle).compute_capabilities
    if served and gpu.compute_capability not in served:
        raise DeviceError(
            f"Bundle {bundle.root} was built for {target.name} (compute capability {' or '.join(served)}), but this "
            f"machine's GPU is {gpu.name} (compute capability {gpu.compute_capability}). Build a bundle for it: "
            "vitexport targets lists the names for --target."
        )
    version = library_version(library)
    if target.tensorrt is not None and _release(version) < _release(target.tensorrt):
        raise DeviceError(
            f"Bundle {bundle.root} was written for {TITLES[library]} {target.tensorrt}, but this machine has {version}"
            f"{_jetpack_here()}, which may read parts of it by older rules. Build it again for this one"
            f"{' (--jetpack)' if target.jetpack else ''}, or upgrade here."
        )
    return _Machine(gpu=gpu, fingerprint=Fingerprint.of(library, version, gpu))


def _jetpack_here() -> str:
    """What a Jetson says of its software, in brackets; nothing elsewhere."""
    l4t = l4t_release()
    if l4t is None:
        return ""
    jetpack = packaged().jetpack_of(l4t)
    return f" (Jetson Linux {l4t}{f' of JetPack {jetpack}' if jetpack else ''})"


def _release(version: str) -> tuple[int, ...]:
    """Major and minor number: what a patch changes is not how a graph is read."""
    return version_key(".".join(version.split(".")[:2]))


def _recipe(bundle: Bundle) -> EngineRecipe:
    try:
        return EngineRecipe.from_json((bundle.manifest.engine or {})["recipe"])
    except (KeyError, TypeError, ValueError) as error:
        raise BundleError(f"The engine's recipe in bundle {bundle.root} is not what vitexport writes: {error}") from None


def _options(bundle: Bundle, request: EngineRequest, machine: _Machine) -> BuilderOptions:
    free = machine.gpu.free_bytes
    wanted = int(free * WORKSPACE_SHARE) if request.workspace_mib is None else request.workspace_mib << 20
    if wanted > free:
        raise DeviceError(
            f"--workspace {request.workspace_mib} asks for more than the {free >> 20} MiB that are free on "
            f"{machine.gpu.name}; give less, or end what else uses the GPU."
        )
    cache = None
    if machine.fingerprint.library == "tensorrt":
        # TensorRT-RTX times nothing when it compiles; its kernels are chosen when the engine is loaded.
        before = _before(bundle, machine)
        cache = before.read_bytes() if before is not None else b""
    return BuilderOptions(
        workspace_bytes=wanted,
        optimization_level=request.optimization_level,
        timing_cache=cache,
        version_compatible=request.version_compatible,
        hardware_compatible=request.hardware_compatible,
        dla_core=request.dla_core,
        strip_weights=request.strip_weights,
    )


def _before(bundle: Bundle, machine: _Machine) -> Path | None:
    """The timing cache of an engine that was built here before; one that was altered is not used."""
    try:
        found = engines.find(bundle, machine.fingerprint)
    except BundleError:
        return None
    path = found.path.with_name(engines.TIMING_CACHE) if found is not None else None
    return path if path is not None and path.is_file() else None


def _judged(bundle: Bundle, request: EngineRequest, built: BuiltHere, data: ImageSet | None, progress: Progress) -> Report:
    """What the new engine computes, through the runtime that will load it, and what it is made of."""
    # Kernels of an engine that may not be kept are not kept either.
    facts = dataclasses.replace(built_facts(bundle, built, built.fingerprint), kernel_cache=None)
    with Model(bundle, open_engine(built.path, facts)) as model:
        report = validate_bundle(model, data, request.max_drop, progress)
        if isinstance(model.backend, Inspectable):
            layers = model.backend.layer_information()
            built.path.with_name(LAYERS).write_text(layers, encoding="utf-8", errors="replace")
            report = with_inspection(report, layers, bundle)
        return dataclasses.replace(report, title=f"{title(model)} · {built.fingerprint}")


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


def _localized(bundle: Bundle, built: BuiltHere, build: Callable[[Sequence[str]], bytes], *, is_wrong: bool) -> Check:
    """Where the engine departs from PyTorch; what `build` makes is run once each and not kept."""
    checkpoints = read_checkpoints(bundle)
    if checkpoints is None:
        return skipped(localize.NAME, "the bundle keeps no outputs of its modules; build it again with this vitexport")
    pixels, _ = bundle.golden()
    images = normalize(pixels[:IMAGES], bundle.manifest.preprocess)
    marked = BuiltHere(path=built.path.with_name("marked.engine"), fingerprint=built.fingerprint, options={})
    facts = dataclasses.replace(built_facts(bundle, marked, built.fingerprint), kernel_cache=None)

    def run(tensors: Sequence[str]) -> Outputs:
        marked.path.write_bytes(build(tensors))
        try:
            with Model(bundle, open_engine(marked.path, facts)) as model:
                outputs = run_in_batches(model.backend, images, bundle.manifest.batch)
        finally:
            marked.path.unlink()
        names = {marked_name(tensor): tensor for tensor in tensors}
        return {names[name]: values for name, values in outputs.items() if name in names}

    return localize.localize(checkpoints, run, is_wrong=is_wrong)


def inspect_file(path: Path, bundle: Path | None) -> Report:
    """What an engine inspector's file says of an engine's blocks.

    Args:
        path: The file.
        bundle: What the engine was built from; None to hold it against no recipe.

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
