"""Compute an ONNX file, or any tensors of its graph, in ONNX Runtime. The only module that imports onnxruntime."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from vitexport.artifacts import INPUT_NAME, Outputs
from vitexport.errors import DeviceError, ToolchainError, missing
from vitexport.quiet import quiet
from vitexport.runtime.backends import Provider
from vitexport.runtime.backends.cuda import why_no_driver

# Its packages for Linux (tried: 1.31.1) write events and a device id below HOME and look up a collector's host, from the
# import on. Whoever sets the variable otherwise is obeyed.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

try:
    import onnxruntime as ort
except ImportError as _error:
    raise missing("onnxruntime", "onnxruntime", "Running an ONNX model") from _error

# Messages below this would land on the user's terminal; what matters is raised.
_LOG_FATAL = 4
VERSION: str = ort.__version__
CPU = "CPUExecutionProvider"
CUDA = "CUDAExecutionProvider"
TENSORRT = "TensorrtExecutionProvider"
TITLES = {CPU: "CPU", CUDA: "CUDA", TENSORRT: "TensorRT"}


def available_threads() -> int:
    """Processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def evaluate(model: bytes, outputs: Sequence[str]) -> list[NDArray[Any]]:
    """What a serialized model without inputs computes.

    Raises:
        ToolchainError: ONNX Runtime refuses it or fails.
    """
    options = ort.SessionOptions()
    options.log_severity_level = _LOG_FATAL
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        results: list[NDArray[Any]] = session.run(list(outputs), {})
    except Exception as error:
        # As in `OnnxRuntimeBackend`: a class of its own for each status code.
        raise ToolchainError(f"ONNX Runtime {VERSION} cannot compute constants: {_one_line(error)}") from error
    return results


class OnnxRuntimeBackend:
    """One ONNX Runtime session, on the CPU or a GPU.

    Args:
        model: A file, or a serialized model.
        threads: None for one per processor that the process may use.
        providers: Execution providers of a GPU, the preferred one first; what none of them takes runs on the CPU.
        exact: No graph optimization: the graph is computed node by node as it is written.
        outputs: Tensors that `tensors` and `run` return; the graph must list them as outputs. None for all that it lists.
    """

    def __init__(
        self,
        model: Path | bytes,
        *,
        threads: int | None = None,
        exact: bool = False,
        outputs: Sequence[str] | None = None,
        providers: Sequence[Provider] = (),
    ) -> None:
        options = ort.SessionOptions()
        options.log_severity_level = _LOG_FATAL
        options.intra_op_num_threads = self.threads = threads or available_threads()
        # Spinning workers would take the cores from the application, and from PyTorch when both are timed in turn.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        level = ort.GraphOptimizationLevel
        options.graph_optimization_level = level.ORT_DISABLE_ALL if exact else level.ORT_ENABLE_ALL
        if providers:
            _check_machine(providers)
            # Q/DQ is for TensorRT; in the CUDA provider it is computed in float, not fused into operators that it lacks.
            options.add_session_config_entry("session.disable_quant_qdq", "1")
        self.exact = exact
        wanted: list[Any] = [(name, dict(settings)) for name, settings in providers]
        try:
            self._session = ort.InferenceSession(
                model if isinstance(model, bytes) else str(model), options, providers=[*wanted, CPU], enable_fallback=0
            )
        except Exception as error:
            # The binding raises a class of its own for each status code, all of them straight from Exception.
            name = "a model" if isinstance(model, bytes) else model.name
            raise ToolchainError(f"ONNX Runtime {VERSION} cannot load {name}: {_one_line(error)}") from error
        self.provider = str(self._session.get_providers()[0])
        if providers and self.provider != providers[0][0]:
            # It prints why to the terminal, and goes on with the next provider.
            raise DeviceError(
                f"The {TITLES[providers[0][0]]} provider of ONNX Runtime {VERSION} does not start on this machine: its GPU, "
                f"its driver or the libraries that this provider needs are missing."
            )
        listed = [str(output.name) for output in self._session.get_outputs()]
        self._outputs = listed if outputs is None else list(outputs)

    @property
    def description(self) -> str:
        """For example ``ONNX Runtime 1.31.1, CPU, 2 threads``."""
        how = ", graph as written" if self.exact else ""
        where = f"CPU, {self.threads} threads" if self.provider == CPU else f"{TITLES[self.provider]} provider"
        return f"ONNX Runtime {VERSION}, {where}{how}"

    def run(self, images: NDArray[Any]) -> Outputs:
        """Outputs by name, float32 [n, …].

        Raises:
            ToolchainError: ONNX Runtime fails on these images.
        """
        return dict(zip(self._outputs, self.tensors(images), strict=True))

    def close(self) -> None:
        """Nothing to free by hand: the session goes with the object."""

    def tensors(self, images: NDArray[Any]) -> list[NDArray[Any]]:
        """The tensors named at construction, in that order.

        Raises:
            ToolchainError: ONNX Runtime fails on these images.
        """
        try:
            results: list[NDArray[Any]] = self._session.run(self._outputs, {INPUT_NAME: images})
        except Exception as error:
            raise ToolchainError(f"ONNX Runtime {VERSION} failed on input {images.shape}: {_one_line(error)}") from error
        return results


def _check_machine(providers: Sequence[Provider]) -> None:
    """Refuse what ONNX Runtime would print to the terminal and then do without; and let it find CUDA's libraries."""
    there = ort.get_available_providers()
    for name, _ in providers:
        if name not in there:
            raise DeviceError(
                f"The installed ONNX Runtime {VERSION} has no {TITLES[name]} provider, only "
                f"{', '.join(TITLES.get(each, each) for each in there)}. On x86-64 Linux onnxruntime-gpu has it."
            )
    if (reason := why_no_driver()) is not None:
        raise DeviceError(f"The {TITLES[providers[0][0]]} provider of ONNX Runtime needs a CUDA GPU, and {reason}.")
    if hasattr(ort, "preload_dlls"):  # from 1.21 on: CUDA's and cuDNN's own wheels
        with quiet():
            ort.preload_dlls(directory="")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:400]
