from __future__ import annotations

import functools
import itertools
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from exports import digits, exported, live
from graphs import read, run
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from vitexport.preprocess import normalize
from vitexport.quantize import Placement, QuantSettings
from vitexport.quantize.fold import ScoreFold, find_score_folds
from vitexport.quantize.place import attention_points
from vitexport.rewrites import apply
from vitexport.rewrites.fold_channels import FoldChannels
from vitexport.rewrites.graph import add_constant, make_node, operand

LIMIT = 1e-5


@functools.cache
def images() -> NDArray[np.float32]:
    spec = live("sample")[1].preprocess
    return normalize(digits(4).pixels(spec, [0, 1, 2, 3]), spec)


def folds_of(model: ir.Model) -> tuple[ScoreFold, ...]:
    points = attention_points(model.graph, QuantSettings(placement=Placement(base="B")))
    assert points
    return find_score_folds(model, points, images()[:1])


@functools.cache
def found() -> tuple[ScoreFold, ...]:
    return folds_of(read(exported(model="sample")))


def test_q_and_k_are_followed_back_to_their_columns() -> None:
    attention: Any = live("sample")[0].model.get_submodule("blocks.0.attn")
    for block, fold in enumerate(found()):
        assert fold.product == f"blocks.{block}.attn/MatMul"
        assert fold.producers == (f"blocks.{block}.attn.qkv/MatMul",) * 2
        # timm computes q, k and v side by side, head after head.
        size = fold.q.size // attention.num_heads
        np.testing.assert_array_equal(fold.q, np.arange(fold.q.size).reshape(-1, size))
        np.testing.assert_array_equal(fold.k, fold.q.size + np.arange(fold.q.size).reshape(-1, size))
    assert len(found()) == 3


@settings(deadline=None, max_examples=15)
@given(st.integers(0, 2**32 - 1), st.floats(0, 5))
def test_any_scales_of_q_against_k_and_shifts_of_k_leave_the_float_function(seed: int, spread: float) -> None:
    random = np.random.default_rng(seed)
    model = read(exported(model="sample"))
    changes = [
        fold.changes(2.0 ** random.uniform(-spread, spread, fold.q.shape), random.normal(0, 1, fold.k.shape))
        for fold in found()
    ]
    apply(model, FoldChannels(list(itertools.chain(*changes))))
    before, after = run(exported(model="sample"), images()), run(model, images())
    assert 0 < np.abs(after - before).max() <= LIMIT * np.abs(before).max()


@pytest.mark.parametrize("side", [0, 1])
@pytest.mark.parametrize("kind", ["rotation", "normalization"])
def test_a_rotation_or_normalization_in_between_leaves_nothing_to_fold(side: int, kind: str) -> None:
    model = read(exported(model="sample"))
    product = next(node for node in model.graph if node.name == "blocks.1.attn/MatMul")
    value = operand(product, side)
    shape = [int(str(length)) for length in (value.shape or ())[-2:]]
    if kind == "rotation":
        # By position: another factor for each token.
        factors = np.cos(np.arange(np.prod(shape))).reshape(shape).astype(np.float32)
        between = [
            make_node(
                "Mul",
                [value, add_constant(model.graph, "angles", factors)],
                name="rotated",
                dtype=ir.DataType.FLOAT,
                shape=value.shape,
            )
        ]
    else:
        axis = add_constant(model.graph, "axis", np.asarray([-1 if side == 0 else -2], np.int64))
        mean = make_node("ReduceMean", [value, axis], name="mean", dtype=ir.DataType.FLOAT, shape=None)
        between = [
            mean,
            make_node("Sub", [value, mean.outputs[0]], name="centred", dtype=ir.DataType.FLOAT, shape=value.shape),
        ]
    model.graph.insert_before(product, between)
    product.replace_input_with(side, between[-1].outputs[0])
    assert [fold.product for fold in folds_of(model)] == ["blocks.0.attn/MatMul", "blocks.2.attn/MatMul"]
