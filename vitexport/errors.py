"""Every error is one sentence and one exit code.

::

    VitexportError                     any failure that vitexport can explain
    ├── UsageError                 2   the command line or the arguments contradict themselves or the target
    ├── InputError                 3   a model, checkpoint, image, folder, bundle or output path is not usable
    │   ├── BundleError            3   a bundle is damaged, foreign or of another format
    │   └── NothingToQuantizeError 3   a model has no layer that the target computes in integers
    ├── MissingDependencyError     4   a package that this step needs is not installed
    ├── ToolchainError             5   PyTorch's exporter, ONNX Runtime or TensorRT failed
    │   └── DeviceError            5   an engine or a variant does not fit the machine it is asked to run on
    └── InterruptedBuildError    130   Ctrl-C or SIGTERM

Exit code 0 means that every check passed or was skipped, 1 that the work was done and a check failed.
Every message says what was seen, what was expected and what to do.
"""

from __future__ import annotations

from typing import ClassVar

EXIT_OK = 0
EXIT_CHECK_FAILED = 1


class VitexportError(Exception):
    """Root of the tree; `exit_code` is what the command line returns."""

    exit_code: ClassVar[int] = 5


class UsageError(VitexportError):
    """Arguments that contradict each other, or ask the target for what it cannot do."""

    exit_code = 2


class InputError(VitexportError):
    """Something that was read or is to be written is not usable."""

    exit_code = 3


class BundleError(InputError):
    """A bundle is damaged, is not a bundle, or was written by another version of vitexport."""


class NothingToQuantizeError(InputError):
    """No layer of the model is one that the target computes in integers, or none is left."""


class MissingDependencyError(VitexportError):
    """A package is not installed; the message holds the command that installs it."""

    exit_code = 4


class ToolchainError(VitexportError):
    """A library that vitexport drives refused or failed; the message holds its own words."""

    exit_code = 5


class DeviceError(ToolchainError):
    """An artifact does not fit the machine; the message names both sides."""


class InterruptedBuildError(VitexportError):
    """The user or the system asked the process to stop."""

    exit_code = 130


def missing(package: str, extra: str, purpose: str) -> MissingDependencyError:
    """The error for an absent package: what needed it and the exact command that installs it."""
    return MissingDependencyError(
        f"{purpose} needs {package}, which is not installed here. Install it with: pip install 'vitexport[{extra}]'"
    )
