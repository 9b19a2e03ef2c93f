"""Input: a serialized engine and images; output: its outputs, computed by TensorRT on this machine's GPU.

Memory is moved through the CUDA runtime's own Python bindings; no torch and no pycuda. A GPU is looked for before the
first call into TensorRT, which may crash the process where there is none.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitexport.artifacts import INPUT_NAME, Outputs, file_sha256
from vitexport.errors import DeviceError, ToolchainError, UsageError
from vitexport.runtime.backends import EngineFacts
from vitexport.runtime.backends.cuda import Buffers, Gpu, call, cuda_runtime, current_gpu, why_no_gpu
from vitexport.runtime.backends.rtx_cache import RtxCache
from vitexport.runtime.backends.tensorrt_api import (
    EXTRAS,
    TITLES,
    load_library,
    make_logger,
    quiet_cuda_modules,
    reasons,
    start,
)

# cudaStreamNonBlocking
NON_BLOCKING = 1


class TensorRtBackend:
    """One engine, one execution context, one stream.

    Attributes:
        gpu: Name of the GPU.
        use_cuda_graph: Whether what TensorRT enqueues for an input shape is recorded when that shape comes a second time,
            and from then on launched as one CUDA graph; can be changed at any time.
        graph_refusal: Why that was tried and is not done, or None.

    Raises:
        MissingDependencyError: TensorRT or the CUDA bindings are not installed.
        DeviceError: No GPU, or the engine is for another GPU or another library version.
        ToolchainError: TensorRT cannot load or run it.
    """

    def __init__(self, path: Path, facts: EngineFacts) -> None:
        quiet_cuda_modules()
        self._cuda = cuda_runtime(f"Running the engine for {facts.target}", EXTRAS[facts.library])
        gpu = self._fitting_gpu(facts)
        self.gpu = gpu.name
        api = load_library(facts.library, f"Running the engine for {facts.target}")
        self._json = api.LayerInformationFormat.JSON
        title = f"{TITLES[facts.library]} {api.__version__}"
        _check_version(title, str(api.__version__), facts)
        self._logger = make_logger(api)
        self._runtime = start(api, "Runtime", self._logger)
        if facts.version_compatible:
            # Such a plan brings the code that reads it, and TensorRT runs that only where it is told that it may.
            self._runtime.engine_host_code_allowed = True
        if facts.dla_core is not None:
            # An engine does not say which core it is for; without this it would go to the first.
            self._runtime.DLA_core = facts.dla_core
        self._engine = self._runtime.deserialize_cuda_engine(path.read_bytes())
        if self._engine is None:
            raise DeviceError(f"{title} cannot load {path.name} on {self.gpu}: {reasons(self._logger)}")
        if facts.weights is not None:
            self._refit(api, title, facts.weights)
        names = [str(self._engine.get_tensor_name(index)) for index in range(self._engine.num_io_tensors)]
        self._outputs = [name for name in names if name != INPUT_NAME]
        self._kernels = None
        # Full TensorRT has a runtime configuration too (10.11 and later), but no kernels to compile and no cache in it.
        if facts.library == "tensorrt-rtx":
            folder = None
            if facts.kernel_cache is not None:
                here = f"{facts.library}-{api.__version__}-sm{gpu.compute_capability}-cuda{gpu.driver}"
                folder = facts.kernel_cache / here / file_sha256(path)[:16]
            self._kernels = RtxCache(api, self._engine, folder)
        self._context = self._kernels.context() if self._kernels is not None else self._engine.create_execution_context()
        if self._context is None:
            raise ToolchainError(f"{title} cannot create an execution context on {self.gpu}: {reasons(self._logger)}")
        # Another library's work on the legacy default stream must not wait for this one, nor end what it records.
        self._stream = self._call("cudaStreamCreateWithFlags", NON_BLOCKING)
        self._device = int(self._call("cudaGetDevice"))
        # One context, one set of buffers and one graph: an execution context serves one caller at a time.
        self._lock = threading.Lock()
        self._buffers = Buffers(self._cuda)
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._graph: Any = None
        self._ran = False
        self.use_cuda_graph = True
        self.graph_refusal: str | None = None
        self.description = f"{title}, {self.gpu}"

    def run(self, images: NDArray[np.float32]) -> Outputs:
        """Outputs by name, float32 [n, …], of float32 [n, 3, height, width].

        Raises:
            ToolchainError: TensorRT refuses the shape or fails.
        """
        with self._turn():
            return self._run(images)

    def _run(self, images: NDArray[np.float32]) -> Outputs:
        self._upload(images)
        self._enqueue()
        kinds = self._cuda.cudaMemcpyKind
        views = {name: self._buffers.host(name, self._shapes[name]) for name in self._outputs}
        for name, view in views.items():
            back = (view.ctypes.data, self._buffers.device(name), view.nbytes, kinds.cudaMemcpyDeviceToHost)
            self._call("cudaMemcpyAsync", *back, self._stream)
        self._call("cudaStreamSynchronize", self._stream)
        self._record()
        return {name: view.copy() for name, view in views.items()}

    def gpu_time(self, images: NDArray[np.float32]) -> float:
        """Milliseconds that the GPU takes for `images`, float32 [n, 3, height, width], which are copied to it before.

        Raises:
            ToolchainError: TensorRT refuses the shape or fails.
        """
        with self._turn():
            return self._gpu_time(images)

    def _gpu_time(self, images: NDArray[np.float32]) -> float:
        self._upload(images)
        begin, end = self._call("cudaEventCreate"), self._call("cudaEventCreate")
        try:
            self._call("cudaEventRecord", begin, self._stream)
            self._enqueue()
            self._call("cudaEventRecord", end, self._stream)
            self._call("cudaEventSynchronize", end)
            milliseconds = float(self._call("cudaEventElapsedTime", begin, end))
        finally:
            self._call("cudaEventDestroy", begin)
            self._call("cudaEventDestroy", end)
        self._record()
        return milliseconds

    def layer_information(self) -> str:
        """The engine's layers as the inspector tells them, in JSON; names only if it was built without more.

        Raises:
            ToolchainError: The engine cannot be inspected.
        """
        inspector = self._engine.create_engine_inspector()
        if inspector is None:
            raise ToolchainError(f"The engine cannot be inspected: {reasons(self._logger)}")
        return str(inspector.get_engine_information(self._json))

    def close(self) -> None:
        """Free the engine, the device's memory and the stream, and keep the kernels that TensorRT-RTX compiled.

        Never fails: after an error of CUDA, of another library in this process too, every call of it does, and the system
        takes back what could not be freed.
        """
        with self._lock:
            self._close()

    def _close(self) -> None:
        if self._stream is None:
            return
        stream, self._stream = self._stream, None
        try:
            if self._kernels is not None:
                self._kernels.keep()
        finally:
            with contextlib.suppress(ToolchainError):
                self._call("cudaStreamSynchronize", stream)
            with contextlib.suppress(ToolchainError):
                self._drop_graph()
            # In this order: a context needs its engine, an engine its runtime, and all of them what they last ran on.
            self._context = self._kernels = self._engine = self._runtime = None
            with contextlib.suppress(ToolchainError):
                self._buffers.free()
            with contextlib.suppress(ToolchainError):
                self._call("cudaStreamDestroy", stream)

    @contextlib.contextmanager
    def _turn(self) -> Iterator[None]:
        """One caller at a time, each on the engine's device: in a new thread the first device is current."""
        with self._lock:
            before = int(self._call("cudaGetDevice"))
            if before != self._device:
                self._call("cudaSetDevice", self._device)
            try:
                yield
            finally:
                if before != self._device:
                    with contextlib.suppress(ToolchainError):
                        self._call("cudaSetDevice", before)

    def _upload(self, images: NDArray[np.float32]) -> None:
        """Bring `images` to the device, with room there for what becomes of them."""
        if self._stream is None:
            raise UsageError("The engine was closed; load the bundle again.")
        images = np.asarray(images, np.float32)
        if self._shapes.get(INPUT_NAME) != images.shape:
            self._take_shape(images.shape)
        pinned = self._buffers.host(INPUT_NAME, images.shape)
        np.copyto(pinned, images)
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyHostToDevice
        there = self._buffers.device(INPUT_NAME)
        self._call("cudaMemcpyAsync", there, pinned.ctypes.data, pinned.nbytes, kind, self._stream)

    def _take_shape(self, shape: tuple[int, ...]) -> None:
        # A graph replays addresses and sizes, so it ends with the shape that it was recorded for.
        self._drop_graph()
        self._shapes, self._ran = {}, False
        if not self._context.set_input_shape(INPUT_NAME, shape):
            raise ToolchainError(f"The engine does not take input {shape}: {reasons(self._logger)}")
        shapes = {INPUT_NAME: shape, **{name: tuple(self._context.get_tensor_shape(name)) for name in self._outputs}}
        for name, each in shapes.items():
            self._buffers.reserve(name, int(np.prod(each)) * np.dtype(np.float32).itemsize)
            self._context.set_tensor_address(name, self._buffers.device(name))
        self._shapes = shapes

    def _enqueue(self) -> None:
        if self._graph is not None and self.use_cuda_graph:
            self._call("cudaGraphLaunch", self._graph, self._stream)
        elif not self._context.execute_async_v3(int(self._stream)):
            raise ToolchainError(f"TensorRT failed on input {self._shapes[INPUT_NAME]}: {reasons(self._logger)}")

    def _record(self) -> None:
        """Record a shape that came twice as a graph, if that is wanted: a picture alone does not pay for it."""
        first, self._ran = not self._ran, True
        if first or self._graph is not None or not self.use_cuda_graph or self.graph_refusal is not None:
            return
        if self._kernels is not None and not self._context.is_stream_capturable(int(self._stream)):
            self.graph_refusal = "the engine takes memory while it runs, which cannot be recorded"
            return
        cuda, taken = self._cuda, False
        self._call("cudaStreamBeginCapture", self._stream, cuda.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal)
        try:
            taken = self._context.execute_async_v3(int(self._stream))
        finally:
            status, graph = cuda.cudaStreamEndCapture(self._stream)
        executable = None
        if taken and int(status) == 0:
            status, executable = cuda.cudaGraphInstantiateWithFlags(graph, 0)
        if graph is not None and int(graph) != 0:
            self._call("cudaGraphDestroy", graph)
        if not taken or int(status) != 0:
            # An engine may hold what cannot be recorded, such as a loop or a copy to the host; it runs without a graph.
            cuda.cudaGetLastError()
            why = status.name if int(status) != 0 else "TensorRT refuses"
            self.graph_refusal = f"the engine cannot be recorded ({why}): {reasons(self._logger)}"
            return
        self._graph = executable

    def _drop_graph(self) -> None:
        if self._graph is not None:
            self._call("cudaGraphExecDestroy", self._graph)
            self._graph = None

    def _refit(self, api: Any, title: str, onnx: Path) -> None:
        """Give a stripped engine the weights of `onnx`."""
        refitter = start(api, "Refitter", self._engine, self._logger)
        parser = start(api, "OnnxParserRefitter", refitter, self._logger)
        if not parser.refit_from_file(str(onnx)) or not refitter.refit_cuda_engine():
            raise ToolchainError(f"{title} cannot put the weights of {onnx.name} into the engine: {reasons(self._logger)}")

    def _call(self, name: str, *arguments: Any) -> Any:
        return call(self._cuda, name, *arguments)

    def _fitting_gpu(self, facts: EngineFacts) -> Gpu:
        wanted = " or ".join(facts.compute_capabilities)
        if (reason := why_no_gpu(self._cuda)) is not None:
            raise DeviceError(
                f"The engine was compiled for {facts.target} (compute capability {wanted}), but this machine has no CUDA "
                f"GPU ({reason}). Run it on the device, or load the bundle with backend onnxruntime to look at its numbers."
            )
        gpu = current_gpu(self._cuda)
        if facts.compute_capabilities and gpu.compute_capability not in facts.compute_capabilities:
            raise DeviceError(
                f"The engine was compiled for {facts.target} (compute capability {wanted}), but this machine's GPU is "
                f"{gpu.name} (compute capability {gpu.compute_capability}). Build the bundle for this GPU."
            )
        return gpu


def _check_version(title: str, installed: str, facts: EngineFacts) -> None:
    """TensorRT-RTX engines have no forward compatibility, and plain TensorRT engines are tied to their version."""
    if facts.library_version is None:
        return
    if installed.split(".")[:3] != facts.library_version.split(".")[:3]:
        raise DeviceError(
            f"The engine was compiled by {TITLES[facts.library]} {facts.library_version}, but this machine has {title}. "
            f"Install that version, or build the bundle again with {installed}."
        )
