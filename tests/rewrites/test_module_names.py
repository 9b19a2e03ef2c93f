from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from graphs import LOGITS, graph_of
from onnx import helper

from vitexport.artifacts import INPUT_NAME
from vitexport.errors import ToolchainError
from vitexport.rewrites import apply
from vitexport.rewrites.module_names import SCOPES_KEY, ModuleNames

MODULES = ("", "blocks", "blocks.0", "blocks.0.attn", "blocks.0.attn.qkv", "head")
TRACE_KEY = "pkg.torch.onnx.stack_trace"
# Scopes as the exporter writes them: outermost first, the operator's own node last.
SCOPES: dict[str, list[str]] = {
    "node_MatMul_1": ["", "blocks.0", "blocks.0.attn", "blocks.0.attn.qkv", "linear"],
    "node_Add_2": ["", "blocks.0", "blocks.0.attn", "blocks.0.attn.qkv", "linear"],
    "node_Mul_3": ["", "blocks.0", "blocks.0.attn", "mul"],
    "node_Mul_4": ["", "blocks.0", "blocks.0.attn", "mul_1"],
    "node_Split_5": ["", "split"],
    "node_MatMul_6": ["", "matmul"],
    "node_Add_7": [],
}


def fresh_export(output: str = LOGITS, prefix: str = "") -> ir.Model:
    """What the exporter leaves: numbered names, constants called val_…, and stack traces with paths.

    With `prefix`, of a model that stands as a module in another one: all names of modules and parameters begin with it.
    """
    bias = f"{prefix}blocks.0.attn.qkv.bias"
    nodes = [
        helper.make_node("MatMul", ["image", "val_1"], ["linear"], name="node_MatMul_1"),
        helper.make_node("Add", ["linear", bias], ["add"], name="node_Add_2"),
        helper.make_node("Mul", ["add", "val_3"], ["mul"], name="node_Mul_3"),
        helper.make_node("Mul", ["mul", "val_3"], ["mul_1"], name="node_Mul_4"),
        helper.make_node("Split", ["mul_1"], ["s0", "s1"], name="node_Split_5", axis=0, num_outputs=2),
        helper.make_node("MatMul", ["s1", "val_6"], ["product"], name="node_MatMul_6"),
        helper.make_node("Add", ["product", "s0"], [LOGITS], name="node_Add_7"),
    ]
    square = np.eye(4, dtype=np.float32)
    constants = {"val_1": square, bias: square[0], "val_3": np.asarray(2, np.float32), "val_6": square}
    model = graph_of(nodes, constants, [2, 4])
    model.graph.outputs[0].name = output
    for node in model.graph:
        scopes = SCOPES[str(node.name)]
        if prefix:
            # The wrapper's own scope, and the model's; the operator's own node is no module.
            scopes = ["", *(prefix + scope if scope else prefix.rstrip(".") for scope in scopes[:-1]), *scopes[-1:]]
        node.metadata_props[SCOPES_KEY] = repr(scopes)
        node.metadata_props[TRACE_KEY] = 'File "/home/somebody/model.py"'
        node.doc_string = "/home/somebody"
        for computed in node.outputs:
            computed.metadata_props["trace"] = "/home/somebody"
    for value in (*model.graph.inputs, *model.graph.outputs, *model.graph.initializers.values()):
        value.metadata_props["trace"] = "/home/somebody"
    model.metadata_props["trace"] = model.graph.metadata_props["trace"] = "/home/somebody"
    model.doc_string = model.graph.doc_string = "/home/somebody"
    return model


def renamed() -> ir.Model:
    model = fresh_export()
    apply(model, ModuleNames(MODULES))
    return model


def names(values: Sequence[ir.Value | None]) -> list[str]:
    return [str(value.name) for value in values if value is not None]


def test_nodes_are_named_after_the_innermost_module() -> None:
    assert [node.name for node in renamed().graph] == [
        "blocks.0.attn.qkv/MatMul",
        "blocks.0.attn.qkv/Add",
        "blocks.0.attn/Mul",
        "blocks.0.attn/Mul.2",
        "Split",
        "MatMul",
        "Add",
    ]


def test_tensors_are_named_after_the_node_that_computes_them() -> None:
    graph = renamed().graph
    assert names(graph[0].outputs) == ["blocks.0.attn.qkv/MatMul"]
    assert names(graph[4].outputs) == ["Split", "Split:1"]
    assert (names(graph.inputs), names(graph.outputs)) == ([INPUT_NAME], [LOGITS])


def test_constants_say_who_reads_them_and_parameters_keep_their_names() -> None:
    graph = renamed().graph
    assert set(graph.initializers) == {
        "blocks.0.attn.qkv.weight",
        "blocks.0.attn.qkv.bias",
        "blocks.0.attn/Mul.input1",
        "MatMul.input1",
    }
    assert {name: str(value.name) for name, value in graph.initializers.items()} == {
        name: name for name in graph.initializers
    }


def test_nothing_of_the_exporting_machine_remains() -> None:
    assert b"somebody" not in ir.to_proto(renamed()).SerializeToString()


def test_the_same_graph_gets_the_same_names() -> None:
    first, second = (ir.to_proto(renamed()).SerializeToString(deterministic=True) for _ in range(2))
    assert first == second


def test_another_input_is_refused() -> None:
    model = fresh_export()
    model.graph.inputs[0].name = "pixels"
    with pytest.raises(ToolchainError, match=r"ModuleNames.*pixels.*expected \(\['image'\], \['logits'\]\)"):
        apply(model, ModuleNames(MODULES))


@pytest.mark.parametrize("output", ["embedding", "Add", "blocks.0.attn/Mul"])
def test_outputs_keep_their_names_and_no_node_takes_one(output: str) -> None:
    model = fresh_export(output)
    apply(model, ModuleNames(MODULES))
    assert names(model.graph.outputs) == [output]
    assert output not in [node.name for node in model.graph]
    onnx.checker.check_model(ir.to_proto(model))


def test_the_prefix_of_a_wrapped_model_is_dropped_from_modules_and_parameters() -> None:
    model = fresh_export(prefix="model.")
    apply(model, ModuleNames([f"model.{name}".rstrip(".") for name in MODULES] + [""], prefix="model."))
    plain = renamed()
    assert [node.name for node in model.graph] == [node.name for node in plain.graph]
    assert set(model.graph.initializers) == set(plain.graph.initializers)
    first, second = (ir.to_proto(each).SerializeToString(deterministic=True) for each in (model, plain))
    assert first == second


def test_a_failure_names_the_rewrites_that_ran_before() -> None:
    model = fresh_export()
    with pytest.raises(ToolchainError, match=r"following passes: \['.*ModuleNames.*'\]"):
        apply(model, ModuleNames(MODULES), _Broken())


class _Broken(ModuleNames):
    def __init__(self) -> None:
        super().__init__(())

    def requires(self, model: ir.Model) -> None:
        raise ValueError("broken")
