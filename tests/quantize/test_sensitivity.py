"""What one layer in INT8 does to the outputs: held against the graph that quantizes that layer only."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from exports import digits, live, placed

from vitexport import stacks
from vitexport.artifacts import silent
from vitexport.quantize import Calibrated, Calibration, Placement, QuantSettings, calibrate, integers, output_db
from vitexport.rewrites import load, session
from vitexport.rewrites.insert_qdq import QuantizedLinear
from vitexport.stacks.tensorrt_strong import with_pairs
from vitexport.targets import resolve
from vitexport.validate.metrics import sqnr_db

IMAGES = 4


def calibration(folder: Path, settings: QuantSettings | None = None, *, target: str = "l4") -> Calibration:
    model = placed(folder)
    return Calibration(
        graph=load(model.path),
        batch=model.batch.minimum,
        images=digits(16),
        spec=live()[1].preprocess,
        arithmetic=stacks.of(resolve(target)).arithmetic,
        settings=settings or QuantSettings(),
        progress=silent,
    )


def alone(work: Calibration, calibrated: Calibrated, name: str) -> float:
    """Measured by way of the graph that a build would ship."""
    every = {*calibrated.modules.values(), *(item.group for item in calibrated.inputs)}
    quantized = with_pairs(calibrated.folded, integers(calibrated, every - {name}))
    images = next(iter(work.images.batches(work.spec, IMAGES)))
    wanted, seen = session(calibrated.folded).run(images), session(quantized, exact=True).run(images)
    return min(sqnr_db(values, seen[key]) for key, values in wanted.items())


def test_each_layer_is_measured_alone(tmp_path: Path) -> None:
    work = calibration(tmp_path)
    calibrated = calibrate(work)
    found = output_db(work, calibrated)
    assert set(found) == set(calibrated.modules.values())
    for name in ("blocks.0.attn.qkv", "blocks.1.mlp.fc2"):
        assert found[name] == pytest.approx(alone(work, calibrated, name), abs=0.01)


def test_groups_of_further_inputs_are_measured_too(tmp_path: Path) -> None:
    work = calibration(tmp_path, QuantSettings(placement=Placement(base="B")))
    calibrated = calibrate(work)
    groups = {item.group for item in calibrated.inputs}
    found = output_db(work, calibrated)
    assert groups
    assert set(found) == {*calibrated.modules.values(), *groups}
    group = min(groups)
    assert found[group] == pytest.approx(alone(work, calibrated, group), abs=0.01)


def broken(layer: QuantizedLinear) -> QuantizedLinear:
    return dataclasses.replace(layer, weight=np.zeros_like(layer.weight), bias_change=None)


@pytest.mark.parametrize("target", ["l4", "cpu-x86-vnni"])
def test_the_layer_that_spoils_the_outputs_is_the_most_sensitive(tmp_path: Path, target: str) -> None:
    work = calibration(tmp_path, target=target)
    calibrated = calibrate(work)
    spoiled = "blocks.0.mlp.fc1"
    layers = tuple(broken(layer) if calibrated.modules[layer.node] == spoiled else layer for layer in calibrated.layers)
    found = output_db(work, dataclasses.replace(calibrated, layers=layers))
    assert min(found, key=lambda name: found[name]) == spoiled


def test_a_layer_that_makes_a_nan_comes_first(tmp_path: Path) -> None:
    work = calibration(tmp_path)
    calibrated = calibrate(work)
    first, *others = calibrated.layers
    # Beyond float32 behind the product: infinity, and NaN where the next node subtracts it from itself.
    layers = (dataclasses.replace(first, weight_scale=np.full_like(first.weight_scale, 3e38)), *others)
    found = output_db(work, dataclasses.replace(calibrated, layers=layers))
    assert found[calibrated.modules[first.node]] == float("-inf")
