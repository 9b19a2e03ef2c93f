"""Input: an operator that only moves elements and an array; output: the array, moved as the operator would.

Moving an array of indices tells where each element of a tensor came from, whatever operators an exporter chose.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from vitexport.rewrites.graph import constant


def is_movement(node: ir.Node) -> bool:
    """Whether `node` moves the elements of its first input by constants: a copy, a part or a rearrangement."""
    further = [value for value in node.inputs[1:] if value is not None]
    return node.domain == "" and node.op_type in _MOVES and all(constant(value) is not None for value in further)


def move(value: ir.Value, array: NDArray[Any]) -> NDArray[Any]:
    """What `value`, computed by a movement, holds if that reads `array`.

    Raises:
        ValueError: It is not computed by a movement, or `array` does not have a shape that this takes.
    """
    node = value.producer()
    if node is None or not is_movement(node):
        raise ValueError(f"{value.name} is not computed by a movement")
    if node.op_type == "Split":
        return _split(node, array)[value.index() or 0]
    moved: NDArray[Any] = _MOVES[node.op_type](node, array)
    return moved


def integers(node: ir.Node, index: int) -> tuple[int, ...] | None:
    """The constant input of `node` at `index`; None if it has none there."""
    array = constant(node.inputs[index]) if index < len(node.inputs) else None
    return None if array is None else tuple(int(number) for number in array.reshape(-1))


def _axis(node: ir.Node) -> int:
    return node.attributes["axis"].as_int() if "axis" in node.attributes else 0


def _gather(node: ir.Node, array: NDArray[Any]) -> NDArray[Any]:
    return np.take(array, np.asarray(constant(node.inputs[1])), axis=_axis(node))


def _identity(node: ir.Node, array: NDArray[Any]) -> NDArray[Any]:  # noqa: ARG001 - one signature for all
    return array


def _reshape(node: ir.Node, array: NDArray[Any]) -> NDArray[Any]:
    target = integers(node, 1) or ()
    if "allowzero" in node.attributes and node.attributes["allowzero"].as_int():
        return array.reshape(target)
    return array.reshape([extent or array.shape[axis] for axis, extent in enumerate(target)])


def _slice(node: ir.Node, array: NDArray[Any]) -> NDArray[Any]:
    starts, ends = integers(node, 1) or (), integers(node, 2) or ()
    axes = integers(node, 3) or tuple(range(len(starts)))
    steps = integers(node, 4) or (1,) * len(starts)
    selected = [slice(None)] * array.ndim
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        if step < 0:
            raise ValueError(f"{node.name} goes backwards, for which ONNX and NumPy count differently")
        selected[axis] = slice(start, end, step)
    return array[tuple(selected)]


def _split(node: ir.Node, array: NDArray[Any]) -> list[NDArray[Any]]:
    sizes = integers(node, 1)
    if sizes is None:
        size = -(-array.shape[_axis(node)] // len(node.outputs))
        sizes = (size,) * len(node.outputs)
    return np.split(array, np.cumsum(sizes)[:-1], axis=_axis(node))


def _squeeze(node: ir.Node, array: NDArray[Any]) -> NDArray[Any]:
    return np.squeeze(array, axis=integers(node, 1))


def _transpose(node: ir.Node, array: NDArray[Any]) -> NDArray[Any]:
    return array.transpose(node.attributes["perm"].as_ints() if "perm" in node.attributes else None)


def _unsqueeze(node: ir.Node, array: NDArray[Any]) -> NDArray[Any]:
    return np.expand_dims(array, axis=integers(node, 1) or ())


_MOVES: dict[str, Callable[[ir.Node, NDArray[Any]], Any]] = {
    "Gather": _gather,
    "Identity": _identity,
    "Reshape": _reshape,
    "Slice": _slice,
    "Split": _split,
    "Squeeze": _squeeze,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
}
