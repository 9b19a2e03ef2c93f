"""Input: the q, k or v of an attention; output: the columns of a tensor of a linear layer that it was made of.

What happens to a qkv tensor until q · kᵀ is linear: elements are moved, scaled, and in a rotary embedding mixed in pairs.
Which of them go where is not guessed from the operators, of which every exporter chooses others: the index and the factor of
every element are sent through them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from vitexport.rewrites.graph import constant
from vitexport.rewrites.movement import is_movement, move

TOKENS_BEFORE_HEADS = (0, 2, 1, 3)
# What q and v are, and the second operand of q · kᵀ, as orders of batch, heads, tokens, channels.
AS_THEY_ARE = (0, 1, 2, 3)
TRANSPOSED = (0, 1, 3, 2)
# Nothing on the way mixes images, so that two stand for any number.
UNKNOWN_BATCH = 2


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Rotation:
    """A rotary embedding: each pair (a, b) of channels of a token becomes (a cos - b sin, b cos + a sin).

    Attributes:
        cosine, sine: float64 [tokens, pairs], the same for all heads.
        interleaved: Whether pairs are neighbours; if not, one half of the channels pairs with the other half.
    """

    cosine: NDArray[np.float64]
    sine: NDArray[np.float64]
    interleaved: bool


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Origin:
    """Columns of `source` [batch, tokens, width] from `first` on, head after head, times `scale`, or rotated."""

    source: ir.Value
    first: int
    scale: float
    rotation: Rotation | None


def origin(value: ir.Value, order: Sequence[int]) -> Origin | None:
    """Where `value` comes from, the furthest back; None if it is not made of columns.

    Args:
        value: [batch, heads, tokens, channels], its dimensions in `order`.
        order: `AS_THEY_ARE` or `TRANSPOSED`.
    """
    for source in reversed(_path(value)):
        try:
            found = _compare(source, _trace(value, source).transpose(order))
        except ValueError:
            # Another operator is on the way, or the stand-in for an unknown batch does not fit.
            continue
        if found is not None:
            return found
    return None


def folded(value: ir.Value | None) -> NDArray[Any] | None:
    """The constant behind `value`, moved and joined as the graph does: the exporter does not fold that of large ones."""
    array = constant(value)
    node = value.producer() if value is not None else None
    if value is None or node is None or array is not None:
        return array
    if is_movement(node):
        before = folded(node.inputs[0])
        return None if before is None else move(value, before)
    if node.op_type == "Concat":
        parts = [part for part in map(folded, node.inputs) if part is not None]
        is_constant = len(parts) == len(node.inputs)
        return np.concatenate(parts, node.attributes["axis"].as_int()) if is_constant else None
    return None


def factor(node: ir.Node) -> NDArray[np.float64] | None:
    """What `node` multiplies its computed input by, if it is a Mul or Div with one constant, or a Neg."""
    if node.op_type == "Neg":
        return np.asarray(-1.0)
    arrays = [folded(value) for value in node.inputs]
    known = [array for array in arrays if array is not None]
    if node.op_type not in ("Mul", "Div") or len(known) != 1:
        return None
    array: NDArray[np.float64] = known[0].astype(np.float64)
    if node.op_type == "Mul":
        return array
    return 1.0 / array if arrays[1] is not None and array.all() else None


def computed(node: ir.Node) -> list[ir.Value]:
    """The inputs of `node` that are not constant."""
    return [value for value in node.inputs if value is not None and folded(value) is None]


def _path(value: ir.Value) -> list[ir.Value]:
    """`value` and what it is computed from, step by step, as far as the steps are of a kind that `_trace` follows."""
    path = [value]
    while (node := path[-1].producer()) is not None:
        inputs = computed(node)
        is_known = is_movement(node) or node.op_type in ("Add", "Concat") or factor(node) is not None
        if not inputs or not is_known:
            break
        path.append(inputs[0])
    return path


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Sum:
    """Every element of a tensor as a sum of one or two terms: the element of the source at `index`, times `factor`.

    Both are [terms, …], and the rest is the shape of the tensor.
    """

    index: NDArray[np.int64]
    factor: NDArray[np.float64]

    def transpose(self, order: Sequence[int]) -> _Sum:
        axes = (0, *(axis + 1 for axis in order))
        return _Sum(index=self.index.transpose(axes), factor=self.factor.transpose(axes))

    def terms(self, count: int) -> _Sum:
        """The same with `count` terms, of which the last are 0."""
        lacking = count - len(self.index)
        index = np.concatenate([self.index, *[self.index[:1]] * lacking])
        return _Sum(index=index, factor=np.concatenate([self.factor, *[np.zeros_like(self.factor[:1])] * lacking]))


def _trace(value: ir.Value, source: ir.Value) -> _Sum:
    """`value` in terms of `source`.

    Raises:
        ValueError: There is more between them than movement, constant factors and the sum of two.
    """
    if value is source:
        return _elements(source)
    node = value.producer()
    inputs = computed(node) if node is not None else []
    if node is None or not inputs:
        raise ValueError(f"{value.name} is not computed from {source.name}")
    sums = [_trace(each, source) for each in inputs]
    multiplier = factor(node)
    if is_movement(node):
        return _Sum(
            index=np.stack([move(value, term) for term in sums[0].index]),
            factor=np.stack([move(value, term) for term in sums[0].factor]),
        )
    if multiplier is not None:
        shape = sums[0].factor.shape
        return _Sum(index=sums[0].index, factor=np.broadcast_to(sums[0].factor * multiplier, shape))
    if node.op_type == "Concat" and len(sums) == len(node.inputs):
        return _concatenated(sums, node.attributes["axis"].as_int())
    if node.op_type == "Add" and [len(each.index) for each in sums] == [1, 1]:
        return _Sum(
            index=np.concatenate([each.index for each in sums]), factor=np.concatenate([each.factor for each in sums])
        )
    raise ValueError(f"{node.name} ({node.op_type}) is not followed")


def _elements(source: ir.Value) -> _Sum:
    """`source` in terms of itself."""
    batch, *extents = source.shape or ir.Shape([None])
    known = [extent for extent in extents if isinstance(extent, int)]
    if len(known) != 2 or len(extents) != 2:
        raise ValueError(f"{source.name} is not [batch, tokens, width]")
    shape = (1, batch if isinstance(batch, int) else UNKNOWN_BATCH, *known)
    return _Sum(index=np.arange(int(np.prod(shape))).reshape(shape), factor=np.ones(shape))


def _concatenated(sums: Sequence[_Sum], axis: int) -> _Sum:
    count = max(len(each.index) for each in sums)
    same = [each.terms(count) for each in sums]
    along = axis + 1 if axis >= 0 else axis
    return _Sum(
        index=np.concatenate([each.index for each in same], along),
        factor=np.concatenate([each.factor for each in same], along),
    )


def _compare(source: ir.Value, heads: _Sum) -> Origin | None:
    """`heads` [terms, batch, heads, tokens, channels] as columns of `source`."""
    elements = _elements(source).index[0]
    _, batch, number, tokens, channels = heads.index.shape
    for first in sorted({int(term.flat[0]) for term in heads.index}):
        block = elements[:, :, first : first + number * channels]
        if block.shape != (batch, tokens, number * channels):
            continue
        own = block.reshape(batch, tokens, number, channels).transpose(TOKENS_BEFORE_HEADS)
        cosine = np.where(heads.index == own, heads.factor, 0).sum(0)
        others = np.where(heads.index == own, 0, heads.factor)
        sine, partner = others.sum(0), np.where(others != 0, heads.index, 0).sum(0)
        if bool((np.count_nonzero(others, 0) > 1).any()):
            continue
        if not sine.any():
            scale = float(cosine.flat[0])
            return Origin(source=source, first=first, scale=scale, rotation=None) if (cosine == scale).all() else None
        rotation = _rotation(own, partner, cosine, sine)
        if rotation is not None:
            return Origin(source=source, first=first, scale=1.0, rotation=rotation)
    return None


def _rotation(
    index: NDArray[np.int64], partner: NDArray[np.int64], cosine: NDArray[np.float64], sine: NDArray[np.float64]
) -> Rotation | None:
    """The rotation that makes cosine · x[index] + sine · x[partner] of x; all are [batch, heads, tokens, channels]."""
    same = bool((cosine == cosine[:1, :1]).all() and (sine == sine[:1, :1]).all())
    channels = index.shape[3]
    for interleaved in (True, False):
        pairs = np.arange(channels).reshape((-1, 2) if interleaved else (2, -1))
        left, right = pairs.T if interleaved else pairs
        other = np.empty(channels, np.int64)
        other[left], other[right] = right, left
        # Where the factor is 0 (class tokens are not rotated), any partner will do.
        fits = bool(((partner == index[..., other]) | (sine == 0)).all())
        table, angle = cosine[0, 0], sine[0, 0]
        turns = np.array_equal(table[:, left], table[:, right]) and np.array_equal(angle[:, left], -angle[:, right])
        if same and fits and turns:
            return Rotation(cosine=table[:, left], sine=angle[:, right], interleaved=interleaved)
    return None
