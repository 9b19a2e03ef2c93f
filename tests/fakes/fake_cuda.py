"""The CUDA runtime's Python bindings with device memory that is really elsewhere, and streams that really are asynchronous.

Work runs when its stream is synchronized, not before; memory that was not allocated, or is too small, is an error.
"""

from __future__ import annotations

import ctypes
import enum
import functools
import types
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from typing import Any


class Status(enum.IntEnum):
    """The part of cudaError_t that is needed."""

    cudaSuccess = 0  # noqa: N815
    cudaErrorInvalidValue = 1  # noqa: N815
    cudaErrorMemoryAllocation = 2  # noqa: N815
    cudaErrorInsufficientDriver = 35  # noqa: N815
    cudaErrorNoDevice = 100  # noqa: N815
    cudaErrorInvalidResourceHandle = 400  # noqa: N815


class Kind(enum.IntEnum):
    """cudaMemcpyKind."""

    cudaMemcpyHostToDevice = 1  # noqa: N815
    cudaMemcpyDeviceToHost = 2  # noqa: N815


class Stream:
    """A handle that, like the real one, has to be turned into a number for TensorRT."""

    def __init__(self, handle: int) -> None:
        self.handle = handle

    def __int__(self) -> int:
        return self.handle


class FakeCuda:
    """One machine's GPU, or none.

    Args:
        status: What asking for devices returns.
        capability: Compute capability as (major, minor).
        memory: Bytes that can be allocated.
        driver: Newest CUDA version that it runs, as 1000 times the major and 10 times the minor number.
    """

    cudaError_t = Status  # noqa: N815
    cudaMemcpyKind = Kind  # noqa: N815

    def __init__(
        self,
        *,
        status: Status = Status.cudaSuccess,
        count: int | None = 1,
        capability: tuple[int, int] = (8, 9),
        memory: int = 1 << 24,
        driver: int = 12060,
    ) -> None:
        self.driver = driver
        self.status, self.count, self.capability, self.memory = status, count, capability, memory
        self.blocks: dict[int, bytearray] = {}
        self.queues: dict[int, list[Callable[[], None]]] = {}
        self.allocations = 0

    @property
    def no_gpu(self) -> bool:
        return self.status != Status.cudaSuccess or not self.count

    def modules(self, names: tuple[str, ...]) -> dict[str, types.ModuleType]:
        """Entries for `sys.modules`: the bindings at the last of `names`, packages before it."""
        found = {}
        for name in names:
            module: Any = types.ModuleType(name)
            module.__spec__ = ModuleSpec(name, None, is_package=name != names[-1])
            found[name] = module
        for member in dir(self):
            if member.startswith("cuda"):
                setattr(found[names[-1]], member, getattr(self, member))
        return found

    # ---- what the device does

    def read(self, address: int, size: int) -> bytes:
        block = self.blocks[address]
        assert size <= len(block), "read beyond the end of device memory"
        return bytes(block[:size])

    def write(self, address: int, data: bytes) -> None:
        assert len(data) <= len(self.blocks[address]), "write beyond the end of device memory"
        self.blocks[address][: len(data)] = data

    def _fetch(self, to: int, source: int, size: int) -> None:
        ctypes.memmove(to, self.read(source, size), size)

    def enqueue(self, stream: int, work: Callable[[], None]) -> None:
        self.queues[stream].append(work)

    # ---- the bindings: each returns a status and, some, a value

    def cudaGetDeviceCount(self) -> tuple[Status, int | None]:  # noqa: N802
        return self.status, self.count

    def cudaGetDevice(self) -> tuple[Status, int]:  # noqa: N802
        return Status.cudaSuccess, 0

    def cudaGetDeviceProperties(self, device: int) -> tuple[Status, Any]:  # noqa: N802
        major, minor = self.capability
        return Status.cudaSuccess, types.SimpleNamespace(name=b"Fake GPU\0\0\0", major=major, minor=minor)

    def cudaDriverGetVersion(self) -> tuple[Status, int]:  # noqa: N802
        return Status.cudaSuccess, self.driver

    def cudaMemGetInfo(self) -> tuple[Status, int, int]:  # noqa: N802
        return Status.cudaSuccess, self.memory - sum(map(len, self.blocks.values())), self.memory

    def cudaStreamCreate(self) -> tuple[Status, Stream]:  # noqa: N802
        stream = Stream(0x5000 + len(self.queues))
        self.queues[int(stream)] = []
        return Status.cudaSuccess, stream

    def cudaStreamDestroy(self, stream: Stream) -> tuple[Status]:  # noqa: N802
        return (
            Status.cudaSuccess if self.queues.pop(int(stream), None) is not None else Status.cudaErrorInvalidResourceHandle,
        )

    def cudaStreamSynchronize(self, stream: Stream) -> tuple[Status]:  # noqa: N802
        queue = self.queues[int(stream)]
        while queue:
            queue.pop(0)()
        return (Status.cudaSuccess,)

    def cudaMalloc(self, size: int) -> tuple[Status, int | None]:  # noqa: N802
        if sum(map(len, self.blocks.values())) + size > self.memory:
            return Status.cudaErrorMemoryAllocation, None
        self.allocations += 1
        address = 0x7000_0000 + (self.allocations << 24)
        self.blocks[address] = bytearray(size)
        return Status.cudaSuccess, address

    def cudaFree(self, address: int) -> tuple[Status]:  # noqa: N802
        known = self.blocks.pop(address, None) is not None
        return (Status.cudaSuccess if known else Status.cudaErrorInvalidValue,)

    def cudaMemcpyAsync(self, to: int, source: int, size: int, kind: Kind, stream: Stream) -> tuple[Status]:  # noqa: N802
        if kind == Kind.cudaMemcpyHostToDevice:
            self.enqueue(int(stream), lambda: self.write(to, ctypes.string_at(source, size)))
        else:
            self.enqueue(int(stream), functools.partial(self._fetch, to, source, size))
        return (Status.cudaSuccess,)
