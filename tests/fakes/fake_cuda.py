"""The CUDA runtime's Python bindings with device memory that is really elsewhere, and streams that really are asynchronous.

Work runs when its stream is synchronized, not before; memory that was not allocated, or is too small, is an error.
"""

from __future__ import annotations

import ctypes
import enum
import functools
import threading
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
    cudaErrorIllegalAddress = 700  # noqa: N815
    cudaErrorStreamCaptureInvalidated = 901  # noqa: N815


class Kind(enum.IntEnum):
    """cudaMemcpyKind."""

    cudaMemcpyHostToDevice = 1  # noqa: N815
    cudaMemcpyDeviceToHost = 2  # noqa: N815


class CaptureMode(enum.IntEnum):
    """cudaStreamCaptureMode."""

    cudaStreamCaptureModeGlobal = 0  # noqa: N815
    cudaStreamCaptureModeThreadLocal = 1  # noqa: N815


class Graph:
    """What was enqueued while it was recorded."""

    def __init__(self, work: list[Callable[[], None]]) -> None:
        self.work = work

    def __int__(self) -> int:
        return 0x9000


class Event:
    """A moment on the device, in milliseconds; None until its stream gets there."""

    def __init__(self) -> None:
        self.moment: float | None = None
        self.stream: int | None = None


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
    cudaStreamCaptureMode = CaptureMode  # noqa: N815

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
        self.homes: dict[int, int] = {}
        self.current = threading.local()  # each thread begins with the first device
        self.allocations = 0
        self.pinned: dict[int, Any] = {}
        self.captured: list[Callable[[], None]] | None = None
        self.launches = 0
        self.graphs = 0
        self.clock = 0.0
        self.full = False  # for graphs
        self.multiprocessors = 8
        self.raises: str | None = None  # as the bindings before 12.9 do where there is no driver
        self.is_broken = False  # by an error after which every call fails

    @property
    def is_capturing(self) -> bool:
        return self.captured is not None

    @property
    def no_gpu(self) -> bool:
        return self.raises is not None or self.status != Status.cudaSuccess or not self.count

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
        assert self.homes[stream] == self.cudaGetDevice()[1], "a stream of another device than the thread's current one"
        if self.captured is not None:
            self.captured.append(work)
        else:
            self.queues[stream].append(functools.partial(self._work, work))

    def _work(self, work: Callable[[], None]) -> None:
        self.clock += 0.25  # each piece of work takes a quarter of a millisecond
        work()

    # ---- the bindings: each returns a status and, some, a value

    def cudaGetDeviceCount(self) -> tuple[Status, int | None]:  # noqa: N802
        if self.raises is not None:
            raise RuntimeError(self.raises)
        return self.status, self.count

    def cudaGetDevice(self) -> tuple[Status, int]:  # noqa: N802
        return Status.cudaSuccess, getattr(self.current, "device", 0)

    def cudaSetDevice(self, device: int) -> tuple[Status]:  # noqa: N802
        self.current.device = device
        return (Status.cudaSuccess,)

    def cudaGetDeviceProperties(self, device: int) -> tuple[Status, Any]:  # noqa: N802
        major, minor = self.capability
        return Status.cudaSuccess, types.SimpleNamespace(
            name=b"Fake GPU\0\0\0",
            major=major,
            minor=minor,
            multiProcessorCount=self.multiprocessors,
            pciDomainID=0,
            pciBusID=1,
            pciDeviceID=0,
        )

    def cudaDriverGetVersion(self) -> tuple[Status, int]:  # noqa: N802
        return Status.cudaSuccess, self.driver

    def cudaMemGetInfo(self) -> tuple[Status, int, int]:  # noqa: N802
        return Status.cudaSuccess, self.memory - sum(map(len, self.blocks.values())), self.memory

    def cudaStreamCreateWithFlags(self, flags: int) -> tuple[Status, Stream]:  # noqa: N802
        assert flags == 1, "a stream that waits for the legacy default stream"
        stream = Stream(0x5000 + len(self.queues))
        self.queues[int(stream)] = []
        self.homes[int(stream)] = self.cudaGetDevice()[1]
        return Status.cudaSuccess, stream

    def cudaStreamDestroy(self, stream: Stream) -> tuple[Status]:  # noqa: N802
        return (
            Status.cudaSuccess if self.queues.pop(int(stream), None) is not None else Status.cudaErrorInvalidResourceHandle,
        )

    def cudaStreamSynchronize(self, stream: Stream) -> tuple[Status]:  # noqa: N802
        if self.is_broken:
            return (Status.cudaErrorIllegalAddress,)
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

    # ---- pinned memory, events and graphs

    def cudaMallocHost(self, size: int) -> tuple[Status, int | None]:  # noqa: N802
        block = ctypes.create_string_buffer(size)
        address = ctypes.addressof(block)
        self.pinned[address] = block
        return Status.cudaSuccess, address

    def cudaFreeHost(self, address: int) -> tuple[Status]:  # noqa: N802
        known = self.pinned.pop(address, None) is not None
        return (Status.cudaSuccess if known else Status.cudaErrorInvalidValue,)

    def cudaEventCreate(self) -> tuple[Status, Event]:  # noqa: N802
        return Status.cudaSuccess, Event()

    def cudaEventRecord(self, event: Event, stream: Stream) -> tuple[Status]:  # noqa: N802
        event.stream = int(stream)

        def reached() -> None:
            event.moment = self.clock

        self.queues[int(stream)].append(reached)
        return (Status.cudaSuccess,)

    def cudaEventSynchronize(self, event: Event) -> tuple[Status]:  # noqa: N802
        queue = self.queues[event.stream or 0]
        while queue and event.moment is None:
            queue.pop(0)()
        return (Status.cudaSuccess,)

    def cudaEventElapsedTime(self, begin: Event, end: Event) -> tuple[Status, float | None]:  # noqa: N802
        if begin.moment is None or end.moment is None:
            return Status.cudaErrorInvalidResourceHandle, None
        return Status.cudaSuccess, end.moment - begin.moment

    def cudaEventDestroy(self, event: Event) -> tuple[Status]:  # noqa: N802
        return (Status.cudaSuccess,)

    def cudaStreamBeginCapture(self, stream: Stream, mode: CaptureMode) -> tuple[Status]:  # noqa: N802
        self.captured = []
        return (Status.cudaSuccess,)

    def cudaStreamEndCapture(self, stream: Stream) -> tuple[Status, Graph | None]:  # noqa: N802
        work, self.captured = self.captured, None
        if not work:
            return Status.cudaErrorStreamCaptureInvalidated, None
        return Status.cudaSuccess, Graph(work)

    def cudaGetLastError(self) -> tuple[Status]:  # noqa: N802
        return (Status.cudaSuccess,)

    def cudaGraphInstantiateWithFlags(self, graph: Graph, flags: int) -> tuple[Status, Graph | None]:  # noqa: N802
        if self.full:
            return Status.cudaErrorMemoryAllocation, None
        self.graphs += 1
        return Status.cudaSuccess, Graph(graph.work)

    def cudaGraphDestroy(self, graph: Graph) -> tuple[Status]:  # noqa: N802
        return (Status.cudaSuccess,)

    def cudaGraphLaunch(self, graph: Graph, stream: Stream) -> tuple[Status]:  # noqa: N802
        self.launches += 1
        for work in graph.work:
            self.enqueue(int(stream), work)
        return (Status.cudaSuccess,)

    def cudaGraphExecDestroy(self, graph: Graph) -> tuple[Status]:  # noqa: N802
        self.graphs -= 1
        return (Status.cudaSuccess,)

    def cudaMemcpyAsync(self, to: int, source: int, size: int, kind: Kind, stream: Stream) -> tuple[Status]:  # noqa: N802
        host = source if kind == Kind.cudaMemcpyHostToDevice else to
        assert host in self.pinned, "an asynchronous copy from or to memory that is not pinned"
        if kind == Kind.cudaMemcpyHostToDevice:
            self.enqueue(int(stream), lambda: self.write(to, ctypes.string_at(source, size)))
        else:
            self.enqueue(int(stream), functools.partial(self._fetch, to, source, size))
        return (Status.cudaSuccess,)
