"""Choose the INT8 numbers of a float graph.

observe (what the activations are) → fold (equalize channels, exactly) → ranges → round (integers). `calibrate` does all of
it, once; `integers` then takes what it decided, with or without layers that stay float, as `vitexport.quantize.fallback`
asks for where the whole misses the budget. A stack puts the integers into the graph: Q/DQ for TensorRT, integer operators
for a CPU.

The settings are plain data; ONNX and ONNX Runtime are imported with the first name that needs them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vitexport import lazy

if TYPE_CHECKING:
    from vitexport.quantize.arithmetic import TENSORRT, Arithmetic
    from vitexport.quantize.calibrate import Calibrated, Calibration, calibrate
    from vitexport.quantize.decide import Integers, integers, recipe
    from vitexport.quantize.sensitivity import output_db
    from vitexport.quantize.settings import Observer, Placement, QuantSettings

__all__ = [
    "TENSORRT",
    "Arithmetic",
    "Calibrated",
    "Calibration",
    "Integers",
    "Observer",
    "Placement",
    "QuantSettings",
    "calibrate",
    "integers",
    "output_db",
    "recipe",
]

lazy.public_names(
    __name__,
    {
        "TENSORRT": "vitexport.quantize.arithmetic",
        "Arithmetic": "vitexport.quantize.arithmetic",
        "Calibrated": "vitexport.quantize.calibrate",
        "Calibration": "vitexport.quantize.calibrate",
        "Integers": "vitexport.quantize.decide",
        "Observer": "vitexport.quantize.settings",
        "Placement": "vitexport.quantize.settings",
        "QuantSettings": "vitexport.quantize.settings",
        "calibrate": "vitexport.quantize.calibrate",
        "integers": "vitexport.quantize.decide",
        "output_db": "vitexport.quantize.sensitivity",
        "recipe": "vitexport.quantize.decide",
    },
)
