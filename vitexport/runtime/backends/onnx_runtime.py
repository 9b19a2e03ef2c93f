"""An ONNX file and images enter; outputs, or any tensors of the graph, leave. The only module that imports onnxruntime."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitexport.artifacts import INPUT_NAME, Outputs
from vitexport.errors import ToolchainError, missing

try:
    import onnxruntime as ort
except ImportError as _error:
    raise missing("onnxruntime", "onnxruntime", "Running an ONNX model") from _error

# Messages below this would land on the user's terminal; what matters is raised.
_LOG_FATAL = 4
VERSION: str = ort.__version__


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
    """One ONNX Runtime session on the CPU.

    Args:
        model: A file, or a serialized model.
        threads: None for one per processor that the process may use.
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
    ) -> None:
        options = ort.SessionOptions()
        options.log_severity_level = _LOG_FATAL
        options.intra_op_num_threads = self.threads = threads or available_threads()
        # Spinning workers would take the cores from the application, and from PyTorch when both are timed in turn.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        level = ort.GraphOptimizationLevel
        options.graph_optimization_level = level.ORT_DISABLE_ALL if exact else level.ORT_ENABLE_ALL
        self.exact = exact
        try:
            self._session = ort.InferenceSession(
                model if isinstance(model, bytes) else str(model), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:
            # The binding raises a class of its own for each status code, all of them straight from Exception.
            name = "a model" if isinstance(model, bytes) else model.name
            raise ToolchainError(f"ONNX Runtime {VERSION} cannot load {name}: {_one_line(error)}") from error
        listed = [str(output.name) for output in self._session.get_outputs()]
        self._outputs = listed if outputs is None else list(outputs)

    @property
    def description(self) -> str:
        """For example ``ONNX Runtime 1.31.1, CPU, 2 threads``."""
        how = ", graph as written" if self.exact else ""
        return f"ONNX Runtime {VERSION}, CPU, {self.threads} threads{how}"

    def run(self, images: NDArray[np.float32]) -> Outputs:
        """Outputs by name, float32 [n, …].

        Raises:
            ToolchainError: ONNX Runtime fails on these images.
        """
        return dict(zip(self._outputs, self.tensors(images), strict=True))

    def close(self) -> None:
        """Nothing to free by hand: the session goes with the object."""

    def tensors(self, images: NDArray[np.float32]) -> list[NDArray[Any]]:
        """The tensors named at construction, in that order.

        Raises:
            ToolchainError: ONNX Runtime fails on these images.
        """
        try:
            results: list[NDArray[Any]] = self._session.run(self._outputs, {INPUT_NAME: images})
        except Exception as error:
            raise ToolchainError(f"ONNX Runtime {VERSION} failed on input {images.shape}: {_one_line(error)}") from error
        return results


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:400]
