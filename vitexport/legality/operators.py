"""Input: a graph's opset and operators; output: those that the target's engine does not have."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from vitexport.legality.rules import Violation
from vitexport.legality.view import STANDARD, View, label
from vitexport.targets import Target
from vitexport.targets.opsets import newest_opset

MICROSOFT = "com.microsoft"
# Quantized operators of ONNX and of ONNX Runtime that compute on integers by themselves.
INTEGER = frozenset(
    {
        *("ConvInteger", "DynamicQuantizeLinear", "MatMulInteger", "QLinearConv", "QLinearMatMul"),
        *("DynamicQuantizeLSTM", "DynamicQuantizeMatMul", "MatMulIntegerToFloat", "QAttention", "QGemm", "QLinearAdd"),
        *("QLinearAveragePool", "QLinearConcat", "QLinearGlobalAveragePool", "QLinearLeakyRelu", "QLinearMul"),
        *("QLinearReduceMean", "QLinearSigmoid", "QLinearSoftmax", "QLinearWhere", "QEmbedLayerNormalization"),
        *("QMoE", "QOrderedAttention", "QOrderedMatMul", "QOrderedGelu", "QOrderedLayerNormalization"),
    }
)
# Operators of ONNX (opset 27) for which OnnxParser.supports_operator of TensorRT-RTX 1.7.1 says no, without INTEGER.
# Parsers gain operators and do not lose them, so older stacks lack these too.
NOT_IN_TENSORRT = frozenset(
    {
        *("AffineGrid", "Bernoulli", "BitCast", "BitShift", "BitwiseAnd", "BitwiseNot", "BitwiseOr", "BitwiseXor"),
        *("CenterCropPad", "Col2Im", "Compress", "ConcatFromSequence", "CumProd", "DFT", "DeformConv", "Det"),
        *("ImageDecoder", "MaxRoiPool", "MaxUnpool", "MelWeightMatrix", "Multinomial", "NegativeLogLikelihoodLoss"),
        *("Optional", "OptionalGetElement", "OptionalHasElement", "RegexFullMatch", "SequenceAt", "SequenceConstruct"),
        *("SequenceEmpty", "SequenceErase", "SequenceInsert", "SequenceLength", "SequenceMap", "SoftmaxCrossEntropyLoss"),
        *("SplitToSequence", "StringConcat", "StringNormalizer", "StringSplit", "SwiGLU", "TfIdfVectorizer", "Unique"),
    }
)
# Names in com.microsoft that the parser of TensorRT-RTX 1.7.1 knows.
KNOWN_BY_NAME = frozenset(
    {
        *("Attention", "DequantizeLinear", "Gelu", "GroupQueryAttention", "MatMulNBits", "MultiHeadAttention"),
        *("QuantizeLinear", "RotaryEmbedding"),
    }
)
ONNX_RUNTIME_DOMAINS = STANDARD | {
    *("ai.onnx.ml", "ai.onnx.training", "ai.onnx.preview", "ai.onnx.preview.training"),
    *("com.microsoft", "com.microsoft.experimental", "com.microsoft.nchwc", "com.ms.internal.nhwc"),
}


def opset_of_target(view: View, target: Target) -> Iterator[Violation]:
    """Whether the target's parser documents the graph's opset."""
    newest = newest_opset(target)
    if view.opset is not None and view.opset > newest:
        # A Jetson's release of TensorRT is JetPack's; on another GPU it is a matter of installing one.
        later = ", a later version more" if target.full_tensorrt is not None and target.jetpack is None else ""
        message = f"has opset {view.opset}; {target.library} documents up to {newest}{later}"
        yield Violation(rule="opset", node="the graph", message=message)


def operator_in_tensorrt(view: View, node: ir.Node, target: Target) -> Iterator[Violation]:
    """Whether TensorRT has the operator of `node`."""
    if node.op_identifier() in view.model.functions:
        return
    what = label(node)
    if node.domain in STANDARD:
        if node.op_type in INTEGER:
            yield Violation(rule="integer-operator", node=what, message=f"is a {node.op_type}")
        elif node.op_type in NOT_IN_TENSORRT:
            yield Violation(rule="operator", node=what, message=f"is a {node.op_type}, which TensorRT does not have")
        elif node.op_type == "LayerNormalization" and not target.layernorm_op:
            message = f"is a LayerNormalization, which TensorRT {target.tensorrt} does not have; write it out in float32"
            yield Violation(rule="layernorm", node=what, message=message)
    elif node.domain == MICROSOFT and node.op_type in INTEGER:
        yield Violation(rule="integer-operator", node=what, message=f"is a {MICROSOFT}.{node.op_type}")
    elif node.domain == MICROSOFT and node.op_type not in KNOWN_BY_NAME:
        yield Violation(rule="operator", node=what, message=f"is a {MICROSOFT}.{node.op_type}, which only ONNX Runtime has")
    else:
        message = f"is a {node.domain}.{node.op_type}; something of that name must be known to TensorRT"
        yield Violation(rule="operator-by-name", node=what, message=message)


def operator_in_onnx_runtime(view: View, node: ir.Node) -> Iterator[Violation]:
    """Whether ONNX Runtime has the domain of `node`'s operator."""
    if node.domain not in ONNX_RUNTIME_DOMAINS and node.op_identifier() not in view.model.functions:
        message = f"is a {node.domain}.{node.op_type}, a domain that ONNX Runtime does not have"
        yield Violation(rule="operator", node=label(node), message=message)
