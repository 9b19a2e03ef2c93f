"""Input: a library's name; output: its Python module, whichever generation is installed. Nobody else imports TensorRT.

Full TensorRT is ``tensorrt``; TensorRT-RTX is ``tensorrt_rtx`` with NVIDIA's meta package and ``tensorrt_rtx_bindings``
with the plain wheels. Members differ between 8.5 and 11: what may be absent is looked up by name, never by number.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from typing import Any

from vitexport.errors import MissingDependencyError, ToolchainError

MODULES = {"tensorrt": ("tensorrt",), "tensorrt-rtx": ("tensorrt_rtx", "tensorrt_rtx_bindings")}
EXTRAS = {"tensorrt": "tensorrt", "tensorrt-rtx": "rtx"}
HINTS = {
    "tensorrt": " (on a Jetson it comes with JetPack: make the virtual environment with --system-site-packages)",
    "tensorrt-rtx": "",
}
TITLES = {"tensorrt": "TensorRT", "tensorrt-rtx": "TensorRT-RTX"}


def is_installed(library: str) -> bool:
    """Whether a module of `library` (``tensorrt`` or ``tensorrt-rtx``) can be found; imports nothing."""
    return any(importlib.util.find_spec(name) is not None for name in MODULES[library])


def missing_library(library: str, purpose: str) -> MissingDependencyError:
    """The error for an absent `library`: what needed it, and the command that installs it."""
    return MissingDependencyError(
        f"{purpose} needs {TITLES[library]}, which is not installed here. "
        f"Install it with: pip install 'vitexport[{EXTRAS[library]}]'{HINTS[library]}"
    )


def load_library(library: str, purpose: str) -> Any:
    """Import `library`.

    Raises:
        MissingDependencyError: It is not installed.
        ToolchainError: It is installed and cannot be imported.
    """
    for name in MODULES[library]:
        if importlib.util.find_spec(name) is None:
            continue
        try:
            return importlib.import_module(name)
        except (ImportError, OSError, RuntimeError) as error:
            raise ToolchainError(f"{TITLES[library]} is installed but cannot be imported: {error}") from error
    raise missing_library(library, purpose)


def make_logger(api: Any) -> Any:
    """A TensorRT logger that keeps warnings and errors in ``messages`` instead of printing them."""

    class Logger(api.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            api.ILogger.__init__(self)
            self.messages: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if int(severity) <= int(api.ILogger.WARNING):
                self.messages.append(message)

    return Logger()


def reasons(logger: Any, limit: int = 3) -> str:
    """The last distinct messages of `logger`, for an error of ours."""
    distinct = list(dict.fromkeys(" ".join(message.split()) for message in logger.messages))
    return " | ".join(text[:300] for text in distinct[-limit:]) or "it gave no reason"


def start(api: Any, part: str, *words: Any) -> Any:
    """The library's ``Builder``, ``Runtime`` or what else takes a logger, as the last of `words`.

    Raises:
        ToolchainError: It does not start; pybind11 then raises a TypeError that holds no reason
            (https://github.com/NVIDIA/TensorRT/issues/2913).
    """
    try:
        return getattr(api, part)(*words)
    except TypeError as error:
        raise ToolchainError(f"TensorRT {api.__version__} cannot start its {part}: {reasons(words[-1])}") from error


def version_tuple(api: Any) -> tuple[int, ...]:
    """Version of the module as numbers, for example (10, 3, 0)."""
    return tuple(int(part) for part in str(api.__version__).split(".") if part.isdigit())


def quiet_cuda_modules() -> None:
    """Load kernels lazily, as NVIDIA advises for start-up time and memory; an environment's own choice stands."""
    os.environ.setdefault("CUDA_MODULE_LOADING", "LAZY")
