"""The API contract: what the adapter touches of TensorRT, as data, against its source, the fakes and what is installed."""

from __future__ import annotations

import ast
import functools
import importlib
import importlib.util
import io
import re
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ROOT
from fakes.fake_cuda import FakeCuda
from fakes.fake_tensorrt import GENERATIONS, Conduct, make_module

from vitexport.targets.target import version_key

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

BACKENDS = ROOT / "vitexport" / "runtime" / "backends"
SOURCES = sorted([*BACKENDS.glob("tensorrt_*.py"), BACKENDS / "rtx_cache.py"])
DATA: dict[str, dict[str, Any]] = tomllib.loads((ROOT / "tests" / "fakes" / "tensorrt_api.toml").read_text(encoding="utf-8"))
KNOWN = frozenset(name for members in DATA.values() for name in members)
# What the adapter calls things, and what they are there.
RECEIVERS = {
    "api": "module",
    "api.ILogger": "ILogger",
    "api.BuilderFlag": "BuilderFlag",
    "api.NetworkDefinitionCreationFlag": "NetworkDefinitionCreationFlag",
    "api.MemoryPoolType": "MemoryPoolType",
    "api.DeviceType": "DeviceType",
    "api.ProfilingVerbosity": "ProfilingVerbosity",
    "api.LayerInformationFormat": "LayerInformationFormat",
    "levels": "HardwareCompatibilityLevel",
    "builder": "Builder",
    "network": "INetworkDefinition",
    "layer": "ILayer",
    "layer.get_output(output)": "ITensor",
    "config": "IBuilderConfig",
    "config.get_timing_cache()": "ITimingCache",
    "profile": "IOptimizationProfile",
    "parser.get_error(index)": "ParserError",
    "refitter": "Refitter",
    "self._runtime": "Runtime",
    "self._engine": "ICudaEngine",
    "self._context": "IExecutionContext",
    "self._config": "IRuntimeConfig",
    "self._cache": "IRuntimeCache",
}
# An enumeration's own; an ILogger is derived from and called by its base.
OF_EVERY_CLASS = {"__members__", "__init__"}
# Values of environment variables, and the beginning of ComputeCapability's names.
WORDS = {"CUDA_MODULE_LOADING", "LAZY", "SM"}


def has(row: dict[str, Any], generation: str) -> bool:
    if generation.startswith("RTX"):
        return bool(row.get("rtx", "until" not in row))
    if row.get("since") == "never":
        return False
    version = version_key(generation)
    return version_key(row.get("since", "8.5")) <= version and ("until" not in row or version < version_key(row["until"]))


# ---- the adapter


def nodes(path: Path) -> Iterator[ast.AST]:
    return ast.walk(ast.parse(path.read_text(encoding="utf-8")))


def touched(path: Path) -> Iterator[tuple[str, str]]:
    """Receiver and name of every attribute in a source, those that are looked up by a literal name too."""
    for node in nodes(path):
        if isinstance(node, ast.Attribute):
            yield ast.unparse(node.value), node.attr
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("getattr", "hasattr"):
            name = node.args[1]
            if isinstance(name, ast.Constant):
                yield ast.unparse(node.args[0]), str(name.value)


@functools.cache
def ours() -> frozenset[str]:
    """Attributes of Python, NumPy and our own modules, which say nothing about TensorRT."""
    examples: tuple[Any, ...] = ("", b"", (), [], {}, set(), 0, 0.0, memoryview(b""), Path(), np.float32(0), np, threading)
    names = {name for example in (*examples, threading.Lock(), np.zeros(1), np.zeros(1).ctypes) for name in dir(example)}
    names |= set(dir(importlib)) | set(dir(importlib.util)) | set(dir(importlib.import_module("os")))
    names |= set(dir(importlib.import_module("hashlib"))) | set(dir(importlib.import_module("tempfile")))
    names |= set(dir(importlib.import_module("contextlib"))) | set(dir(importlib.import_module("dataclasses")))
    names |= set(dir(importlib.import_module("hashlib").sha256())) | set(dir(io.BytesIO()))
    for path in (ROOT / "vitexport").rglob("*.py"):
        for node in nodes(path):
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                names.add(node.name)
            elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                names.add(node.target.id)
            elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and ast.unparse(node.value) == "self":
                names.add(node.attr)
    return frozenset(names)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_the_adapter_touches_nothing_that_the_data_does_not_name(path: Path) -> None:
    for receiver, name in touched(path):
        if name in OF_EVERY_CLASS:
            continue
        kind = RECEIVERS.get(receiver)
        if kind is not None and receiver != "parser":
            assert name in DATA[kind], f"{path.name}: {receiver}.{name} is not a member of {kind} in tensorrt_api.toml"
        elif not name.startswith(("_", "cuda")):
            assert name in KNOWN | ours(), f"{path.name}: {receiver}.{name} is neither ours nor in tensorrt_api.toml"


def test_members_that_are_named_by_a_word_are_in_the_data_too() -> None:
    found = {
        node.value
        for path in SOURCES
        for node in nodes(path)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and re.fullmatch(r"[A-Z][A-Z0-9_]+", node.value)
    }
    assert {"STRONGLY_TYPED", "EXPLICIT_BATCH", "STRIP_PLAN"} <= found
    assert found - WORDS <= KNOWN


