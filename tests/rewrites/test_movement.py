from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from graphs import LOGITS, graph_of, run
from numpy.typing import NDArray
from onnx import helper

from vitexport.rewrites.movement import is_movement, move

SHAPE = (2, 3, 4, 6)
IMAGES = np.arange(np.prod(SHAPE), dtype=np.float32).reshape(SHAPE)
Constants = dict[str, list[int] | int]


def node(op_type: str, constants: Constants, outputs: tuple[str, ...] = (LOGITS,), **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(op_type, ["image", *constants], list(outputs), name="m/node", **attributes)


def arrays(constants: Constants) -> dict[str, NDArray[Any]]:
    return {name: np.asarray(numbers, np.int64) for name, numbers in constants.items()}


@pytest.mark.parametrize(
    ("op_type", "constants", "attributes"),
    [
        ("Identity", {}, {}),
        ("Transpose", {}, {"perm": [2, 0, 3, 1]}),
        ("Transpose", {}, {}),
        ("Reshape", {"shape": [0, -1, 6]}, {}),
        ("Reshape", {"shape": [2, 12, 6]}, {"allowzero": 1}),
        ("Slice", {"start": [1], "end": [3], "axis": [2]}, {}),
        ("Slice", {"start": [0, -3], "end": [2**62, 100], "axes": [3, -2], "step": [2, 1]}, {}),
        ("Slice", {"start": [1, 0], "end": [2, 2]}, {}),
        ("Gather", {"index": 1}, {"axis": 2}),
        ("Gather", {"index": [[3, -1], [0, 0]]}, {"axis": 3}),
        ("Gather", {"index": [1, 0]}, {}),
        ("Unsqueeze", {"axes": [-1, 0]}, {}),
    ],
)
def test_it_moves_as_onnx_runtime_does(op_type: str, constants: Constants, attributes: dict[str, Any]) -> None:
    model = graph_of([node(op_type, constants, **attributes)], arrays(constants), SHAPE)
    (only,) = model.graph
    assert is_movement(only)
    np.testing.assert_array_equal(move(only.outputs[0], IMAGES), run(model, IMAGES))


@pytest.mark.parametrize("constants", [{"axes": [1, -1]}, {}])
def test_squeeze(constants: Constants) -> None:
    images = IMAGES.reshape(48, 1, 3, 1)
    model = graph_of([node("Squeeze", constants)], arrays(constants), images.shape)
    np.testing.assert_array_equal(move(next(iter(model.graph)).outputs[0], images), run(model, images))


@pytest.mark.parametrize(
    ("constants", "attributes"), [({"sizes": [1, 3, 2]}, {"axis": 3}), ({}, {"axis": 1, "num_outputs": 2})]
)
def test_each_output_of_a_split(constants: Constants, attributes: dict[str, Any]) -> None:
    count = attributes.get("num_outputs", 3)
    for chosen in range(count):
        outputs = tuple(LOGITS if index == chosen else f"other{index}" for index in range(count))
        model = graph_of([node("Split", constants, outputs, **attributes)], arrays(constants), SHAPE)
        np.testing.assert_array_equal(move(next(iter(model.graph)).outputs[chosen], IMAGES), run(model, IMAGES))


def test_what_computes_is_no_movement() -> None:
    model = graph_of([node("Relu", {})], {}, SHAPE)
    (only,) = model.graph
    assert not is_movement(only)
    with pytest.raises(ValueError, match="not computed by a movement"):
        move(only.outputs[0], IMAGES)


def test_bounds_that_are_computed_are_no_movement() -> None:
    nodes = [
        helper.make_node("Shape", ["image"], ["shape"], name="m/shape"),
        helper.make_node("Reshape", ["image", "shape"], [LOGITS], name="m/reshape"),
    ]
    assert not is_movement(list(graph_of(nodes, {}, SHAPE).graph)[1])


def test_a_slice_backwards_is_refused() -> None:
    constants: Constants = {"start": [3], "end": [-7], "axis": [3], "step": [-1]}
    model = graph_of([node("Slice", constants)], arrays(constants), SHAPE)
    with pytest.raises(ValueError, match="backwards"):
        move(next(iter(model.graph)).outputs[0], IMAGES)
