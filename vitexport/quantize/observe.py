"""Input: calibration images; output: what is known of every activation that will be quantized, in memory that does not
grow.

One float pass over the images. Of each activation a fixed number of rows (tokens), spread evenly over images and positions,
goes into a histogram per channel; fewer into the second moments that rounding needs; and a few are kept.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes.common import RemoveUnusedNodesPass

from vitexport.artifacts import Outputs, Progress
from vitexport.errors import InputError
from vitexport.runtime.backends.onnx_runtime import OnnxRuntimeBackend, available_threads
from vitexport.runtime.model import join

Rows = NDArray[np.float32]

CHANNEL_BINS = 512
# Rows of each activation that are counted; every GRAM_STRIDE-th enters the second moments, every KEEP_STRIDE-th is kept.
ROWS = 8_192
GRAM_STRIDE = 4
KEEP_STRIDE = 32
# Rows gathered before they are folded in: large enough for one efficient matrix product, small enough for memory.
CHUNK = 256
SMALLEST_LIMIT = 2.0**-20


class ChannelHistogram:
    """Counts of each channel's values in `CHANNEL_BINS` equal bins over [-limit, limit), with a power of two as limit.

    When a value lies beyond its channel's limit, that limit doubles and pairs of bins merge: nothing is lost, and the result
    does not depend on the order of the values.
    """

    def __init__(self, channels: int) -> None:
        self.limit = np.zeros(channels)
        self.counts = np.zeros((channels, CHANNEL_BINS), np.int32)
        self.low = np.full(channels, np.inf)
        self.high = np.full(channels, -np.inf)

    def widen(self, rows: Rows) -> None:
        """Let the smallest and largest values, and the limits, take in `rows`, float32 [n, channels].

        Raises:
            InputError: One of the values is NaN or infinite.
        """
        low, high = rows.min(axis=0), rows.max(axis=0)
        if not (np.isfinite(low).all() and np.isfinite(high).all()):
            raise InputError("The float model computes NaN or infinity on a calibration image; it cannot be quantized.")
        self.low, self.high = np.minimum(self.low, low), np.maximum(self.high, high)
        self._grow(np.maximum(np.abs(low), np.abs(high)).astype(np.float64))

    def add(self, rows: Rows) -> None:
        """Count `rows`, float32 [n, channels].

        Raises:
            InputError: One of the values is NaN or infinite.
        """
        self.widen(rows)
        # The factor is a power of two and rounds nothing; adding the limit before would, and a value just below an edge
        # could then change its bin when the limit grows.
        scaled = rows * (CHANNEL_BINS / (2 * self.limit)).astype(np.float32)
        index = np.floor(scaled, out=scaled).astype(np.intp)
        index += np.arange(rows.shape[1]) * CHANNEL_BINS + CHANNEL_BINS // 2
        self.counts += np.bincount(index.reshape(-1), minlength=self.counts.size).reshape(self.counts.shape)

    def _grow(self, largest: NDArray[np.float64]) -> None:
        fresh = self.limit == 0.0
        if fresh.any():
            self.limit[fresh] = 2.0 ** np.ceil(np.log2(np.maximum(largest[fresh], SMALLEST_LIMIT)) + 1e-9)
        while (small := largest >= self.limit).any():
            merged = self.counts[small].reshape(int(small.sum()), -1, 2).sum(axis=2)
            self.counts[small] = 0
            self.counts[small, CHANNEL_BINS // 4 : 3 * CHANNEL_BINS // 4] = merged
            self.limit[small] *= 2

    def percentile_range(self, percentile: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """For each channel the range that keeps `percentile` percent of its values; half of the rest is cut at each end.

        The ends lie on bin edges, outside of what they keep, and never beyond what was seen.
        """
        total = int(self.counts[0].sum())
        tail = (1 - percentile / 100) / 2 * total
        below = np.cumsum(self.counts, axis=1)
        first = (below <= tail).sum(axis=1)
        last = (below < total - tail).sum(axis=1)
        width = 2 * self.limit / CHANNEL_BINS
        low = np.maximum(-self.limit + first * width, self.low)
        return low, np.minimum(-self.limit + (last + 1) * width, self.high)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Activation:
    """What was seen of one activation.

    Attributes:
        histogram: Per channel.
        offset: float32 [channels]: about the mean of each channel.
        gram: float32 [channels, channels]: sum of the outer products of `gram_rows` rows, less `offset`: of a channel whose
            mean is far larger than its spread, float32 would keep only the mean. None where nothing rounds by it.
        total: float64 [channels]: sum of those rows, less `offset`.
        gram_rows: How many they were.
        rows: float32 [kept, channels]: a few rows as they are.
    """

    histogram: ChannelHistogram
    offset: NDArray[np.float32]
    gram: Rows | None
    total: NDArray[np.float64]
    gram_rows: int
    rows: Rows


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Observation:
    """What one pass over the images saw.

    Attributes:
        activations: By name of the tensor.
        first_outputs: The graph's own outputs, for the first images; as many as were run side by side.
    """

    activations: Mapping[str, Activation]
    first_outputs: Outputs


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Tensor:
    """An activation to observe.

    Attributes:
        name: Of the tensor.
        per_channel: Whether it is seen channel by channel; else it is one pool of values.
        channels_first: Whether its channels are the second axis, and not the last.
        moments: Whether its second moments are wanted, for rounding that compensates.
        counts: Whether more than its smallest and largest values is wanted.
    """

    name: str
    per_channel: bool
    channels_first: bool = False
    moments: bool = False
    counts: bool = True


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Batch:
    """Preprocessed images of one batch.

    Attributes:
        images: float32 [n, 3, height, width].
        first: Number of the first image in the set.
        rows: How many rows of each activation one image contributes.
    """

    images: NDArray[np.float32]
    first: int
    rows: int


def _strides(share: float) -> tuple[int, int]:
    """Every how many rows enter the second moments, and are kept, of a tensor with a `share` of the rows asked for.

    Powers of two, so that no row is in both.
    """
    fewer = 2 ** max(math.floor(-math.log2(share)), 0)
    return max(GRAM_STRIDE // fewer, 1), max(KEEP_STRIDE // fewer, 1)


class _Gathering:
    """One activation while it is observed."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor
        self.histogram: ChannelHistogram | None = None
        self.offset: NDArray[np.float32] | None = None
        self.gram: Rows | None = None
        self.total: NDArray[np.float64] | None = None
        self.gram_rows = 0
        self.seen = 0
        self.kept: list[Rows] = []

    def fold(self, parts: Sequence[Rows], wanted: int) -> None:
        """Take in the rows of one chunk, of which `wanted` were asked for: a tensor of one token has fewer."""
        rows = np.concatenate(parts)
        channels = rows.shape[1]
        if self.histogram is None or self.total is None or self.offset is None:
            self.histogram, self.total = ChannelHistogram(channels), np.zeros(channels)
            self.offset = rows.mean(axis=0, dtype=np.float64).astype(np.float32)
            self.gram = np.zeros((channels, channels), np.float32) if self.tensor.moments else None
        if self.tensor.counts:
            self.histogram.add(rows)
        else:
            self.histogram.widen(rows)
        gram_stride, keep_stride = _strides(len(rows) / wanted)
        chosen = rows[-self.seen % gram_stride :: gram_stride] - self.offset
        if self.gram is not None:
            # NumPy sees that this is symmetric, and computes one half.
            self.gram += chosen.T @ chosen
        self.total += chosen.sum(axis=0, dtype=np.float64)
        self.gram_rows += len(chosen)
        # Half a stride further: what judges the rounding is none of what the rounding compensated for.
        self.kept.append(rows[(gram_stride // 2 - self.seen) % keep_stride :: keep_stride].copy())
        self.seen += len(rows)

    def result(self) -> Activation:
        if self.histogram is None or self.total is None or self.offset is None:
            raise InputError("No calibration image was observed.")
        return Activation(
            histogram=self.histogram,
            offset=self.offset,
            gram=self.gram,
            total=self.total,
            gram_rows=self.gram_rows,
            rows=np.concatenate(self.kept),
        )


def observe(  # noqa: PLR0913, PLR0917 - what is observed, and of what
    backend: OnnxRuntimeBackend,
    tensors: Sequence[Tensor],
    outputs: Sequence[str],
    batches: Iterable[Batch],
    total: int,
    progress: Progress,
) -> Observation:
    """Run every batch and gather what is known of `tensors`.

    The batches run side by side, each on one thread, and are folded in in their order: the result does not depend on the
    number of threads. Call it under ``threadpoolctl.threadpool_limits(1)``, which holds for the products that fold.

    Args:
        backend: A float session on one thread, which returns `tensors` and `outputs`.
        tensors: What to observe.
        outputs: Names of the graph's own outputs; a layer may read one, which is then observed too.
        batches: Preprocessed images.
        total: Number of images, for progress.
        progress: Told after each chunk.

    Raises:
        InputError: An activation or an output is NaN or infinite.
    """
    gatherings = [_Gathering(tensor) for tensor in tensors]
    first_outputs: Outputs | None = None
    folding: list[Future[None]] = []
    done = 0
    with ThreadPoolExecutor(available_threads()) as pool:
        for chunk in _chunks(batches):
            # The pool still folds the chunk before, while this one's images were read.
            results = list(pool.map(lambda batch: _rows(backend, tensors, outputs, batch), chunk))
            if first_outputs is None:
                first_outputs = join([computed for _, computed in results])
            parts = zip(*(rows for rows, _ in results), strict=True)
            _finish(folding)
            folding = [
                pool.submit(gathering.fold, rows, _wanted(gathering.tensor, chunk))
                for gathering, rows in zip(gatherings, parts, strict=True)
            ]
            del results, parts
            done += sum(len(batch.images) for batch in chunk)
            progress("calibrating", min(done, total), total)
        _finish(folding)
    if first_outputs is None:
        raise InputError("No calibration image was observed.")
    activations = {gathering.tensor.name: gathering.result() for gathering in gatherings}
    return Observation(activations=activations, first_outputs=first_outputs)


def _finish(tasks: Iterable[Future[None]]) -> None:
    """Wait for each, and raise what it raised."""
    for task in tasks:
        task.result()


def _chunks(batches: Iterable[Batch]) -> Iterator[list[Batch]]:
    iterator = iter(batches)
    while (first := next(iterator, None)) is not None:
        more = math.ceil(CHUNK / max(first.rows * len(first.images), 1)) - 1
        yield [first, *itertools.islice(iterator, more)]


def _rows(
    backend: OnnxRuntimeBackend, tensors: Sequence[Tensor], outputs: Sequence[str], batch: Batch
) -> tuple[list[Rows], Outputs]:
    """The rows that are picked from each of `tensors`, and the outputs."""
    computed = backend.run(batch.images)
    own = {name: computed[name] for name in outputs}
    if not all(np.isfinite(values).all() for values in own.values()):
        raise InputError("The float model computes NaN or infinity on a calibration image; it cannot be quantized.")
    return [_pick(computed[tensor.name], tensor, batch) for tensor in tensors], own


def _rows_of(tensor: Tensor, batch: Batch) -> int:
    """How many rows one image contributes, if the tensor has as many."""
    # A pool of single values has many more of them than there are tokens.
    return batch.rows if tensor.per_channel else batch.rows * 32


def _wanted(tensor: Tensor, chunk: Sequence[Batch]) -> int:
    return sum(_rows_of(tensor, batch) * len(batch.images) for batch in chunk)


def _pick(values: Rows, tensor: Tensor, batch: Batch) -> Rows:
    """`batch.rows` rows of each image, float32 [n · rows, channels], from positions that differ from image to image."""
    count = len(batch.images)
    channels = (values.shape[1] if tensor.channels_first else values.shape[-1]) if tensor.per_channel else 1
    by_channel = tensor.per_channel and tensor.channels_first
    if by_channel:
        # The first axis may be windows of all images, one image's after another's.
        values = values.reshape(len(values), channels, -1).swapaxes(1, 2)
    tokens = values.reshape(count, -1, channels)
    length = tokens.shape[1]
    take = min(_rows_of(tensor, batch), length)
    steps = np.arange(take) * length // take
    images = np.arange(count)[:, None]
    picked: Rows = tokens[images, (steps + batch.first + images) % length].reshape(-1, channels)
    return picked


def with_outputs(model: ir.Model, tensors: Sequence[str]) -> ir.Model:
    """A copy of `model` that has `tensors` as its outputs and computes nothing else."""
    copy = model.clone()
    values = {value.name: value for value in copy.graph.inputs}
    values |= {output.name: output for node in copy.graph for output in node.outputs}
    copy.graph.outputs.clear()
    copy.graph.outputs.extend(values[name] for name in dict.fromkeys(tensors))
    RemoveUnusedNodesPass()(copy)
    return copy
