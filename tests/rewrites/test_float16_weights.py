from __future__ import annotations

import numpy as np
import onnx_ir as ir
from exports import exported
from graphs import read, run

from vitexport.rewrites import apply
from vitexport.rewrites.float16_weights import FEWEST, Float16Weights
from vitexport.rewrites.graph import constant

IMAGES = np.random.default_rng(0).normal(size=(2, 3, 32, 32)).astype(np.float32)


def test_weights_take_half_and_outputs_stay_near() -> None:
    model = read(exported())
    before, size = run(model, IMAGES), len(ir.to_proto(model).SerializeToString())
    apply(model, Float16Weights())
    after = run(model, IMAGES)
    assert after.dtype == np.float32
    assert 0 < np.abs(after - before).max() < 2e-3 * np.abs(before).max()
    assert len(ir.to_proto(model).SerializeToString()) < 0.7 * size


def test_small_constants_and_what_float16_cannot_hold_stay() -> None:
    model = read(exported())
    large = next(value for value in model.graph.initializers.values() if (constant(value)).size >= FEWEST)  # type: ignore[union-attr]
    array = constant(large)
    assert array is not None
    large.const_value = ir.tensor(np.where(np.arange(array.size).reshape(array.shape) == 0, 1e6, array).astype(np.float32))
    name = str(large.name)
    apply(model, Float16Weights())
    assert name in model.graph.initializers
    for value in model.graph.initializers.values():
        kept = constant(value)
        assert kept is not None
        if kept.dtype == np.float16:
            assert kept.size >= FEWEST
