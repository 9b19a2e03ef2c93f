"""Input: one QuantizeLinear or DequantizeLinear; output: what is wrong with its type, scale, zero point and axis.

The first half asks what ONNX itself and arithmetic demand of any engine; the second what TensorRT demands on top.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from vitexport.legality.operators import INTEGER
from vitexport.legality.rules import Violation
from vitexport.legality.view import DEQUANTIZE, QUANTIZE, STANDARD, View, data_type, input_of, integer, label
from vitexport.targets import Target
from vitexport.targets.target import version_key

NARROW = frozenset({ir.DataType.FLOAT16, ir.DataType.BFLOAT16})
FLOAT16_OPSET = 19
# The first that takes float32 scales beside float16 tensors in a strongly typed network.
MIXED_SCALES = (10, 13)
STRONG_TYPING = (10,)
BLOCKED_TYPES = frozenset({ir.DataType.INT4, ir.DataType.FLOAT4E2M1})


def is_pair(node: ir.Node) -> bool:
    """Whether `node` is a QuantizeLinear or DequantizeLinear, ONNX's own or one read by its name."""
    return node.op_type in (QUANTIZE, DEQUANTIZE)


def onnx_numbers(view: View, node: ir.Node) -> Iterator[Violation]:
    """What holds on every engine: positive finite scales, one for each channel of an axis that exists."""
    scale = view.array(input_of(node, 1))
    if scale is not None and not bool(np.all(np.isfinite(wide := scale.astype(np.float64)) & (wide > 0))):
        wrong = wide[~(np.isfinite(wide) & (wide > 0))]
        message = f"has no constant positive scale: it holds {wrong.flat[0]:g}" + (
            f" and {wrong.size - 1} more such" if wrong.size > 1 else ""
        )
        yield Violation(rule="scale-positive", node=label(node), message=message)
    opset = view.opset_at(node)
    if opset is not None and opset < FLOAT16_OPSET and view.dtype(input_of(node, 1)) in NARROW:
        yield Violation(
            rule="float16-opset",
            node=label(node),
            message=f"has a {_name(view.dtype(input_of(node, 1)))} scale in opset {opset}",
        )
    yield from _lengths(view, node)


def _lengths(view: View, node: ir.Node) -> Iterator[Violation]:
    scale, zero = (view.shape(input_of(node, index)) for index in (1, 2))
    size = _size(scale)
    if size is None or scale is None:
        return
    if input_of(node, 2) is not None and _size(zero) not in (size, None):
        message = f"has {size} scale{'s' if size != 1 else ''} and {_size(zero)} zero points"
        yield Violation(rule="scale-length", node=label(node), message=message)
    data, axis = view.shape(input_of(node, 0)), integer(node, "axis")
    if size == 1 or len(scale) != 1 or data is None or axis is None:
        return
    if not -len(data) <= axis < len(data):
        message = f"has axis {axis}, and what it scales has {len(data)} dimensions"
        yield Violation(rule="axis", node=label(node), message=message)
    elif data[axis] not in (size, None):
        message = f"has {size} scales along axis {axis}, which has {data[axis]} elements"
        yield Violation(rule="scale-length", node=label(node), message=message)


def tensorrt_numbers(view: View, node: ir.Node, *, symmetric: bool = True) -> Iterator[Violation]:
    """What every TensorRT demands; `symmetric` off leaves types and zero points alone."""
    yield from _scale(view, node)
    if symmetric:
        yield from _zero_point(view, node)
    yield from _per_channel(view, node)


def _scale(view: View, node: ir.Node) -> Iterator[Violation]:
    if view.computed(input_of(node, 1)) or input_of(node, 1) is None:
        seen = "it is computed from the model's input" if input_of(node, 1) is not None else "there is none"
        yield Violation(rule="scale-constant", node=label(node), message=f"has no constant positive scale: {seen}")


def _zero_point(view: View, node: ir.Node) -> Iterator[Violation]:
    stored, zero = view.stored(node), input_of(node, 2)
    if stored == ir.DataType.INT32 and node.op_type == DEQUANTIZE:
        yield Violation(rule="int32-bias", node=label(node), message="dequantizes int32; leave the bias in float")
    elif zero is None and integer(node, "output_dtype") is None and node.op_type == QUANTIZE:
        message = "has no zero point, which is uint8 for ONNX and int8 for TensorRT; write an int8 zero"
        yield Violation(rule="zero-point", node=label(node), message=message)
    elif stored in (ir.DataType.UINT8, ir.DataType.INT16, ir.DataType.UINT16):
        message = f"is not symmetric int8 but {_name(stored)}; quantize symmetrically to int8"
        yield Violation(rule="quantized-type", node=label(node), message=message)
    elif zero is not None and view.computed(zero):
        yield Violation(
            rule="zero-point", node=label(node), message="has a zero point that is computed from the model's input"
        )
    else:
        values = view.array(zero)
        if values is not None and bool(np.any(wide := values.astype(np.float64))):
            message = f"is not symmetric: its zero point is {wide[wide != 0].flat[0]:g}"
            yield Violation(rule="zero-point", node=label(node), message=message)


