from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from graphs import LOGITS, assert_stays, graph_of, operators, run
from onnx import helper

from vitexport.rewrites import apply
from vitexport.rewrites.lower_col2im import LowerCol2Im

RANDOM = np.random.default_rng(5)


def folded(**attributes: Any) -> onnx.NodeProto:
    return helper.make_node("Col2Im", ["image", "size", "block"], [LOGITS], name="blocks.0.attn/Col2Im", **attributes)


@pytest.mark.parametrize(
    ("size", "block", "attributes", "columns"),
    [
        ((6, 6), (3, 3), {"pads": [1, 1, 1, 1], "strides": [2, 2]}, 9),
        ((7, 5), (3, 2), {"pads": [1, 0, 1, 0], "strides": [2, 1]}, 16),
        ((4, 4), (2, 2), {}, 9),
        ((9, 9), (2, 3), {"strides": [3, 2], "pads": [0, 1, 0, 1]}, 15),
    ],
)
def test_overlapping_patches_are_summed_as_before(
    size: tuple[int, int], block: tuple[int, int], attributes: dict[str, list[int]], columns: int
) -> None:
    channels = 4 * block[0] * block[1]
    model = graph_of(
        [folded(**attributes)], {"size": np.asarray(size), "block": np.asarray(block)}, ["n", channels, columns]
    )
    patches = RANDOM.normal(0, 1, (2, channels, columns)).astype(np.float32)
    before = run(model, patches)
    apply(model, LowerCol2Im())
    assert operators(model) == {"Reshape": 1, "ConvTranspose": 1}
    after = run(model, patches)
    assert after.shape == before.shape == (2, 4, *size)
    np.testing.assert_allclose(after, before, atol=1e-6)


def test_dilated_patches_stay() -> None:
    model = graph_of([folded(dilations=[2, 2])], {"size": np.asarray([5, 5]), "block": np.asarray([2, 2])}, [1, 8, 9])
    assert_stays(model, LowerCol2Im(), RANDOM.normal(0, 1, (1, 8, 9)).astype(np.float32))
