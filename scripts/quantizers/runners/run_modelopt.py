"""Input: a float ONNX, calibration inputs and a setting; output: NVIDIA ModelOpt's INT8 quantization of it.

ModelOpt places Q/DQ by its own rules for TensorRT; ``-linear`` holds it to the linear layers. What is not quantized stays
float32 instead of its default float16, so that the quantization alone is compared.
"""

from __future__ import annotations

import json
import re
import sys
import time

import numpy as np
from modelopt.onnx.quantization import quantize  # type: ignore[import-not-found]

from quantizers.runners.linear_layers import linear_and_other


def main(model: str, inputs: str, result: str, option: str) -> None:
    """Quantize `model` into `result` and print the seconds that it took.

    `option` is a method, with or without ``-linear``.
    """
    method, _, placement = option.partition("-")
    start = time.perf_counter()
    linear, others = linear_and_other(model) if placement == "linear" else ([], [])
    quantize(
        model,
        quantize_mode="int8",
        calibration_data={"image": np.load(inputs)},
        calibration_method=method,
        calibration_eps=["cpu"],
        high_precision_dtype="fp32",
        nodes_to_quantize=_patterns(linear),
        nodes_to_exclude=_patterns(others),
        dq_only=True,  # int8 initializers
        output_path=result,
    )
    print(json.dumps({"seconds": time.perf_counter() - start}))


def _patterns(names: list[str]) -> list[str] | None:
    return [f"{re.escape(name)}$" for name in names] or None


if __name__ == "__main__":
    main(*sys.argv[1:])
