"""Nothing enters; the CUDA runtime's Python bindings, and the GPU that they find, leave.

Whoever is about to call TensorRT asks here first: on a machine without a GPU it may end the process.
"""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
from typing import Any

from vitexport.errors import ToolchainError, missing

# Where the bindings live: cuda-bindings 12.6 and later, and cuda-python before.
MODULES = ("cuda.bindings.runtime", "cuda.cudart")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """The CUDA device that is current.

    Attributes:
        name: As the driver calls it.
        compute_capability: For example ``8.7``.
        driver: Newest CUDA version that the driver runs, for example ``12.6``.
        free_bytes: Device memory that is not in use.
    """

    name: str
    compute_capability: str
    driver: str
    free_bytes: int


def cuda_runtime(purpose: str, extra: str) -> Any:
    """The bindings.

    Args:
        purpose: What needs them, for the message.
        extra: Of vitexport's extras the one that brings them.

    Raises:
        MissingDependencyError: They are not installed.
    """
    for name in MODULES:
        package = name.partition(".")[0]
        if importlib.util.find_spec(package) is None:
            continue
        try:
            return importlib.import_module(name)
        except ImportError:
            continue
    raise missing("cuda-bindings", extra, purpose)


def call(cuda: Any, name: str, *arguments: Any) -> Any:
    """Call the CUDA runtime; its functions return a status and, some of them, one value or more.

    Raises:
        ToolchainError: The status is not success.
    """
    status, *values = getattr(cuda, name)(*arguments)
    if int(status) != 0:
        raise ToolchainError(f"CUDA's {name} failed: {status.name} ({int(status)}).")
    if len(values) > 1:
        return tuple(values)
    return values[0] if values else None


def why_no_gpu(cuda: Any) -> str | None:
    """The name of the status with which CUDA finds no GPU here, or None if it finds one."""
    status, count = cuda.cudaGetDeviceCount()
    return str(getattr(status, "name", status)) if int(status) != 0 or count < 1 else None


def current_gpu(cuda: Any) -> Gpu:
    """The GPU that calls go to.

    Raises:
        ToolchainError: The CUDA runtime fails.
    """
    properties = call(cuda, "cudaGetDeviceProperties", call(cuda, "cudaGetDevice"))
    name = properties.name.decode() if isinstance(properties.name, bytes) else str(properties.name)
    driver = int(call(cuda, "cudaDriverGetVersion"))
    free, _ = call(cuda, "cudaMemGetInfo")
    return Gpu(
        name=name.strip("\0"),
        compute_capability=f"{properties.major}.{properties.minor}",
        # 12060 is 12.6.
        driver=f"{driver // 1000}.{driver % 1000 // 10}",
        free_bytes=int(free),
    )
