"""What runs the files of a bundle, at least, for its manifest."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vitexport.artifacts import ONNX_APP, Engine
from vitexport.legality.requirements import least_onnx_runtime, least_tensorrt
from vitexport.rewrites import load
from vitexport.targets import Target

ONNX_ROLES = ("onnx", "onnx_float", ONNX_APP)


def requirements(
    folder: Path, artifacts: Mapping[str, str], target: Target, engine: Engine | None
) -> dict[str, dict[str, Any]]:
    """By role: the least ``onnxruntime``, with ``opset`` and ``ir_version``; of ``engine`` the library's least version."""
    found: dict[str, dict[str, Any]] = {}
    for role in ONNX_ROLES:
        if role in artifacts:
            graph = load(folder / artifacts[role])
            found[role] = {
                "onnxruntime": least_onnx_runtime(graph),
                "opset": graph.opset_imports[""],
                "ir_version": graph.ir_version,
            }
    if engine is not None:
        held = bool(engine.recipe.fp32_layers)
        found["engine"] = {engine.library: least_tensorrt(load(folder / artifacts["onnx"]), target, held_layers=held)}
    return found
