"""Compile the engine of a model that ships, or write what builds and checks it on the device."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Collection, Mapping
from pathlib import Path

import onnx_ir as ir

from vitexport import golden_check
from vitexport.artifacts import INPUT_NAME, BatchRange, Engine, EngineRecipe, OnnxModel, Precision
from vitexport.errors import UsageError
from vitexport.preprocess import PreprocessSpec
from vitexport.rewrites import load
from vitexport.rewrites.lower_layernorm import MARK
from vitexport.runtime.backends.tensorrt_build import build_engine, library_version
from vitexport.targets import Target, trtexec
from vitexport.targets.rows import packaged
from vitexport.targets.target import version_key

FILE_NAME = "model.engine"
SCRIPT_NAME = "engine.sh"
CHECK_SCRIPT = "check.sh"
CHECKER = "check.py"
# Raw little-endian float32, as trtexec reads it.
RAW_INPUT = f"golden/{INPUT_NAME}.f32"
# TensorRT of JetPack 6.0, the first with Python 3.10 and with the runtime calls that the backend makes.
OLDEST_WITH_OUR_PYTHON = (8, 6)
# The first with a LayerNormalization operator, with strong typing, and with precisions of single layers in trtexec.
LAYERNORM_TENSORRT = (8, 6)
STRONG_TENSORRT = (10, 0)
HELD_LAYERS_TENSORRT = (8, 4)
# Under weak typing the builder flag only allows a precision; INT8 engines keep FP16 for what is not quantized.
WEAK_FLAGS: dict[Precision, tuple[str, ...]] = {"fp32": (), "fp16": ("FP16",), "int8": ("FP16", "INT8")}


def make_engine(
    model: OnnxModel, spec: PreprocessSpec, target: Target, folder: Path, *, stay_float32: Collection[str] = ()
) -> Engine:
    """Compile `model` for `target` where that is possible without the device.

    Args:
        model: What ships: already in its final types.
        spec: Gives the input size of the optimization profile.
        target: A GPU.
        folder: Where ``model.engine`` goes, or the script that builds it on the device. TensorRT-RTX needs no script: its
            engine is there.
        stay_float32: Nodes that a weakly typed engine must not compute in float16; a strongly typed graph says it itself.

    Raises:
        MissingDependencyError: TensorRT-RTX is not installed.
        ToolchainError: TensorRT refuses the graph, or its trtexec does not read an option that the recipe needs.
        UsageError: `target` is a CPU.
    """
    if target.typing is None:
        raise UsageError(f"{target.name} runs ONNX Runtime; there is no engine to build for it.")
    recipe = make_recipe(model, spec, target, stay_float32=stay_float32)
    if target.runtime == "tensorrt":
        trtexec.check_words(shlex.split(recipe.trtexec)[1:], str(target.tensorrt))
        script = folder / SCRIPT_NAME
        script.write_text(_script(recipe, target), encoding="utf-8")
        script.chmod(0o755)
        return Engine(
            path=None,
            library="tensorrt",
            library_version=str(target.tensorrt),
            recipe=recipe,
            skipped=_how_to_build(target),
        )
    version = library_version("tensorrt-rtx")
    plan = build_engine(model.path, recipe, "tensorrt-rtx")
    path = folder / FILE_NAME
    path.write_bytes(plan)
    return Engine(path=path, library="tensorrt-rtx", library_version=version, recipe=recipe)


def least_tensorrt(model: ir.Model, target: Target, *, held_layers: bool) -> str:
    """The oldest TensorRT of the catalogue from which the engine of `model` can be built, for example ``8.6.2``.

    Args:
        model: What ships.
        target: Of full TensorRT, or of TensorRT-RTX, of which the catalogue has one version.
        held_layers: Whether single layers have to be held in FP32.
    """
    rows = packaged()
    if target.engine_here:
        return rows.rtx.version
    needed = [STRONG_TENSORRT] if target.typing == "strong" else []
    needed += [HELD_LAYERS_TENSORRT] if held_layers else []
    if any(node.op_type == "LayerNormalization" for node in model.graph.all_nodes()):
        needed.append(LAYERNORM_TENSORRT)
    opset = int(model.opset_imports[""])
    stacks = [row.tensorrt for row in rows.jetpacks.values() if row.opset_max >= opset]
    fit = [version for version in stacks if all(version_key(version) >= least for least in needed)]
    # The target's own fits, whatever the catalogue's Jetsons carry.
    return min([*fit, *([target.tensorrt] if target.tensorrt else [])], key=version_key)


def _how_to_build(target: Target) -> str:
    text = f"build it on the device ({target.name}, {target.stack})"
    if version_key(str(target.tensorrt)) < OLDEST_WITH_OUR_PYTHON:
        return (
            f"{text}: run {SCRIPT_NAME} of the bundle there, which calls trtexec; then {CHECK_SCRIPT}, which checks it "
            "against PyTorch with the Python of that JetPack alone"
        )
    return f"{text}: run vitexport engine BUNDLE there; or, without vitexport, its {SCRIPT_NAME}, which calls trtexec"


def _script(recipe: EngineRecipe, target: Target) -> str:
    """A shell script that builds the engine with the device's own TensorRT, beside the ONNX model."""
    return (
        "#!/bin/sh\n"
        f"# Builds {FILE_NAME} from model.onnx with trtexec of TensorRT {target.tensorrt}, on the {target.name} itself.\n"
        f"{_PLACE}"
        f"exec {recipe.trtexec}\n"
    )


