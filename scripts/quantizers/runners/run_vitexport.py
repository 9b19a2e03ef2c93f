"""A float ONNX and a folder of calibration images enter; vitexport's quantization for TensorRT leaves.

The images are read and preprocessed here, inside what is timed, from the same files that the arrays for the others were
made of.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
import time
from pathlib import Path

from vitexport.artifacts import BatchRange, OnnxModel
from vitexport.datasets import open_images
from vitexport.preprocess import PreprocessSpec
from vitexport.quantize import QuantSettings, quantize


def main(model: str, images: str, result: str, about: str) -> None:
    """Quantize `model` into `result` and print the seconds that it took; `about` is JSON: opset, preprocessing, settings."""
    facts = json.loads(about)
    source = OnnxModel.of(Path(model), opset=facts["opset"], batch=BatchRange.parse("1"), precision="fp32")
    spec = PreprocessSpec.from_json(facts["preprocess"])
    settings = QuantSettings.from_json(facts["settings"])
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        quantized = quantize(source, open_images(Path(images)), spec, Path(folder), cpu=None, settings=settings)
        seconds = time.perf_counter() - start
        shutil.copyfile(quantized.onnx.path, result)
    print(json.dumps({"seconds": seconds}))


if __name__ == "__main__":
    main(*sys.argv[1:])
