"""Whole models of several families: what is fused, and that they compute the same, in float and in integers."""

from __future__ import annotations

import dataclasses
import functools
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from exports import export_onnx, exported
from graphs import operators, read, run
from numpy.typing import NDArray
from torch import nn

from vitexport.artifacts import BatchRange
from vitexport.rewrites import apply, save
from vitexport.rewrites.cpu_fusions import cpu_fusions
from vitexport.rewrites.cpu_integer import CpuInteger
from vitexport.rewrites.graph import constant
from vitexport.rewrites.insert_qdq import QuantizedLinear
from vitexport.source import ModelRequest, load

BLOCKS = {"patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3}
WINDOWS = {"patch_size": 4, "window_size": 4, "embed_dim": 24, "depths": (2, 2), "num_heads": (2, 4)}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """A small model, and what its graph holds behind the fusions."""

    name: str
    fused: int
    written_out: int = 0
    rotary: int = 0
    kwargs: dict[str, Any] = dataclasses.field(default_factory=lambda: BLOCKS)
    img_size: int = 32


FAMILIES = {
    "deit-distilled": Family(name="deit_tiny_distilled_patch16_224", fused=2),
    "deit3": Family(name="deit3_small_patch16_224", fused=2),
    "beit": Family(name="beit_base_patch16_224", fused=2),
    "eva02": Family(name="eva02_tiny_patch14_224", fused=2, rotary=4),
    "dinov3": Family(name="vit_small_patch16_dinov3", fused=2, rotary=4),
    # Every second block has a mask for each window.
    "swin": Family(name="swin_tiny_patch4_window7_224", fused=2, written_out=2, kwargs=WINDOWS, img_size=64),
    # Talking heads, but for the two blocks of class attention.
    "cait": Family(name="cait_xxs24_224", fused=2, written_out=2),
    "qk-norm": Family(name="vit_tiny_patch16_224", fused=0, written_out=2, kwargs={**BLOCKS, "qk_norm": True}),
}


def stir(module: nn.Module) -> None:
    """Give every parameter its say: as timm initializes them, layer scales hide whole branches, and biases are 0."""
    generator = torch.Generator().manual_seed(1)
    for name, parameter in module.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if "gamma" in name or (parameter.ndim == 1 and name.endswith("weight")):
            parameter.copy_(1 + 0.3 * noise)
        elif parameter.ndim == 1 or "table" in name or "pos_embed" in name or "token" in name:
            parameter.copy_(0.4 * noise)
        else:
            parameter.copy_(noise * (1.5 / parameter[0].numel() ** 0.5))


@functools.cache
def family(name: str, batch: str) -> bytes:
    """The export of a small model of that family, with stirred weights."""
    chosen = FAMILIES[name]
    request = ModelRequest(name=chosen.name, pretrained=False, kwargs=chosen.kwargs, img_size=chosen.img_size, num_classes=7)
    module, source = load(request)
    with torch.no_grad():
        stir(module)
    with tempfile.TemporaryDirectory() as folder:
        limits = BatchRange.parse(batch)
        return export_onnx(module, source, Path(folder), opset=20, layernorm_op=True, batch=limits).path.read_bytes()


def layers(model: ir.Model) -> list[QuantizedLinear]:
    """INT8 numbers for every MatMul with a constant weight, with made-up ranges."""
    found = []
    for node in model.graph:
        weight = constant(node.inputs[1]) if node.op_type == "MatMul" else None
        if weight is None or weight.ndim != 2 or node.inputs[0] is None:
            continue
        scale = np.maximum(np.abs(weight).max(0), 1e-6) / 64
        found.append(
            QuantizedLinear(
                node=str(node.name),
                activation=str(node.inputs[0].name),
                activation_scale=np.float32(0.04),
                activation_zero_point=np.uint8(120),
                weight=np.rint(weight / scale).astype(np.int8),
                weight_scale=scale.astype(np.float32),
            )
        )
    return found


def pictures(count: int, size: int) -> NDArray[np.float32]:
    return np.random.default_rng(count).normal(0, 1, (count, 3, size, size)).astype(np.float32)


def distance(model: ir.Model, other: ir.Model, images: NDArray[np.float32], *, optimized: bool) -> float:
    """The largest difference of the logits, relative to the largest of them."""
    expected = run(other, images, optimized=optimized)
    return float(np.abs(run(model, images, optimized=optimized) - expected).max() / np.abs(expected).max())


@pytest.mark.parametrize(
    ("name", "batch"), [*((name, "1:2:4") for name in FAMILIES), ("beit", "2"), ("eva02", "2"), ("swin", "2")]
)
def test_a_family_is_fused_and_computes_the_same(name: str, batch: str, tmp_path: Path) -> None:
    chosen, model = FAMILIES[name], read(family(name, batch))
    apply(model, *cpu_fusions())
    found = operators(model)
    assert (found["MultiHeadAttention"], found["Softmax"], found["RotaryEmbedding"]) == (
        chosen.fused,
        chosen.written_out,
        chosen.rotary,
    )
    # No slice of a qkv tensor is left where its attention was fused.
    assert not [each.name for each in model.graph if str(each.name).endswith((".query", ".key", ".value"))]
    save(model, tmp_path / "fused.onnx")
    for count in (1, 2, 3) if batch != "2" else (2,):
        for optimized in (False, True):
            images = pictures(count, chosen.img_size)
            assert distance(model, read(family(name, batch)), images, optimized=optimized) < 1e-5


@pytest.mark.parametrize("name", FAMILIES)
def test_integers_compute_the_same(name: str, tmp_path: Path) -> None:
    chosen, plain, model = FAMILIES[name], read(family(name, "1:2:4")), read(family(name, "1:2:4"))
    for each in (plain, model):
        apply(each, CpuInteger(layers(each)))
    apply(model, *cpu_fusions())
    assert operators(model)["MultiHeadAttention"] == chosen.fused
    assert operators(model)["QuantizeLinear"] == operators(plain)["QuantizeLinear"]
    save(model, tmp_path / "fused.onnx")
    for count in (1, 3):
        # A sum that is taken in another order may move an activation to the next of 256 levels.
        assert distance(model, plain, pictures(count, chosen.img_size), optimized=True) < 5e-3


@pytest.mark.parametrize("name", ["deit-distilled", "deit3", "cait", "qk-norm"])
def test_the_last_block_computes_what_the_head_reads(name: str) -> None:
    model = read(family(name, "1:2:4"))
    apply(model, *cpu_fusions())
    shapes = [each.outputs[0].shape for each in model.graph if each.op_type == "Gelu"]
    counts = [shape[1] for shape in shapes if shape is not None]
    assert counts[-1] == (2 if name == "deit-distilled" else 1)
    assert counts[0] != counts[-1]


@pytest.mark.parametrize("model", ["tiny", "sample"])
def test_two_runs_write_the_same_bytes(model: str, tmp_path: Path) -> None:
    for run_name in ("one", "two"):
        graph = read(exported(model=model))
        apply(graph, *cpu_fusions())
        save(graph, tmp_path / run_name)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_a_second_run_changes_nothing() -> None:
    model = read(exported())
    apply(model, *cpu_fusions())
    once = ir.to_proto(model).SerializeToString(deterministic=True)
    apply(model, *cpu_fusions())
    assert ir.to_proto(model).SerializeToString(deterministic=True) == once
