"""Input: a bundle's path; output: a `Model` that classifies pictures. This is what applications import.

    from vitexport.runtime import load

    model = load("bundles/digits-cpu")
    prediction = model.predict("photo.jpg")
    print(prediction.top(5))

Needs numpy, Pillow and one engine library (ONNX Runtime, TensorRT or TensorRT-RTX); no torch, timm, onnx or click.
"""

from __future__ import annotations

from vitexport.runtime.loading import load
from vitexport.runtime.model import Model, Prediction

__all__ = ["Model", "Prediction", "load"]
