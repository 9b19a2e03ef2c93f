from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from conftest import ROOT
from exports import export_onnx, exported, live
from graphs import LOGITS, operators, read, run, valid_in
from numpy.typing import NDArray
from torch import nn

from vitexport.artifacts import INPUT_NAME, BatchRange, ModelSource
from vitexport.errors import ToolchainError
from vitexport.source import Exposed, ModelRequest, load
from vitexport.validate.reference import reference_outputs

# opset, and whether the target's parser has LayerNormalization: TensorRT 10, 8.6, 8.5, 8.2.
STACKS = [(20, True), (17, True), (17, False), (13, False)]


def images(count: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(0, 1, (count, 3, 32, 32)).astype(np.float32)


def pytorch(model: Exposed, batch: NDArray[np.float32]) -> NDArray[np.float32]:
    return reference_outputs(model, model.specs, batch)[LOGITS]


@pytest.mark.parametrize(("opset", "layernorm_op"), STACKS)
@pytest.mark.parametrize("count", [1, 2, 3, 8])
def test_a_dynamic_graph_agrees_with_pytorch_at_every_batch(opset: int, count: int, *, layernorm_op: bool) -> None:
    batch = images(count, seed=count)
    logits = run(exported("1:4:8", opset, layernorm_op=layernorm_op), batch)
    assert logits.shape == (count, 7)
    np.testing.assert_allclose(logits, pytorch(live()[0], batch), atol=1e-4)


def test_a_static_graph_agrees_with_pytorch() -> None:
    np.testing.assert_allclose(run(exported("2"), images(2)), pytorch(live()[0], images(2)), atol=1e-4)


@pytest.mark.parametrize(("batch", "expected"), [("1:4:8", "batch"), ("2", 2)])
def test_the_interface_says_which_batches_are_taken(batch: str, expected: str | int) -> None:
    graph = onnx.load_model_from_string(exported(batch)).graph
    (image,), (logits,) = graph.input, graph.output
    assert (image.name, logits.name) == (INPUT_NAME, LOGITS)
    shapes = [[dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim] for value in (image, logits)]
    assert shapes == [[expected, 3, 32, 32], [expected, 7]]
    kinds = {value.type.tensor_type.elem_type for value in (image, logits)}
    assert kinds == {onnx.TensorProto.FLOAT}


@pytest.mark.parametrize("batch", ["1:4:8", "2"])
def test_layernorm_and_gelu_are_single_operators(batch: str) -> None:
    counts = operators(read(exported(batch)))
    # Two blocks with two norms each, and the last one.
    assert (counts["LayerNormalization"], counts["Gelu"], counts["Softmax"]) == (5, 2, 2)
    assert not counts.keys() & {"Erf", "Tanh", "ReduceMean", "Sqrt", "Pow"}
    # qkv, proj, fc1 and fc2, and the two products inside attention.
    assert counts["MatMul"] == 2 * 6


@pytest.mark.parametrize(("opset", "layernorm_op"), STACKS)
def test_the_file_is_valid_in_its_opset_and_in_no_later_ir_version(opset: int, *, layernorm_op: bool) -> None:
    proto = onnx.load_model_from_string(exported("1:4:8", opset, layernorm_op=layernorm_op))
    assert [(entry.domain, entry.version) for entry in proto.opset_import] == [("", opset)]
    # A parser of that opset's time reads IR versions up to its own only.
    assert proto.ir_version == {20: 9, 17: 8, 13: 7}[opset]
    model = read(proto.SerializeToString())
    valid_in(model, opset)
    assert operators(model)["LayerNormalization"] == (5 if layernorm_op else 0)


@pytest.mark.parametrize(("opset", "layernorm_op"), STACKS)
def test_every_node_is_named_after_a_timm_module(opset: int, *, layernorm_op: bool) -> None:
    modules = {name for name, _ in live()[0].model.named_modules()}
    model = read(exported("1:4:8", opset, layernorm_op=layernorm_op))
    names = [str(node.name) for node in model.graph]
    assert len(set(names)) == len(names)
    assert {name.partition("/")[0] for name in names if "/" in name} <= modules
    # Outside of any module stands only what the model's own forward does: class token, position embedding, pooling.
    allowed = {"Shape", "Concat", "Expand", "Add", "Gather", "Slice"}
    assert {name.partition(".")[0] for name in names if "/" not in name} <= allowed


def messages(proto: Any) -> list[Any]:
    """`proto` and every message in it."""
    found = [proto]
    for field, value in proto.ListFields():
        if field.message_type is not None:
            repeated = not hasattr(value, "ListFields")
            found += [inner for entry in (value if repeated else [value]) for inner in messages(entry)]
    return found


@pytest.mark.parametrize("batch", ["1:4:8", "2"])
def test_nothing_of_the_exporting_machine_is_in_the_file(batch: str) -> None:
    data = exported(batch)
    proto = onnx.load_model_from_string(data)
    for message in messages(proto):
        assert not getattr(message, "doc_string", "")
        assert not list(getattr(message, "metadata_props", ()))
    assert not proto.functions
    assert (proto.producer_name, proto.producer_version) == ("vitexport", "")
    for path in (ROOT, Path.home(), Path(torch.__file__).parent, Path.cwd()):
        assert str(path).encode() not in data


def export(folder: Path, module: Any, source: ModelSource, **changes: Any) -> Path:
    values: dict[str, Any] = {"opset": 20, "layernorm_op": True, "batch": BatchRange.parse("2"), **changes}
    return export_onnx(module, source, folder, **values).path


def test_the_same_model_gives_the_same_bytes(tmp_path: Path) -> None:
    assert export(tmp_path, *live()).read_bytes() == exported("2")


def test_what_leaves_describes_the_file(tmp_path: Path) -> None:
    module, source = live()
    model = export_onnx(module, source, tmp_path, opset=20, layernorm_op=True, batch=BatchRange.parse("2"))
    assert (model.opset, str(model.batch), model.precision) == (20, "2", "fp32")
    assert model.size == model.path.stat().st_size
    assert list(tmp_path.iterdir()) == [model.path]


def test_a_module_that_pytorch_cannot_export_is_a_toolchain_error(tmp_path: Path) -> None:
    class Branching(nn.Module):
        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return image.mean((2, 3)) if image.sum() > 0 else image.amax((2, 3))

    with pytest.raises(ToolchainError, match=r"PyTorch .* cannot export vit_tiny_patch16_224 with batch 2: "):
        export(tmp_path, Branching(), live()[1])
    assert not list(tmp_path.iterdir())


RELATIVES: dict[str, dict[str, Any]] = {
    # Windows that are padded and shifted, two stages.
    "swin_tiny_patch4_window7_224": {"embed_dim": 16, "depths": (1, 2), "num_heads": (2, 4), "window_size": 4},
    # Two class tokens and two heads, whose logits are averaged.
    "deit_tiny_distilled_patch16_224": {"patch_size": 8, "embed_dim": 32, "depth": 1, "num_heads": 2},
    # Relative positions, layer scale, no class token in the pooling.
    "beit_base_patch16_224": {"patch_size": 8, "embed_dim": 32, "depth": 1, "num_heads": 2},
}


@pytest.mark.parametrize("name", RELATIVES)
def test_a_relative_agrees_with_pytorch_at_every_batch(name: str, tmp_path: Path) -> None:
    request = ModelRequest(name=name, pretrained=False, kwargs=RELATIVES[name], img_size=32, num_classes=5)
    module, source = load(request)
    path = export(tmp_path, module, source, batch=BatchRange.parse("1:2:4"))
    modules = {name for name, _ in module.model.named_modules()}
    for count in (1, 3):
        expected = pytorch(module, images(count))
        np.testing.assert_allclose(run(path, images(count)), expected, atol=1e-4 * float(np.abs(expected).max()))
    names = {str(node.name) for node in read(path.read_bytes()).graph}
    assert {entry.partition("/")[0] for entry in names if "/" in entry} <= modules
