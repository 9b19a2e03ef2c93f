from __future__ import annotations

import numpy as np
import pytest
from exports import exported, live
from graphs import LOGITS, graph_of, read
from onnx import helper

from vitexport.quantize.place import attention_points, find_sites, linear_sites, residual_points
from vitexport.quantize.settings import Placement, QuantSettings

LINEARS = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")


@pytest.mark.parametrize("batch", ["1:4:8", "2"])
def test_the_four_linears_of_each_block_are_placed_and_nothing_else(batch: str) -> None:
    sites = linear_sites(read(exported(batch)).graph)
    assert [site.module for site in sites] == [f"blocks.{block}.{name}" for block in range(2) for name in LINEARS]
    # Neither head nor patch embedding, nor the two products of activations inside attention.
    assert all(site.node == f"{site.module}/MatMul" for site in sites)


def test_a_site_holds_the_weight_of_its_module_as_in_by_out() -> None:
    state = live()[0].model.state_dict()
    for site in linear_sites(read(exported("2")).graph):
        np.testing.assert_array_equal(site.weight, state[f"{site.module}.weight"].numpy().T)


def test_a_site_reads_what_comes_before_it() -> None:
    reads = {site.module: site.activation for site in linear_sites(read(exported("2")).graph)}
    assert reads["blocks.1.attn.qkv"] == "blocks.1.norm1/LayerNormalization"
    assert reads["blocks.1.mlp.fc1"] == "blocks.1.norm2/LayerNormalization"
    assert reads["blocks.1.mlp.fc2"] == "blocks.1.mlp.act/Gelu"


def test_a_product_that_is_no_linear_layer_is_left_alone() -> None:
    nodes = [
        helper.make_node("MatMul", ["image", "stack"], ["a"], name="stacked"),
        helper.make_node("MatMul", ["left", "a"], ["b"], name="constant on the left"),
        helper.make_node("MatMul", ["b", "a"], ["c"], name="two activations"),
        helper.make_node("MatMul", ["c", "weight"], ["d"], name="fc/MatMul"),
        helper.make_node("MatMul", ["d", "weight"], [LOGITS], name="head/MatMul"),
    ]
    square = np.eye(4, dtype=np.float32)
    graph = graph_of(nodes, {"stack": np.stack([square, square]), "left": square, "weight": square}, [2, 4, 4]).graph
    # The last one computes the logits: it is the head, which has to be asked for.
    assert [site.node for site in linear_sites(graph)] == ["fc/MatMul"]
    both = find_sites(graph, QuantSettings(placement=Placement(head=True)))
    assert [site.node for site in both] == ["fc/MatMul", "head/MatMul"]


def test_patch_embedding_and_head_are_found_where_they_are_asked_for() -> None:
    graph = read(exported("2")).graph
    first, *_, last = find_sites(graph, QuantSettings(placement=Placement(patch=True, head=True)))
    state = live()[0].model.state_dict()
    assert (first.module, first.layout, last.module, last.layout) == ("patch_embed.proj", "conv", "head", "nk")
    np.testing.assert_array_equal(first.weight, state["patch_embed.proj.weight"].numpy().reshape(32, -1).T)
    np.testing.assert_array_equal(last.weight, state["head.weight"].numpy().T)


def test_the_products_of_every_attention_are_found() -> None:
    graph = read(exported("2")).graph
    points = attention_points(graph, QuantSettings())
    assert [point.group for point in points] == ["blocks.0.attn/MatMul.2"] * 4 + ["blocks.1.attn/MatMul.2"] * 4
    assert [point.index for point in points] == [0, 1] * 4
    first = attention_points(graph, QuantSettings(exclude=(r"blocks\.1",)))
    assert [point.tensor for point in first] == [point.tensor for point in points[:4]]


def test_the_skip_operand_of_every_residual_add_is_found() -> None:
    graph = read(exported("2")).graph
    points = residual_points(graph, QuantSettings())
    assert len({point.node for point in points}) == len(points) == 4
    producers = {output.name: node.op_type for node in graph for output in node.outputs}
    assert {producers[point.tensor] for point in points} <= {"Add", "Concat"}
    # What the block computed stays as it is: it ends in a linear layer's bias.
    nodes = {node.name: node for node in graph}
    for point in points:
        other = nodes[point.node].inputs[1 - point.index]
        assert other is not None
        assert str(other.name).endswith(("proj/Add", "fc2/Add"))
