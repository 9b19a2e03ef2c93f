"""An artifact's path enters; a `Backend` that computes the model's outputs from preprocessed images leaves.

The modules of this room are the only ones that import an engine library, and each is imported only when it is used.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from vitexport.artifacts import Outputs

__all__ = ["Backend", "EngineFacts", "open_engine", "open_onnx"]


class Backend(Protocol):
    """One loaded artifact on one device."""

    @property
    def description(self) -> str:
        """Library, version and device, for reports."""

    def run(self, images: NDArray[np.float32]) -> Outputs:
        """Outputs by name, float32 [n, …], of images, float32 [n, 3, height, width], n within the artifact's batch."""

    def close(self) -> None:
        """Free what it holds."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class EngineFacts:
    """What an engine was built for, to be held against the machine before it is loaded.

    Attributes:
        library: ``tensorrt-rtx`` or ``tensorrt``.
        library_version: Version that built it; None if not known, and TensorRT has to judge.
        compute_capabilities: For example ``("8.9",)``; empty if not restricted.
        target: The device's name.
    """

    library: str
    library_version: str | None
    compute_capabilities: tuple[str, ...]
    target: str


def open_onnx(path: Path, *, threads: int | None = None, exact: bool = False) -> Backend:
    """Load an ONNX model in ONNX Runtime on the CPU.

    Args:
        path: The file.
        threads: None for one per core that the process may use.
        exact: Run the graph node by node as it is written, without fusions: Q/DQ is then computed in float, exactly.

    Raises:
        MissingDependencyError: ONNX Runtime is not installed.
        ToolchainError: It refuses the model.
    """
    from vitexport.runtime.backends.onnx_runtime import OnnxRuntimeBackend

    return OnnxRuntimeBackend(path, threads=threads, exact=exact)


def open_engine(path: Path, facts: EngineFacts) -> Backend:
    """Load a serialized TensorRT engine on this machine's GPU. Trust an engine no more than a shared library.

    Raises:
        MissingDependencyError: TensorRT or the CUDA bindings are not installed.
        DeviceError: There is no GPU, or the engine is for another GPU or library version.
    """
    from vitexport.runtime.backends.tensorrt_engine import TensorRtBackend

    return TensorRtBackend(path, facts)
