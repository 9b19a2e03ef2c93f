"""Input: an ONNX file and a recipe; output: a serialized TensorRT or TensorRT-RTX engine."""

from __future__ import annotations

import dataclasses
import threading
from pathlib import Path
from typing import Any

from vitexport.artifacts import INPUT_NAME, EngineRecipe, Progress, silent
from vitexport.errors import ToolchainError
from vitexport.runtime.backends.tensorrt_api import (
    TITLES,
    load_library,
    make_logger,
    quiet_cuda_modules,
    reasons,
    start,
    version_tuple,
)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class BuilderOptions:
    """How much a build on the device may take, and what it starts from.

    Attributes:
        workspace_bytes: Most device memory for one layer's scratch; None leaves it to the library.
        optimization_level: 0 (fastest build) to 5 (fastest engine); None leaves it to the library.
        timing_cache: What an earlier build measured, empty for none; None to keep no such measurements.
        version_compatible: Later versions of TensorRT can run the engine; it brings a runtime of its own for that.
        hardware_compatible: Every GPU from Ampere on can run it.
        dla_core: Deep Learning Accelerator that runs what it can; the GPU runs the rest.
        strip_weights: Leave out weights that the ONNX file has, and that go back into the engine when it is loaded.
        marked: Tensors of the graph that shall leave the engine too, in float32, each named as `marked_name` says.
    """

    workspace_bytes: int | None = None
    optimization_level: int | None = None
    timing_cache: bytes | None = None
    version_compatible: bool = False
    hardware_compatible: bool = False
    dla_core: int | None = None
    strip_weights: bool = False
    marked: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A compiled engine.

    Attributes:
        engine: The serialized engine.
        timing_cache: What the build measured, with what it was given; None if none was asked for.
        timing_cache_used: Whether the library took the one that it was given.
        unconstrained: Nodes of the recipe's `fp32_layers` that the network has no layer for, so that nothing holds them.
    """

    engine: bytes
    timing_cache: bytes | None
    timing_cache_used: bool
    unconstrained: tuple[str, ...] = ()


def library_version(library: str) -> str:
    """Version of the installed `library`.

    Raises:
        MissingDependencyError, ToolchainError: As `load_library`.
    """
    return str(load_library(library, "Asking for its version").__version__)


def build_engine(onnx: Path, recipe: EngineRecipe, library: str) -> bytes:
    """Compile `onnx` by `recipe` with the library's own settings; see `build_plan`."""
    return build_plan(onnx, recipe, library, BuilderOptions()).engine


def build_plan(onnx: Path, recipe: EngineRecipe, library: str, options: BuilderOptions, progress: Progress = silent) -> Plan:
    """Compile `onnx` by `recipe`.

    TensorRT-RTX compiles for the recipe's compute capabilities on any machine, GPU or not; full TensorRT compiles for the
    GPU of the machine it runs on, and so does a timing cache ask for one.

    Raises:
        MissingDependencyError: `library` is not installed.
        ToolchainError: It refuses the graph, lacks what `options` ask for, or fails.
    """
    quiet_cuda_modules()
    api = load_library(library, "Compiling the engine")
    logger = make_logger(api)
    title = f"{TITLES[library]} {api.__version__}"
    builder = start(api, "Builder", logger)
    network = builder.create_network(_network_flags(api, recipe))
    parser = api.OnnxParser(network, logger)
    if not parser.parse_from_file(str(onnx)):
        errors = [str(parser.get_error(index).desc()) for index in range(parser.num_errors)]
        raise ToolchainError(f"{title} cannot parse {onnx.name}: {'; '.join(errors[:3]) or reasons(logger)}")
    _mark(api, network, options.marked)
    config = builder.create_builder_config()
    # The kernels that were chosen, and what of the graph each computes, are to be seen afterwards.
    config.profiling_verbosity = api.ProfilingVerbosity.DETAILED
    unconstrained = _configure(api, builder, network, config, recipe)
    used = _apply(api, title, builder, config, options)
    monitor = _watch(api, config, progress)
    engine = builder.build_serialized_network(network, config)
    if monitor is not None and monitor.stopped_by is not None:
        raise monitor.stopped_by
    if engine is None:
        wanted = ", ".join(recipe.compute_capabilities)
        raise ToolchainError(f"{title} cannot compile {onnx.name} for compute capability {wanted}: {reasons(logger)}")
    kept = None if options.timing_cache is None else bytes(config.get_timing_cache().serialize())
    return Plan(engine=bytes(engine), timing_cache=kept, timing_cache_used=used, unconstrained=unconstrained)