def quantized_constants(view: View, node: ir.Node) -> Iterator[Violation]:
    """Where an operator of ONNX reads an int8 constant that no DequantizeLinear stands behind."""
    if node.domain not in STANDARD or node.op_type in ("Constant", *INTEGER):
        return
    for index, value in enumerate(node.inputs):
        if is_pair(node) and index == 2:
            continue  # the zero point
        tensor = view.own_tensor(value)
        if tensor is None or value is None or tensor.dtype != ir.DataType.INT8:
            continue
        if node.op_type != DEQUANTIZE:
            message = f"({node.op_type}) reads the int8 constant {value.name}, which has to feed a DequantizeLinear directly"
            yield Violation(rule="quantized-constant", node=label(node), message=message)
        elif len(tensor.shape) == 0:
            message = f"dequantizes the scalar {value.name}; give it the shape [1], or leave it in float"
            yield Violation(rule="quantized-constant", node=label(node), message=message)


def _per_channel(view: View, node: ir.Node) -> Iterator[Violation]:
    scale = view.shape(input_of(node, 1))
    size = _size(scale)
    if scale is None or size == 1 or (size is None and len(scale) == 0):
        return
    if len(scale) > 1 or (integer(node, "block_size") or 0) > 0:
        stored = view.stored(node)
        if stored is not None and stored not in BLOCKED_TYPES:
            message = f"scales {_name(stored)} values in blocks; use one scale for each output channel"
            yield Violation(rule="blocked", node=label(node), message=message)
        return
    if view.computed(input_of(node, 0)):
        message = f"has {size or 'several'} scales for an activation; use one for the whole tensor"
        yield Violation(rule="activation-per-channel", node=label(node), message=message)
    elif integer(node, "axis") is None:
        message = f"has {size or 'several'} scales and no axis; write it"
        yield Violation(rule="axis-unwritten", node=label(node), message=message)


def types_on(view: View, node: ir.Node, target: Target) -> Iterator[Violation]:
    """What depends on the target: the types that its device computes, and those that its stack takes for scales."""
    stored = view.stored(node)
    if stored == ir.DataType.INT8 and "int8" not in target.precisions:
        reason = target.unavailable.get("int8", f"{target.name} does not compute it")
        yield Violation(rule="int8-device", node=label(node), message=f"is int8, and {reason}")
    elif (lacks := _lacking(stored, target)) is not None:
        yield Violation(rule="quantized-type", node=label(node), message=lacks)
    yield from _for_version(view, node, target)


def _lacking(stored: ir.DataType | None, target: Target) -> str | None:
    """Why `target` does not compute `stored`, or None. What `_zero_point` names already is left to it."""
    if stored is None or stored in (ir.DataType.INT8, ir.DataType.INT32):
        return None
    if stored in (ir.DataType.UINT8, ir.DataType.INT16, ir.DataType.UINT16):
        return None
    version = target.full_tensorrt
    capability = version_key(target.compute_capability or "0")
    newest = {
        # Oldest TensorRT and compute capability; TensorRT-RTX 1.7.1 compiles just these.
        ir.DataType.FLOAT8E4M3FN: ((10, 0), (8, 9)),
        ir.DataType.INT4: ((10, 0), (0,)),
        ir.DataType.FLOAT4E2M1: ((10, 8), (10, 0)),
    }
    if stored not in newest:
        return f"is {_name(stored)}, which TensorRT does not quantize to; use int8"
    oldest, first = newest[stored]
    if version is not None and version < oldest:
        return f"is {_name(stored)}, which TensorRT {target.tensorrt} does not know; use int8"
    if capability < first:
        return f"is {_name(stored)}, which compute capability {target.compute_capability} does not compute; use int8"
    return None


def _for_version(view: View, node: ir.Node, target: Target) -> Iterator[Violation]:
    version = target.full_tensorrt
    if version is None:
        return
    scale = view.dtype(input_of(node, 1))
    if version < STRONG_TYPING and node.op_type == DEQUANTIZE and input_of(node, 2) is None:
        message = f"has no zero point, which TensorRT {target.tensorrt} demands; write an int8 zero"
        yield Violation(rule="zero-point", node=label(node), message=message)
    data = view.dtype(input_of(node, 0)) if node.op_type == QUANTIZE else data_type(integer(node, "output_dtype"))
    if STRONG_TYPING <= version < MIXED_SCALES and None not in (data, scale) and data != scale:
        message = f"has a {_name(scale)} scale beside a {_name(data)} tensor; TensorRT {target.tensorrt} wants one type"
        yield Violation(rule="scale-type", node=label(node), message=message)


def _size(shape: tuple[int | None, ...] | None) -> int | None:
    """The number of elements, if every size is known."""
    if shape is None:
        return None
    size = 1
    for length in shape:
        if length is None:
            return None
        size *= length
    return size


def _name(dtype: ir.DataType | None) -> str:
    return dtype.name.lower() if dtype is not None else "?"
