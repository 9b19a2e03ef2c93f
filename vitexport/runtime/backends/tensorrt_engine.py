"""A serialized engine and images enter; its outputs, computed by TensorRT on this machine's GPU, leave.

Memory is moved through the CUDA runtime's own Python bindings; no torch and no pycuda. A GPU is looked for before the
first call into TensorRT, which may crash the process where there is none.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitexport.artifacts import INPUT_NAME, Outputs
from vitexport.errors import DeviceError, ToolchainError
from vitexport.runtime.backends import EngineFacts
from vitexport.runtime.backends.cuda import call, cuda_runtime, current_gpu, why_no_gpu
from vitexport.runtime.backends.tensorrt_api import (
    EXTRAS,
    TITLES,
    load_library,
    make_logger,
    quiet_cuda_modules,
    reasons,
    start,
)


class TensorRtBackend:
    """One engine, one execution context, one stream.

    Raises:
        MissingDependencyError: TensorRT or the CUDA bindings are not installed.
        DeviceError: No GPU, or the engine is for another GPU or another library version.
        ToolchainError: TensorRT cannot load or run it.
    """

    def __init__(self, path: Path, facts: EngineFacts) -> None:
        quiet_cuda_modules()
        self._cuda = cuda_runtime(f"Running the engine for {facts.target}", EXTRAS[facts.library])
        self.gpu = self._fitting_gpu(facts)
        api = load_library(facts.library, f"Running the engine for {facts.target}")
        title = f"{TITLES[facts.library]} {api.__version__}"
        _check_version(title, str(api.__version__), facts)
        self._logger = make_logger(api)
        self._runtime = start(api, "Runtime", self._logger)
        engine = self._runtime.deserialize_cuda_engine(path.read_bytes())
        if engine is None:
            raise DeviceError(f"{title} cannot load {path.name} on {self.gpu}: {reasons(self._logger)}")
        self._engine = engine
        names = [str(engine.get_tensor_name(index)) for index in range(engine.num_io_tensors)]
        self._outputs = [name for name in names if name != INPUT_NAME]
        self._context = engine.create_execution_context()
        if self._context is None:
            raise ToolchainError(f"{title} cannot create an execution context on {self.gpu}: {reasons(self._logger)}")
        self._stream = self._call("cudaStreamCreate")
        self._buffers: dict[str, tuple[int, int]] = {}
        self.description = f"{title}, {self.gpu}"

    def run(self, images: NDArray[np.float32]) -> Outputs:
        """Outputs by name, float32 [n, …], of float32 [n, 3, height, width].

        Raises:
            ToolchainError: TensorRT refuses the shape or fails.
        """
        images = np.ascontiguousarray(images, np.float32)
        if not self._context.set_input_shape(INPUT_NAME, images.shape):
            raise ToolchainError(f"The engine does not take input {images.shape}: {reasons(self._logger)}")
        results = {name: np.empty(tuple(self._context.get_tensor_shape(name)), np.float32) for name in self._outputs}
        source = self._buffer(INPUT_NAME, images.nbytes)
        held = {name: self._buffer(name, result.nbytes) for name, result in results.items()}
        kinds = self._cuda.cudaMemcpyKind
        self._call("cudaMemcpyAsync", source, images.ctypes.data, images.nbytes, kinds.cudaMemcpyHostToDevice, self._stream)
        self._context.set_tensor_address(INPUT_NAME, source)
        for name, pointer in held.items():
            self._context.set_tensor_address(name, pointer)
        if not self._context.execute_async_v3(int(self._stream)):
            raise ToolchainError(f"TensorRT failed on input {images.shape}: {reasons(self._logger)}")
        for name, result in results.items():
            back = (result.ctypes.data, held[name], result.nbytes, kinds.cudaMemcpyDeviceToHost)
            self._call("cudaMemcpyAsync", *back, self._stream)
        self._call("cudaStreamSynchronize", self._stream)
        return results

    def close(self) -> None:
        """Free the device's memory and the stream."""
        for pointer, _ in self._buffers.values():
            self._call("cudaFree", pointer)
        self._buffers.clear()
        if self._stream is not None:
            self._call("cudaStreamDestroy", self._stream)
            self._stream = None

    def _buffer(self, name: str, size: int) -> int:
        """Device memory of at least `size` bytes, kept between calls."""
        pointer, held = self._buffers.get(name, (0, 0))
        if held < size:
            if held:
                del self._buffers[name]
                self._call("cudaFree", pointer)
            pointer = int(self._call("cudaMalloc", size))
            self._buffers[name] = (pointer, size)
        return pointer

    def _call(self, name: str, *arguments: Any) -> Any:
        return call(self._cuda, name, *arguments)

    def _fitting_gpu(self, facts: EngineFacts) -> str:
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
        return gpu.name


def _check_version(title: str, installed: str, facts: EngineFacts) -> None:
    """TensorRT-RTX engines have no forward compatibility, and plain TensorRT engines are tied to their version."""
    if facts.library_version is None:
        return
    if installed.split(".")[:3] != facts.library_version.split(".")[:3]:
        raise DeviceError(
            f"The engine was compiled by {TITLES[facts.library]} {facts.library_version}, but this machine has {title}. "
            f"Install that version, or build the bundle again with {installed}."
        )