def marked_name(tensor: str) -> str:
    """What the output is called that holds `tensor`, whose own name is taken."""
    return f"{tensor}/marked"


def _mark(api: Any, network: Any, wanted: tuple[str, ...]) -> None:
    """Let the tensors in `wanted` leave the engine too; what the parser did not keep is left out."""
    layers = [network.get_layer(index) for index in range(network.num_layers)] if wanted else []
    for layer in layers:
        for index in range(layer.num_outputs):
            tensor = layer.get_output(index)
            if tensor is not None and tensor.name in wanted:
                # In float32 whatever it is: the engine's other outputs are.
                output = _cast(api, network, tensor)
                output.name = marked_name(tensor.name)
                network.mark_output(output)


def _cast(api: Any, network: Any, tensor: Any) -> Any:
    """`tensor` in float32."""
    if hasattr(network, "add_cast"):
        return network.add_cast(tensor, api.float32).get_output(0)
    # Before 8.6 the cast is an identity whose output has another type.
    layer = network.add_identity(tensor)
    layer.set_output_type(0, api.float32)
    return layer.get_output(0)


def _apply(api: Any, title: str, builder: Any, config: Any, options: BuilderOptions) -> bool:
    """Set what `options` ask for; whether the timing cache was taken."""
    if options.workspace_bytes is not None:
        config.set_memory_pool_limit(api.MemoryPoolType.WORKSPACE, options.workspace_bytes)
    if options.optimization_level is not None:
        if not hasattr(config, "builder_optimization_level"):
            raise ToolchainError(
                f"{title} has no builder optimization level (8.6 and later have one); leave `optimization_level` out."
            )
        config.builder_optimization_level = options.optimization_level
    if options.version_compatible:
        _set_flags(api, title, config, ("VERSION_COMPATIBLE",), "`version_compatible` (TensorRT 8.6 and later)")
    if options.strip_weights:
        # Refitted with the same weights, an engine may still be optimized for their values.
        _set_flags(api, title, config, ("STRIP_PLAN", "REFIT_IDENTICAL"), "`strip_weights` (TensorRT 10.0 and later)")
    if options.hardware_compatible:
        levels = getattr(api, "HardwareCompatibilityLevel", None)
        if levels is None:
            raise _lacks(title, "`hardware_compatible` (TensorRT 8.6 and later)")
        config.hardware_compatibility_level = levels.AMPERE_PLUS
    if options.dla_core is not None:
        _use_dla(api, title, builder, config, options.dla_core)
    return options.timing_cache is not None and _take_timings(config, options.timing_cache)


def _take_timings(config: Any, timings: bytes) -> bool:
    """Let the build use `timings` and write down its own; whether they were taken."""
    # A cache of another version or GPU is refused with False, and the build measures everything itself.
    cache = config.create_timing_cache(timings)
    taken = cache is not None and bool(config.set_timing_cache(cache, ignore_mismatch=False))
    if not taken:
        config.set_timing_cache(config.create_timing_cache(b""), ignore_mismatch=False)
    return taken and bool(timings)


def _set_flags(api: Any, title: str, config: Any, names: tuple[str, ...], option: str) -> None:
    for name in names:
        if name not in api.BuilderFlag.__members__:
            raise _lacks(title, option)
        config.set_flag(getattr(api.BuilderFlag, name))


def _lacks(title: str, option: str) -> ToolchainError:
    return ToolchainError(f"{title} has nothing for {option}; leave it out.")


def _use_dla(api: Any, title: str, builder: Any, config: Any, core: int) -> None:
    cores = int(builder.num_DLA_cores)
    if not 0 <= core < cores:
        there = f"only cores 0 to {cores - 1}" if cores else "no Deep Learning Accelerator"
        raise ToolchainError(f"`dla={core}`: {title} finds {there} on this device.")
    config.default_device_type = api.DeviceType.DLA
    config.DLA_core = core
    # Attention and LayerNormalization are no operators of a DLA; without this they would be an error.
    config.set_flag(api.BuilderFlag.GPU_FALLBACK)


