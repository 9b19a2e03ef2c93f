"""Input: a float ONNX and inputs; output: the seconds that ONNX Runtime takes for one bare pass over them."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vitexport.runtime.backends.onnx_runtime import OnnxRuntimeBackend


def main(model: str, inputs: str) -> None:
    """Run `model` over every input, one at a time, and print the seconds."""
    backend = OnnxRuntimeBackend(Path(model))
    count = len(np.load(inputs, mmap_mode="r"))
    backend.run(_image(inputs, 0))
    start = time.perf_counter()
    for index in range(count):
        backend.run(_image(inputs, index))
    print(json.dumps({"seconds": time.perf_counter() - start}))


def _image(inputs: str, index: int) -> NDArray[np.float32]:
    """One input; mapped anew each time, since the pages of an open mapping count as the process's memory."""
    image: NDArray[np.float32] = np.load(inputs, mmap_mode="r")[index : index + 1]
    return np.array(image)


if __name__ == "__main__":
    main(*sys.argv[1:])
