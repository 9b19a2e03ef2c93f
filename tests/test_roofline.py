"""The estimate: its arithmetic, and the two counts that it rests on."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import onnx
import onnx_ir as ir
import pytest
import torch
from conftest import Built
from exports import exported, live, placed
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from vitexport.artifacts import Precision, Product
from vitexport.errors import InputError
from vitexport.legality.counts import graph_products
from vitexport.report import estimate_rows
from vitexport.rewrites import load
from vitexport.rewrites.graph import make_node
from vitexport.roofline import estimate, predict, why_none
from vitexport.targets import Target, catalogue, resolve

ORIN = resolve("jetson-orin-nano-8gb", jetpack="6.2")
PRODUCTS = st.lists(
    st.builds(
        Product,
        module=st.just("blocks.0"),
        macs=st.integers(1, 10**12),
        weights=st.integers(0, 10**10),
        int8=st.booleans(),
    ),
    min_size=1,
    max_size=8,
)
PRECISION: st.SearchStrategy[Precision] = st.sampled_from(["fp16", "int8"])
# Those that have rates for both precisions.
RATED = [resolve(name) for name, device in catalogue().items() if {"fp16", "int8"} <= device.peaks.keys()]


# ---- the arithmetic


def test_the_estimate_is_the_longer_of_arithmetic_and_memory_layer_by_layer() -> None:
    # Orin Nano: 10.2 TFLOPS, 20.5 TOPS, 68 GB/s.
    heavy = Product(module="a", macs=5_100_000_000, weights=1, int8=True)
    large = Product(module="b", macs=1, weights=34_000_000, int8=False)
    fp16 = estimate(ORIN, [heavy, large], "fp16", 1)
    assert fp16.seconds == pytest.approx(1e-3 + 1e-3, rel=1e-6)
    assert fp16.bound_by_arithmetic == pytest.approx(0.5, rel=1e-6)
    assert fp16.weight_bytes == 2 * 34_000_001
    int8 = estimate(ORIN, [heavy, large], "int8", 1)
    assert int8.seconds == pytest.approx(10.2 / 20.5 * 1e-3 + 1e-3, rel=1e-6)
    assert int8.weight_bytes == 1 + 2 * 34_000_000
    assert int8.int8_share == pytest.approx(1.0)
    # Twice the images: twice the arithmetic, and the same weights.
    assert estimate(ORIN, [heavy, large], "fp16", 2).seconds == pytest.approx(3e-3, rel=1e-6)


@given(PRODUCTS, PRECISION, st.integers(1, 512), st.sampled_from(RATED))
def test_more_images_take_no_less_and_each_of_them_no_more(
    products: list[Product], precision: Precision, batch: int, target: Target
) -> None:
    one, more = (estimate(target, products, precision, size) for size in (batch, batch + 1))
    assert more.seconds >= one.seconds
    assert more.seconds / (batch + 1) <= one.seconds / batch * (1 + 1e-9)


@given(PRODUCTS, PRECISION, st.integers(1, 512), st.sampled_from(RATED))
def test_it_is_never_below_either_bound_nor_above_their_sum(
    products: list[Product], precision: Precision, batch: int, target: Target
) -> None:
    found = estimate(target, products, precision, batch)
    assert found.seconds >= max(found.arithmetic_seconds, found.memory_seconds) * (1 - 1e-9)
    assert found.seconds <= (found.arithmetic_seconds + found.memory_seconds) * (1 + 1e-9)
    assert 0 <= found.bound_by_arithmetic <= 1 + 1e-9


@given(PRODUCTS, st.integers(1, 512), st.sampled_from(RATED))
def test_int8_is_no_slower_where_its_rate_is_no_lower(products: list[Product], batch: int, target: Target) -> None:
    int8, fp16 = estimate(target, products, "int8", batch), estimate(target, products, "fp16", batch)
    if target.peaks["int8"] >= target.peaks["fp16"]:
        assert int8.seconds <= fp16.seconds
    assert int8.weight_bytes <= fp16.weight_bytes


def test_the_precisions_are_ordered_by_it_and_not_by_their_names() -> None:
    layer = Product(module="a", macs=10**9, weights=10**6, int8=True)
    both: dict[Precision, list[Product]] = {"fp16": [layer], "int8": [layer]}
    assert [entry.precision for entry in predict(ORIN, both, 1).estimates] == ["int8", "fp16"]
    # The INT8 rate of Blackwell Ultra is a fifteenth of its FP16 rate.
    assert [entry.precision for entry in predict(resolve("b300"), both, 1).estimates] == ["fp16", "int8"]


@pytest.mark.parametrize(
    ("target", "precision", "reason"),
    [
        (resolve("cpu-x86-vnni"), "int8", "no peak rates for x86-64 with"),
        (resolve("gb10"), "int8", "no peak rates for DGX Spark"),
        (ORIN, "fp32", "no peak rate of Jetson Orin Nano 8GB, also Super in fp32"),
        (resolve("jetson-nano"), "int8", "no peak rate of Jetson Nano 4GB in int8"),
    ],
)
def test_without_rates_there_is_a_reason_and_no_figure(target: Target, precision: Precision, reason: str) -> None:
    assert reason in str(why_none(target, precision))
    found = predict(target, {precision: []}, 1)
    assert not found.estimates
    assert reason in str(found.skipped)


# ---- the counts


@pytest.mark.parametrize("model", ["tiny", "sample"])
@pytest.mark.parametrize("batch", ["1:4:8", "2"])
def test_the_module_and_its_float_graph_count_the_same(model: str, batch: str, tmp_path: Path) -> None:
    source = live(model)[1]
    graph = graph_products(load(placed(tmp_path, batch, model=model).path))
    assert [(item.module, item.macs, item.weights) for item in graph] == [
        (item.module, item.macs, item.weights) for item in source.products
    ]
    assert not any(item.int8 for item in graph)


def test_pytorchs_own_counter_finds_as_many_operations() -> None:
    module, source = live("sample")
    image = torch.zeros(1, 3, source.preprocess.height, source.preprocess.width)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        module(image)
    assert 2 * sum(product.macs for product in source.products) == counter.get_total_flops()


def test_the_parts_of_a_vit() -> None:
    parts = [product.part for product in live("tiny")[1].products]
    block = ["body", "attention", "attention", "body", "body", "body"]
    assert parts == ["patch", *block, *block, "head"]


@pytest.mark.parametrize("opset", [13, 17])
def test_older_opsets_multiply_as_often(opset: int) -> None:
    graph = ir.from_proto(onnx.load_from_string(exported("1:4:8", opset, layernorm_op=False)))
    assert sum(item.macs for item in graph_products(graph)) == sum(item.macs for item in live("tiny")[1].products)


def test_what_cannot_be_counted_is_said(tmp_path: Path) -> None:
    graph = load(placed(tmp_path).path)
    node = next(node for node in graph.graph if node.op_type == "MatMul")
    output = node.outputs[0]
    output.shape = None
    with pytest.raises(InputError, match=r"does not say the shapes of blocks\.0\.attn\.qkv/MatMul"):
        graph_products(graph)
    output.shape = ir.Shape(["batch", "sqrt(batch)", 96])
    with pytest.raises(InputError, match=r"cannot be counted: sqrt\(batch\) is no size"):
        graph_products(graph)
    image = graph.graph.inputs[0]
    graph.graph.append(make_node("Einsum", [image, image], name="odd", dtype=ir.DataType.FLOAT, shape=None))
    output.shape = ir.Shape(["batch", 17, 96])
    with pytest.raises(InputError, match="odd is an Einsum"):
        graph_products(graph)


# ---- in a report


def test_a_report_holds_what_its_own_graph_takes(l4_bundle: Built) -> None:
    figures = l4_bundle.report.measurements["estimate"]
    onnx = l4_bundle.bundle.artifact("onnx")
    assert onnx is not None
    products = graph_products(load(onnx))
    recipe = l4_bundle.bundle.manifest.recipe
    assert recipe is not None
    shipped = [layer for layer in recipe["layers"] if layer not in recipe["stay_float"]]
    assert [item.module for item in products if item.int8] == shipped
    again = estimate(resolve("l4"), products, "int8", 4)
    assert figures["int8"] == dataclasses.asdict(again)
    assert any("measured latencies are longer" in note for note in l4_bundle.report.notes)
    assert "## Estimate" in l4_bundle.report.to_markdown()


def test_it_stands_beside_what_was_measured_of_the_same_batch() -> None:
    row = dataclasses.asdict(estimate(ORIN, [Product(module="a", macs=10**9, weights=10**6)], "fp16", 4))
    said = {"about": "from the rates", "skipped": None, "fp16": row}
    assert estimate_rows(said, {"fp16": {"p50_ms": 5.0, "batch": 4}})[0][2] == "5"
    assert estimate_rows(said, {"fp16": {"p50_ms": 5.0, "batch": 1}})[0][2] == ""
