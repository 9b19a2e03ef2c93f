"""vitexport: timm Vision Transformers to validated ONNX and TensorRT bundles.

::

    import vitexport

    bundle, report = vitexport.build("vit_small_patch16_224", target="cpu", calibration="photos", out="bundles/small")
    model = vitexport.load(bundle.root)
    print(report.verdict, model.predict("photos/cat.jpg").top(3))

`build` takes every option of the command line under its field's name, and a live `torch.nn.Module` in the place of a name;
`plan` says what it would do. Importing this imports nothing heavy: names are loaded when they are first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vitexport import lazy

if TYPE_CHECKING:
    from vitexport.api import BuildResult, build, plan
    from vitexport.bundle import Bundle, open_bundle
    from vitexport.errors import VitexportError
    from vitexport.pipeline import BuildRequest, Plan, run
    from vitexport.preprocess import PreprocessSpec
    from vitexport.quantize.settings import QuantSettings
    from vitexport.report import Check, Report
    from vitexport.runtime import Model, Prediction, load
    from vitexport.source import ModelRequest
    from vitexport.targets import Target, resolve
    from vitexport.validate.budget import Budget
    from vitexport.version import __version__

__all__ = [
    "Budget",
    "BuildRequest",
    "BuildResult",
    "Bundle",
    "Check",
    "Model",
    "ModelRequest",
    "Plan",
    "Prediction",
    "PreprocessSpec",
    "QuantSettings",
    "Report",
    "Target",
    "VitexportError",
    "__version__",
    "build",
    "load",
    "open_bundle",
    "plan",
    "resolve",
    "run",
]

lazy.public_names(
    __name__,
    {
        "Budget": "vitexport.validate.budget",
        "BuildRequest": "vitexport.pipeline",
        "BuildResult": "vitexport.api",
        "Bundle": "vitexport.bundle",
        "Check": "vitexport.report",
        "Model": "vitexport.runtime",
        "ModelRequest": "vitexport.source",
        "Plan": "vitexport.pipeline",
        "Prediction": "vitexport.runtime",
        "PreprocessSpec": "vitexport.preprocess",
        "QuantSettings": "vitexport.quantize.settings",
        "Report": "vitexport.report",
        "Target": "vitexport.targets",
        "VitexportError": "vitexport.errors",
        "__version__": "vitexport.version",
        "build": "vitexport.api",
        "load": "vitexport.runtime",
        "open_bundle": "vitexport.bundle",
        "plan": "vitexport.api",
        "resolve": "vitexport.targets",
        "run": "vitexport.pipeline",
    },
)
