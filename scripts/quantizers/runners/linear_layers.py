"""Input: a float ONNX; output: the names of the nodes that vitexport's default placement quantizes, and of all others.

These are the MatMuls with a constant weight: qkv, proj, fc1 and fc2 of each block. A quantizer that is held to them is
compared by how it quantizes, not by what.
"""

from __future__ import annotations

import onnx


def linear_and_other(path: str) -> tuple[list[str], list[str]]:
    """Names of the linear layers' nodes, and of the others, in graph order."""
    graph = onnx.load(path).graph
    matrices = {weight.name for weight in graph.initializer if len(weight.dims) == 2}
    linear: list[str] = []
    others: list[str] = []
    for node in graph.node:
        is_linear = node.op_type == "MatMul" and node.input[1] in matrices
        (linear if is_linear else others).append(node.name)
    return linear, others
