"""vitexport: timm Vision Transformers to validated ONNX and TensorRT bundles.

Importing this imports nothing heavy: the public names are loaded when they are first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vitexport.bundle import Bundle, open_bundle
    from vitexport.pipeline import BuildRequest, Plan, plan, run
    from vitexport.report import Check, Report
    from vitexport.runtime import Model, Prediction, load
    from vitexport.source import ModelRequest
    from vitexport.targets import Target, resolve

_HOMES = {
    "BuildRequest": "vitexport.pipeline",
    "Bundle": "vitexport.bundle",
    "Check": "vitexport.report",
    "Model": "vitexport.runtime",
    "ModelRequest": "vitexport.source",
    "Plan": "vitexport.pipeline",
    "Prediction": "vitexport.runtime",
    "Report": "vitexport.report",
    "Target": "vitexport.targets",
    "load": "vitexport.runtime",
    "open_bundle": "vitexport.bundle",
    "plan": "vitexport.pipeline",
    "resolve": "vitexport.targets",
    "run": "vitexport.pipeline",
}

__all__ = [
    "BuildRequest",
    "Bundle",
    "Check",
    "Model",
    "ModelRequest",
    "Plan",
    "Prediction",
    "Report",
    "Target",
    "load",
    "open_bundle",
    "plan",
    "resolve",
    "run",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'vitexport' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
