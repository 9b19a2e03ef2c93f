"""Input: a float ONNX and a folder of calibration images; output: vitexport's quantization for TensorRT.

The images are read and preprocessed here, inside what is timed, from the same files that the arrays for the others were
made of.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from vitexport.artifacts import silent
from vitexport.datasets import open_images
from vitexport.preprocess import PreprocessSpec
from vitexport.quantize import TENSORRT, Calibration, QuantSettings, calibrate, integers
from vitexport.rewrites import load, save
from vitexport.stacks.tensorrt_strong import with_pairs


def main(model: str, images: str, result: str, about: str) -> None:
    """Quantize `model` into `result` and print the seconds that it took; `about` is JSON: preprocessing, settings."""
    facts = json.loads(about)
    start = time.perf_counter()
    work = Calibration(
        graph=load(Path(model)),
        batch=1,
        images=open_images(Path(images)),
        spec=PreprocessSpec.from_json(facts["preprocess"]),
        arithmetic=TENSORRT,
        settings=QuantSettings.from_json(facts["settings"]),
        progress=silent,
    )
    calibrated = calibrate(work)
    save(with_pairs(calibrated.folded, integers(calibrated)), Path(result))
    seconds = time.perf_counter() - start
    print(json.dumps({"seconds": seconds}))


if __name__ == "__main__":
    main(*sys.argv[1:])
