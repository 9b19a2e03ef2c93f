"""The live module and images enter; PyTorch's logits, which everything is measured against, leave."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

REFERENCE_BATCH = 8


def reference_logits(model: nn.Module, images: NDArray[np.float32]) -> NDArray[np.float32]:
    """Logits of PyTorch in float32 on the CPU.

    Args:
        model: In eval mode.
        images: float32 [n, 3, height, width]; run in parts of `REFERENCE_BATCH`.

    Returns:
        float32 [n, classes].
    """
    parts = []
    with torch.inference_mode():
        for start in range(0, len(images), REFERENCE_BATCH):
            part = torch.from_numpy(np.ascontiguousarray(images[start : start + REFERENCE_BATCH]))
            parts.append(model(part).numpy())
    return np.concatenate(parts)


def reference_runner(model: nn.Module, threads: int) -> Callable[[NDArray[np.float32]], NDArray[np.float32]]:
    """A function that runs one batch in PyTorch eager with `threads` threads, for timing."""
    torch.set_num_threads(threads)

    def run(images: NDArray[np.float32]) -> NDArray[np.float32]:
        with torch.inference_mode():
            result: NDArray[np.float32] = model(torch.from_numpy(images)).numpy()
        return result

    return run


def description() -> str:
    """For example ``PyTorch 2.15.0, eager, CPU``."""
    return f"PyTorch {torch.__version__}, eager float32, CPU"
