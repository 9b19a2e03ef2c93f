"""Input: a float graph and a `Placement`; output: the layers, and the other tensors, that are quantized.

Placement A ("linear"): every MatMul with a constant weight inside the network, which in a Vision Transformer are qkv, proj,
fc1 and fc2 of each block; and, where blocks are made of convolutions, every Conv that mixes all of its channels. Float stay:
the residual stream and its Adds, LayerNorm, GELU and its input, softmax, both attention MatMuls, depthwise and grouped
convolutions (bound by memory), biases, and, unless they are asked for, the patch embedding (the Conv that reads the image)
and the head (a Gemm over one token, bound by memory at batch 1). A CPU computes the MatMuls in integers, and convolutions in
float.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Iterator

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from vitexport.quantize.settings import QuantSettings
from vitexport.rewrites.graph import constant, module_of, operand

# TensorRT documents INT8 fused attention for these head sizes and up to so many tokens.
FUSED_HEAD_SIZES = (16, 32, 64)
FUSED_TOKENS = 512
# INT8 dot products take four values of a sum at once, and more; what sums over fewer gains nothing. ConViT projects the
# three numbers of a relative position, up to 13², and everything hangs on them.
FEWEST_INPUTS = 4


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Site:
    """One layer to quantize.

    Attributes:
        node: Name of its MatMul, Gemm or Conv.
        op_type: Of that node.
        module: The timm module that it came from.
        activation: Name of the tensor that it reads.
        weight: float32 [in, out]; a Conv's kernel is [in · height · width, out].
        layout: How the node holds it: ``kn`` [in, out], ``nk`` [out, in], or ``conv`` [out, in, height, width];
            ``pointwise`` is a Conv of height and width 1, a linear layer over channels.
    """

    node: str
    op_type: str
    module: str
    activation: str
    weight: NDArray[np.float32]
    layout: str = "kn"

    @property
    def per_channel(self) -> bool:
        """Whether one axis of the activation is what the weight sums over."""
        return self.layout != "conv"

    @property
    def channels_first(self) -> bool:
        """Whether that axis is the second one, and not the last."""
        return self.layout == "pointwise"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Point:
    """One input of a node that gets a Q/DQ pair without being a layer's activation.

    Attributes:
        node: Name of the node.
        index: Which of its inputs.
        tensor: Name of that input.
        group: Name of the attention's second product or of the residual Add; all points of a group are quantized, or none.
    """

    node: str
    index: int
    tensor: str
    group: str


def find_sites(graph: ir.Graph, settings: QuantSettings, *, convolutions: bool = True) -> tuple[Site, ...]:
    """The layers that `settings` asks for, in graph order; no Conv without `convolutions`."""
    return tuple(
        site for site in _layers(graph, settings) if settings.wants(site.module) and (convolutions or site.op_type != "Conv")
    )


def linear_sites(graph: ir.Graph) -> tuple[Site, ...]:
    """The layers of placement A, in graph order."""
    return find_sites(graph, QuantSettings())


def _layers(graph: ir.Graph, settings: QuantSettings) -> Iterator[Site]:
    ends = {str(value.name) for value in graph.outputs}
    for node in graph:
        if node.op_type not in ("MatMul", "Gemm", "Conv"):
            continue
        weight = constant(node.inputs[1])
        if weight is None or weight.dtype != np.float32 or constant(node.inputs[0]) is not None:
            continue
        wanted, layout, matrix = _classify(node, weight, settings, ends)
        if wanted:
            yield Site(
                node=str(node.name),
                op_type=node.op_type,
                module=module_of(node),
                activation=str(operand(node, 0).name),
                weight=matrix,
                layout=layout,
            )


def _classify(
    node: ir.Node, weight: NDArray[np.float32], settings: QuantSettings, ends: Collection[str]
) -> tuple[bool, str, NDArray[np.float32]]:
    """Whether a layer is asked for, the layout of its weight, and the weight as [in, out]."""
    if node.op_type == "Conv":
        is_patch = operand(node, 0).producer() is None
        mixes_all = "group" not in node.attributes or node.attributes["group"].as_int() == 1
        padded = "pads" in node.attributes and any(node.attributes["pads"].as_ints())
        layout = "conv" if is_patch or padded or math.prod(weight.shape[2:]) > 1 else "pointwise"
        enough = math.prod(weight.shape[1:]) >= FEWEST_INPUTS
        wanted = settings.placement.patch if is_patch else mixes_all and enough
        return wanted, layout, weight.reshape(weight.shape[0], -1).T
    if node.op_type == "MatMul" and weight.shape[0] < FEWEST_INPUTS:
        return False, "kn", weight
    is_head = node.op_type == "Gemm" or any(output.name in ends for output in node.outputs)
    if weight.ndim != 2:
        return False, "kn", weight
    if node.op_type == "MatMul":
        return not is_head or settings.placement.head, "kn", weight
    transposed = "transB" in node.attributes and node.attributes["transB"].as_int() == 1
    plain = all(node.attributes[name].as_float() == 1.0 for name in ("alpha", "beta") if name in node.attributes)
    plain = plain and not ("transA" in node.attributes and node.attributes["transA"].as_int())
    return settings.placement.head and plain, "nk" if transposed else "kn", weight.T if transposed else weight


def attention_points(graph: ir.Graph, settings: QuantSettings) -> tuple[Point, ...]:
    """For placement B: both inputs of both products of every attention within TensorRT's documented limits."""
    points = []
    for second in graph:
        first = scores_of(second)
        if first is None or not settings.wants(module_of(second)) or not _fusable(first, second):
            continue
        for node in (first, second):
            points += [
                Point(node=str(node.name), index=index, tensor=str(operand(node, index).name), group=str(second.name))
                for index in (0, 1)
            ]
    return tuple(points)


def scores_of(second: ir.Node) -> ir.Node | None:
    """The product of q and k whose softmax `second` multiplies with v; None if `second` is something else."""
    if second.op_type != "MatMul" or constant(second.inputs[1]) is not None:
        return None
    softmax = operand(second, 0).producer()
    if softmax is None or softmax.op_type != "Softmax":
        return None
    step = operand(softmax, 0).producer()
    while step is not None and step.op_type in ("Add", "Mul", "Div"):
        computed = [value.producer() for value in step.inputs if value is not None and constant(value) is None]
        step = next((node for node in computed if node is not None), None)
    return step if step is not None and step.op_type == "MatMul" and constant(step.inputs[1]) is None else None


def _fusable(first: ir.Node, second: ir.Node) -> bool:
    scores, values = first.outputs[0].shape, operand(second, 1).shape
    if scores is None or values is None or not isinstance(scores[-1], int) or not isinstance(values[-1], int):
        return False
    return scores[-1] <= FUSED_TOKENS and values[-1] in FUSED_HEAD_SIZES


def residual_points(graph: ir.Graph, settings: QuantSettings) -> tuple[Point, ...]:
    """For placement C: the skip operand of every Add that joins a block's result to the residual stream.

    The skip is the operand that other nodes read too; the other one is what the block computed.
    """
    points = []
    for node in graph:
        if node.op_type != "Add" or any(constant(value) is not None for value in node.inputs):
            continue
        shared = [index for index, value in enumerate(node.inputs) if value is not None and len(list(value.uses())) > 1]
        if len(shared) == 1 and settings.wants(module_of(node)):
            skip = operand(node, shared[0])
            points.append(Point(node=str(node.name), index=shared[0], tensor=str(skip.name), group=str(node.name)))
    return tuple(points)
