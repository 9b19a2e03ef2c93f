"""Take what calibration decided, without the layers that stay float: integers for a graph, and the recipe that says so."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection

from vitexport.artifacts import QuantRecipe
from vitexport.quantize.calibrate import Calibrated, Calibration
from vitexport.rewrites.insert_qdq import QuantizedInput, QuantizedLinear


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Integers:
    """What a stack puts into `Calibrated.folded`.

    Attributes:
        layers: In graph order.
        inputs: Further quantized inputs, of placements B and C.
    """

    layers: tuple[QuantizedLinear, ...]
    inputs: tuple[QuantizedInput, ...] = ()


def integers(calibrated: Calibrated, stay_float: Collection[str] = ()) -> Integers:
    """The integers of all layers but those in `stay_float`: timm modules, and groups of further inputs."""
    return Integers(
        layers=tuple(layer for layer in calibrated.layers if calibrated.modules[layer.node] not in stay_float),
        inputs=tuple(item for item in calibrated.inputs if item.group not in stay_float),
    )


def recipe(work: Calibration, calibrated: Calibrated, stay_float: Collection[str] = ()) -> QuantRecipe:
    """Everything that decided these integers."""
    modules = [calibrated.modules[layer.node] for layer in calibrated.layers]
    groups = dict.fromkeys(item.group for item in calibrated.inputs)
    return QuantRecipe(
        settings=work.settings.to_json(),
        arithmetic=work.arithmetic.name,
        weight_bits=work.arithmetic.weight_bits,
        activation_type=work.arithmetic.activation,
        images={file.relative: file.sha256 for file in work.images.files},
        skipped_images=dict(work.images.skipped),
        layers=tuple(module for module in modules if module not in stay_float),
        stay_float=tuple(name for name in (*modules, *groups) if name in stay_float),
        inputs=tuple(group for group in groups if group not in stay_float),
        ranges=dict(calibrated.ranges),
        strengths=dict(calibrated.strengths),
        layer_db=dict(calibrated.layer_db),
    )
