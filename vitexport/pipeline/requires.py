"""What runs the files of a bundle, at least, for its manifest."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import onnx_ir as ir

from vitexport.artifacts import Engine
from vitexport.legality.requirements import least_onnx_runtime
from vitexport.stacks.delivery import least_tensorrt
from vitexport.targets import Target


def requirements(graphs: Mapping[str, ir.Model], target: Target, engine: Engine | None) -> dict[str, dict[str, Any]]:
    """By role: the least ``onnxruntime``, with ``opset`` and ``ir_version``; of ``engine`` the library's least version."""
    found: dict[str, dict[str, Any]] = {
        role: {
            "onnxruntime": least_onnx_runtime(graph),
            "opset": graph.opset_imports[""],
            "ir_version": graph.ir_version,
        }
        for role, graph in graphs.items()
    }
    if engine is not None:
        held = bool(engine.recipe.fp32_layers)
        found["engine"] = {engine.library: least_tensorrt(graphs["onnx"], target, held_layers=held)}
    return found
