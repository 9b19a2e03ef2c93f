"""Input: a graph as PyTorch's exporter leaves it; output: the same function without what can be computed now.

The exporter's own ``optimize=True`` is not used, for two reasons that were measured. Its constant folding runs operators in
ONNX's reference evaluator, written in Python, for minutes: above all a Resize, of a position embedding of another size,
which did not seem to end before ONNX 1.22 (https://github.com/microsoft/onnxscript/issues/2859; of Conv, issue 3003 there).
And one of its rewrite rules, ``SlicesSplit``, has two output nodes, so that its matcher tries every pair of nodes: 95 of
the 144 profiled seconds of an export of ``coat_tiny``; no upstream issue was found.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import InPlacePass, PassResult, common
from onnxscript import optimizer, rewriter
from onnxscript.rewriter.rules import common as rules

from vitexport.rewrites.graph import add_constant, constant, drop_unused_initializers, operand
from vitexport.runtime.backends.onnx_runtime import evaluate

ROUNDS = 2
# What a constant may grow by when it is computed now: beyond it the file would grow for nothing (an Expand, a Tile).
FREE_BYTES = 1 << 20
GROWTH = 4
# Nodes that a constant does not come from, whatever they read.
NEVER = frozenset(
    {
        *("QuantizeLinear", "DequantizeLinear", "If", "Loop", "Scan", "Bernoulli", "Multinomial"),
        *("RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"),
    }
)
# Not among them: the rules that make Clip of Min and Max. They leave a graph whose new constants belong to no graph where
# two clamps read one number (Gemma 4's linear layers); no upstream issue was found.
RULES = (
    *(rules.add_0_rule, rules.sub_0_rule, rules.mul_by_1_rule, rules.div_by_1_rule, rules.dropout_zero_rule),
    *(rules.dropout_inference_rule, rules.one_reshape_matmul_reshape_rule, rules.two_reshapes_matmul_reshape_rule),
    *(rules.cast_constant_of_shape_rule, rules.cast_constant_of_shape_without_value_rule, rules.collapse_slice_rule),
    *(rules.collapse_slice2_rule, rules.materialize_reshape_shape_rule, rules.successive_relu_rule, rules.cast_cast_rule),
    *(rules.no_op_cast_rule, rules.no_op_expand_rule, rules.flatten_to_reshape_rule, rules.reshape_reshape_rule),
    *(rules.no_op_transpose_rule, rules.transpose_transpose_rule, rules.unsqueeze_unsqueeze_rule),
    *(rules.squeeze_reshape_1d_rule, rules.no_op_dynamic_scatter_nd_rule, rules.no_op_static_scatter_nd_rule),
    *(rules.normalize_pad_format_conv_rule, rules.fuse_pad_into_conv_rule, rules.fuse_batchnorm_into_conv_rule),
    *(rules.fuse_batchnorm_into_conv_transpose_rule, rules.fuse_batchnorm_into_gemm_rule),
    *(rules.remove_optional_bias_from_conv_rule, rules.remove_optional_bias_from_conv_transpose_rule),
    rules.remove_optional_bias_from_gemm_rule,
)
MOVEMENT = frozenset({"Transpose", "Reshape", "Squeeze", "Unsqueeze"})
# A bound beyond which nothing lies, by operator and input.
NO_BOUNDS = {("Max", 0): -np.inf, ("Max", 1): -np.inf, ("Min", 0): np.inf, ("Min", 1): np.inf}


class Simplify(InPlacePass):
    """Fold what is constant, apply onnxscript's own clean-up rules, and drop what nothing reads."""

    def call(self, model: ir.Model) -> PassResult:
        """As the exporter would, without the two parts that do not end."""
        common.InlinePass()(model)
        for _ in range(ROUNDS):
            # Shapes and other small things; what it would hand to the reference evaluator is left to ONNX Runtime.
            optimizer.fold_constants(model, onnx_shape_inference=True, should_fold=_shape_arithmetic)
            FoldConstants()(model)
            _drop_endless_bounds(model.graph)
            changed = rewriter.RewritePass(RULES)(model).modified
            common.RemoveUnusedNodesPass()(model)
            if not changed:
                break
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
        FoldConstants()(model)
        common.RemoveUnusedNodesPass()(model)
        for step in (common.DeduplicateInitializersPass(), common.CommonSubexpressionEliminationPass()):
            step(model)
        common.OutputFixPass()(model)
        common.NameFixPass()(model)
        return PassResult(model, modified=True)


def _shape_arithmetic(node: ir.Node) -> bool | None:
    """Let onnxscript decide on whole numbers, of which shapes are made; False for the rest."""
    types = {value.dtype for value in node.outputs}
    return None if types <= {ir.DataType.INT64, ir.DataType.INT32, ir.DataType.BOOL, None} else False


