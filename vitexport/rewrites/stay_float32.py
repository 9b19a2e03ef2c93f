"""Input: a float graph and what its tensors reach on real images; output: the nodes that float16 cannot compute safely.

By rule, never by a list of models or of names:

- **Statistics.** Sums of squares, exponentials and their roots overflow float16 at 256² and lose an ε of 1e-12; so
  reductions that compute them stay float32, and with them the elementwise nodes that feed only them, and those that follow
  until the statistic has been applied to the data (x / (norm + ε) is the last one).
- **Large values.** A node whose result comes near float16's end, 65,504, on real images, stays float32, and so do those
  that read the result; so does one that
  reads a constant beyond it (a mask apart), or a single number that float16 would make 0.
- **Scores.** A softmax whose input reaches `LARGE_SCORE`, where a step of float16 changes a probability by a tenth and more,
  stays float32 with the sums and the product in front of it.
- **Probabilities.** A softmax that the graph returns: float16 would lose the small ones.
- **Pictures.** A model that normalizes its picture itself (csatv2: to 0…255, through a cosine transform, over deviations)
  divides small numbers that are left of large ones; from the image to that division all stays float32.
- **Residual stream.** A few channels of a real ViT's stream reach 1,000 and more, where float16's step is 0.5 to 1 and what
  a block adds is lost; sums that reach `LARGE_RESIDUAL`, biases of products apart, stay float32, and so does the
  normalization that reads them.

The figures are float16's own (step 2^-11 of a value), and a ViT-B that reaches 1,400 (onnxsim#1742).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from vitexport.rewrites import session
from vitexport.rewrites.float16 import LARGEST, MASK
from vitexport.rewrites.graph import constant, make_node, operand, unique_name

# A sixteenth of float16's largest number: other images reach further than those that were looked at.
LARGE = LARGEST / 16
# From here on a step of float16 is 0.125: e to that is 1.13.
LARGE_SCORE = 128.0
# Half of this and less becomes 0.
SMALLEST = float(np.finfo(np.float16).smallest_subnormal)
# From here on a step of float16 is 0.5.
LARGE_RESIDUAL = 512.0
STATISTICS = frozenset(
    {
        *("ReduceMean", "ReduceSum", "ReduceL1", "ReduceL2", "ReduceSumSquare", "ReduceLogSumExp", "CumSum", "Exp", "Log"),
        *("Pow", "Sqrt", "Reciprocal", "InstanceNormalization", "GroupNormalization", "LpNormalization", "RMSNormalization"),
    }
)
REDUCTIONS = frozenset(name for name in STATISTICS if name.startswith("Reduce"))
ELEMENTWISE = frozenset({"Add", "Sub", "Mul", "Div", "Clip", "Max", "Min", "Abs", "Neg", "Where"})
PRODUCTS = frozenset({"MatMul", "Gemm", "Conv"})
MOVEMENT = frozenset({"Expand", "Reshape", "Squeeze", "Unsqueeze", "Transpose", "Identity"})
CHOICES = frozenset({"Gather", "GatherND", "Slice", "Split", "Concat"})
FOLLOWING = ELEMENTWISE | MOVEMENT | {"Pow", "Sqrt", "Reciprocal", "Log"}
NORMALIZATIONS = frozenset({"LayerNormalization", "RMSNormalization"})


def float32_nodes(model: ir.Model, images: NDArray[np.float32]) -> frozenset[str]:
    """Names of the nodes that stay float32.

    Args:
        model: The float graph; it is not changed.
        images: Real ones, float32 [n, 3, height, width], as many as the graph takes in one call.
    """
    return by_rule(model.graph, peaks(model, images))


def peaks(model: ir.Model, images: NDArray[np.float32]) -> Mapping[str, float]:
    """Largest magnitude of every float tensor that a node computes, by name."""
    copy = model.clone()
    graph = copy.graph
    names: dict[str, str] = {}
    taken = {str(value.name) for node in graph for value in node.outputs} | set(graph.initializers)
    for node in list(graph):
        for value in node.outputs:
            if value.dtype != ir.DataType.FLOAT or not value.name:
                continue
            name = unique_name(f"{value.name}/peak", taken)
            taken.add(name)
            size = make_node("Abs", [value], name=f"{name}/Abs", dtype=ir.DataType.FLOAT, shape=value.shape)
            most = make_node(
                "ReduceMax",
                [size.outputs[0]],
                name=name,
                dtype=ir.DataType.FLOAT,
                shape=ir.Shape(()),
                attributes=[ir.AttrInt64("keepdims", 0)],
            )
            graph.extend([size, most])
            names[name] = str(value.name)
    graph.outputs.clear()
    graph.outputs.extend(node.outputs[0] for node in graph if node.name in names)
    backend = session(copy, outputs=list(names))
    return {names[name]: float(most) for name, most in backend.run(images).items()}


def by_rule(graph: ir.Graph, reached: Mapping[str, float]) -> frozenset[str]:
    """The rules of this module; `reached` is what `peaks` returns."""
    wide = {node for node in graph if _computes_float(node) and _is_large(node, reached)}
    wide |= {node for node in graph if _computes_float(node) and any(_is_beyond(value, reached) for value in node.inputs)}
    wide |= {node for node in graph if any(_does_not_fit(constant(value)) for value in node.inputs)}
    wide |= _statistics(graph) | _of_the_picture(graph)
    for node in graph:
        if node.op_type == "Softmax":
            if node.outputs[0].is_graph_output():
                wide.add(node)
            if not reached.get(str(operand(node, 0).name), 0.0) < LARGE_SCORE:
                wide |= {node, *_before(node)}
    for node in graph:
        if node.op_type in NORMALIZATIONS and any(_producer(value) in wide for value in node.inputs[:1]):
            wide.add(node)
    return frozenset(str(node.name) for node in wide)


def _before(softmax: ir.Node) -> set[ir.Node]:
    """The sums and the product that compute the input of `softmax`."""
    found: set[ir.Node] = set()
    node = _producer(softmax.inputs[0])
    while node is not None and node.op_type in ELEMENTWISE | PRODUCTS:
        found.add(node)
        if node.op_type in PRODUCTS:
            break
        computed = [producer for value in node.inputs if (producer := _producer(value)) is not None]
        node = next((producer for producer in computed if producer.op_type in ELEMENTWISE | PRODUCTS), None)
    return found


def _producer(value: ir.Value | None) -> ir.Node | None:
    return None if value is None else value.producer()


def _computes_float(node: ir.Node) -> bool:
    return any(value.dtype == ir.DataType.FLOAT for value in node.outputs)


def _is_large(node: ir.Node, reached: Mapping[str, float]) -> bool:
    most = max((reached.get(str(value.name), 0.0) for value in node.outputs), default=0.0)
    # Written so that a NaN counts as large.
    if not most < LARGE:
        return True
    return node.op_type == "Add" and not _is_bias(node) and most >= LARGE_RESIDUAL


def _is_beyond(value: ir.Value | None, reached: Mapping[str, float]) -> bool:
    """Whether a node reads what a Cast to float16 in front of it might make infinite."""
    return value is not None and not reached.get(str(value.name), 0.0) < LARGE


def _does_not_fit(array: NDArray[Any] | None) -> bool:
    if array is None or array.dtype != np.float32:
        return False
    size = np.abs(array)
    single = array.size == 1 and 0 < float(size.max()) < SMALLEST
    return single or bool(((size > LARGEST) & (size < MASK)).any())


def _is_bias(node: ir.Node) -> bool:
    """Whether the Add is the bias of a product, and no sum of what a block computed and the residual stream."""
    products = [producer for value in node.inputs if (producer := _producer(value)) is not None]
    return len(products) == 1 and products[0].op_type in PRODUCTS


def _statistics(graph: ir.Graph) -> set[ir.Node]:
    wide = {node for node in graph if node.op_type in STATISTICS and _computes_float(node)}
    # Backwards: x · x before a mean of squares.
    for node in reversed(list(graph)):
        readers = [use.node for value in node.outputs for use in value.uses()]
        inner = node.op_type in ELEMENTWISE and readers and not node.outputs[0].is_graph_output()
        if inner and all(reader in wide for reader in readers):
            wide.add(node)
    # Forwards: until the statistic has been applied to data.
    carrying = {node for node in wide if node.op_type in REDUCTIONS}
    for node in graph:
        computed = [value.producer() for value in node.inputs if value is not None and constant(value) is None]
        if _computes_float(node) and node.op_type in FOLLOWING and any(producer in carrying for producer in computed):
            wide.add(node)
            if node.op_type in MOVEMENT or all(producer in carrying for producer in computed):
                carrying.add(node)
    return wide


def _of_the_picture(graph: ir.Graph) -> set[ir.Node]:
    """What leads from the image to a division by one constant for each of many channels: arithmetic and fixed transforms."""
    image = graph.inputs[0]
    before: dict[ir.Node, list[ir.Node]] = {}
    for node in graph:
        if not _computes_float(node) or node.op_type not in ELEMENTWISE | MOVEMENT | CHOICES | {"MatMul"}:
            continue
        computed = [value for value in node.inputs if value is not None and constant(value) is None]
        floats = [value for value in computed if value.dtype == ir.DataType.FLOAT]
        producers = [producer for value in floats if value is not image and (producer := _producer(value)) is not None]
        if floats and all(producer in before for producer in producers):
            before[node] = producers
    found: set[ir.Node] = set()
    queue = [node for node in before if node.op_type == "Div" and _has_many(constant(node.inputs[1]))]
    while queue:
        node = queue.pop()
        if node not in found:
            found.add(node)
            queue += before[node]
    return found


def _has_many(array: NDArray[Any] | None) -> bool:
    return array is not None and array.size > 1
