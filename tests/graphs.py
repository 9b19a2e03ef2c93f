"""Small ONNX graphs for tests: build one from nodes and constants, run it as written, look at its operators."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from vitexport.artifacts import INPUT_NAME
from vitexport.rewrites import InPlacePass, apply

LOG_FATAL = 4
# The one output of the graphs here.
LOGITS = "logits"
# ONNX Runtime's oldest supported wheels read it, and it covers every opset here.
IR_VERSION = 10


def graph_of(
    nodes: Sequence[onnx.NodeProto],
    constants: Mapping[str, NDArray[Any]],
    shape: Sequence[int | str],
    *,
    opset: int = 20,
    output_type: int = TensorProto.FLOAT,
) -> ir.Model:
    """A model from ``image`` (float32 of `shape`) to ``logits``, its inner types inferred, as the exporter leaves it."""
    graph = helper.make_graph(
        list(nodes),
        "test",
        [helper.make_tensor_value_info(INPUT_NAME, TensorProto.FLOAT, list(shape))],
        [helper.make_tensor_value_info(LOGITS, output_type, None)],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=IR_VERSION)
    proto = onnx.shape_inference.infer_shapes(proto, strict_mode=True)
    onnx.checker.check_model(proto)
    return ir.from_proto(proto)


def read(data: bytes) -> ir.Model:
    """The model in serialized form."""
    return ir.from_proto(onnx.load_model_from_string(data))


def run(
    model: ir.Model | bytes | Path, images: NDArray[Any], *, optimized: bool = False, output: str = LOGITS
) -> NDArray[Any]:
    """`output` of `images` by ONNX Runtime on one thread, node by node unless `optimized`."""
    options = ort.SessionOptions()
    options.log_severity_level = LOG_FATAL
    options.intra_op_num_threads = 1
    level = ort.GraphOptimizationLevel
    options.graph_optimization_level = level.ORT_ENABLE_ALL if optimized else level.ORT_DISABLE_ALL
    if isinstance(model, ir.Model):
        model = bytes(ir.to_proto(model).SerializeToString())
    source = str(model) if isinstance(model, Path) else model
    session = ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    result: NDArray[Any] = session.run([output], {INPUT_NAME: images})[0]
    return result


def operators(model: ir.Model) -> Counter[str]:
    """How often each operator occurs."""
    return Counter(node.op_type for node in model.graph)


def assert_stays(model: ir.Model, rewrite: InPlacePass, images: NDArray[Any]) -> None:
    """`rewrite` leaves the operators of `model`, and what it computes, as they are."""
    before, expected = operators(model), run(model, images)
    apply(model, rewrite)
    assert operators(model) == before
    np.testing.assert_array_equal(run(model, images), expected)


def valid_in(model: ir.Model, opset: int) -> None:
    """Raise unless ONNX's checker takes the graph as one of `opset`."""
    proto = ir.to_proto(model)
    del proto.opset_import[:]
    proto.opset_import.append(helper.make_opsetid("", opset))
    proto.ir_version = helper.find_min_ir_version_for(proto.opset_import)
    onnx.checker.check_model(proto)


def producers(model: ir.Model) -> dict[str, ir.Node]:
    """The node that computes each tensor, by the tensor's name."""
    return {str(output.name): node for node in model.graph for output in node.outputs}
