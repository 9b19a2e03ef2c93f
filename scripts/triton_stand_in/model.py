"""Input: Requests; output: what ONNX Runtime's Python makes of them with a model's own files.

Stands in for Triton's ONNX Runtime backend, whose library is in no registry, where Triton looks for it: a backend in Python,
``backends/onnxruntime/model.py``. Used by ``scripts/triton-check``, which says where its packages are.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, os.environ["STAND_IN_PACKAGES"])

import onnxruntime as ort
import triton_python_backend_utils as triton  # type: ignore[import-not-found] # Triton's own, only there


class TritonPythonModel:
    """One instance of a model."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the version's ONNX file."""
        path = Path(args["model_repository"]) / args["model_version"] / "model.onnx"
        self.session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
        self.outputs = [output["name"] for output in json.loads(args["model_config"])["output"]]

    def execute(self, requests: list[Any]) -> list[Any]:
        """One answer for each request."""
        return [self._answer(request) for request in requests]

    def _answer(self, request: Any) -> Any:
        names = [value.name for value in self.session.get_inputs()]
        feed = {name: triton.get_input_tensor_by_name(request, name).as_numpy() for name in names}
        values = self.session.run(self.outputs, feed)
        return triton.InferenceResponse([triton.Tensor(*pair) for pair in zip(self.outputs, values, strict=True)])
