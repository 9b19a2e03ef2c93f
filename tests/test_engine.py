from __future__ import annotations

import dataclasses
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
from conftest import TINY
from exports import digits, exported, live, placed, quantize

from vitexport.artifacts import BatchRange, OnnxModel, Precision, silent
from vitexport.errors import ToolchainError, UsageError
from vitexport.pipeline import BuildRequest, run
from vitexport.rewrites import apply, load, save
from vitexport.rewrites.float16 import Float16
from vitexport.rewrites.lower_layernorm import MARK
from vitexport.runtime.backends.tensorrt_api import is_installed
from vitexport.runtime.backends.tensorrt_build import library_version
from vitexport.stacks.delivery import FILE_NAME, SCRIPT_NAME, make_engine, make_recipe
from vitexport.targets import findings, resolve

needs_rtx = pytest.mark.skipif(not is_installed("tensorrt-rtx"), reason="TensorRT-RTX is not installed here")
SPEC = live()[1].preprocess
JETSON = "jetson-orin-nano-8gb"


def words(trtexec: str) -> dict[str, str]:
    """A trtexec command line as options with their values; anything else in it fails."""
    program, *options = shlex.split(trtexec)
    assert program == "trtexec"
    assert all(option.startswith("--") for option in options)
    pairs = [option.removeprefix("--").partition("=") for option in options]
    assert len({name for name, _, _ in pairs}) == len(pairs)
    return {name: value for name, _, value in pairs}


def onnx_for(
    folder: Path, precision: Precision, batch: str = "1:2:8", *, opset: int = 20, layernorm_op: bool = True
) -> OnnxModel:
    """A float graph that stands for a `precision` model: a recipe depends on names and sizes only."""
    path = folder / "model.onnx"
    path.write_bytes(exported("1:4:8", opset, layernorm_op=layernorm_op) if ":" in batch else exported(batch))
    return OnnxModel.of(path, opset=opset, batch=BatchRange.parse(batch), precision=precision)


# ---- recipes


@pytest.mark.parametrize("jetpack", ["6.2", "7.2"])
@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_a_strongly_typed_stack_gets_no_precision_flags(jetpack: str, precision: Precision, tmp_path: Path) -> None:
    recipe = make_recipe(onnx_for(tmp_path, precision), SPEC, resolve(JETSON, jetpack=jetpack))
    assert (recipe.typing, recipe.flags, recipe.fp32_layers) == ("strong", (), ())
    options = words(recipe.trtexec)
    assert "stronglyTyped" in options
    assert not options.keys() & {"fp16", "int8", "precisionConstraints", "layerPrecisions"}
    assert recipe.compute_capabilities == ("8.7",)


@pytest.mark.parametrize(("precision", "flags"), [("fp32", set()), ("fp16", {"FP16"}), ("int8", {"FP16", "INT8"})])
def test_a_weakly_typed_stack_is_allowed_what_the_precision_needs(
    precision: Precision, flags: set[str], tmp_path: Path
) -> None:
    recipe = make_recipe(onnx_for(tmp_path, precision, opset=17), SPEC, resolve(JETSON, jetpack="6.0"))
    assert (recipe.typing, set(recipe.flags), recipe.fp32_layers) == ("weak", flags, ())
    options = words(recipe.trtexec)
    assert "stronglyTyped" not in options
    assert options.keys() & {"fp16", "int8", "bf16", "fp8"} == {flag.lower() for flag in flags}


@pytest.mark.parametrize(("batch", "profile"), [("1:2:8", ["1", "2", "8"]), ("2", None)])
def test_the_profile_is_the_batch_range(batch: str, profile: list[str] | None, tmp_path: Path) -> None:
    recipe = make_recipe(onnx_for(tmp_path, "fp16", batch), SPEC, resolve("l4"))
    options = words(recipe.trtexec)
    if profile is None:
        # A static graph with a profile is refused.
        assert recipe.profile is None
        assert not options.keys() & {"minShapes", "optShapes", "maxShapes"}
        return
    assert recipe.profile == ((1, 3, 32, 32), (2, 3, 32, 32), (8, 3, 32, 32))
    shapes = [options[f"{name}Shapes"] for name in ("min", "opt", "max")]
    assert shapes == [f"image:{size}x3x32x32" for size in profile]
    assert (options["onnx"], options["saveEngine"]) == ("model.onnx", FILE_NAME)


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_a_written_out_layernorm_is_held_in_float32(precision: Precision, tmp_path: Path) -> None:
    model = onnx_for(tmp_path, precision, opset=17, layernorm_op=False)
    recipe = make_recipe(model, SPEC, resolve(JETSON, jetpack="5.1"))
    names = {str(node.name): node.op_type for node in load(model.path).graph}
    held = {name: names[name] for name in recipe.fp32_layers}
    # Five norms: the mean, the square and its mean, epsilon, root, quotient, and both parameters of each.
    assert sorted(held.values()) == sorted(
        5 * ["ReduceMean", "Sub", "Mul", "ReduceMean", "Add", "Sqrt", "Div", "Mul", "Add"]
    )
    assert all(MARK in name for name in held)
    options = words(recipe.trtexec)
    assert options["precisionConstraints"] == "obey"
    pairs = [pair.rpartition(":") for pair in options["layerPrecisions"].split(",")]
    assert {name: kind for name, _, kind in pairs} == dict.fromkeys(held, "fp32")


