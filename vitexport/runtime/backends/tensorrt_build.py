"""An ONNX file and a recipe enter; a serialized TensorRT or TensorRT-RTX engine leaves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vitexport.artifacts import INPUT_NAME, EngineRecipe
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


def library_version(library: str) -> str:
    """Version of the installed `library`.

    Raises:
        MissingDependencyError, ToolchainError: As `load_library`.
    """
    return str(load_library(library, "Asking for its version").__version__)


def build_engine(onnx: Path, recipe: EngineRecipe, library: str) -> bytes:
    """Compile `onnx` by `recipe`.

    TensorRT-RTX compiles for the recipe's compute capabilities on any machine, GPU or not; full TensorRT compiles for the
    GPU of the machine it runs on.

    Raises:
        MissingDependencyError: `library` is not installed.
        ToolchainError: It refuses the graph, or fails.
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
    config = builder.create_builder_config()
    _configure(api, builder, network, config, recipe)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        wanted = ", ".join(recipe.compute_capabilities)
        raise ToolchainError(f"{title} cannot compile {onnx.name} for compute capability {wanted}: {reasons(logger)}")
    return bytes(plan)


def _network_flags(api: Any, recipe: EngineRecipe) -> int:
    """The flag's number differs between generations: 1 in TensorRT 9 and 10, 0 in 11 and RTX; 8 has none."""
    members = api.NetworkDefinitionCreationFlag.__members__
    flags = 0
    if recipe.typing == "strong":
        if "STRONGLY_TYPED" not in members:
            raise ToolchainError(
                f"TensorRT {api.__version__} has no strongly typed networks (10.0 and later do), "
                "but the bundle was built for one that has; build it again with the device's own --jetpack."
            )
        flags |= 1 << int(members["STRONGLY_TYPED"])
    if "EXPLICIT_BATCH" in members and version_tuple(api) < (10,):
        flags |= 1 << int(members["EXPLICIT_BATCH"])
    return flags


def _configure(api: Any, builder: Any, network: Any, config: Any, recipe: EngineRecipe) -> None:
    if recipe.compute_capabilities and hasattr(config, "num_compute_capabilities"):
        config.num_compute_capabilities = len(recipe.compute_capabilities)
        for index, capability in enumerate(recipe.compute_capabilities):
            member = f"SM{capability.replace('.', '')}"
            config.set_compute_capability(getattr(api.ComputeCapability, member), index)
    if recipe.profile is not None:
        profile = builder.create_optimization_profile()
        profile.set_shape(INPUT_NAME, *recipe.profile)
        config.add_optimization_profile(profile)
    for flag in recipe.flags:
        if flag not in api.BuilderFlag.__members__:
            raise ToolchainError(
                f"TensorRT {api.__version__} has no builder flag {flag} (none is left for types), "
                "but the bundle was built for one that has; build it again with the device's own --jetpack."
            )
        config.set_flag(getattr(api.BuilderFlag, flag))
    if recipe.fp32_layers:
        _constrain(api, network, config, recipe.fp32_layers)


def _constrain(api: Any, network: Any, config: Any, names: tuple[str, ...]) -> None:
    """Keep the named layers in FP32 under weak typing."""
    config.set_flag(api.BuilderFlag.OBEY_PRECISION_CONSTRAINTS)
    wanted = frozenset(names)
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        if layer.name in wanted:
            layer.precision = api.float32
