"""Input: a float ONNX, calibration inputs and a setting; output: ONNX Runtime's own static quantization of it.

Set as TensorRT needs it: symmetric int8 Q/DQ, a scale for each output channel of a weight, float biases and float outputs.
Its default placement is every MatMul, those of attention included; ``-linear`` holds it to the linear layers. ``dynamic`` is
what its users take on a CPU: ranges are found anew for every input, and no calibration inputs are looked at.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quantize_dynamic,
    quantize_static,
)

from quantizers.runners.linear_layers import linear_and_other

METHODS = {
    "minmax": CalibrationMethod.MinMax,
    "percentile": CalibrationMethod.Percentile,
    "entropy": CalibrationMethod.Entropy,
}
OPTIONS = {
    "ActivationSymmetric": True,
    "WeightSymmetric": True,
    "AddQDQPairToWeight": False,  # int8 initializers
    "QuantizeBias": False,  # TensorRT refuses int32 biases
    "OpTypesToExcludeOutputQuantization": ["MatMul"],
}


class Reader(CalibrationDataReader):  # type: ignore[misc]
    """One image at a time, as the graph takes it."""

    def __init__(self, path: str) -> None:
        self._images: Iterator[NDArray[np.float32]] = iter(np.load(path, mmap_mode="r"))

    def get_next(self) -> dict[str, NDArray[np.float32]] | None:
        """The next input, or None at the end."""
        image = next(self._images, None)
        return None if image is None else {"image": np.array(image)[None]}


def main(model: str, inputs: str, result: str, option: str) -> None:
    """Quantize `model` into `result` and print the seconds that it took.

    `option` is a method, with or without ``-linear``; or ``dynamic``.
    """
    method, _, placement = option.partition("-")
    start = time.perf_counter()
    if method == "dynamic":
        quantize_dynamic(model, result, per_channel=True, weight_type=QuantType.QInt8, op_types_to_quantize=["MatMul"])
        print(json.dumps({"seconds": time.perf_counter() - start}))
        return
    quantize_static(
        model,
        result,
        Reader(inputs),
        quant_format=QuantFormat.QDQ,
        op_types_to_quantize=["MatMul"],
        nodes_to_quantize=linear_and_other(model)[0] if placement == "linear" else None,
        per_channel=True,
        activation_type=QuantType.QInt8,
        weight_type=QuantType.QInt8,
        calibrate_method=METHODS[method],
        extra_options=OPTIONS,
    )
    print(json.dumps({"seconds": time.perf_counter() - start}))


if __name__ == "__main__":
    main(*sys.argv[1:])
