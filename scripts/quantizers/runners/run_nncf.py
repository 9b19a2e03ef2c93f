"""Input: a float ONNX, calibration inputs and a setting; output: NNCF's post-training quantization of it.

``default`` is NNCF's own choice for transformers: SmoothQuant, and asymmetric activations, which TensorRT does not read.
``symmetric`` is its ``PERFORMANCE`` preset, with symmetric ones; ``-linear`` holds it to the linear layers.
"""

from __future__ import annotations

import json
import sys
import time

import nncf  # type: ignore[import-not-found]
import numpy as np
import onnx

from quantizers.runners.linear_layers import linear_and_other

PRESETS = {"default": None, "symmetric": nncf.QuantizationPreset.PERFORMANCE}


def main(model: str, inputs: str, result: str, option: str) -> None:
    """Quantize `model` into `result` and print the seconds that it took.

    `option` is a preset, with or without ``-linear``.
    """
    preset, _, placement = option.partition("-")
    images = np.load(inputs, mmap_mode="r")
    start = time.perf_counter()
    quantized = nncf.quantize(
        onnx.load(model),
        nncf.Dataset(images, lambda image: {"image": np.array(image)[None]}),
        preset=PRESETS[preset],
        subset_size=len(images),
        model_type=nncf.ModelType.TRANSFORMER,
        ignored_scope=nncf.IgnoredScope(names=linear_and_other(model)[1], validate=False) if placement == "linear" else None,
    )
    onnx.save(quantized, result)
    print(json.dumps({"seconds": time.perf_counter() - start}))


if __name__ == "__main__":
    main(*sys.argv[1:])
