"""The two doors of the pipeline. What can be refused without PyTorch is refused before its import, which takes seconds."""

from __future__ import annotations

import importlib
from types import ModuleType

from vitexport import stacks
from vitexport.artifacts import Progress, silent
from vitexport.bundle import Bundle
from vitexport.errors import ToolchainError, missing
from vitexport.pipeline import prepare
from vitexport.pipeline.request import BuildRequest, Plan
from vitexport.pipeline.stages import LOADING, Stages, stages_of
from vitexport.report import Report


def plan(request: BuildRequest) -> Plan:
    """Everything that can be known without running a slow step. Downloads nothing and writes nothing.

    Problems that the request alone tells come at once, without the model having been looked at, and a note says so.

    Raises:
        MissingDependencyError: PyTorch, timm or another package that a build needs is not installed.
        ToolchainError: It is installed and cannot be imported.
    """
    refused = prepare.refused_plan(request)
    if refused is not None:
        return refused
    _import_build()
    return prepare.plan(request)


def run(request: BuildRequest, progress: Progress = silent) -> tuple[Bundle, Report]:
    """Build, validate and write the bundle.

    Args:
        request: What is asked for.
        progress: Told what the build is doing: ``stage 2 of 7: exporting to ONNX``.

    Raises:
        MissingDependencyError, ToolchainError: As for `plan`.
        VitexportError: With nothing left behind. A check that fails is no error: the bundle is written and says so.
    """
    target, precisions = prepare.refuse_early(request)
    stages = Stages(stages_of(request, stacks.of(target), precisions), progress)
    stages.begin(LOADING)
    result: tuple[Bundle, Report] = _import_build().run(request, stages)
    return result


def _import_build() -> ModuleType:
    """The room of the slow stages, or what is to be installed for it."""
    try:
        return importlib.import_module("vitexport.pipeline.build")
    except ModuleNotFoundError as error:
        raise missing(str(error.name).partition(".")[0], "build", "Building a bundle") from None
    except (ImportError, RuntimeError, OSError) as error:
        # "operator torchvision::nms does not exist": torchvision's wheels need the torch wheel of the same release and kind.
        raise ToolchainError(
            f"PyTorch, torchvision or timm is installed but cannot be imported ({error}). torch and torchvision must come "
            "from one release and be of one kind (CPU or CUDA); install them together."
        ) from error
