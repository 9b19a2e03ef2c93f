"""The least release of ONNX Runtime that runs a graph which vitexport wrote."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import onnx_ir as ir

from vitexport.errors import ToolchainError
from vitexport.legality.operators import MICROSOFT
from vitexport.targets.target import version_key

# The least ONNX Runtime by opset. ONNX Runtime's table (onnxruntime.ai/docs/reference/compatibility.html) says from which
# release an opset is accepted; these releases also compute what PyTorch computes. Tried in November 2026 with the x86-64
# packages of 1.10 to 1.14 for Node and 1.15 to 1.18 for Python, with a ViT of each opset and with EVA-02, BEiT and Swin
# of 13, 17 and 20. Four are later than the table: 13 (there 1.7), since no older package could be tried; 14 and 15 (1.8
# and 1.9), since 1.10 refuses their Reshape; and 19 (1.15), since 1.15 has no Shape of opset 19.
BY_OPSET: Mapping[int, str] = {
    13: "1.10",
    14: "1.11",
    15: "1.11",
    16: "1.11",
    17: "1.12",
    18: "1.14",
    19: "1.16",
    20: "1.17",
}
# Operators of com.microsoft, tried likewise. 1.14 does not know MultiHeadAttention's scale, and 1.15 computes it wrong
# (by 20 percent of the largest logit of a ViT). 1.16 has no RotaryEmbedding.
BY_OPERATOR: Mapping[str, str] = {"MatMulIntegerToFloat": "1.10", "MultiHeadAttention": "1.16", "RotaryEmbedding": "1.17"}
# MultiHeadAttention with its bias gives NaN for Swin before (1.16 to 1.19), not for BEiT.
ATTENTION_BIAS, BIASED_ATTENTION = 5, "1.20"
# LayerNormalization of float16 is computed as the function of its opset, whose ReduceMean 1.16 refuses from opset 18 on; the
# oldest release that was tried with one of opset 17 is 1.15. Q/DQ with float16 scales came with opset 19.
FLOAT16_LAYERNORM: Mapping[bool, str] = {False: "1.15", True: "1.17"}


def least_onnx_runtime(model: ir.Model) -> str:
    """For example ``1.17``.

    Raises:
        ToolchainError: The graph has an operator of ONNX Runtime's own that is not in the table.
    """
    return max(_onnx_runtimes(model), key=version_key)


def _onnx_runtimes(model: ir.Model) -> Iterator[str]:
    opset = _opset(model)
    yield BY_OPSET[opset]
    for node in model.graph.all_nodes():
        if node.domain == MICROSOFT:
            if node.op_type not in BY_OPERATOR:
                raise ToolchainError(f"No release of ONNX Runtime is known to have {MICROSOFT}.{node.op_type}.")
            yield BY_OPERATOR[node.op_type]
            if len(node.inputs) > ATTENTION_BIAS and node.op_type == "MultiHeadAttention":
                yield BIASED_ATTENTION
        elif node.op_type == "LayerNormalization" and node.outputs[0].dtype == ir.DataType.FLOAT16:
            yield FLOAT16_LAYERNORM[opset >= 18]


def _opset(model: ir.Model) -> int:
    return int(model.opset_imports[""])
