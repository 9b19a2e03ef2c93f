"""A float graph enters; the list of layers that placement A quantizes leaves.

Placement A ("linear"): every MatMul with a constant weight inside the network, which in a Vision Transformer are qkv, proj,
fc1 and fc2 of each block. Float stay: the residual stream and its Adds, LayerNorm, GELU and its input, softmax, both
attention MatMuls, biases, the patch embedding (a Conv) and the head (a Gemm over one token, bound by memory at batch 1).
"""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from vitexport.rewrites.graph import constant, module_of, operand


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Site:
    """One layer to quantize.

    Attributes:
        node: Name of its MatMul.
        module: The timm module that it came from.
        activation: Name of the tensor that it reads.
        weight: float32 [in, out].
    """

    node: str
    module: str
    activation: str
    weight: NDArray[np.float32]


def linear_sites(graph: ir.Graph) -> tuple[Site, ...]:
    """The layers of placement A, in graph order."""
    sites = []
    for node in graph:
        if node.op_type != "MatMul":
            continue
        weight = constant(node.inputs[1])
        if weight is None or weight.ndim != 2 or weight.dtype != np.float32 or constant(node.inputs[0]) is not None:
            continue
        sites.append(Site(node=str(node.name), module=module_of(node), activation=str(operand(node, 0).name), weight=weight))
    return tuple(sites)
