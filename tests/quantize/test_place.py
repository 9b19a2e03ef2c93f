from __future__ import annotations

import numpy as np
import pytest
from exports import exported, live
from graphs import graph_of, read
from onnx import helper

from vitexport.artifacts import OUTPUT_NAME
from vitexport.quantize.place import linear_sites

LINEARS = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")


@pytest.mark.parametrize("batch", ["1:4:8", "2"])
def test_the_four_linears_of_each_block_are_placed_and_nothing_else(batch: str) -> None:
    sites = linear_sites(read(exported(batch)).graph)
    assert [site.module for site in sites] == [f"blocks.{block}.{name}" for block in range(2) for name in LINEARS]
    # Neither head nor patch embedding, nor the two products of activations inside attention.
    assert all(site.node == f"{site.module}/MatMul" for site in sites)


def test_a_site_holds_the_weight_of_its_module_as_in_by_out() -> None:
    state = live()[0].state_dict()
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
        helper.make_node("MatMul", ["c", "weight"], [OUTPUT_NAME], name="fc/MatMul"),
    ]
    square = np.eye(4, dtype=np.float32)
    graph = graph_of(nodes, {"stack": np.stack([square, square]), "left": square, "weight": square}, [2, 4, 4]).graph
    assert [site.node for site in linear_sites(graph)] == ["fc/MatMul"]
