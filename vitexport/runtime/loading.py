"""Load a bundle on the best that this machine has for it, and say what that is.

An engine that was built for this machine comes first: one in ``engines/`` by its fingerprint, then the bundle's own. Where
neither fits, ONNX Runtime runs the bundle's ONNX, on the GPU if it can, else on the CPU, and `Model.fallback` says why.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

from vitexport.artifacts import INPUT_NAME
from vitexport.bundle import Bundle, Manifest, open_bundle
from vitexport.errors import (
    BundleError,
    DeviceError,
    InputError,
    MissingDependencyError,
    ToolchainError,
    UsageError,
    VitexportError,
)
from vitexport.runtime import engines
from vitexport.runtime.backends import GRAPH_RUNTIMES, Backend, EngineFacts, Provider, open_engine, open_onnx
from vitexport.runtime.backends.cuda import cuda_runtime, current_gpu, why_no_gpu
from vitexport.runtime.backends.tensorrt_api import EXTRAS, load_library
from vitexport.runtime.engines import BuiltHere, Fingerprint
from vitexport.runtime.model import Model
from vitexport.targets import Target, machine_cpu, misfit

BackendName: TypeAlias = Literal["auto", "tensorrt", "onnxruntime", "onnxruntime-cuda", "onnxruntime-tensorrt"]
BACKENDS: tuple[BackendName, ...] = get_args(BackendName)
# Kernels that TensorRT-RTX compiles here for itself; not part of what the manifest vouches for.
CACHE = "cache"
CUDA: Provider = ("CUDAExecutionProvider", {})


def load(
    path: str | Path,
    *,
    backend: BackendName = "auto",
    engine: str | Path | None = None,
    threads: int | None = None,
) -> Model:
    """Verify the bundle at `path` and load it for this machine.

    Args:
        path: The bundle's folder.
        engine: An engine that was built on this device from the bundle's ONNX, to be run instead of the bundle's own. It
            is not part of the bundle and so not verified: trust it as you trust a shared library.
        backend: ``auto`` takes the engine that fits this machine, else ONNX Runtime on its GPU, else on its CPU;
            ``tensorrt`` insists on the engine; ``onnxruntime`` runs the ONNX on the CPU, ``onnxruntime-cuda`` and
            ``onnxruntime-tensorrt`` with ONNX Runtime's CUDA and TensorRT providers.
        threads: CPU threads of ONNX Runtime; None for one per processor that the process may use.

    Raises:
        BundleError: The bundle, or an engine that was built in it for this machine, is damaged or foreign.
        DeviceError: What was asked for by name does not fit this machine; the message names both.
        MissingDependencyError: The library that runs it is not installed.
    """
    if backend not in BACKENDS:
        raise UsageError(f"Backend {backend!r} is unknown; use {', '.join(BACKENDS[:-1])} or {BACKENDS[-1]}.")
    bundle = open_bundle(Path(path))
    if engine is not None:
        return Model(bundle, _given_engine(bundle, Path(engine), backend))
    if backend == "tensorrt":
        return Model(bundle, _engine(bundle))
    if backend != "auto":
        return Model(bundle, _onnx(bundle, threads, _providers(bundle, backend)))
    if bundle.manifest.engine is None:
        return Model(bundle, _onnx(bundle, threads), fallback=_elsewhere(bundle.manifest.target))
    try:
        return Model(bundle, _engine(bundle))
    except (ToolchainError, MissingDependencyError) as error:
        # Outside this block, where nothing of the failed engine holds the GPU's memory any longer.
        why = error.with_traceback(None)
    return _instead(bundle, threads, why)


def _elsewhere(target: Target) -> str | None:
    """What stands against taking this machine for `target`; None where it is no application."""
    return f"the bundle is for {target.name}, where it computes the same at another speed" if target.app else None


def _instead(bundle: Bundle, threads: int | None, why: VitexportError) -> Model:
    """ONNX Runtime where no engine can run, for the reason `why`; which is raised where it is not installed either."""
    try:
        try:
            return Model(bundle, _onnx(bundle, threads, (CUDA,)), fallback=str(why))
        except DeviceError:
            return Model(bundle, _onnx(bundle, threads), fallback=str(why))
        except ToolchainError as error:
            return Model(bundle, _onnx(bundle, threads), fallback=f"{why} {error}")
    except MissingDependencyError:
        raise why from None


def _given_engine(bundle: Bundle, path: Path, backend: BackendName) -> Backend:
    """An engine from outside the bundle; TensorRT itself refuses one of another version or GPU."""
    manifest = bundle.manifest
    if manifest.engine is None or backend.startswith("onnxruntime"):
        raise UsageError(f"Engine {path} was given, but bundle {bundle.root} is to be run by ONNX Runtime.")
    if not path.is_file():
        raise InputError(f"Engine {path} does not exist or is not a file.")
    return open_engine(path, _facts(bundle, manifest.engine, None))


def _engine(bundle: Bundle) -> Backend:
    """The engine for this machine.

    Raises:
        DeviceError: There is none.
    """
    manifest = bundle.manifest
    if manifest.engine is None:
        raise UsageError(
            f"Bundle {bundle.root} was built for {manifest.target.name}, which runs ONNX Runtime, not an engine."
        )
    path = bundle.artifact("engine")
    if engines.names(bundle):
        here = _this_machine(manifest)
        if (built := engines.find(bundle, here)) is not None:
            return open_engine(built.path, built_facts(bundle, built, here))
        if path is None:
            raise engines.refusal(bundle, here)
    if path is None:
        raise DeviceError(f"Bundle {bundle.root} holds no engine: {manifest.engine['skipped']}.")
    return open_engine(path, _facts(bundle, manifest.engine, manifest.engine["library_version"]))


def _this_machine(manifest: Manifest) -> Fingerprint:
    """What an engine in the bundle has to have been built on."""
    target, library = manifest.target.name, (manifest.engine or {})["library"]
    purpose = f"Running the engine for {target}"
    cuda = cuda_runtime(purpose, EXTRAS[library])
    if (reason := why_no_gpu(cuda)) is not None:
        raise DeviceError(
            f"The bundle's engines were built on {target}, but this machine has no CUDA GPU ({reason}). Run it on the "
            "device, or load the bundle with backend onnxruntime to look at its numbers."
        )
    return Fingerprint.of(library, str(load_library(library, purpose).__version__), current_gpu(cuda))


def built_facts(bundle: Bundle, built: BuiltHere, here: Fingerprint) -> EngineFacts:
    """What an engine of ``engines/`` needs to be loaded on the machine `here`, which it was found to serve."""
    return EngineFacts(
        library=built.fingerprint.library,
        # Which versions and GPUs it serves beyond its own, its fingerprint has told.
        library_version=here.version,
        compute_capabilities=(here.compute_capability,),
        target=bundle.manifest.target.name,
        version_compatible=built.options.get("version_compatible") is True,
        dla_core=built.options.get("dla_core"),
        weights=bundle.artifact("onnx") if built.options.get("strip_weights") is True else None,
        kernel_cache=bundle.root / CACHE,
    )


def _facts(bundle: Bundle, engine: Mapping[str, Any], version: str | None) -> EngineFacts:
    return EngineFacts(
        library=engine["library"],
        library_version=version,
        compute_capabilities=tuple(engine["recipe"]["compute_capabilities"]),
        target=bundle.manifest.target.name,
        kernel_cache=bundle.root / CACHE,
    )


def _onnx(bundle: Bundle, threads: int | None, providers: tuple[Provider, ...] = ()) -> Backend:
    manifest = bundle.manifest
    path = bundle.artifact("onnx")
    if path is None:
        raise BundleError(f"Bundle {bundle.root} holds no ONNX model; build it again.")
    for_cpu = manifest.target.loads_graph
    if for_cpu and (problem := misfit(manifest.target, machine_cpu(), precision=manifest.precision)):
        raise DeviceError(problem)
    if for_cpu:
        opener = GRAPH_RUNTIMES.get(manifest.target.runtime)
        if opener is None:
            raise BundleError(
                f"Bundle {bundle.root} is for a CPU and for {manifest.target.runtime}, which needs a GPU; build it again."
            )
        return opener(path, threads)
    # On a CPU, a graph for TensorRT is run as written: ONNX Runtime's own INT8 fusions would change its numbers.
    return open_onnx(path, threads=threads, exact=not providers, providers=providers)


def _providers(bundle: Bundle, backend: BackendName) -> tuple[Provider, ...]:
    """Execution providers for a backend that was asked for by name.

    Raises:
        UsageError: The graph is written for the CPU.
    """
    if backend == "onnxruntime":
        return ()
    manifest = bundle.manifest
    if manifest.target.loads_graph:
        raise UsageError(
            f"Bundle {bundle.root} was built for {manifest.target.name}: its graph is written in operators of ONNX "
            f"Runtime's CPU provider, and {backend} has no use for it. Build one for the GPU (vitexport targets)."
        )
    if backend == "onnxruntime-cuda":
        return (CUDA,)
    return (("TensorrtExecutionProvider", _tensorrt_settings(bundle)), CUDA)


def _tensorrt_settings(bundle: Bundle) -> dict[str, str]:
    """Options of ONNX Runtime's TensorRT provider, which builds a weakly typed engine of its own at every start.

    It could keep that engine, and would load whatever then lies there: no engine reaches TensorRT here unverified.
    """
    manifest = bundle.manifest
    recipe = (manifest.engine or {}).get("recipe", {})
    settings = {
        # The graph holds the types; the provider has to be allowed to use them.
        "trt_fp16_enable": str(int(manifest.precision != "fp32")),
        "trt_int8_enable": str(int(manifest.precision == "int8")),
    }
    for name, shape in zip(("min", "opt", "max"), recipe.get("profile") or (), strict=False):
        settings[f"trt_profile_{name}_shapes"] = f"{INPUT_NAME}:{'x'.join(map(str, shape))}"
    return settings