_PLACE = 'set -eu\ncd "$(dirname "$0")"\nPATH="$PATH:/usr/src/tensorrt/bin" # where JetPack keeps trtexec\n'


def raw_output(name: str) -> str:
    """Where the golden values of output `name` are as raw little-endian float32."""
    return f"golden/{name}.f32"


def write_check(
    folder: Path, target: Target, shape: tuple[int, ...], limits: Mapping[str, float], classes: Mapping[str, int]
) -> None:
    """Write ``check.sh``: trtexec runs the engine on the raw golden input, and Python 3.6 compares.

    Args:
        folder: The bundle's; `RAW_INPUT` and `raw_output` are in it.
        target: Gives the version of trtexec.
        shape: Of the golden input.
        limits: Of each output the least SQNR against PyTorch, in dB.
        classes: Of each output how many numbers decide on a class: the largest of several, or one by its sign; 0 for none.
    """
    words = [
        "trtexec",
        f"--loadEngine={FILE_NAME}",
        f"--loadInputs={INPUT_NAME}:{RAW_INPUT}",
        f"--shapes={INPUT_NAME}:{'x'.join(map(str, shape))}",
        *("--iterations=1", "--warmUp=0", "--duration=0"),
    ]
    if trtexec.reads("includeDataTransfers", str(target.tensorrt)):
        words.append("--includeDataTransfers")
    trtexec.check_words([*words[1:], "--exportOutput"], str(target.tensorrt))
    outputs = shlex.join(f"{name}={raw_output(name)}={limit:.1f}={classes[name]}" for name, limit in limits.items())
    script = folder / CHECK_SCRIPT
    script.write_text(
        "#!/bin/sh\n"
        f"# Runs {FILE_NAME}, which {SCRIPT_NAME} builds, on golden inputs and checks its outputs against PyTorch's.\n"
        f"{_PLACE}"
        'seen=$(mktemp)\ntrap \'rm -f "$seen" "$seen.log"\' EXIT\n'
        f'{shlex.join(words)} --exportOutput="$seen" >"$seen.log" 2>&1 || {{ cat "$seen.log" >&2; exit 5; }}\n'
        f'python3 {CHECKER} "$seen" {outputs}\n',
        encoding="utf-8",
    )
    script.chmod(0o755)
    shutil.copyfile(Path(golden_check.__file__), folder / CHECKER)


def make_recipe(
    model: OnnxModel, spec: PreprocessSpec, target: Target, *, stay_float32: Collection[str] = ()
) -> EngineRecipe:
    """How the engine of `model` is built on `target`'s stack."""
    typing = target.typing or "strong"
    flags = WEAK_FLAGS[model.precision] if typing == "weak" else ()
    fp32_layers: tuple[str, ...] = ()
    if "FP16" in flags:
        fp32_layers = _float32_layers(model.path, stay_float32, lowered=not target.layernorm_op)
    profile = _profile(model.batch, spec) if model.batch.is_dynamic else None
    return EngineRecipe(
        typing=typing,
        flags=flags,
        fp32_layers=fp32_layers,
        profile=profile,
        compute_capabilities=target.compute_capabilities,
        trtexec=_trtexec(typing, flags, fp32_layers, profile),
    )


def _float32_layers(path: Path, stay_float32: Collection[str], *, lowered: bool) -> tuple[str, ...]:
    """Nodes of the graph, in order, that a weakly typed engine must keep in FP32."""
    model = load(path)
    wide = {*stay_float32, *(lowered_layernorm(model) if lowered else ())}
    return tuple(str(node.name) for node in model.graph if node.name in wide)


def lowered_layernorm(model: ir.Model) -> tuple[str, ...]:
    """Nodes of written-out LayerNormalizations, which a weakly typed engine must keep in FP32."""
    return tuple(str(node.name) for node in model.graph if f"/{MARK}/" in str(node.name))


def _profile(batch: BatchRange, spec: PreprocessSpec) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    image = (spec.channels, spec.height, spec.width)
    return (batch.minimum, *image), (batch.optimum, *image), (batch.maximum, *image)


def _trtexec(
    typing: str,
    flags: tuple[str, ...],
    fp32_layers: tuple[str, ...],
    profile: tuple[tuple[int, ...], ...] | None,
) -> str:
    """The same build for NVIDIA's command-line builder, run in the bundle's folder."""
    words = ["trtexec", "--onnx=model.onnx", f"--saveEngine={FILE_NAME}"]
    if typing == "strong":
        words.append("--stronglyTyped")
    words += [f"--{flag.lower()}" for flag in flags]
    if fp32_layers:
        words.append("--precisionConstraints=obey")
        words.append("--layerPrecisions=" + ",".join(f"{name}:fp32" for name in fp32_layers))
    if profile is not None:
        for name, shape in zip(("min", "opt", "max"), profile, strict=True):
            words.append(f"--{name}Shapes={INPUT_NAME}:{'x'.join(map(str, shape))}")
    return shlex.join(words)
