"""Input: the live module and images; output: PyTorch's outputs, which everything is measured against."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from vitexport.artifacts import Outputs, OutputSpec

REFERENCE_BATCH = 8


def reference_outputs(model: nn.Module, specs: Sequence[OutputSpec], images: NDArray[np.float32]) -> Outputs:
    """Outputs of PyTorch in float32 on the CPU.

    Args:
        model: In eval mode; returns a tuple of what `specs` describes.
        specs: The model's outputs.
        images: float32 [n, 3, height, width]; run in parts of `REFERENCE_BATCH`.

    Returns:
        float32 [n, …] by name.
    """
    parts: list[list[NDArray[np.float32]]] = []
    with torch.inference_mode():
        for start in range(0, len(images), REFERENCE_BATCH):
            part = torch.from_numpy(np.ascontiguousarray(images[start : start + REFERENCE_BATCH]))
            parts.append([output.numpy() for output in model(part)])
    return {spec.name: np.concatenate(values) for spec, values in zip(specs, zip(*parts, strict=True), strict=True)}


def reference_runner(model: nn.Module, threads: int) -> Callable[[NDArray[np.float32]], object]:
    """A function that runs one batch in PyTorch eager with `threads` threads, for timing."""
    torch.set_num_threads(threads)

    def run(images: NDArray[np.float32]) -> object:
        with torch.inference_mode():
            return [output.numpy() for output in model(torch.from_numpy(images))]

    return run


def description() -> str:
    """For example ``PyTorch 2.15.0, eager, CPU``."""
    return f"PyTorch {torch.__version__}, eager float32, CPU"
