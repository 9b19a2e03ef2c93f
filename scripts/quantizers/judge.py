"""Input: a quantized ONNX, the float one and images; output: top-1, agreement, SQNR and TensorRT's verdict.

All are computed by the same ONNX Runtime without graph optimization, so that Q/DQ is exact arithmetic, node by node.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitexport.artifacts import BatchRange, EngineRecipe
from vitexport.datasets import ImageSet
from vitexport.errors import ToolchainError
from vitexport.preprocess import PreprocessSpec
from vitexport.runtime.backends.onnx_runtime import OnnxRuntimeBackend
from vitexport.runtime.backends.tensorrt_build import build_engine
from vitexport.runtime.model import run_in_batches
from vitexport.validate.metrics import agreement, in_top, sqnr_db

ONE = BatchRange.parse("1")
COMPUTE_CAPABILITY = "8.9"
# The output that is judged.
LOGITS = "logits"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Judged:
    """Images to judge on, with the float model's logits for them.

    Attributes:
        name: ``clean`` or ``degraded``.
        inputs: float32 [n, 3, height, width].
        labels: int64 [n].
        reference: float32 [n, classes].
    """

    name: str
    inputs: NDArray[np.float32]
    labels: NDArray[np.int64]
    reference: NDArray[np.float32]


def judged(images: ImageSet, spec: PreprocessSpec, float_model: Path, name: str) -> Judged:
    """`images` with the logits of `float_model`.

    Raises:
        SystemExit: The images have no labels.
    """
    labels = images.labels
    if labels is None:
        raise SystemExit(f"{images.name} has no labels")
    inputs = np.concatenate(list(images.batches(spec, 64)))
    return Judged(name=name, inputs=inputs, labels=labels, reference=_logits(float_model, inputs))


def figures(model: Path, sets: tuple[Judged, ...]) -> dict[str, dict[str, float]]:
    """Top-1 and agreement in percent and SQNR in decibels of `model`, by the name of the set."""
    result = {}
    for images in sets:
        logits = _logits(model, images.inputs)
        result[images.name] = {
            "top1": float(in_top(logits, images.labels, 1).mean() * 100),
            "agreement": agreement(images.reference, logits),
            "sqnr_db": sqnr_db(images.reference, logits),
        }
    return result


def tensorrt(model: Path) -> dict[str, Any]:
    """Whether TensorRT-RTX compiles `model`, strongly typed; if not, its reason."""
    recipe = EngineRecipe(
        typing="strong",
        flags=(),
        fp32_layers=(),
        profile=None,
        compute_capabilities=(COMPUTE_CAPABILITY,),
        trtexec="",
    )
    try:
        plan = build_engine(model, recipe, "tensorrt-rtx")
    except ToolchainError as error:
        return {"accepted": False, "reason": str(error)}
    return {"accepted": True, "engine_bytes": len(plan)}


def _logits(model: Path, inputs: NDArray[np.float32]) -> NDArray[np.float32]:
    return run_in_batches(OnnxRuntimeBackend(model, exact=True), inputs, ONE)[LOGITS]