def test_a_float32_engine_needs_no_constraints(tmp_path: Path) -> None:
    model = onnx_for(tmp_path, "fp32", opset=17, layernorm_op=False)
    recipe = make_recipe(model, SPEC, resolve(JETSON, jetpack="5.1"))
    assert (recipe.flags, recipe.fp32_layers) == ((), ())


# ---- engines


@pytest.mark.parametrize(
    ("target", "jetpack", "parts"),
    [(JETSON, "6.1", ["JetPack 6.1", "TensorRT 10.3.0"]), ("h100-sxm", None, ["H100", "TensorRT"])],
)
def test_full_tensorrt_leaves_the_engine_to_the_device(
    target: str, jetpack: str | None, parts: list[str], tmp_path: Path
) -> None:
    model = onnx_for(tmp_path, "fp16")
    engine = make_engine(model, SPEC, resolve(target, jetpack=jetpack), tmp_path)
    assert (engine.path, engine.library) == (None, "tensorrt")
    assert engine.skipped is not None
    assert all(part in engine.skipped for part in [*parts, "build it on the device", "engine.sh", "which calls trtexec"])
    assert "run vitexport engine BUNDLE there" in engine.skipped
    assert engine.library_version == resolve(target, jetpack=jetpack).tensorrt
    assert {path.name for path in tmp_path.iterdir()} == {model.path.name, SCRIPT_NAME}


def test_a_stack_whose_python_is_too_old_is_not_promised_validate(tmp_path: Path) -> None:
    engine = make_engine(onnx_for(tmp_path, "fp16", opset=17), SPEC, resolve(JETSON, jetpack="5.1"), tmp_path)
    assert engine.skipped is not None
    assert "then check.sh, which checks it against PyTorch with the Python of that JetPack alone" in engine.skipped
    assert "vitexport validate" not in engine.skipped


FAKE_TRTEXEC = """#!/bin/sh
pwd > "$RECORD"
for word in "$@"; do printf '%s\\n' "$word" >> "$RECORD"; done
"""


@pytest.mark.parametrize(("jetpack", "layernorm_op"), [("6.2", True), ("5.1", False)])
def test_the_script_calls_trtexec_with_the_recipe_from_any_folder(
    jetpack: str, *, layernorm_op: bool, tmp_path: Path
) -> None:
    bundle, programs, record = (tmp_path / name for name in ("a bundle", "bin", "record"))
    for folder in (bundle, programs):
        folder.mkdir()
    model = onnx_for(bundle, "fp16", opset=17, layernorm_op=layernorm_op)
    engine = make_engine(model, SPEC, resolve(JETSON, jetpack=jetpack), bundle)
    script = bundle / SCRIPT_NAME
    subprocess.run(["sh", "-n", str(script)], check=True)
    assert f"exec {engine.recipe.trtexec}\n" in script.read_text(encoding="utf-8")
    assert script.stat().st_mode & 0o111
    (programs / "trtexec").write_text(FAKE_TRTEXEC, encoding="utf-8")
    (programs / "trtexec").chmod(0o755)
    environment = {"PATH": f"{programs}:/usr/bin:/bin", "RECORD": str(record)}
    subprocess.run([str(script)], check=True, env=environment, cwd="/")
    where, *given = record.read_text(encoding="utf-8").splitlines()
    assert Path(where) == bundle
    assert given == shlex.split(engine.recipe.trtexec)[1:]


