"""Input: a model of normalized pixels and a `PreprocessSpec`; output: the model that takes the picture itself.

Its input becomes uint8 [batch, height, width, 3], RGB of any size, which for a model of one channel is made grey first;
for a model of two channels, or of more than three, uint8 [batch, height, width, channels]. Resizing, cropping, scaling
and normalization come before the old input, in standard operators of opset 13. Resizing follows Pillow
(libImaging/Resample.c) bit for bit: a separable filter that is stretched where it shrinks, rounded to 8 bits after each
direction, with weights of 22 fractional bits. Each direction is a product with a matrix that the graph computes in
float64 from the picture's size. Most of that matrix is zero, so it is applied in bands, each to the window of source
pixels that it reads; what the crop cuts off is never computed.

Pillow resizes along the rows first. Pillow 13 resizes along the columns first where that takes away more than twice as many
pixels (found by comparing 2,480 random sizes with its two directions done one by one); so does the graph. Pictures of more
than twice their width in height are the usual case, and the one where an older Pillow differs.

ONNX's own Resize (opset 18, ``antialias``) is within a level for bilinear and bicubic (ONNX Runtime 1.31.1), but it has no
other filter and no older opset, takes about twice as long (640 x 480), and computes what the crop throws away: of a
4,000 x 1 picture 4,000 times what is kept.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes import InPlacePass, PassResult, PostconditionError, PreconditionError
from onnx_ir.tape import Tape

from vitexport.artifacts import INPUT_NAME
from vitexport.preprocess import PreprocessSpec

# Columns that are computed from one window of a row. Wider bands multiply by more zeros, narrower ones need more nodes.
BAND = 32
# Pillow's weights have so many bits behind the point (Resample.c: PRECISION_BITS).
FRACTION_BITS = 22
# Where a weight is cut in two, so that float32 adds up exactly what each part gives: the upper part as long as its sums stay
# below 2^24 steps (a sum of weights below 2), the lower one for up to 514 pixels.
UPPER_BITS = 14
# Half the width of each filter at scale 1, in source pixels.
SUPPORT: Mapping[str, float] = {
    "nearest": 0.5,
    "box": 0.5,
    "bilinear": 1.0,
    "hamming": 1.0,
    "bicubic": 2.0,
    "lanczos": 3.0,
}
# Red, green and blue of a grey value, and what they sum to (Pillow's libImaging/Convert.c, L24).
GREY_WEIGHTS = (19595, 38470, 7471)
GREY_ONE = 65536
PREFIX = "preprocess"


class EmbedPreprocess(InPlacePass):
    """Put the preprocessing of `spec` before the input ``image``."""

    def __init__(self, spec: PreprocessSpec) -> None:
        self.spec = spec

    def requires(self, model: ir.Model) -> None:
        """One input, ``image``, float32 [batch, channels, height, width] of the size in the spec."""
        inputs = [(value.name, value.dtype) for value in model.graph.inputs]
        if inputs != [(INPUT_NAME, ir.DataType.FLOAT)]:
            raise PreconditionError(f"inputs are {inputs}; expected {INPUT_NAME}, float32")
        shape = model.graph.inputs[0].shape
        expected = (self.spec.channels, self.spec.height, self.spec.width)
        if shape is None or tuple(shape)[1:] != expected:
            raise PreconditionError(f"{INPUT_NAME} is {shape}; expected [batch, {', '.join(map(str, expected))}]")

    def call(self, model: ir.Model) -> PassResult:
        """Compute the old input from a new one of the same name."""
        graph = model.graph
        old = graph.inputs[0]
        batch = old.shape[0] if old.shape is not None else None
        image = ir.Value(
            name=INPUT_NAME,
            type=ir.TensorType(ir.DataType.UINT8),
            shape=ir.Shape([batch, "image_height", "image_width", self.spec.source_channels]),
        )
        first = next(iter(graph))
        steps = _Steps()
        pixels = _pixels(steps, image, self.spec)
        normalized = _normalized(steps, pixels, self.spec)
        normalized.type, normalized.shape = old.type, old.shape
        graph.inputs[0] = image
        old.replace_all_uses_with(normalized)
        for value in steps.constants:
            graph.register_initializer(value)
        graph.insert_before(first, steps.tape.nodes)
        return PassResult(model, modified=True)

    def ensures(self, model: ir.Model) -> None:
        """The input is a picture."""
        value = model.graph.inputs[0]
        if value.name != INPUT_NAME or value.dtype != ir.DataType.UINT8:
            raise PostconditionError(f"the input is {value.name}, {value.dtype}")


def preprocess_model(spec: PreprocessSpec, *, output: str, opset: int) -> ir.Model:
    """A model that hands on its input, float32 [batch, channels, height, width], as `output`, for `EmbedPreprocess`."""
    shape = ir.Shape(["batch", spec.channels, spec.height, spec.width])
    image = ir.Value(name=INPUT_NAME, type=ir.TensorType(ir.DataType.FLOAT), shape=shape)
    identity = ir.Node("", "Identity", [image], name=f"{PREFIX}/{output}")
    result = identity.outputs[0]
    result.name, result.type, result.shape = output, image.type, shape
    graph = ir.Graph([image], [result], nodes=[identity], name=PREFIX, opset_imports={"": opset})
    return ir.Model(graph, ir_version=10)


class _Steps:
    """Nodes in the order in which they are computed, named after what they compute."""

    def __init__(self) -> None:
        self.tape = Tape()
        self.constants: list[ir.Value] = []
        self.serials = itertools.count(1)

    def op(self, op_type: str, *inputs: ir.Value, **attributes: int | list[int] | ir.Graph) -> ir.Value:
        """The result of one operator."""
        name = self._name(op_type)
        result: ir.Value = self.tape.op(op_type, inputs, attributes=attributes, name=name)
        result.name = name
        return result

    def constant(self, value: float | Sequence[float] | NDArray[Any], dtype: type) -> ir.Value:
        """A constant of the graph."""
        array: NDArray[Any] = np.asarray(value, dtype)
        tensor = ir.tensor(array, name=self._name("constant"))
        result = ir.Value(
            name=tensor.name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(array.shape), const_value=tensor
        )
        self.constants.append(result)
        return result

    def integer(self, value: int) -> ir.Value:
        """One int64."""
        return self.constant(value, np.int64)

    def integers(self, *values: int) -> ir.Value:
        """A vector of int64."""
        return self.constant(values, np.int64)

    def real(self, value: float) -> ir.Value:
        """One float64."""
        return self.constant(value, np.float64)

    def double(self, value: ir.Value) -> ir.Value:
        """`value` in float64."""
        return self.op("Cast", value, to=int(ir.DataType.DOUBLE))

    def int64(self, value: ir.Value) -> ir.Value:
        """`value` in int64."""
        return self.op("Cast", value, to=int(ir.DataType.INT64))

    def float32(self, value: ir.Value) -> ir.Value:
        """`value` in float32."""
        return self.op("Cast", value, to=int(ir.DataType.FLOAT))

    def reshape(self, value: ir.Value, *shape: int) -> ir.Value:
        """`value` in another shape; 0 keeps a size, -1 takes what is left."""
        return self.op("Reshape", value, self.integers(*shape))

    def branch(self) -> _Steps:
        """Steps of a subgraph, whose constants are those of the graph around it."""
        inner = _Steps()
        inner.constants, inner.serials = self.constants, self.serials
        return inner

    def graph(self, result: ir.Value, name: str) -> ir.Graph:
        """These steps as a subgraph that gives `result`, float32."""
        result.type = ir.TensorType(ir.DataType.FLOAT)
        return ir.Graph([], [result], nodes=self.tape.nodes, name=f"{PREFIX}/{name}")

    def choose(self, condition: ir.Value, then: ir.Graph, otherwise: ir.Graph) -> ir.Value:
        """What `then` gives where `condition` holds, and what `otherwise` gives elsewhere."""
        return self.op("If", condition, then_branch=then, else_branch=otherwise)

    def _name(self, what: str) -> str:
        return f"{PREFIX}/{what}.{next(self.serials)}"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Axis:
    """One direction of the picture: its rows, or its columns. What the picture's size decides is one int64 in the graph.

    Attributes:
        source: Pixels that come in.
        resized: Pixels after resizing.
        offset: Which of those the first pixel of the model's input is; negative where the picture is padded.
        target: Pixels of the model's input.
    """

    source: ir.Value
    resized: ir.Value
    offset: ir.Value
    target: int


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Matrix:
    """What resizes one direction, in bands of target pixels that read one window of source pixels each.

    Attributes:
        starts: int64 [bands], first source pixel of each window.
        length: int64 [1], source pixels of every window.
        weights: float32 [bands, 2 x pixels of a band, length]: the upper parts, then the lower ones.
        bands: How many.
        target: Pixels that all bands give, without what the last one gives beyond.
    """

    starts: ir.Value
    length: ir.Value
    weights: ir.Value
    bands: int
    target: int


def _pixels(steps: _Steps, image: ir.Value, spec: PreprocessSpec) -> ir.Value:
    """uint8 [batch, any height, any width, channels] to whole numbers 0…255, float32 [batch, height, channels, width]."""
    sizes = steps.op("Shape", image)
    height, width = (steps.op("Gather", sizes, steps.integer(index)) for index in (1, 2))
    rows, columns = (
        _Axis(source=source, resized=resized, offset=_offset(steps, resized, target, spec), target=target)
        for source, resized, target in zip(
            (height, width), _resized(steps, height, width, spec), (spec.height, spec.width), strict=True
        )
    )
    down, across = _matrix(steps, rows, spec), _matrix(steps, columns, spec)
    if spec.interpolation == "nearest":
        # It copies pixels, so the order does not matter.
        flat = _rows_first(steps, image, down, across, spec.channels)
    else:
        first, second = steps.branch(), steps.branch()
        flat = steps.choose(
            _takes_more(steps, rows, columns),
            second.graph(_columns_first(second, image, down, across, spec.channels), "columns_first"),
            first.graph(_rows_first(first, image, down, across, spec.channels), "rows_first"),
        )
    pixels = steps.reshape(flat, 0, 0, spec.channels, spec.width)
    return _filled(steps, pixels, rows, columns, spec) if spec.crop_mode == "border" else pixels


def _grey(steps: _Steps, planes: ir.Value) -> ir.Value:
    """Rows of red, green and blue, float32 [batch, rows, 3, width], to grey [batch, rows, 1, width].

    As Pillow's ``convert("L")`` (libImaging/Convert.c), which weighs in integers, of 65536 parts, and rounds half up;
    float32 holds every such sum exactly.
    """
    weighted = steps.op("MatMul", steps.constant(np.asarray([GREY_WEIGHTS]), np.float32), planes)
    half_up = steps.op("Add", weighted, steps.constant(GREY_ONE / 2, np.float32))
    return steps.op("Floor", steps.op("Mul", half_up, steps.constant(1 / GREY_ONE, np.float32)))


def _takes_more(steps: _Steps, rows: _Axis, columns: _Axis) -> ir.Value:
    """Whether resizing takes away more than twice as many rows as columns, and rows at all."""
    fewer = [steps.op("Sub", axis.source, axis.resized) for axis in (rows, columns)]
    more = steps.op("Less", steps.op("Mul", fewer[1], steps.integer(2)), fewer[0])
    return steps.op("And", more, steps.op("Less", steps.integer(0), fewer[0]))


def _rows_first(steps: _Steps, image: ir.Value, down: _Matrix, across: _Matrix, channels: int) -> ir.Value:
    """Along the rows that the columns will read, then along the columns: float32 [batch, height, channels x width]."""
    first = steps.op("Gather", down.starts, steps.integers(0))
    last = steps.op("Gather", down.starts, steps.integers(down.bands - 1))
    end = steps.op("Add", last, down.length)
    kept = steps.op("Slice", image, first, end, steps.integers(1))
    resized = _across(steps, kept, across, grey=channels == 1)
    flat = steps.reshape(resized, 0, 0, channels * across.target)
    return _down(steps, flat, down, begin=first)


def _columns_first(steps: _Steps, image: ir.Value, down: _Matrix, across: _Matrix, channels: int) -> ir.Value:
    """Along the columns, then along the rows: the same shape."""
    if channels == 1:
        image = _grey(steps, steps.float32(steps.op("Transpose", image, perm=[0, 1, 3, 2])))
    shorter = _down(steps, steps.reshape(image, 0, 0, -1), down, begin=steps.integers(0))
    resized = _across(steps, steps.reshape(shorter, 0, 0, -1, channels), across)
    return steps.reshape(resized, 0, 0, channels * across.target)


def _normalized(steps: _Steps, pixels: ir.Value, spec: PreprocessSpec) -> ir.Value:
    """What `_pixels` returns to (value / 255 - mean) / std, float32 [batch, channels, height, width].

    Step by step as Python does it: a difference in the last bit would round otherwise where a layer is INT8.
    """
    mean, std = (steps.constant(np.reshape(values, (-1, 1, 1)), np.float32) for values in (spec.mean, spec.std))
    planes = steps.op("Transpose", pixels, perm=[0, 2, 1, 3])
    scaled = steps.op("Div", planes, steps.constant(255, np.float32))
    return steps.op("Div", steps.op("Sub", scaled, mean), std)


def _resized(steps: _Steps, height: ir.Value, width: ir.Value, spec: PreprocessSpec) -> tuple[ir.Value, ir.Value]:
    """Height and width after resizing, as `vitexport.preprocess` computes them."""
    rows, columns = math.floor(spec.height / spec.crop_pct), math.floor(spec.width / spec.crop_pct)
    if spec.crop_mode == "squash":
        return steps.integer(rows), steps.integer(columns)
    if spec.crop_mode == "center" and rows == columns:
        # The shorter side becomes `rows`; of whole numbers Div truncates.
        side = steps.integer(rows)
        return (
            steps.op("Max", side, steps.op("Div", steps.op("Mul", side, height), width)),
            steps.op("Max", side, steps.op("Div", steps.op("Mul", side, width), height)),
        )
    sides = steps.double(height), steps.double(width)
    ratios = [steps.op("Div", side, steps.real(size)) for side, size in zip(sides, (rows, columns), strict=True)]
    ratio = steps.op("Max" if spec.crop_mode == "border" else "Min", *ratios)
    # Round is to even, as Python's.
    first, second = (steps.int64(steps.op("Round", steps.op("Div", side, ratio))) for side in sides)
    return steps.op("Max", first, steps.integer(1)), steps.op("Max", second, steps.integer(1))


def _offset(steps: _Steps, resized: ir.Value, target: int, spec: PreprocessSpec) -> ir.Value:
    """Where in the resized picture the crop begins; what is too small is padded first."""
    spare = steps.op("Sub", resized, steps.integer(target))
    half = steps.op("Div", steps.double(steps.op("Max", spare, steps.integer(0))), steps.real(2))
    offset = steps.int64(steps.op("Round", half))
    if spec.crop_mode != "border":
        return offset
    missing = steps.op("Max", steps.op("Sub", steps.integer(target), resized), steps.integer(0))
    return steps.op("Sub", offset, steps.op("Div", missing, steps.integer(2)))


def _matrix(steps: _Steps, axis: _Axis, spec: PreprocessSpec) -> _Matrix:
    """The weights of `axis`; the last band goes beyond the target where that is no multiple of `BAND`."""
    band = min(BAND, axis.target)
    bands = math.ceil(axis.target / band)
    source = steps.double(axis.source)
    scale = steps.op("Div", source, steps.double(axis.resized))
    # Pillow stretches a filter when it shrinks; nearest is none.
    stretch = steps.real(1) if spec.interpolation == "nearest" else steps.op("Max", scale, steps.real(1))
    centre = _centres(steps, axis, bands * band, scale, spec)
    reach = steps.op("Mul", stretch, steps.real(SUPPORT[spec.interpolation]))
    half = steps.real(0.5)
    low = steps.op("Floor", steps.op("Add", steps.op("Sub", centre, reach), half))
    high = steps.op("Floor", steps.op("Add", steps.op("Add", centre, reach), half))
    first = steps.op("Gather", low, steps.integers(*range(0, bands * band, band)))
    last = steps.op("Gather", high, steps.integers(*range(band - 1, bands * band, band)))
    first = steps.op("Max", steps.op("Min", first, steps.op("Sub", source, steps.real(1))), steps.real(0))
    last = steps.op("Max", steps.op("Min", last, source), steps.op("Add", first, steps.real(1)))
    length = steps.op("ReduceMax", steps.op("Sub", last, first), keepdims=0)
    starts = steps.op("Min", first, steps.op("Sub", source, length))
    places = steps.op("Add", steps.reshape(starts, bands, 1, 1), _range(steps, steps.real(0), length, steps.real(1)))
    distance = steps.op("Sub", places, steps.reshape(centre, bands, band, 1))
    if spec.interpolation == "nearest":
        # The pixel that holds the centre: distances of its left edge above -1, and 0 at most.
        weights = steps.double(_between(steps, distance, -1, 0))
    else:
        inside = steps.op("Mul", steps.op("Add", distance, half), steps.op("Div", steps.real(1), stretch))
        weights = FILTERS[spec.interpolation](steps, inside)
    if spec.interpolation == "box":
        # The one filter that does not fade out: where its edge meets a pixel's, the bounds that Pillow rounds decide.
        outside = _outside(steps, places, low, high, bands, band)
        weights = steps.op("Where", outside, steps.real(0), weights)
    total = steps.op("ReduceSum", weights, steps.integers(-1), keepdims=1)
    # As Pillow's fixed-point numbers.
    fixed = steps.op("Round", steps.op("Mul", steps.op("Div", weights, total), steps.real(2.0**FRACTION_BITS)))
    exact = steps.op("Mul", fixed, steps.real(2.0**-FRACTION_BITS))
    steps_up = steps.op("Round", steps.op("Mul", exact, steps.real(2.0**UPPER_BITS)))
    upper = steps.op("Mul", steps_up, steps.real(2.0**-UPPER_BITS))
    parts = [steps.float32(part) for part in (upper, steps.op("Sub", exact, upper))]
    return _Matrix(
        starts=steps.int64(starts),
        length=steps.reshape(steps.int64(length), 1),
        weights=steps.op("Concat", *parts, axis=1),
        bands=bands,
        target=axis.target,
    )


def _outside(  # noqa: PLR0913, PLR0917 - a pixel and its bounds
    steps: _Steps, places: ir.Value, low: ir.Value, high: ir.Value, bands: int, band: int
) -> ir.Value:
    before = steps.op("Less", places, steps.reshape(low, bands, band, 1))
    return steps.op("Or", before, steps.op("Not", steps.op("Less", places, steps.reshape(high, bands, band, 1))))


def _centres(steps: _Steps, axis: _Axis, count: int, scale: ir.Value, spec: PreprocessSpec) -> ir.Value:
    """Where in the source the centres of `count` target pixels lie, float64 [count]."""
    end = steps.op("Add", axis.offset, steps.integer(count))
    indices = _range(steps, axis.offset, end, steps.integer(1))
    if spec.interpolation != "nearest":
        return steps.op("Mul", steps.op("Add", steps.double(indices), steps.real(0.5)), scale)
    # Pillow adds the scale up, pixel by pixel (libImaging/Geometry.c): where a centre meets an edge, its rounding decides.
    more = steps.reshape(steps.op("Sub", steps.op("Max", end, steps.integer(count)), steps.integer(1)), 1)
    first = steps.reshape(steps.op("Mul", scale, steps.real(0.5)), 1)
    parts = steps.op("Concat", first, steps.op("Expand", scale, more), axis=0)
    sums = steps.op("CumSum", parts, steps.integer(0))
    return steps.op("Gather", sums, steps.op("Max", indices, steps.integer(0)))


def _range(steps: _Steps, start: ir.Value, end: ir.Value, step: ir.Value) -> ir.Value:
    return steps.op("Range", start, end, step)


def _across(steps: _Steps, image: ir.Value, matrix: _Matrix, *, grey: bool = False) -> ir.Value:
    """Resize along the rows: [batch, rows, any, channels] to 8 bits in float32 [batch, rows, channels, target].

    With `grey` the channels are red, green and blue, and what is resized is their grey.
    """
    transposed = steps.op("Transpose", matrix.weights, perm=[0, 2, 1])
    parts = []
    for index in range(matrix.bands):
        start = steps.op("Gather", matrix.starts, steps.integers(index))
        window = steps.op("Transpose", _window(steps, image, start, matrix.length, axis=2), perm=[0, 1, 3, 2])
        weights = steps.op("Gather", transposed, steps.integer(index))
        planes = steps.float32(window)
        sums = steps.op("MatMul", _grey(steps, planes) if grey else planes, weights)
        parts.append(_eight_bits(steps, sums, matrix, axis=3))
    return _joined(steps, parts, matrix, axis=3)


def _down(steps: _Steps, rows: ir.Value, matrix: _Matrix, *, begin: ir.Value) -> ir.Value:
    """Resize along the columns: [batch, any, numbers of a row] to 8 bits in float32 [batch, target, the same].

    `begin`, int64 [1], is the source pixel that the first of `rows` is.
    """
    parts = []
    for index in range(matrix.bands):
        start = steps.op("Sub", steps.op("Gather", matrix.starts, steps.integers(index)), begin)
        window = steps.float32(_window(steps, rows, start, matrix.length, axis=1))
        weights = steps.op("Gather", matrix.weights, steps.integer(index))
        parts.append(_eight_bits(steps, steps.op("MatMul", weights, window), matrix, axis=1))
    return _joined(steps, parts, matrix, axis=1)


def _window(steps: _Steps, value: ir.Value, start: ir.Value, length: ir.Value, *, axis: int) -> ir.Value:
    return steps.op("Slice", value, start, steps.op("Add", start, length), steps.integers(axis))


def _joined(steps: _Steps, parts: Sequence[ir.Value], matrix: _Matrix, *, axis: int) -> ir.Value:
    """The bands side by side, without what the last one has beyond the target."""
    if len(parts) == 1:
        return parts[0]
    joined = steps.op("Concat", *parts, axis=axis)
    if matrix.target % BAND == 0:
        return joined
    return steps.op("Slice", joined, steps.integers(0), steps.integers(matrix.target), steps.integers(axis))


def _eight_bits(steps: _Steps, sums: ir.Value, matrix: _Matrix, *, axis: int) -> ir.Value:
    """What the upper and the lower parts of the weights gave, along `axis`, to 8 bits in float32.

    Rounded half up and cut to 0…255, as Pillow does after each direction. One sum of both parts would be rounded by float32,
    and a sum that ends on a half, as bilinear's often do, would fall to either side.
    """
    band = min(BAND, matrix.target)
    upper, lower = (
        steps.op("Slice", sums, steps.integers(begin), steps.integers(begin + band), steps.integers(axis))
        for begin in (0, band)
    )
    half_up = steps.op("Add", upper, steps.constant(0.5, np.float32))
    whole = steps.op("Floor", half_up)
    carry = steps.op("Floor", steps.op("Add", steps.op("Sub", half_up, whole), lower))
    rounded = steps.op("Add", whole, carry)
    return steps.op("Clip", rounded, steps.constant(0, np.float32), steps.constant(255, np.float32))


def _filled(steps: _Steps, pixels: ir.Value, rows: _Axis, columns: _Axis, spec: PreprocessSpec) -> ir.Value:
    """`pixels`, with the mean where the resized picture does not reach."""
    inside = []
    for axis, shape in ((rows, (rows.target, 1, 1)), (columns, (columns.target,))):
        indices = _range(steps, axis.offset, steps.op("Add", axis.offset, steps.integer(axis.target)), steps.integer(1))
        begun = steps.op("Not", steps.op("Less", indices, steps.integer(0)))
        inside.append(steps.reshape(steps.op("And", begun, steps.op("Less", indices, axis.resized)), *shape))
    fill = np.asarray([round(255 * value) for value in spec.mean]).reshape(-1, 1)
    return steps.op("Where", steps.op("And", *inside), pixels, steps.constant(fill, np.float32))


def _between(steps: _Steps, value: ir.Value, low: float, high: float) -> ir.Value:
    """Where `value` is above `low` and `high` at most."""
    beyond = steps.op("Less", steps.real(high), value)
    return steps.op("And", steps.op("Less", steps.real(low), value), steps.op("Not", beyond))


def _box(steps: _Steps, x: ir.Value) -> ir.Value:
    return steps.double(_between(steps, x, -0.5, 0.5))


def _bilinear(steps: _Steps, x: ir.Value) -> ir.Value:
    return steps.op("Max", steps.op("Sub", steps.real(1), steps.op("Abs", x)), steps.real(0))


def _bicubic(steps: _Steps, x: ir.Value) -> ir.Value:
    """Keys' cubic with a = -1/2, in Horner's form, as Pillow evaluates it."""
    x = steps.op("Abs", x)

    def polynomial(*coefficients: float) -> ir.Value:
        value = steps.real(coefficients[0])
        for coefficient in coefficients[1:]:
            value = steps.op("Mul", value, x)
            value = steps.op("Add", value, steps.real(coefficient)) if coefficient else value
        return value

    near, far = polynomial(1.5, -2.5, 0, 1), polynomial(-0.5, 2.5, -4, 2)
    outer = steps.op("Where", steps.op("Less", x, steps.real(2)), far, steps.real(0))
    return steps.op("Where", steps.op("Less", x, steps.real(1)), near, outer)


def _hamming(steps: _Steps, x: ir.Value) -> ir.Value:
    x = steps.op("Abs", x)
    cosine = steps.op("Cos", steps.op("Mul", x, steps.real(math.pi)))
    window = steps.op("Add", steps.op("Mul", cosine, steps.real(0.46)), steps.real(0.54))
    value = steps.op("Mul", _sinc(steps, x), window)
    return steps.op("Where", steps.op("Less", x, steps.real(1)), value, steps.real(0))


def _lanczos(steps: _Steps, x: ir.Value) -> ir.Value:
    x = steps.op("Abs", x)
    value = steps.op("Mul", _sinc(steps, x), _sinc(steps, steps.op("Div", x, steps.real(3))))
    return steps.op("Where", steps.op("Less", x, steps.real(3)), value, steps.real(0))


def _sinc(steps: _Steps, x: ir.Value) -> ir.Value:
    """sin(πx) / πx of numbers that are not negative; at 0 both are replaced by one tiny number, which gives 1."""
    angle = steps.op("Max", steps.op("Mul", x, steps.real(math.pi)), steps.real(1e-9))
    return steps.op("Div", steps.op("Sin", angle), angle)


FILTERS: Mapping[str, Callable[[_Steps, ir.Value], ir.Value]] = {
    "box": _box,
    "bilinear": _bilinear,
    "hamming": _hamming,
    "bicubic": _bicubic,
    "lanczos": _lanczos,
}
