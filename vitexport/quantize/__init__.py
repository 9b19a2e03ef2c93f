"""A float `OnnxModel`, calibration images and a target enter; a `QuantizedModel` leaves.

observe (what the activations are) → fold (equalize channels, exactly) → ranges → round (integers) → write (Q/DQ for
TensorRT, integer operators for a CPU). `calibrate` does all but the last, once; `write` may then be called with layers that
stay float, as `vitexport.quantize.fallback` does where the whole misses the budget.

The settings are plain data; ONNX and ONNX Runtime are imported with the first name that needs them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vitexport import lazy

if TYPE_CHECKING:
    from vitexport.quantize.calibrate import Calibrated, Calibration, calibrate
    from vitexport.quantize.sensitivity import output_db
    from vitexport.quantize.settings import Observer, Placement, QuantSettings
    from vitexport.quantize.write import quantize, write

__all__ = [
    "Calibrated",
    "Calibration",
    "Observer",
    "Placement",
    "QuantSettings",
    "calibrate",
    "output_db",
    "quantize",
    "write",
]

lazy.public_names(
    __name__,
    {
        "Calibrated": "vitexport.quantize.calibrate",
        "Calibration": "vitexport.quantize.calibrate",
        "Observer": "vitexport.quantize.settings",
        "Placement": "vitexport.quantize.settings",
        "QuantSettings": "vitexport.quantize.settings",
        "calibrate": "vitexport.quantize.calibrate",
        "output_db": "vitexport.quantize.sensitivity",
        "quantize": "vitexport.quantize.write",
        "write": "vitexport.quantize.write",
    },
)
