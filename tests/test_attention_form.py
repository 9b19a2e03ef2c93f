"""One written form of attention, normalization and GELU per kind of target: the one that its consumer fuses."""

from __future__ import annotations

import onnx_ir as ir
import pytest
from conftest import Built
from graphs import operators

from vitexport.rewrites import load
from vitexport.rewrites.graph import operand

# The sample: three blocks of two norms, and the last norm.
DEPTH = 3
CONVERSIONS = {"Cast", "QuantizeLinear", "DequantizeLinear"}
OPERATORS_OF_OTHERS = {"Attention", "MultiHeadAttention", "QAttention", "RotaryEmbedding"}


def shipped(bundle: Built) -> ir.Model:
    path = bundle.bundle.artifact("onnx")
    assert path is not None
    return load(path)


def behind(value: ir.Value) -> ir.Node | None:
    """What computes a tensor, seen through casts and Q/DQ."""
    node = value.producer()
    while node is not None and node.op_type in CONVERSIONS:
        node = operand(node, 0).producer()
    return node


def assert_written_out(model: ir.Model) -> None:
    """Every softmax reads a product of two tensors, of which one at least was scaled before."""
    softmaxes = [node for node in model.graph if node.op_type == "Softmax"]
    assert len(softmaxes) == DEPTH
    for softmax in softmaxes:
        product = behind(operand(softmax, 0))
        assert product is not None
        assert product.op_type == "MatMul"
        factors = [behind(operand(product, index)) for index in range(2)]
        kinds = [node.op_type for node in factors if node is not None]
        assert "Mul" in kinds
        [reader] = [use.node for use in softmax.outputs[0].uses()]
        while reader.op_type in CONVERSIONS:
            [reader] = [use.node for use in reader.outputs[0].uses()]
        assert reader.op_type == "MatMul"
    assert not operators(model).keys() & OPERATORS_OF_OTHERS


@pytest.mark.parametrize("fixture", ["l4_bundle", "jetson_bundle"])
def test_tensorrt_gets_the_pattern_that_it_fuses(request: pytest.FixtureRequest, fixture: str) -> None:
    model = shipped(request.getfixturevalue(fixture))
    assert_written_out(model)
    counts = operators(model)
    assert (counts["LayerNormalization"], counts["Gelu"]) == (2 * DEPTH + 1, DEPTH)
    assert not counts.keys() & {"Erf", "Tanh", "ReduceMean", "Pow"}


def test_tensorrt_8_5_gets_the_same_pattern_with_norms_and_gelu_spelled_out(weak_bundle: Built) -> None:
    model = shipped(weak_bundle)
    assert model.opset_imports[""] == 17
    assert_written_out(model)
    counts = operators(model)
    assert (counts["LayerNormalization"], counts["Gelu"]) == (0, 0)
    assert (counts["ReduceMean"], counts["Erf"]) == (2 * (2 * DEPTH + 1), DEPTH)


def test_onnx_runtime_on_a_cpu_gets_its_own_operator(cpu_bundle: Built) -> None:
    counts = operators(shipped(cpu_bundle))
    assert (counts["MultiHeadAttention"], counts["Softmax"], counts["Attention"]) == (DEPTH, 0, 0)
    assert (counts["LayerNormalization"], counts["Gelu"]) == (2 * DEPTH + 1, DEPTH)
