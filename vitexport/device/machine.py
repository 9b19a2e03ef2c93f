"""Input: a bundle; output: this machine, if its GPU and library fit the bundle, and how much the build may take there."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from vitexport.artifacts import EngineRecipe
from vitexport.bundle import Bundle
from vitexport.device.request import EngineRequest
from vitexport.errors import BundleError, DeviceError
from vitexport.machine import l4t_release
from vitexport.runtime import engines
from vitexport.runtime.backends.cuda import Gpu, cuda_runtime, current_gpu, why_no_gpu
from vitexport.runtime.backends.tensorrt_api import EXTRAS, TITLES
from vitexport.runtime.backends.tensorrt_build import BuilderOptions, library_version
from vitexport.runtime.engines import Fingerprint
from vitexport.targets.rows import packaged
from vitexport.targets.target import version_key

# Of the device's free memory; the network's own tensors and the engine need the rest.
WORKSPACE_SHARE = 0.5


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """Where the engine is built.

    Attributes:
        gpu: The current one.
        fingerprint: Of an engine that is built here.
    """

    gpu: Gpu
    fingerprint: Fingerprint

    @property
    def library(self) -> str:
        """For example ``TensorRT 10.3.0``."""
        return f"{TITLES[self.fingerprint.library]} {self.fingerprint.version}"

    def __str__(self) -> str:
        """For example ``Orin (Jetson Linux 36.4.3 of JetPack 6.1)``."""
        return f"{self.gpu.name}{jetpack_here()}"


def fitting_machine(bundle: Bundle) -> Machine:
    """The GPU and the library, once both fit the bundle.

    Raises:
        DeviceError: No GPU, another one than the bundle's, or an older library than it was written for.
        MissingDependencyError: TensorRT or the CUDA bindings are not installed.
    """
    manifest, target = bundle.manifest, bundle.manifest.target
    library = (manifest.engine or {})["library"]
    cuda = cuda_runtime("Building the engine", EXTRAS[library])
    if (reason := why_no_gpu(cuda)) is not None:
        raise DeviceError(
            f"The engine of {bundle.root} is built on {target.name} itself, and this machine has no CUDA GPU ({reason}). "
            "Copy the bundle to the device and run vitexport engine there."
        )
    gpu = current_gpu(cuda)
    served = read_recipe(bundle).compute_capabilities
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
            f"{jetpack_here()}, which may read parts of it by older rules. Build it again for this one"
            f"{' (--jetpack)' if target.jetpack else ''}, or upgrade here."
        )
    return Machine(gpu=gpu, fingerprint=Fingerprint.of(library, version, gpu))


def jetpack_here() -> str:
    """What a Jetson says of its software, in brackets; nothing elsewhere."""
    l4t = l4t_release()
    if l4t is None:
        return ""
    jetpack = packaged().jetpack_of(l4t)
    return f" (Jetson Linux {l4t}{f' of JetPack {jetpack}' if jetpack else ''})"


def _release(version: str) -> tuple[int, ...]:
    """Major and minor number: what a patch changes is not how a graph is read."""
    return version_key(".".join(version.split(".")[:2]))


def read_recipe(bundle: Bundle) -> EngineRecipe:
    """How the bundle's engine is built.

    Raises:
        BundleError: Its manifest says something else than vitexport writes.
    """
    try:
        return EngineRecipe.from_json((bundle.manifest.engine or {})["recipe"])
    except (KeyError, TypeError, ValueError) as error:
        raise BundleError(f"The engine's recipe in bundle {bundle.root} is not what vitexport writes: {error}") from None


def builder_options(request: EngineRequest, machine: Machine) -> BuilderOptions:
    """What the builder may take.

    Raises:
        DeviceError: More memory was asked for than is free.
    """
    free = machine.gpu.free_bytes
    wanted = int(free * WORKSPACE_SHARE) if request.workspace_mib is None else request.workspace_mib << 20
    if wanted > free:
        raise DeviceError(
            f"--workspace {request.workspace_mib} asks for more than the {free >> 20} MiB that are free on "
            f"{machine.gpu.name}; give less, or end what else uses the GPU."
        )
    return BuilderOptions(
        workspace_bytes=wanted,
        optimization_level=request.optimization_level,
        version_compatible=request.version_compatible,
        hardware_compatible=request.hardware_compatible,
        dla_core=request.dla_core,
        strip_weights=request.strip_weights,
    )


def with_timings(options: BuilderOptions, bundle: Bundle, machine: Machine) -> BuilderOptions:
    """`options` with what the build before measured, if it was here; to be called while no other build is at work."""
    if machine.fingerprint.library != "tensorrt":
        # TensorRT-RTX times nothing when it compiles; its kernels are chosen when the engine is loaded.
        return options
    before = _timings_before(bundle, machine)
    return dataclasses.replace(options, timing_cache=before.read_bytes() if before is not None else b"")


def _timings_before(bundle: Bundle, machine: Machine) -> Path | None:
    """The timing cache of an engine that was built here before; one that was altered, or measured elsewhere, is not used."""
    try:
        found = engines.find(bundle, machine.fingerprint)
    except BundleError:
        return None
    if found is None or found.fingerprint != machine.fingerprint:
        return None
    path = found.path.with_name(engines.TIMING_CACHE)
    return path if path.is_file() else None
