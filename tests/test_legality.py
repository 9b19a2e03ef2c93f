"""Every rule has a graph that breaks it and nothing else; graphs of ours break none; no graph is too odd to be judged."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from exports import exported
from graphs import LOGITS, read
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from vitexport import legality
from vitexport.artifacts import INPUT_NAME, EngineRecipe
from vitexport.errors import InputError, ToolchainError
from vitexport.legality import RULES, Violation, qdq_violations, refuse, violations
from vitexport.rewrites import apply
from vitexport.rewrites.cpu_integer import CpuInteger
from vitexport.rewrites.float16 import Float16
from vitexport.rewrites.insert_qdq import InsertQdq, QuantizedLinear
from vitexport.runtime.backends.tensorrt_build import build_engine, library_version
from vitexport.targets import CpuArithmetic, Target, resolve

WIDTH, TOKENS = 64, 8
RANDOM = np.random.default_rng(3)
# Square, so that a wrong axis has the right length.
WEIGHT = RANDOM.integers(-127, 128, (WIDTH, WIDTH)).astype(np.int8)
ZERO = np.int8(0)
HALF, SINGLE = np.float16, np.float32
ONNX_TYPES = {HALF: TensorProto.FLOAT16, SINGLE: TensorProto.FLOAT}

Constants: TypeAlias = "Mapping[str, NDArray[Any] | onnx.TensorProto]"
Maker: TypeAlias = "Callable[[], onnx.ModelProto]"
node = helper.make_node


@functools.cache
def target(name: str) -> Target:
    device, _, jetpack = name.partition("@")
    return resolve(device, jetpack=jetpack or None)


ORIN = "jetson-orin-nano-8gb@6.2"
XAVIER = "jetson-xavier-nx@5.1"


def model(
    nodes: Sequence[onnx.NodeProto],
    constants: Constants,
    *,
    opset: int = 20,
    shape: Sequence[int] = (1, TOKENS, WIDTH),
    output: int = TensorProto.FLOAT,
    known: Sequence[onnx.ValueInfoProto] = (),
) -> onnx.ModelProto:
    """From ``image`` to ``logits``, with no shapes or types inside but `known`: other tools often write none."""
    tensors = [
        numpy_helper.from_array(np.asarray(value), name) if not isinstance(value, onnx.TensorProto) else value
        for name, value in constants.items()
    ]
    graph = helper.make_graph(
        list(nodes),
        "test",
        [helper.make_tensor_value_info(INPUT_NAME, TensorProto.FLOAT, list(shape))],
        [helper.make_tensor_value_info(LOGITS, output, None)],
        tensors,
        value_info=list(known),
    )
    domains = sorted({entry.domain for entry in nodes} - {""})
    imports = [helper.make_opsetid("", opset), *(helper.make_opsetid(domain, 1) for domain in domains)]
    return helper.make_model(graph, opset_imports=imports, ir_version=10)


def linear(
    *,
    kind: type[np.floating[Any]] = HALF,
    scale: Any = None,
    zero: Any = ZERO,
    weight: NDArray[Any] = WEIGHT,
    weight_scale: Any = None,
    weight_zero: Any = None,
    axis: int | None = 1,
    between: Sequence[tuple[str, Sequence[str], dict[str, Any]]] = (),
    product: str = "MatMul",
    attributes: Mapping[str, Any] | None = None,
    quantize_attributes: Mapping[str, Any] | None = None,
    weight_attributes: Mapping[str, Any] | None = None,
    after: Sequence[onnx.NodeProto] = (),
    constants: Constants | None = None,
    opset: int = 20,
    shape: Sequence[int] = (1, TOKENS, WIDTH),
) -> onnx.ModelProto:
    """One W8A8 product as TensorRT wants it, in float16, with one thing changed."""
    outputs = weight.shape[0] if product == "Conv" else weight.shape[-1]
    weight_scale = np.full(outputs, 0.01, kind) if weight_scale is None else np.asarray(weight_scale)
    weight_zero = np.zeros(weight_scale.shape, weight.dtype) if weight_zero is None else weight_zero
    values: dict[str, NDArray[Any] | onnx.TensorProto] = {
        "a.scale": np.asarray(kind(0.02) if scale is None else scale),
        "w": weight,
        "w.scale": weight_scale,
        **(constants or {}),
    }
    pair, weight_inputs = ["a.scale"], ["w", "w.scale"]
    if zero is not False:
        values["a.zero"] = np.asarray(zero)
        pair.append("a.zero")
    if weight_zero is not False:
        values["w.zero"] = weight_zero
        weight_inputs.append("w.zero")
    axes: dict[str, Any] = {"axis": axis} if axis is not None and weight_scale.ndim else {}
    nodes = [
        node("Cast", [INPUT_NAME], ["x"], to=ONNX_TYPES[kind], name="x"),
        node("QuantizeLinear", ["x", *pair], ["q"], name="a/Q", **(quantize_attributes or {})),
        node("DequantizeLinear", ["q", *pair], ["a"], name="a/DQ", **(quantize_attributes or {})),
        node("DequantizeLinear", weight_inputs, ["w0"], name="w/DQ", **axes, **(weight_attributes or {})),
    ]
    last = "w0"
    for number, (op_type, inputs, extra) in enumerate(between, 1):
        nodes.append(node(op_type, [last, *inputs], [f"w{number}"], name=f"between/{number}", **extra))
        last = f"w{number}"
    nodes += [node(product, ["a", last], ["y"], name="product", **(attributes or {})), *after]
    end = after[-1].output[0] if after else "y"
    nodes.append(node("Cast", [end], [LOGITS], to=TensorProto.FLOAT, name="end"))
    return model(nodes, values, opset=opset, shape=shape)


def without(proto: onnx.ModelProto, *names: str) -> onnx.ModelProto:
    """`proto` without these nodes; what read their output reads their input."""
    graph = proto.graph
    for entry in [entry for entry in graph.node if entry.name in names]:
        graph.node.remove(entry)
        for reader in graph.node:
            for index, name in enumerate(reader.input):
                if name == entry.output[0]:
                    reader.input[index] = entry.input[0]
    return proto


def one(op_type: str, *, domain: str = "", opset: int = 20, **attributes: Any) -> onnx.ModelProto:
    return model([node(op_type, [INPUT_NAME], [LOGITS], name="it", domain=domain, **attributes)], {}, opset=opset)


def pair(tensor: str, result: str, scale: str = "s", after: str | None = None) -> list[onnx.NodeProto]:
    """A Q/DQ pair of scalar int8 constants ``s`` and ``z``."""
    return [
        node("QuantizeLinear", [tensor, scale, "z"], [f"{result}.q"], name=f"{result}/Q"),
        node("DequantizeLinear", [f"{result}.q", after or scale, "z"], [result], name=f"{result}/DQ"),
    ]


SCALARS: Constants = {"s": np.array(0.1, SINGLE), "z": np.array(0, np.int8)}


def computed_scale() -> onnx.ModelProto:
    proto = linear()
    proto.graph.node.insert(1, node("ReduceMax", ["x"], ["a.max"], name="max", keepdims=0))
    for entry in proto.graph.node:
        if entry.name in ("a/Q", "a/DQ"):
            entry.input[1] = "a.max"
    return proto


def bias_of_int32() -> onnx.ModelProto:
    extra: dict[str, NDArray[Any] | onnx.TensorProto] = {
        "b": np.zeros(WIDTH, np.int32),
        "b.scale": np.full(WIDTH, 0.001, HALF),
        "b.zero": np.zeros(WIDTH, np.int32),
    }
    after = [
        node("DequantizeLinear", ["b", "b.scale", "b.zero"], ["b.float"], name="b/DQ", axis=0),
        node("Add", ["y", "b.float"], ["sum"], name="bias"),
    ]
    return linear(after=after, constants=extra)


def unreadable_scale() -> onnx.ModelProto:
    proto = linear()
    (scale,) = (tensor for tensor in proto.graph.initializer if tensor.name == "w.scale")
    scale.ClearField("raw_data")
    scale.data_location = TensorProto.EXTERNAL
    scale.external_data.add(key="location", value="not-there.bin")
    return proto


def float_weight(*, quantized_activation: bool) -> onnx.ModelProto:
    """A weight that is rounded within the graph, or not at all."""
    if quantized_activation:
        nodes = [*pair(INPUT_NAME, "a"), node("MatMul", ["a", "w"], [LOGITS], name="product")]
    else:
        nodes = [*pair("w", "w.rounded"), node("MatMul", [INPUT_NAME, "w.rounded"], [LOGITS], name="product")]
    return model(nodes, {**SCALARS, "w": WEIGHT.astype(SINGLE)})


def attention(heads: int, tokens: int) -> onnx.ModelProto:
    nodes = [
        *pair(INPUT_NAME, "q"),
        node("Transpose", [INPUT_NAME], ["k0"], perm=[0, 2, 1], name="k0"),
        *pair("k0", "k"),
        node("MatMul", ["q", "k"], ["qk"], name="qk"),
        node("Softmax", ["qk"], ["p0"], axis=-1, name="softmax"),
        *pair("p0", "p"),
        *pair(INPUT_NAME, "v"),
        node("MatMul", ["p", "v"], [LOGITS], name="pv"),
    ]
    return onnx.shape_inference.infer_shapes(model(nodes, SCALARS, shape=(1, tokens, heads)))


def integer_matmul(largest: int) -> onnx.ModelProto:
    weight = np.full((WIDTH, WIDTH), largest, np.int8)
    nodes = [
        node("QuantizeLinear", [INPUT_NAME, "s", "z"], ["q"], name="q"),
        node("MatMulIntegerToFloat", ["q", "w", "s", "s", "z"], [LOGITS], name="product", domain="com.microsoft"),
    ]
    return model(nodes, {**SCALARS, "z": np.array(128, np.uint8), "w": weight})


def in_branch() -> onnx.ModelProto:
    """A nonzero zero point within the branch of an If."""
    asymmetric = {**SCALARS, "z": np.array(3, np.int8), "yes": np.array(True)}  # noqa: FBT003
    branches = {
        name: helper.make_graph(body, name, [], [helper.make_tensor_value_info("t", TensorProto.FLOAT, None)])
        for name, body in {
            "then_branch": pair(INPUT_NAME, "t"),
            "else_branch": [node("Identity", [INPUT_NAME], ["t"], name="other")],
        }.items()
    }
    return model([node("If", ["yes"], [LOGITS], name="if", **branches)], asymmetric)


def in_function(*, legal: bool) -> onnx.ModelProto:
    """A function whose scale is an argument, and whose zero point is its own."""
    zero = helper.make_tensor("zero", TensorProto.INT8, [], [0 if legal else 3])
    body = [node("Constant", [], ["z"], value=zero, name="z"), *pair("a", "b")]
    function = helper.make_function("mine", "Round", ["a", "s"], ["b"], body, [helper.make_opsetid("", 20)])
    call = node("Round", [INPUT_NAME, "scale"], [LOGITS], domain="mine", name="call")
    proto = model([call], {"scale": np.array(0.1, SINGLE)})
    proto.functions.append(function)
    return proto


def typed_by_attribute() -> onnx.ModelProto:
    proto = linear(zero=False, opset=21)
    (quantize_node,) = (entry for entry in proto.graph.node if entry.name == "a/Q")
    quantize_node.attribute.append(helper.make_attribute("output_dtype", TensorProto.INT8))
    return proto


def constants_as_nodes(*, identity: bool) -> onnx.ModelProto:
    """Scales as other exporters write them."""
    proto = linear(kind=SINGLE)
    (scale,) = (tensor for tensor in proto.graph.initializer if tensor.name == "a.scale")
    proto.graph.initializer.remove(scale)
    name = "a.scale.0" if identity else "a.scale"
    if identity:
        proto.graph.node.insert(0, node("Identity", [name], ["a.scale"], name="identity"))
    proto.graph.node.insert(0, node("Constant", [], [name], value_float=0.02, name="constant"))
    return proto


F8 = ml_dtypes.float8_e4m3fn
CONV = RANDOM.integers(-127, 128, (32, 32, 3, 3)).astype(np.int8)
SPACE = (1, 32, 8, 8)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """A graph that breaks `rule` on `target`.

    Attributes:
        compiles: Whether TensorRT-RTX 1.7.1 compiles it for an L4 (7.5 for a T4) nevertheless; None where that says nothing.
    """

    rule: str
    make: Maker
    target: str = "l4"
    compiles: bool | None = None
    count: int | None = None


CASES = {
    "opset": Case(rule="opset", make=lambda: linear(opset=26), compiles=True),
    "opset-8.5": Case(rule="opset", make=lambda: linear(kind=SINGLE, opset=18), target=XAVIER),
    "opset-server": Case(rule="opset", make=lambda: linear(opset=21), target="h100-sxm"),
    "operator": Case(rule="operator", make=lambda: one("Det"), compiles=False),
    "operator-microsoft": Case(rule="operator", make=lambda: one("BiasGelu", domain="com.microsoft"), compiles=False),
    "operator-on-a-cpu": Case(
        rule="operator", make=lambda: one("TRT_FP8QuantizeLinear", domain="trt"), target="cpu-x86-vnni"
    ),
    "integer-operator": Case(
        rule="integer-operator",
        make=lambda: model(
            [
                node("Cast", [INPUT_NAME], ["q"], to=TensorProto.UINT8, name="q"),
                node("MatMulInteger", ["q", "w"], ["y"], name="product"),
                node("Cast", ["y"], [LOGITS], to=TensorProto.FLOAT, name="end"),
            ],
            {"w": WEIGHT},
        ),
        compiles=False,
    ),
    "layernorm": Case(
        rule="layernorm",
        make=lambda: model(
            [node("LayerNormalization", [INPUT_NAME, "g"], [LOGITS], name="norm")],
            {"g": np.ones(WIDTH, SINGLE)},
            opset=17,
        ),
        target=XAVIER,
    ),
    "int8-device": Case(rule="int8-device", make=lambda: linear(kind=SINGLE, opset=13), target="jetson-nano"),
    "type-uint8": Case(rule="quantized-type", make=lambda: linear(zero=np.uint8(0)), compiles=True),
    "type-uint8-asymmetric": Case(rule="quantized-type", make=lambda: linear(zero=np.uint8(128)), compiles=False),
    "type-int16": Case(rule="quantized-type", make=lambda: linear(zero=np.int16(0), opset=21), compiles=False),
    "type-output-dtype": Case(
        rule="quantized-type",
        make=lambda: model(
            [
                node("QuantizeLinear", [INPUT_NAME, "s"], ["q"], name="q", output_dtype=TensorProto.UINT8),
                node("DequantizeLinear", ["q", "s"], [LOGITS], name="dq"),
            ],
            {"s": np.array(0.1, SINGLE)},
            opset=21,
        ),
        compiles=False,
    ),
    "type-float8-on-ampere": Case(
        rule="quantized-type",
        make=lambda: linear(zero=np.zeros((), F8), weight=WEIGHT.astype(SINGLE).astype(F8)),
        target="a10",
    ),
    "type-float8-e5m2": Case(
        rule="quantized-type",
        make=lambda: linear(zero=np.zeros((), ml_dtypes.float8_e5m2), weight=WEIGHT.astype(ml_dtypes.float8_e5m2)),
        compiles=False,
    ),
    "type-float4-on-ada": Case(
        rule="quantized-type",
        make=lambda: without(linear(weight=np.zeros((WIDTH, WIDTH), ml_dtypes.float4_e2m1fn), opset=23), "a/Q", "a/DQ"),
        compiles=False,
    ),
    "zero-point": Case(rule="zero-point", make=lambda: linear(zero=np.int8(3)), compiles=False),
    "zero-point-of-weight": Case(
        rule="zero-point", make=lambda: linear(weight_zero=np.full(WIDTH, -1, np.int8)), compiles=False, count=1
    ),
    "zero-point-absent": Case(rule="zero-point", make=lambda: linear(zero=False), compiles=True, count=1),
    "zero-point-absent-8.5": Case(
        rule="zero-point", make=lambda: linear(kind=SINGLE, weight_zero=False, opset=17), target=XAVIER, count=1
    ),
    "zero-point-in-a-branch": Case(rule="zero-point", make=in_branch),
    "zero-point-in-a-function": Case(rule="zero-point", make=lambda: in_function(legal=False)),
    "scale-constant": Case(rule="scale-constant", make=computed_scale, compiles=True),
    **{
        f"scale-{number}": Case(rule="scale-positive", make=functools.partial(linear, scale=HALF(number)), compiles=compiles)
        for number, compiles in ((0.0, False), (-0.5, False), (np.nan, False), (np.inf, True))
    },
    "scale-of-one-channel": Case(
        rule="scale-positive",
        make=lambda: linear(weight_scale=np.where(np.arange(WIDTH) == 3, 0, HALF(0.01)).astype(HALF)),
        compiles=False,
        count=1,
    ),
    "scale-on-a-cpu": Case(rule="scale-positive", make=lambda: linear(kind=SINGLE, scale=SINGLE(0)), target="cpu-x86-vnni"),
    "scale-length": Case(rule="scale-length", make=lambda: linear(weight_scale=np.full(48, 0.01, HALF)), compiles=False),
    "zero-point-length": Case(
        rule="scale-length", make=lambda: linear(weight_zero=np.zeros((), np.int8)), compiles=False, count=1
    ),
    "scale-type-10.3": Case(
        rule="scale-type",
        make=lambda: model([node("Cast", [INPUT_NAME], ["x"], to=TensorProto.FLOAT16), *pair("x", LOGITS)], SCALARS),
        target=ORIN,
        count=1,
    ),
    "scale-type-of-operands": Case(
        rule="scale-type",
        make=lambda: linear(
            weight_scale=np.full(WIDTH, 0.01, SINGLE), weight_attributes={"output_dtype": TensorProto.FLOAT16}
        ),
        compiles=False,
    ),
    "float16-opset": Case(rule="float16-opset", make=lambda: linear(opset=17), compiles=True, count=3),
    "activation-per-channel": Case(
        rule="activation-per-channel",
        make=lambda: linear(
            scale=np.full(WIDTH, 0.02, HALF), zero=np.zeros(WIDTH, np.int8), quantize_attributes={"axis": 2}
        ),
        compiles=True,
    ),
    "axis-unwritten": Case(rule="axis-unwritten", make=lambda: linear(axis=None), compiles=True, count=1),
    "axis-of-matmul": Case(rule="axis", make=lambda: linear(axis=0), compiles=True, count=1),
    "axis-of-matmul-from-the-end": Case(rule="axis", make=lambda: linear(axis=-2), count=1),
    "axis-of-gemm": Case(rule="axis", make=lambda: linear(axis=0, product="Gemm", shape=(TOKENS, WIDTH)), compiles=True),
    "axis-of-gemm-transB": Case(
        rule="axis", make=lambda: linear(product="Gemm", attributes={"transB": 1}, shape=(TOKENS, WIDTH)), compiles=True
    ),
    "axis-of-conv": Case(rule="axis", make=lambda: linear(product="Conv", weight=CONV, shape=SPACE), compiles=True),
    "axis-that-is-not-there": Case(rule="axis", make=lambda: linear(axis=5), compiles=False),
    "blocked": Case(
        rule="blocked",
        make=lambda: linear(
            weight_scale=np.full((4, WIDTH), 0.01, HALF), axis=0, weight_attributes={"block_size": 16}, opset=21
        ),
        compiles=False,
        count=1,
    ),
    "quantized-constant": Case(
        rule="quantized-constant",
        make=lambda: model(
            [
                node("DequantizeLinear", ["c", "s", "z"], ["f"], name="c/DQ"),
                node("Mul", [INPUT_NAME, "f"], [LOGITS], name="mul"),
            ],
            {**SCALARS, "c": np.array(5, np.int8)},
        ),
        compiles=False,
    ),
    "quantized-constant-transposed": Case(
        rule="quantized-constant",
        make=lambda: model(
            [
                node("Transpose", ["w"], ["t"], perm=[1, 0], name="transpose"),
                node("DequantizeLinear", ["t", "s", "z"], ["f"], name="w/DQ"),
                *pair(INPUT_NAME, "a"),
                node("MatMul", ["a", "f"], [LOGITS], name="product"),
            ],
            {**SCALARS, "w": WEIGHT},
        ),
        compiles=False,
    ),
    "int32-bias": Case(rule="int32-bias", make=bias_of_int32, compiles=False, count=1),
    "operand-types": Case(rule="operand-types", make=lambda: linear(zero=np.zeros((), F8)), compiles=False),
    "float32-product": Case(
        rule="float32-product",
        make=lambda: model([node("MatMul", [INPUT_NAME, "w"], [LOGITS], name="product")], {"w": WEIGHT.astype(SINGLE)}),
        target="t4",
        compiles=False,
    ),
    "float32-product-quantized": Case(
        rule="float32-product", make=lambda: linear(kind=SINGLE), target="t4", compiles=False, count=1
    ),
    "float32-product-einsum": Case(
        rule="float32-product",
        make=lambda: model(
            [node("Einsum", [INPUT_NAME, INPUT_NAME], [LOGITS], name="product", equation="bij,bkj->bik")], {}
        ),
        target="t4",
        compiles=False,
    ),
    "unreadable": Case(rule="unreadable", make=unreadable_scale, compiles=False, count=1),
    "int16-saturation": Case(rule="int16-saturation", make=lambda: integer_matmul(65), target="cpu-x86-avx2"),
    "int16-saturation-negative": Case(rule="int16-saturation", make=lambda: integer_matmul(-128), target="cpu-x86-avx512"),
    "int16-saturation-of-pairs": Case(
        rule="int16-saturation", make=lambda: linear(kind=SINGLE, zero=np.uint8(128)), target="cpu-x86-avx2", count=1
    ),
    "operator-by-name": Case(rule="operator-by-name", make=lambda: one("Gelu", domain="com.microsoft"), compiles=True),
    "quantize-alone": Case(
        rule="quantize-alone",
        make=lambda: model([pair(INPUT_NAME, "q")[0], node("Cast", ["q.q"], [LOGITS], to=1, name="end")], SCALARS),
        compiles=True,
    ),
    "quantize-alone-at-the-end": Case(
        rule="quantize-alone",
        make=lambda: model(
            [node("QuantizeLinear", [INPUT_NAME, "s", "z"], [LOGITS], name="q")], SCALARS, output=TensorProto.INT8
        ),
        compiles=True,
    ),
    "pair-scale": Case(
        rule="pair-scale",
        make=lambda: model(pair(INPUT_NAME, LOGITS, after="t"), {**SCALARS, "t": np.array(0.2, SINGLE)}),
        compiles=True,
    ),
    "half-quantized": Case(
        rule="half-quantized", make=lambda: float_weight(quantized_activation=True), compiles=True, count=1
    ),
    "weight-folded": Case(
        rule="weight-folded", make=lambda: float_weight(quantized_activation=False), compiles=True, count=1
    ),
    "weight-path-transpose": Case(
        rule="weight-path", make=lambda: linear(axis=0, between=[("Transpose", (), {"perm": [1, 0]})]), compiles=True
    ),
    "weight-path-reshape": Case(
        rule="weight-path",
        make=lambda: linear(between=[("Reshape", ["shape"], {})], constants={"shape": np.array([WIDTH, WIDTH])}),
        compiles=True,
    ),
    "attention-head": Case(rule="attention-limits", make=lambda: attention(48, 64), count=2),
    "attention-tokens": Case(rule="attention-limits", make=lambda: attention(64, 577), count=2),
    "residual": Case(
        rule="residual",
        make=lambda: model([*pair(INPUT_NAME, "a"), node("Add", ["a", INPUT_NAME], [LOGITS], name="add")], SCALARS),
        compiles=True,
    ),
    "gelu-input": Case(
        rule="gelu-input",
        make=lambda: model([*pair(INPUT_NAME, "a"), node("Gelu", ["a"], [LOGITS], name="gelu")], SCALARS),
        compiles=True,
    ),
    "gelu-input-written-out": Case(
        rule="gelu-input",
        make=lambda: model(
            [
                *pair(INPUT_NAME, "a"),
                node("Div", ["a", "root"], ["d"], name="div"),
                node("Erf", ["d"], [LOGITS], name="erf"),
            ],
            {**SCALARS, "root": np.array(2**0.5, SINGLE)},
        ),
        compiles=True,
    ),
    "qdq-slow": Case(
        rule="qdq-slow",
        make=lambda: linear(
            kind=SINGLE,
            after=[node("Add", ["y", "bias"], ["sum"], name="bias")],
            constants={"bias": np.ones(WIDTH, SINGLE)},
        ),
        target="cpu-x86-vnni",
        count=1,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_an_illegal_graph_breaks_its_rule_and_no_other(name: str) -> None:
    case = CASES[name]
    found = violations(ir.from_proto(case.make()), target(case.target))
    assert {violation.rule for violation in found} == {case.rule}, [str(violation) for violation in found]
    if case.count is not None:
        assert len(found) == case.count
    level = "error" if case.rule in legality.ERRORS else "warning"
    assert {violation.level for violation in found} == {level}


def test_every_rule_has_a_graph_that_breaks_it() -> None:
    assert {case.rule for case in CASES.values()} == set(RULES)


def compile_here(proto: onnx.ModelProto, folder: Path, capability: str) -> None:
    path = folder / "model.onnx"
    path.write_bytes(proto.SerializeToString())
    recipe = EngineRecipe(
        typing="strong", flags=(), fp32_layers=(), profile=None, compute_capabilities=(capability,), trtexec=""
    )
    build_engine(path, recipe, "tensorrt-rtx")


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.compiles is not None])
def test_what_the_rules_say_of_tensorrt_rtx_is_so(name: str, tmp_path: Path) -> None:
    """The rules claim what TensorRT-RTX 1.7.1 refuses and what it takes without a word: it is asked."""
    if not library_version("tensorrt-rtx").startswith("1.7.1"):
        pytest.skip("the rules speak of TensorRT-RTX 1.7.1")
    case = CASES[name]
    capability = "7.5" if case.target == "t4" else "8.9"
    if case.compiles:
        compile_here(case.make(), tmp_path, capability)
    else:
        with pytest.raises(ToolchainError):
            compile_here(case.make(), tmp_path, capability)


LEGAL: dict[str, tuple[Maker, str]] = {
    "w8a8": (linear, "l4"),
    "w8a8-10.3": (linear, ORIN),
    "w8a8-float32": (lambda: linear(kind=SINGLE), "l4"),
    "w8a8-8.5": (lambda: linear(kind=SINGLE, opset=17), XAVIER),
    "w8a8-turing": (linear, "t4"),
    "axis-from-the-end": (lambda: linear(axis=-1), "l4"),
    "per-tensor": (lambda: linear(weight_scale=HALF(0.01)), "l4"),
    "one-scale-in-a-vector": (lambda: linear(scale=np.full(1, 0.02, HALF), zero=np.zeros(1, np.int8)), "l4"),
    "gemm": (lambda: linear(product="Gemm", shape=(TOKENS, WIDTH)), "l4"),
    "gemm-transB": (lambda: linear(product="Gemm", axis=0, attributes={"transB": 1}, shape=(TOKENS, WIDTH)), "l4"),
    "conv": (lambda: linear(product="Conv", weight=CONV, axis=0, shape=SPACE), "l4"),
    "float8": (lambda: linear(zero=np.zeros((), F8), weight=WEIGHT.astype(SINGLE).astype(F8)), "l4"),
    "attention": (lambda: attention(32, 128), "l4"),
    "function": (lambda: in_function(legal=True), "l4"),
    "type-by-attribute": (typed_by_attribute, "l4"),
    "constant-node": (lambda: constants_as_nodes(identity=False), "l4"),
    "constant-behind-identity": (lambda: constants_as_nodes(identity=True), "l4"),
    "seven-bit-weights": (lambda: integer_matmul(-64), "cpu-x86-avx2"),
    "eight-bit-weights-with-vnni": (lambda: integer_matmul(-128), "cpu-x86-vnni"),
    "uint8-on-a-cpu": (lambda: linear(kind=SINGLE, zero=np.uint8(128)), "cpu-x86-vnni"),
}


@pytest.mark.parametrize("name", LEGAL)
def test_a_legal_graph_breaks_nothing(name: str, tmp_path: Path) -> None:
    make, device = LEGAL[name]
    assert [str(violation) for violation in violations(ir.from_proto(make()), target(device))] == []
    if device in ("l4", "t4"):
        compile_here(make(), tmp_path, "8.9" if device == "l4" else "7.5")


def layers(graph: ir.Graph, cpu: CpuArithmetic | None = None) -> list[QuantizedLinear]:
    """Every linear layer of `graph` with plain numbers: what is written counts here, not how well it was chosen."""
    result = []
    largest = 127 if cpu is None or cpu.weight_bits == 8 else 64
    for entry in graph:
        weight = entry.inputs[1].const_value if entry.op_type == "MatMul" and entry.inputs[1] is not None else None
        if weight is None or entry.inputs[0] is None:
            continue
        scale = (np.abs(weight.numpy()).max(axis=0) / largest).astype(HALF).astype(SINGLE)
        result.append(
            QuantizedLinear(
                node=str(entry.name),
                activation=str(entry.inputs[0].name),
                activation_scale=SINGLE(HALF(0.02)),
                activation_zero_point=np.uint8(131) if cpu is not None and cpu.activation == "uint8" else np.int8(0),
                weight=np.clip(np.rint(weight.numpy() / scale), -largest, largest).astype(np.int8),
                weight_scale=scale,
            )
        )
    return result


@functools.cache
def ours(opset: int = 20, layernorm_op: bool = True) -> tuple[bytes, bytes]:  # noqa: FBT001, FBT002 - for the cache
    """The tiny model: its float graph, and the INT8 one for TensorRT."""
    data = exported("1:4:8", opset, layernorm_op=layernorm_op)
    graph = read(data)
    apply(graph, InsertQdq(layers(graph.graph)))
    serialized: bytes = ir.to_proto(graph).SerializeToString()
    return data, serialized


@pytest.mark.parametrize("device", ["l4", "t4", "rtx-5090", "h100-sxm", ORIN, "jetson-t5000", XAVIER, "jetson-nano"])
def test_what_vitexport_writes_for_a_device_breaks_no_rule_of_it(device: str) -> None:
    goal = target(device)
    for precision, data in zip(("fp32", "int8"), ours(goal.opset, goal.layernorm_op), strict=True):
        forms = [read(data)] if precision in goal.precisions and "fp32" in goal.precisions else []
        if goal.typing == "strong":
            forms.append(read(data))
            apply(forms[-1], Float16())
        for graph in forms:
            assert [str(violation) for violation in violations(graph, goal)] == []
        assert forms or goal.id == "jetson-nano"


@pytest.mark.parametrize("device", ["cpu-x86-avx2", "cpu-x86-vnni", "cpu-arm64-dotprod", "cpu-x86-avxvnniint8"])
def test_what_vitexport_writes_for_a_cpu_breaks_no_rule_of_it(device: str) -> None:
    goal = target(device)
    graph = read(exported())
    apply(graph, CpuInteger(layers(graph.graph, goal.cpu)))
    assert violations(graph, goal) == ()


def test_the_pipeline_is_told_which_rule_its_graph_breaks() -> None:
    refuse(ir.from_proto(linear()), target(ORIN))
    with pytest.raises(ToolchainError, match=r"breaks the rule axis: w/DQ is per channel on axis 0.*The rule: Weights"):
        refuse(ir.from_proto(linear(axis=0)), target(ORIN))
    with pytest.raises(ToolchainError, match=r"the rule quantized-type: a/Q .* \(and 1 more violations\)"):
        refuse(ir.from_proto(linear(zero=np.uint8(0))), target(ORIN))
    # What only costs speed is no reason to refuse.
    refuse(ir.from_proto(CASES["residual"].make()), target("l4"))


def test_a_graph_that_judges_a_cpu_variant_may_be_asymmetric() -> None:
    graph = ir.from_proto(linear(zero=np.uint8(128)))
    assert qdq_violations(graph, symmetric=False) == ()
    assert {violation.rule for violation in qdq_violations(graph)} == {"quantized-type"}
    assert {violation.rule for violation in qdq_violations(ir.from_proto(linear(axis=0)), symmetric=False)} == {"axis"}


def test_errors_come_before_warnings() -> None:
    proto = CASES["residual"].make()
    proto.opset_import[0].version = 26
    assert [violation.rule for violation in violations(ir.from_proto(proto), target("l4"))] == ["opset", "residual"]


def test_the_census_counts_products_by_how_they_are_computed() -> None:
    assert legality.census(ir.from_proto(linear())) == {"MatMul quantized per channel": 1}
    assert legality.census(ir.from_proto(attention(32, 16))) == {"MatMul of two quantized activations": 2}
    assert legality.census(read(ours()[1])) == {
        "MatMul quantized per channel": 8,
        "MatMul in float": 4,
        "Conv in float": 1,
        "Gemm in float": 1,
    }


def test_a_violation_names_a_rule_that_exists() -> None:
    with pytest.raises(ValueError, match="no rule 'taste'"):
        Violation(rule="taste", node="a", message="b")


# What may go wrong with one number of one node of a graph of ours, and the rules that then must be named.
WRONG: dict[str, set[str]] = {
    "scale": {"scale-positive"},
    "zero point": {"zero-point"},
    "axis": {"axis"},
    "axis removed": {"axis-unwritten"},
    "type": {"quantized-type"},
    "length": {"scale-length"},
}


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data(), wrong=st.sampled_from(sorted(WRONG)))
def test_a_wrong_number_anywhere_in_a_graph_of_ours_is_caught(data: st.DataObject, wrong: str) -> None:
    proto = onnx.load_model_from_string(ours()[1])
    per_channel = wrong in ("axis", "axis removed", "length")
    places = [
        entry
        for entry in proto.graph.node
        if (entry.op_type == "DequantizeLinear" and entry.attribute)
        or (not per_channel and entry.op_type == "QuantizeLinear")
    ]
    spoil(proto, data.draw(st.sampled_from(places), label="node"), wrong, data)
    graph = ir.from_proto(proto)
    for found in (violations(graph, target("l4")), qdq_violations(graph)):
        assert {violation.rule for violation in found} == WRONG[wrong]


def spoil(proto: onnx.ModelProto, entry: onnx.NodeProto, wrong: str, data: st.DataObject) -> None:
    """Change what `entry` reads or says."""
    tensors = {tensor.name: tensor for tensor in proto.graph.initializer}
    scale, zero = (numpy_helper.to_array(tensors[name]).copy() for name in entry.input[1:3])
    index = data.draw(st.integers(0, max(scale.size - 1, 0)), label="element")
    if wrong == "scale":
        bad = st.one_of(st.floats(max_value=0.0, width=32), st.just(float("nan")), st.just(float("inf")))
        scale.reshape(-1)[index] = data.draw(bad, label="scale")
    elif wrong == "zero point":
        zero.reshape(-1)[index] = data.draw(st.integers(-128, 127).filter(bool), label="zero point")
    elif wrong == "axis":
        (axis,) = (attribute for attribute in entry.attribute if attribute.name == "axis")
        width = tensors[entry.input[0]].dims[0]
        axis.i = data.draw(st.sampled_from([0, -2]), label="axis")
        scale, zero = np.resize(scale, width), np.resize(zero, width)
    elif wrong == "axis removed":
        del entry.attribute[:]
    elif wrong == "type":
        zero = zero.astype(data.draw(st.sampled_from([np.uint8, np.int16]), label="type"))
        if entry.op_type == "DequantizeLinear":
            weight = tensors[entry.input[0]]
            weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight).astype(zero.dtype), weight.name))
    else:
        scale = np.resize(scale, data.draw(st.integers(2, 2000).filter(lambda size: size != scale.size), label="length"))
        zero = np.zeros(scale.shape, zero.dtype)
    for name, array in zip(entry.input[1:3], (scale, zero), strict=True):
        tensors[name].CopyFrom(numpy_helper.from_array(array, name))


FUZZED = [name for name, case in CASES.items() if case.target == "l4"]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_graph_is_too_odd_to_be_judged(data: st.DataObject, tmp_path: Path) -> None:
    """Graphs with inputs, names, types and attributes torn out: judged, or refused in one sentence."""
    proto = CASES[data.draw(st.sampled_from(FUZZED), label="graph")].make()
    for _ in range(data.draw(st.integers(1, 4), label="damages")):
        tear(proto, data)
    path = tmp_path / "odd.onnx"
    path.write_bytes(proto.SerializeToString())
    try:
        graph = legality.read_graph(path)
    except InputError:
        return
    for device in ("l4", ORIN, XAVIER, "t4", "cpu-x86-avx2"):
        assert all(violation.rule in RULES for violation in violations(graph, target(device)))
    assert all(count > 0 for count in legality.census(graph).values())


def tear(proto: onnx.ModelProto, data: st.DataObject) -> None:
    graph = proto.graph
    entry = data.draw(st.sampled_from(list(graph.node)), label="node")
    what = data.draw(st.sampled_from(["input", "empty", "cross", "node", "attribute", "kind", "tensor", "dims", "opset"]))
    if what in ("input", "empty", "cross") and entry.input:
        index = data.draw(st.integers(0, len(entry.input) - 1))
        if what == "input":
            del entry.input[index]
        else:
            names = [name for other in graph.node for name in (*other.input, *other.output)]
            entry.input[index] = "" if what == "empty" else data.draw(st.sampled_from(names))
    elif what == "node" and len(graph.node) > 1:
        graph.node.remove(entry)
    elif what == "attribute" and entry.attribute:
        attribute = data.draw(st.sampled_from(list(entry.attribute)))
        attribute.CopyFrom(
            helper.make_attribute(attribute.name, data.draw(st.sampled_from([2.5, "x", [1, 7], -9, 1 << 40])))
        )
    elif what == "kind":
        entry.op_type = data.draw(
            st.sampled_from(["DequantizeLinear", "QuantizeLinear", "Transpose", "MatMul", "Gelu", "Add"])
        )
    elif graph.initializer:
        tensor = data.draw(st.sampled_from(list(graph.initializer)))
        if what == "tensor":
            graph.initializer.remove(tensor)
        elif what == "dims":
            tensor.dims.append(data.draw(st.integers(0, 5)))
        else:
            del proto.opset_import[:]


def test_what_is_no_onnx_graph_is_refused_in_one_sentence(tmp_path: Path) -> None:
    whole = linear().SerializeToString()
    damaged = {
        "empty": b"",
        "text": b"this is not a model\n",
        "short": whole[: len(whole) // 2],
        "headless": whole[3:],
        "picture": b"\x89PNG\r\n\x1a\n" + bytes(200),
        "no graph": onnx.ModelProto(ir_version=10).SerializeToString(),
    }
    for name, data in damaged.items():
        path = tmp_path / f"{name}.onnx"
        path.write_bytes(data)
        with pytest.raises(InputError, match=f"{name}.onnx"):
            legality.read_graph(path)
    with pytest.raises(InputError, match="does not exist"):
        legality.read_graph(tmp_path / "nowhere.onnx")
    with pytest.raises(InputError, match="is not a file"):
        legality.read_graph(tmp_path)


def test_scales_in_a_file_beside_the_model_are_read(tmp_path: Path) -> None:
    proto = linear(weight_scale=np.where(np.arange(WIDTH) == 3, 0, HALF(0.01)).astype(HALF))
    onnx.save_model(
        proto, tmp_path / "m.onnx", save_as_external_data=True, location="m.data", size_threshold=0, convert_attribute=False
    )
    (found,) = violations(legality.read_graph(tmp_path / "m.onnx"), target("l4"))
    assert (found.rule, found.node) == ("scale-positive", "w/DQ")
    (tmp_path / "m.data").unlink()
    missing = violations(legality.read_graph(tmp_path / "m.onnx"), target("l4"))
    assert {violation.rule for violation in missing} == {"unreadable"}
    assert any("m.data" in violation.message for violation in missing)
