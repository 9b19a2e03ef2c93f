"""Small questions and edits that several rewrites share: nodes, constants and names of one onnx-ir graph."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

MICROSOFT = "com.microsoft"
Vector = NDArray[np.float64]


def constant(value: ir.Value | None) -> NDArray[Any] | None:
    """The array behind an initializer, or None if `value` is computed."""
    if value is None or value.const_value is None:
        return None
    array: NDArray[Any] = value.const_value.numpy()
    return array


def unique_name(name: str, taken: Container[str]) -> str:
    """`name`, or with the first number behind it that makes it none of `taken`."""
    unique, serial = name, 1
    while unique in taken:
        serial += 1
        unique = f"{name}.{serial}"
    return unique


def add_constant(graph: ir.Graph, name: str, array: NDArray[Any]) -> ir.Value:
    """Register `array` as an initializer called `name` (made unique) and return its value."""
    unique = unique_name(name, graph.initializers)
    tensor = ir.tensor(array, name=unique)
    value = ir.Value(name=unique, type=ir.TensorType(tensor.dtype), shape=ir.Shape(array.shape), const_value=tensor)
    graph.register_initializer(value)
    return value


def make_node(  # noqa: PLR0913 - a node has this many parts
    op_type: str,
    inputs: Sequence[ir.Value | None],
    *,
    name: str,
    dtype: ir.DataType,
    shape: ir.Shape | None,
    attributes: Iterable[ir.Attr] = (),
    domain: str = "",
) -> ir.Node:
    """A node with one output, which carries the node's name, type and shape."""
    node = ir.Node(domain, op_type, inputs, attributes=attributes, num_outputs=1, name=name)
    output = node.outputs[0]
    output.name = name
    output.type = ir.TensorType(dtype)
    output.shape = shape
    return node


def cast(value: ir.Value, to: ir.DataType, name: str) -> ir.Node:
    """A Cast of `value` to another type, called `name`."""
    return make_node("Cast", [value], name=name, dtype=to, shape=value.shape, attributes=[ir.AttrInt64("to", int(to))])


def operand(node: ir.Node, index: int) -> ir.Value:
    """The input of `node` at `index`.

    Raises:
        ValueError: It is absent.
    """
    value = node.inputs[index] if index < len(node.inputs) else None
    if value is None:
        raise ValueError(f"{node.name} ({node.op_type}) has no input {index}")
    return value


def substitute(graph: ir.Graph, node: ir.Node, steps: Sequence[ir.Node], result: ir.Value) -> None:
    """Put `steps` in the place of `node`; whoever read its output reads `result`."""
    graph.insert_before(node, steps)
    take_over(node.outputs[0], result)
    graph.remove(node, safe=True)


def take_over(old: ir.Value, new: ir.Value) -> None:
    """Let whoever read `old` read `new`, of the same type and shape; an output of the graph keeps its name."""
    new.type, new.shape = old.type, old.shape
    is_output = old.is_graph_output()
    old.replace_all_uses_with(new, replace_graph_outputs=True)
    if is_output:
        old.name, new.name = f"{old.name}.replaced", old.name


def only_consumer(value: ir.Value) -> ir.Node | None:
    """The one node that reads `value`, or None if there are more, or it is a graph output."""
    uses = list(value.uses())
    if len(uses) != 1 or value.is_graph_output():
        return None
    return uses[0].node


def float64(node: ir.Node, index: int) -> NDArray[np.float64]:
    """The constant at input `index` of `node`, in float64.

    Raises:
        ValueError: It is computed.
    """
    array = constant(operand(node, index))
    if array is None:
        raise ValueError(f"input {index} of {node.name} is not constant")
    return array.astype(np.float64)


def give_constant(graph: ir.Graph, node: ir.Node, index: int, array: NDArray[Any]) -> None:
    """Let `node` read the float32 constant `array` at `index`; whoever else read the old one keeps it."""
    old = operand(node, index)
    name = str(old.name)
    if len(list(old.uses())) == 1:
        del graph.initializers[name]
    node.replace_input_with(index, add_constant(graph, name, array.astype(np.float32)))


def bias_index(add: ir.Node | None, width: int) -> int | None:
    """Which input of `add` is a constant vector of `width` numbers; None if none is, or it is no Add."""
    if add is None or add.op_type != "Add":
        return None
    for index, value in enumerate(add.inputs):
        array = constant(value)
        if array is not None and array.shape == (width,):
            return index
    return None


def change_bias(graph: ir.Graph, node: ir.Node, width: int, change: Callable[[Vector], Vector]) -> None:
    """Replace the bias of the linear layer `node`, of `width` numbers, by what `change` makes of it.

    A MatMul's bias is in the Add behind it; Gemm and Conv have one of their own. A layer without a bias gets one if it is
    not 0.
    """
    if node.op_type in ("Gemm", "Conv"):
        _change_own_bias(graph, node, change(float64(node, 2) if len(node.inputs) > 2 else np.zeros(width)))
        return
    add = only_consumer(node.outputs[0])
    index = bias_index(add, width)
    if add is not None and index is not None:
        give_constant(graph, add, index, change(float64(add, index)))
        return
    bias = change(np.zeros(width))
    if not bias.any():
        return
    product = node.outputs[0]
    value = add_constant(graph, f"{node.name}.bias", bias.astype(np.float32))
    added = make_node("Add", [product, value], name=f"{node.name}/bias", dtype=ir.DataType.FLOAT, shape=product.shape)
    readers = list(product.uses())
    graph.insert_after(node, [added])
    for use in readers:
        if use.node is not added:
            use.node.replace_input_with(use.idx, added.outputs[0])
    for index, output in enumerate(graph.outputs):
        if output is product:
            product.name, added.outputs[0].name = added.outputs[0].name, product.name
            graph.outputs[index] = added.outputs[0]


def _change_own_bias(graph: ir.Graph, node: ir.Node, bias: Vector) -> None:
    if len(node.inputs) > 2:
        give_constant(graph, node, 2, bias)
    elif bias.any():
        node.resize_inputs(3)
        node.replace_input_with(2, add_constant(graph, f"{node.name}.bias", bias.astype(np.float32)))


def module_of(node: ir.Node) -> str:
    """The timm module that `node` came from: its name up to the operator type."""
    return (node.name or "").rpartition("/")[0]


def drop_unused_initializers(graph: ir.Graph) -> None:
    """Remove initializers that nothing reads any more, so that they do not stay in the file."""
    for name, value in list(graph.initializers.items()):
        if not list(value.uses()) and not value.is_graph_output():
            del graph.initializers[name]
