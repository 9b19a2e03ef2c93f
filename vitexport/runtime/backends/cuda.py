"""Output: the CUDA runtime's Python bindings, the GPU that they find, and memory that it can read.

Whoever is about to call TensorRT asks here first: on a machine without a GPU it may end the process.
"""

from __future__ import annotations

import ctypes
import dataclasses
import importlib
import importlib.util
import os
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitexport.errors import ToolchainError, missing

# Where the bindings live: cuda-bindings 12.6 and later, and cuda-python before.
MODULES = ("cuda.bindings.runtime", "cuda.cudart")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """The CUDA device that is current.

    Attributes:
        name: As the driver calls it.
        compute_capability: For example ``8.7``.
        multiprocessors: How many it has. Jetsons of one name differ in it.
        driver: Newest CUDA version that the driver runs, for example ``12.6``.
        free_bytes: Device memory that is not in use.
    """

    name: str
    compute_capability: str
    multiprocessors: int
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
        ToolchainError: The status is not success, or the bindings do not get as far as to a status: before 12.9 they raise
            where there is no driver.
    """
    try:
        status, *values = getattr(cuda, name)(*arguments)
    except RuntimeError as error:
        raise ToolchainError(f"CUDA's {name} failed: {error}.") from error
    if int(status) != 0:
        raise ToolchainError(f"CUDA's {name} failed: {status.name} ({int(status)}).")
    if len(values) > 1:
        return tuple(values)
    return values[0] if values else None


def why_no_gpu(cuda: Any) -> str | None:
    """The name of the status, or the sentence, with which CUDA finds no GPU here; None if it finds one."""
    try:
        status, count = cuda.cudaGetDeviceCount()
    except RuntimeError as error:  # the bindings before 12.9, where there is no driver
        return str(error)
    return str(getattr(status, "name", status)) if int(status) != 0 or count < 1 else None


def why_no_driver() -> str | None:
    """Why CUDA's driver, asked without any bindings, has no GPU here, as a clause; None if it has one."""
    name = "nvcuda.dll" if os.name == "nt" else "libcuda.so.1"
    try:
        driver = ctypes.CDLL(name)
    except OSError:
        return f"this machine has no NVIDIA driver ({name} is not there)"
    status = int(driver.cuInit(0))
    return None if status == 0 else f"its driver finds none here (cuInit returns {status})"


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
        multiprocessors=int(properties.multiProcessorCount),
        # 12060 is 12.6.
        driver=f"{driver // 1000}.{driver % 1000 // 10}",
        free_bytes=int(free),
    )


class Buffers:
    """For each tensor a piece of device memory and a pinned piece of host memory, kept between calls.

    Copies from and to pinned memory are truly asynchronous, and faster; pageable memory is staged by the driver.
    """

    def __init__(self, cuda: Any) -> None:
        self._cuda = cuda
        self._held: dict[str, tuple[int, int, int]] = {}

    def reserve(self, name: str, size: int) -> bool:
        """Hold at least `size` bytes for `name`; whether they lie somewhere else than before.

        Raises:
            ToolchainError: The device or the host has no such memory left.
        """
        if name in self._held and self._held[name][2] >= size:
            return False
        self._free(name)
        device = int(call(self._cuda, "cudaMalloc", size))
        try:
            host = int(call(self._cuda, "cudaMallocHost", size))
        except ToolchainError:
            call(self._cuda, "cudaFree", device)
            raise
        self._held[name] = (device, host, size)
        return True

    def device(self, name: str) -> int:
        """Device address of the tensor."""
        return self._held[name][0]

    def host(self, name: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
        """The first elements of its pinned memory as float32 of `shape`; a view that the next call overwrites."""
        count = int(np.prod(shape))
        block = (ctypes.c_float * count).from_address(self._held[name][1])
        return np.ctypeslib.as_array(block).reshape(shape)

    def free(self) -> None:
        """Give everything back."""
        for name in tuple(self._held):
            self._free(name)

    def _free(self, name: str) -> None:
        if name in self._held:
            device, host, _ = self._held.pop(name)
            call(self._cuda, "cudaFree", device)
            call(self._cuda, "cudaFreeHost", host)


def pci_bus_id(purpose: str = "Naming the GPU", extra: str = "tensorrt") -> str:
    """PCI address of the GPU that calls go to, as NVML takes it: ``00000000:01:00.0``.

    Raises:
        MissingDependencyError: The bindings are not installed.
        ToolchainError: The CUDA runtime fails.
    """
    cuda = cuda_runtime(purpose, extra)
    properties = call(cuda, "cudaGetDeviceProperties", call(cuda, "cudaGetDevice"))
    return f"{properties.pciDomainID:08X}:{properties.pciBusID:02X}:{properties.pciDeviceID:02X}.0"
