"""Input: an artifact's path; output: a `Backend` that computes the model's outputs from preprocessed images.

The modules of this room are the only ones that import an engine library, and each is imported only when it is used.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol, TypeAlias, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from vitexport.artifacts import Outputs

__all__ = [
    "GRAPH_RUNTIMES",
    "Backend",
    "EngineFacts",
    "GpuTimer",
    "Inspectable",
    "Provider",
    "open_engine",
    "open_onnx",
]

# An execution provider of ONNX Runtime by its name there, and its options.
Provider: TypeAlias = tuple[str, Mapping[str, str]]


class Backend(Protocol):
    """One loaded artifact on one device."""

    @property
    def description(self) -> str:
        """Library, version and device, for reports."""

    def run(self, images: NDArray[np.float32]) -> Outputs:
        """Outputs by name, float32 [n, …], of images, float32 [n, 3, height, width], n within the artifact's batch."""

    def close(self) -> None:
        """Free what it holds."""


@runtime_checkable
class Inspectable(Protocol):
    """A backend that can tell what it is made of: an engine."""

    def layer_information(self) -> str:
        """What the library's inspector says of the engine's layers, as JSON; see `vitexport.runtime.inspection`."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class EngineFacts:
    """What an engine was built for, to be checked against the machine before it is loaded.

    Attributes:
        library: ``tensorrt-rtx`` or ``tensorrt``.
        library_version: Version that built it; None if not known, and TensorRT has to judge.
        compute_capabilities: For example ``("8.9",)``; empty if not restricted.
        target: The device's name.
        version_compatible: The engine brings the code that reads it, so that later versions run it too.
        weights: ONNX file whose weights a stripped engine takes; None for an engine that has its own.
        dla_core: Deep Learning Accelerator that the engine was built for; None for the GPU alone.
        kernel_cache: Folder where TensorRT-RTX keeps the kernels that it compiles here; None to keep none.
    """

    library: str
    library_version: str | None
    compute_capabilities: tuple[str, ...]
    target: str
    version_compatible: bool = False
    weights: Path | None = None
    dla_core: int | None = None
    kernel_cache: Path | None = None


@runtime_checkable
class GpuTimer(Protocol):
    """A backend that can tell the GPU's own time from everything around it, with and without a CUDA graph."""

    use_cuda_graph: bool
    graph_refusal: str | None

    def gpu_time(self, images: NDArray[np.float32]) -> float:
        """Milliseconds that the GPU takes for `images`, float32 [n, 3, height, width], which lie on it already."""


def open_onnx(path: Path, *, threads: int | None = None, exact: bool = False, providers: Sequence[Provider] = ()) -> Backend:
    """Load an ONNX model in ONNX Runtime.

    Args:
        path: The file.
        threads: None for one per core that the process may use.
        exact: Run the graph node by node as it is written, without fusions: Q/DQ is then computed in float, exactly.
        providers: Execution providers of a GPU, the preferred one first; none for the CPU.

    Raises:
        MissingDependencyError: ONNX Runtime is not installed.
        DeviceError: A provider does not start here.
        ToolchainError: It refuses the model.
    """
    from vitexport.runtime.backends.onnx_runtime import OnnxRuntimeBackend

    return OnnxRuntimeBackend(path, threads=threads, exact=exact, providers=providers)


def _onnx_runtime(path: Path, threads: int | None) -> Backend:
    return open_onnx(path, threads=threads)


# What loads the graph of a bundle whose target runs it as it is, by the target's runtime: a file, and threads or None.
GRAPH_RUNTIMES: dict[str, Callable[[Path, int | None], Backend]] = {"onnxruntime": _onnx_runtime}


def open_engine(path: Path, facts: EngineFacts) -> Backend:
    """Load a serialized TensorRT engine on this machine's GPU. Trust an engine no more than a shared library.

    Raises:
        MissingDependencyError: TensorRT or the CUDA bindings are not installed.
        DeviceError: There is no GPU, or the engine is for another GPU or library version.
    """
    from vitexport.runtime.backends.tensorrt_engine import TensorRtBackend

    return TensorRtBackend(path, facts)
