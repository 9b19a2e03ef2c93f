"""Input: a graph with Col2Im; output: the same sums of overlapping patches, as transposed convolutions.

VOLO's outlook attention ends in `torch.nn.functional.fold`. TensorRT-RTX 1.7.1 refuses its ONNX operator, Col2Im, without
saying so ("cannot parse: false"; no upstream issue was found). A ConvTranspose whose kernels hold a single 1 puts each value
where Col2Im does and adds what overlaps: no product rounds, and the sums are the same.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import InPlacePass, PassResult, PostconditionError

from vitexport.rewrites.graph import add_constant, constant, make_node, operand, substitute


class LowerCol2Im(InPlacePass):
    """Replace every Col2Im over two axes, without dilation, by Reshape and ConvTranspose."""

    def call(self, model: ir.Model) -> PassResult:
        """Replace node by node."""
        nodes = [node for node in model.graph if node.op_type == "Col2Im" and _is_plain(node)]
        for node in nodes:
            _replace(model.graph, node)
        return PassResult(model, modified=bool(nodes))

    def ensures(self, model: ir.Model) -> None:
        """None that can be replaced is left."""
        for node in model.graph:
            if node.op_type == "Col2Im" and _is_plain(node):
                raise PostconditionError(f"{node.name} is still a Col2Im")


def _ints(node: ir.Node, name: str, default: int, count: int) -> list[int]:
    return list(node.attributes[name].as_ints()) if name in node.attributes else [default] * count


def _is_plain(node: ir.Node) -> bool:
    image, block = constant(node.inputs[1]), constant(node.inputs[2])
    shape = operand(node, 0).shape
    known = image is not None and block is not None and len(image) == len(block) == 2
    return known and shape is not None and isinstance(shape[1], int) and set(_ints(node, "dilations", 1, 2)) == {1}


def _replace(graph: ir.Graph, node: ir.Node) -> None:
    columns = operand(node, 0)
    image, block = constant(node.inputs[1]), constant(node.inputs[2])
    shape = columns.shape
    if image is None or block is None or shape is None or not isinstance(shape[1], int):
        raise ValueError(f"{node.name} has no constant sizes")
    height, width = (int(size) for size in block)
    strides, pads = _ints(node, "strides", 1, 2), _ints(node, "pads", 0, 4)
    spans = [int(size) + pads[axis] + pads[axis + 2] - int(block[axis]) for axis, size in enumerate(image)]
    positions = [span // stride + 1 for span, stride in zip(spans, strides, strict=True)]
    rest = [span % stride for span, stride in zip(spans, strides, strict=True)]
    channels = shape[1] // (height * width)
    kernels = np.tile(np.eye(height * width, dtype=np.float32), (channels, 1)).reshape(-1, 1, height, width)
    name = str(node.name)
    target = add_constant(graph, f"{name}.shape", np.asarray([0, shape[1], *positions], np.int64))
    reshape = make_node(
        "Reshape",
        [columns, target],
        name=f"{name}/Reshape",
        dtype=ir.DataType.FLOAT,
        shape=ir.Shape([shape[0], shape[1], *positions]),
    )
    fold = make_node(
        "ConvTranspose",
        [reshape.outputs[0], add_constant(graph, f"{name}.kernels", kernels)],
        name=f"{name}/ConvTranspose",
        dtype=ir.DataType.FLOAT,
        shape=node.outputs[0].shape,
        attributes=[
            ir.AttrInt64("group", channels),
            ir.AttrInt64s("kernel_shape", [height, width]),
            ir.AttrInt64s("strides", strides),
            ir.AttrInt64s("pads", pads),
            ir.AttrInt64s("output_padding", rest),
        ],
    )
    substitute(graph, node, [reshape, fold], fold.outputs[0])