def _watch(api: Any, config: Any, progress: Progress) -> Any:
    """A monitor that tells `progress` of the build's outermost phases; None where the library has none (before 9.1)."""
    if not hasattr(api, "IProgressMonitor"):
        return None

    class Monitor(api.IProgressMonitor):  # type: ignore[misc]
        """TensorRT calls it from threads of its own."""

        def __init__(self) -> None:
            api.IProgressMonitor.__init__(self)
            self.lock = threading.Lock()
            self.steps: dict[str, int] = {}
            self.stopped_by: BaseException | None = None

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            if not parent_phase:
                self.steps[phase_name] = int(num_steps)
                self.tell(phase_name, 0)

        def step_complete(self, phase_name: str, step: int) -> bool:
            if phase_name in self.steps:
                self.tell(phase_name, int(step) + 1)
            return self.stopped_by is None

        def phase_finish(self, phase_name: str) -> None:
            self.steps.pop(phase_name, None)

        def tell(self, phase_name: str, done: int) -> None:
            # An exception, Ctrl-C above all, must not pass through the library's own frames: it ends the build instead.
            try:
                with self.lock:
                    progress(f"TensorRT: {phase_name}", done, self.steps[phase_name])
            except BaseException as error:  # noqa: BLE001 - raised again when the build has ended
                self.stopped_by = error

    monitor = Monitor()
    config.progress_monitor = monitor
    return monitor


def _network_flags(api: Any, recipe: EngineRecipe) -> int:
    """The flag's number differs between generations: 1 in TensorRT 9 and 10, 0 in 11 and RTX; 8 has none."""
    members = api.NetworkDefinitionCreationFlag.__members__
    flags = 0
    if recipe.typing == "strong":
        if "STRONGLY_TYPED" not in members:
            raise ToolchainError(
                f"TensorRT {api.__version__} has no strongly typed networks (10.0 and later do), "
                "but the bundle was built for one that has; build it again with the device's own `jetpack`."
            )
        flags |= 1 << int(members["STRONGLY_TYPED"])
    if "EXPLICIT_BATCH" in members and version_tuple(api) < (10,):
        flags |= 1 << int(members["EXPLICIT_BATCH"])
    return flags


def _configure(api: Any, builder: Any, network: Any, config: Any, recipe: EngineRecipe) -> tuple[str, ...]:
    """Set what `recipe` asks for; nodes that were to be held in FP32 and have no layer leave."""
    if recipe.compute_capabilities and hasattr(config, "num_compute_capabilities"):
        config.num_compute_capabilities = len(recipe.compute_capabilities)
        for index, capability in enumerate(recipe.compute_capabilities):
            member = getattr(api.ComputeCapability, f"SM{capability.replace('.', '')}", None)
            if member is None:
                raise ToolchainError(
                    f"TensorRT-RTX {api.__version__} does not compile for compute capability {capability}; a newer one may."
                )
            config.set_compute_capability(member, index)
    if recipe.profile is not None:
        profile = builder.create_optimization_profile()
        profile.set_shape(INPUT_NAME, *recipe.profile)
        config.add_optimization_profile(profile)
    for flag in recipe.flags:
        if flag not in api.BuilderFlag.__members__:
            raise ToolchainError(
                f"TensorRT {api.__version__} has no builder flag {flag} (none is left for types), "
                "but the bundle was built for one that has; build it again with the device's own `jetpack`."
            )
        config.set_flag(getattr(api.BuilderFlag, flag))
    return _constrain(api, network, config, recipe.fp32_layers) if recipe.fp32_layers else ()


def _constrain(api: Any, network: Any, config: Any, names: tuple[str, ...]) -> tuple[str, ...]:
    """Keep the named layers in FP32 under weak typing; names without a layer leave."""
    config.set_flag(api.BuilderFlag.OBEY_PRECISION_CONSTRAINTS)
    wanted, found = frozenset(names), set()
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        if layer.name in wanted:
            layer.precision = api.float32
            # The precision is that of the arithmetic; what a layer hands on may still be rounded, and overflow there.
            for output in range(layer.num_outputs):
                if layer.get_output(output).dtype in (api.float32, api.float16):
                    layer.set_output_type(output, api.float32)
            found.add(layer.name)
    return tuple(name for name in names if name not in found)