@pytest.mark.parametrize("generation", [name for name in GENERATIONS if not name.startswith("RTX")])
def test_what_only_some_have_is_asked_for_before_it_is_used(generation: str) -> None:
    """A member that one full TensorRT lacks is one that the adapter looks up, or that a flag of the recipe stands for."""
    looked_up = {name for path in SOURCES for _, name in literal_look_ups(path)}
    text = "\n".join(path.read_text(encoding="utf-8") for path in SOURCES)
    guarded = {
        # Set where the recipe is weakly typed, which a library without weak typing is refused for by its flags.
        *("FP16", "INT8", "OBEY_PRECISION_CONSTRAINTS", "precision", "set_output_type"),
        # Behind an option that is refused with the flag or the class that came with it.
        *("hardware_compatibility_level", "AMPERE_PLUS", "engine_host_code_allowed"),
        *("OnnxParserRefitter", "refit_from_file"),
        # Of TensorRT-RTX alone.
        *(
            "create_runtime_config",
            "create_runtime_cache",
            "set_runtime_cache",
            "ComputeCapability",
            "set_compute_capability",
            *("DynamicShapesKernelSpecializationStrategy", "EAGER", "dynamic_shapes_kernel_specialization_strategy"),
            "is_stream_capturable",
        ),
        *(name for name in DATA["ComputeCapability"]),
        "deserialize",
    }
    for kind, members in DATA.items():
        for name, row in members.items():
            if not has(row, generation) and re.search(rf"\b{name}\b", text) and kind != "IRuntimeCache":
                assert name in looked_up | guarded | {"progress_monitor"}, f"{kind}.{name} is not in {generation}"


def literal_look_ups(path: Path) -> Iterator[tuple[str, str]]:
    """Names that are asked for with hasattr, getattr, or `in __members__` before they are used."""
    for node in nodes(path):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("getattr", "hasattr"):
            if isinstance(node.args[1], ast.Constant):
                yield ast.unparse(node.args[0]), str(node.args[1].value)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.isupper():
            yield "__members__", node.value


# ---- the fakes


def parts(module: Any) -> dict[str, Any]:
    """One object of each class that the data names, as far as this generation makes them."""
    logger = module.ILogger()
    builder = module.Builder(logger)
    network, config = builder.create_network(0), builder.create_builder_config()
    runtime = module.Runtime(logger)
    engine = runtime.deserialize_cuda_engine(b"{}")
    layer = network.get_layer(0)
    found = {
        "module": module,
        "Builder": builder,
        "INetworkDefinition": network,
        "ILayer": layer,
        "IBuilderConfig": config,
        "ITimingCache": config.create_timing_cache(b""),
        "IOptimizationProfile": builder.create_optimization_profile(),
        "OnnxParser": module.OnnxParser(network, logger),
        "Runtime": runtime,
        "ICudaEngine": engine,
        "IExecutionContext": engine.create_execution_context(),
        "Refitter": module.Refitter(engine, logger),
        "ParserError": module.OnnxParser(network, logger).get_error(0),
    }
    enumerations = {kind: getattr(module, kind, None) for kind in DATA if kind in DATA["module"] and kind not in found}
    found |= {kind: enumeration for kind, enumeration in enumerations.items() if enumeration is not None}
    if hasattr(engine, "create_runtime_config"):
        found["IRuntimeConfig"] = engine.create_runtime_config()
        if hasattr(found["IRuntimeConfig"], "create_runtime_cache"):
            found["IRuntimeCache"] = found["IRuntimeConfig"].create_runtime_cache()
    return found


def is_there(part: Any, name: str) -> bool:
    """Whether `part` has a member, or takes one that is only ever set."""
    settable = getattr(part, "_members", ())
    return hasattr(part, name) or hasattr(type(part), name) or name in settable


@pytest.mark.parametrize("generation", GENERATIONS)
def test_a_fake_has_the_members_of_its_generation_and_no_others(generation: str) -> None:
    used = {name for path in SOURCES for _, name in touched(path)} | {
        name for path in SOURCES for _, name in literal_look_ups(path)
    }
    found = parts(make_module(GENERATIONS[generation], Conduct(), FakeCuda()))
    checked = 0
    for kind, members in DATA.items():
        if kind not in found:
            # A part that this generation's fake does not make has nothing that this generation has.
            assert kind in ("ITensor", "EngineInspector", "OnnxParserRefitter") or not any(
                has(row, generation) for name, row in members.items() if name in used
            ), f"the fake of {generation} makes no {kind}"
            continue
        for name, row in members.items():
            if name in used:
                seen = is_there(found[kind], name)
                assert seen == has(row, generation), f"{generation}: {kind}.{name} is {'' if seen else 'not '}in the fake"
                checked += 1
    assert checked > 40


def test_there_is_a_fake_of_every_supported_generation() -> None:
    assert set(GENERATIONS) == {"8.5", "8.6", "10.3", "10.13", "10.16", "11.4", "RTX 1.7"}


# ---- the installed library


@pytest.mark.skipif(importlib.util.find_spec("tensorrt_rtx_bindings") is None, reason="TensorRT-RTX is not installed here")
def test_the_data_about_tensorrt_rtx_is_what_is_installed() -> None:
    module = importlib.import_module("tensorrt_rtx_bindings")
    assert module.__version__.startswith("1.7.")
    for kind, members in DATA.items():
        owner = module if kind == "module" else getattr(module, kind, None)
        for name, row in members.items():
            there = owner is not None and hasattr(owner, name)
            assert there == has(row, "RTX 1.7"), f"{kind}.{name} is {'' if there else 'not '}in {module.__version__}"