def test_a_cpu_needs_no_engine(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"runs ONNX Runtime; there is no engine"):
        make_engine(onnx_for(tmp_path, "fp32"), SPEC, resolve("cpu-x86-avx2"), tmp_path)


def shipped(folder: Path, precision: Precision, batch: str) -> OnnxModel:
    """The tiny model as a TensorRT bundle ships it: quantized if asked, then in float16."""
    model = placed(folder, batch)
    if precision == "int8":
        model = quantize(model, digits(16), SPEC, folder, cpu=None, progress=silent).onnx
    graph = load(model.path)
    if precision != "fp32":
        apply(graph, Float16())
    save(graph, folder / "model.onnx")
    return OnnxModel.of(folder / "model.onnx", opset=20, batch=BatchRange.parse(batch), precision=precision)


@needs_rtx
@pytest.mark.parametrize("precision", ["fp16", "int8"])
@pytest.mark.parametrize(("target", "batch"), [("l4", "1:4:8"), ("rtx-5090", "2"), ("t4", "1:4:8")])
def test_an_engine_is_compiled_without_the_gpu(target: str, batch: str, precision: Precision, tmp_path: Path) -> None:
    engine = make_engine(shipped(tmp_path, precision, batch), SPEC, resolve(target), tmp_path)
    assert engine.path == tmp_path / FILE_NAME
    # Even an engine without weights of its own holds kernels.
    assert engine.path.stat().st_size > 100_000
    assert (engine.library, engine.skipped) == ("tensorrt-rtx", None)
    assert engine.library_version == library_version("tensorrt-rtx")
    assert engine.recipe.compute_capabilities == (resolve(target).compute_capability,)


@needs_rtx
def test_an_engine_is_for_the_asked_gpu(tmp_path: Path) -> None:
    model = shipped(tmp_path, "fp16", "2")
    plans = []
    for target in ("l4", "rtx-5090"):
        engine = make_engine(model, SPEC, resolve(target), tmp_path)
        assert engine.path is not None
        plans.append(engine.path.read_bytes())
    assert plans[0] != plans[1]


@needs_rtx
def test_float32_on_turing_fails_and_is_refused_before_it_is_tried(tmp_path: Path) -> None:
    turing = resolve("t4")
    errors = [
        finding.message
        for finding in findings(turing, precision="fp32", batch_max=1, model=None)
        if finding.level == "error"
    ]
    assert len(errors) == 1
    assert "no float32 matrix multiplication" in errors[0]
    # That finding is a fact about the library; the day it no longer holds, the catalogue has to change.
    with pytest.raises(ToolchainError, match=r"cannot compile .* for compute capability 7\.5: .*FP32 GEMM is not supported"):
        make_engine(shipped(tmp_path, "fp32", "2"), SPEC, turing, tmp_path)
    assert not (tmp_path / FILE_NAME).exists()


@needs_rtx
@pytest.mark.parametrize("damage", ["garbage", "truncated", "empty"])
def test_a_damaged_onnx_is_refused_in_the_librarys_words(damage: str, tmp_path: Path) -> None:
    model = onnx_for(tmp_path, "fp16", "2")
    data = {"garbage": b"not an onnx file", "truncated": model.path.read_bytes()[:5000], "empty": b""}[damage]
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(data)
    with pytest.raises(ToolchainError, match=r"TensorRT-RTX \S+ cannot (parse|compile) broken\.onnx\b.*: \S+"):
        make_engine(dataclasses.replace(model, path=broken), SPEC, resolve("l4"), tmp_path)
    assert not (tmp_path / FILE_NAME).exists()


@needs_rtx
def test_one_file_serves_several_compute_capabilities(tmp_path: Path) -> None:
    common: dict[str, Any] = {"model": TINY, "target": "l4", "precision": "fp16"}
    one, _ = run(BuildRequest(**common, out=tmp_path / "one"), silent)
    several, report = run(BuildRequest(**common, more_targets=("a10", "rtx-5090"), out=tmp_path / "several"), silent)
    assert several.manifest.engine is not None
    assert several.manifest.engine["recipe"]["compute_capabilities"] == ["8.6", "8.9", "12.0"]
    assert several.manifest.target.id == "l4+a10+rtx-5090"
    assert any("compute capability 8.6, 8.9, 12.0" in check.message for check in report.checks)
    alone, together = one.artifact("engine"), several.artifact("engine")
    assert alone is not None
    assert together is not None
    assert together.read_bytes() != alone.read_bytes()