def _drop_endless_bounds(graph: ir.Graph) -> None:
    """Remove clamps at infinity, as a layer has that may be quantized but is not."""
    for node in list(graph):
        for (op_type, index), bound in NO_BOUNDS.items():
            array = constant(node.inputs[index]) if node.op_type == op_type and len(node.inputs) == 2 else None
            if array is None or not (array == bound).all() or array.size != 1:
                continue
            value = operand(node, 1 - index)
            if not node.outputs[0].is_graph_output():
                node.outputs[0].replace_all_uses_with(value)
                graph.remove(node, safe=True)
            break


class FoldConstants(InPlacePass):
    """Compute, in ONNX Runtime, every value that does not depend on the graph's input."""

    def call(self, model: ir.Model) -> PassResult:
        """Collect the constant nodes; keep the values that other nodes read."""
        graph = model.graph
        moved = _move_weights(graph)
        nodes = _constant_nodes(graph)
        inside = set(nodes)
        wanted = [
            output
            for node in nodes
            for output in node.outputs
            if output.is_graph_output() or any(use.node not in inside for use in output.uses())
        ]
        if not wanted:
            return PassResult(model, modified=moved)
        arrays = evaluate(_part(model, nodes, wanted), [str(value.name) for value in wanted])
        changed = moved
        for value, array in zip(wanted, arrays, strict=True):
            sources = _sources(value, inside)
            grown = array.nbytes > FREE_BYTES + GROWTH * _read(sources)
            # A position embedding is resampled now, whatever it grows by: no parser of TensorRT takes an antialiased Resize.
            if value.is_graph_output() or (grown and not any(node.op_type == "Resize" for node in sources)):
                continue
            folded = add_constant(graph, str(value.name), array)
            value.replace_all_uses_with(folded)
            changed = True
        common.RemoveUnusedNodesPass()(model)
        return PassResult(model, modified=changed)


def _move_weights(graph: ir.Graph) -> bool:
    """Transpose and reshape constants as views of what they are: the weights of a model need no second copy for that."""
    changed = False
    for node in list(graph):
        array = constant(node.inputs[0]) if node.op_type in MOVEMENT and node.domain in ("", "ai.onnx") else None
        shape = node.outputs[0].shape
        if array is None or shape is None or not shape.is_static() or node.outputs[0].is_graph_output():
            continue
        if node.op_type == "Transpose":
            perm = node.attributes["perm"].as_ints() if "perm" in node.attributes else None
            moved = np.transpose(array, perm)
        else:
            moved = array.reshape(shape.numpy())
        node.outputs[0].replace_all_uses_with(add_constant(graph, str(node.outputs[0].name), moved))
        graph.remove(node, safe=True)
        changed = True
    drop_unused_initializers(graph)
    return changed


def _constant_nodes(graph: ir.Graph) -> list[ir.Node]:
    """Nodes that read nothing but constants, in order."""
    known: set[ir.Value] = set()
    result = []
    for node in graph:
        computed = [value for value in node.inputs if value is not None and constant(value) is None]
        if node.op_type in NEVER or node.domain not in ("", "ai.onnx") or not all(value in known for value in computed):
            continue
        if not node.inputs and node.op_type != "Constant":
            continue
        known.update(node.outputs)
        result.append(node)
    return result


def _part(model: ir.Model, nodes: list[ir.Node], wanted: list[ir.Value]) -> bytes:
    """A model of `nodes` alone, serialized: no input, and `wanted` as its outputs."""
    copies: dict[ir.Value, ir.Value] = {}
    initializers = []
    for node in nodes:
        for value in node.inputs:
            if value is not None and value not in copies and (array := constant(value)) is not None:
                tensor = ir.tensor(array, name=str(value.name))
                copies[value] = ir.Value(
                    name=str(value.name), type=ir.TensorType(tensor.dtype), shape=ir.Shape(array.shape), const_value=tensor
                )
                initializers.append(copies[value])
        for value in node.outputs:
            copies[value] = ir.Value(name=str(value.name), type=value.type)
    copied = [
        ir.Node(
            node.domain,
            node.op_type,
            [None if value is None else copies[value] for value in node.inputs],
            attributes=node.attributes.values(),
            outputs=[copies[value] for value in node.outputs],
            name=node.name,
        )
        for node in nodes
    ]
    graph = ir.Graph(
        [],
        [copies[value] for value in wanted],
        nodes=copied,
        initializers=initializers,
        opset_imports=dict(model.graph.opset_imports),
        name="constants",
    )
    part = ir.Model(graph, ir_version=model.ir_version)
    data: bytes = ir.to_proto(part).SerializeToString()
    return data


def _sources(value: ir.Value, inside: set[ir.Node]) -> set[ir.Node]:
    """Nodes that `value` is computed by."""
    found: set[ir.Node] = set()
    stack = [value.producer()]
    while stack:
        node = stack.pop()
        if node is not None and node in inside and node not in found:
            found.add(node)
            stack.extend(source.producer() for source in node.inputs if source is not None)
    return found


def _read(nodes: set[ir.Node]) -> int:
    """Bytes of the constants that `nodes` read."""
    arrays = [constant(source) for node in nodes for source in node.inputs if source is not None]
    return sum(array.nbytes for array in arrays if array is not None)
