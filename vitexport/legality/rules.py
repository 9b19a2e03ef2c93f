"""The rules themselves: what each demands and why, by its id; `broken` makes a violation of one."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Literal

Level = Literal["error", "warning"]

# An error: the engine refuses the graph, reads it otherwise than ONNX does, or its documentation rules it out.
ERRORS: Mapping[str, str] = {
    "opset": (
        "The opset is one that the target's parser documents; newer ones are not refused but read by older rules "
        "(onnx-tensorrt; TensorRT-RTX 1.7.1 compiles opset 27 without a word)."
    ),
    "operator": "Every operator is one that the target's engine has (OnnxParser.supports_operator of TensorRT-RTX 1.7.1).",
    "integer-operator": (
        "INT8 is written as QuantizeLinear and DequantizeLinear; TensorRT has no QLinear…, …Integer or "
        "DynamicQuantizeLinear operators (refused by TensorRT-RTX 1.7.1)."
    ),
    "layernorm": "LayerNormalization is an operator from TensorRT 8.6 on only (release notes of 8.6).",
    "int8-device": "INT8 is for devices on which TensorRT computes it (support matrix; the catalogue names the reason).",
    "quantized-type": (
        "Quantized values are int8, or float8e4m3fn, int4 or float4e2m1 where the device has them; uint8 is computed as "
        "int8 and cut off at 127 (onnx-tensorrt; TensorRT-RTX 1.7.1 compiles it without a word)."
    ),
    "zero-point": (
        "Quantization is symmetric: the zero point is written, constant and 0 (onnx-tensorrt's shiftIsAllZeros; 8.x "
        "wants all three inputs, and a QuantizeLinear without one is uint8 for ONNX and int8 for TensorRT)."
    ),
    "scale-constant": (
        "Scales are constants of the graph (TensorRT documentation, explicit quantization; TensorRT-RTX 1.7.1 compiles "
        "others, to a larger engine)."
    ),
    "scale-positive": (
        "Scales are positive and finite (onnx-tensorrt refuses 0, negative ones and NaN; TensorRT-RTX 1.7.1 compiles "
        "infinity without a word)."
    ),
    "scale-length": "Per channel there are as many scales, and zero points, as channels (ONNX; onnx-tensorrt).",
    "scale-type": (
        "Before TensorRT 10.13 scales have the type of the tensors beside them, and on every version both operands of a "
        "product have scales of one type (release notes of 10.13; the compiler of TensorRT-RTX 1.7.1)."
    ),
    "float16-opset": (
        "QuantizeLinear and DequantizeLinear take float16 from opset 19 on (ONNX operator changelog; the parser of "
        "TensorRT 8.x reads every scale as float32)."
    ),
    "activation-per-channel": (
        "Activations are quantized per tensor, constant weights only per channel (TensorRT documentation, explicit "
        "quantization; TensorRT-RTX 1.7.1 compiles others, to a larger engine)."
    ),
    "axis-unwritten": (
        "Per channel, the axis is written: where it is absent it is 1 for ONNX and was 0 for TensorRT's parser "
        "(onnx-tensorrt up to TensorRT 10; TensorRT-RTX 1.7.1 takes 1)."
    ),
    "axis": (
        "Weights are scaled along their output channels: Conv 0, MatMul [K, N] 1, Gemm 1, with transB 0; along a summed "
        "axis no scale can be taken out of the integer product (TensorRT documentation, explicit quantization; "
        "TensorRT-RTX 1.7.1 compiles it without a word, to a larger engine)."
    ),
    "blocked": (
        "Blocks of scales are for 4-bit weights (TensorRT documentation; for int8 and float8 weights beside quantized "
        "activations TensorRT-RTX 1.7.1 fails in the compiler)."
    ),
    "quantized-constant": (
        "An int8 constant has at least one dimension and feeds a DequantizeLinear directly (refused by the compiler of "
        "TensorRT-RTX 1.7.1; a scalar counts as reshaped)."
    ),
    "int32-bias": "Biases are float: DequantizeLinear of int32 is refused (onnx-tensorrt; TensorRT-RTX 1.7.1).",
    "operand-types": (
        "Both operands of a product are quantized to one type (int8 beside float8 fails in the compiler of "
        "TensorRT-RTX 1.7.1)."
    ),
    "float32-product": (
        "On compute capability 7.5 TensorRT-RTX multiplies matrices in float16 and INT8, never in float32 (1.7.1: "
        '"FP32 GEMM is not supported"; convolutions are).'
    ),
    "unreadable": "Every scale, zero point and weight that a rule looks at can be read.",
    "int16-saturation": (
        "On an x86 CPU without VNNI quantized weights stay within ±64: VPMADDUBSW adds two products in a saturating int16 "
        "(onnxruntime.ai, quantization page: reduce_range)."
    ),
}
# A warning: it is accepted, and costs speed or accuracy, or was tried with one parser only.
WARNINGS: Mapping[str, str] = {
    "operator-by-name": (
        "Operators come from ONNX: the parser ignores the domain and takes what it or a plugin knows by that name "
        "(onnx-tensorrt, parseNode)."
    ),
    "quantize-alone": (
        "Each QuantizeLinear is followed by DequantizeLinear, or nothing can be fused with it (TensorRT documentation, "
        "explicit quantization)."
    ),
    "pair-scale": "A DequantizeLinear has the scale of the QuantizeLinear before it, or the pair changes the values.",
    "half-quantized": (
        "Both operands of a product are quantized, or it is computed in float with the rounding error on top "
        "(TensorRT-RTX 1.7.1 keeps the float weight in its engine)."
    ),
    "weight-folded": (
        "A weight that meets a float activation is stored as int8 before its DequantizeLinear; from float through "
        "QuantizeLinear it is folded back to float (TensorRT-RTX 1.7.1, by the engine's size)."
    ),
    "weight-path": (
        "A weight's DequantizeLinear feeds its product directly; with other operators between the fusion is the "
        "optimizer's choice (TensorRT documentation, explicit quantization)."
    ),
    "attention-limits": (
        "Attention is fused in INT8 for heads of 16, 32 or 64 channels and up to 512 tokens only (TensorRT "
        "documentation, multi-head attention fusion)."
    ),
    "residual": (
        "The Adds of the residual stream stay float: few channels there are far larger than the rest (onnxsim#1742: a "
        "ViT-B fell from 85 % to below 5 % top-1)."
    ),
    "gelu-input": (
        "Nothing stands between a linear layer and its GELU, which is then fused into the product (TensorRT documentation, "
        "types of fusions)."
    ),
    "qdq-slow": (
        "For a CPU, ONNX Runtime's own integer operators: it fuses MatMul and Add into Gemm first, its Q/DQ patterns then "
        "no longer match, and the weights are dequantized at every run (measured with 1.31.1: slower than float)."
    ),
}
RULES: Mapping[str, str] = {**ERRORS, **WARNINGS}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Violation:
    """One rule that a graph breaks, at one place.

    Attributes:
        rule: Its id in `RULES`.
        node: The node's name, or what it computes where it has none; ``the graph`` for what concerns the whole.
        message: What is wrong, as the rest of a sentence that begins with `node`.
    """

    rule: str
    node: str
    message: str

    def __post_init__(self) -> None:
        if self.rule not in RULES:
            raise ValueError(f"there is no rule {self.rule!r}")

    @property
    def level(self) -> Level:
        """``error`` or ``warning``, by the rule."""
        return "error" if self.rule in ERRORS else "warning"

    @property
    def demand(self) -> str:
        """What the rule demands, and where that comes from."""
        return RULES[self.rule]

    def __str__(self) -> str:
        return f"{self.node} {self.message} [{self.rule}]"
