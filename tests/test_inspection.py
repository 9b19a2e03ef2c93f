"""What an engine inspector says, recorded and made: the table, the sentence and the checks of it."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, Built
from fakes import fake_inspector
from hypothesis import given
from hypothesis import strategies as st

from vitexport.cli.commands import cli
from vitexport.device import inspect_file
from vitexport.errors import InputError
from vitexport.report import block_rows
from vitexport.runtime.inspection import Inspection, block_of, checks, inspect_engine, read_layers

RECORDED = ROOT / "tests" / "data" / "inspector"
LAYOUTS = ("10", "11")
LINEAR = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")


def recorded(name: str) -> Inspection:
    return inspect_engine((RECORDED / name).read_text(encoding="utf-8"))


def vit(
    depth: int = 12,
    *,
    layout: str = "10",
    unfused: Sequence[int] = (),
    wide: Sequence[str] = (),
    precision: str = "Half",
    head: int = 32,
    tokens: int = 65,
) -> str:
    """What the inspector says of a ViT of `depth` blocks: W8A8 layers, attentions in `precision`."""
    layers = [fake_inspector.linear("patch_embed.proj", "Half", "Conv")]
    for number in range(depth):
        block = f"blocks.{number}"
        modules = [f"{block}.{name}" for name in LINEAR]
        layers += [fake_inspector.linear(module, "Float" if module in wide else "Int8") for module in modules]
        layers += fake_inspector.attention(f"{block}.attn", precision, fused=number not in unfused, head=head, tokens=tokens)
    layers.append(fake_inspector.layer("Reformatting CopyNode for Input Tensor 0 to head/Gemm", "Reformat", [], [], [], ""))
    return fake_inspector.say(layers, ["image", "logits"], layout=layout, detailed=True)


def names(depth: int = 12) -> list[str]:
    return [f"blocks.{number}.{name}" for number in range(depth) for name in LINEAR]


# ---- recorded


@pytest.mark.parametrize("name", ["bert-10.10.json", "bert-11-made.json"])
def test_a_recorded_transformer_in_both_layouts(name: str) -> None:
    found = recorded(name)
    assert found.sentence == "2/2 attentions fused; all 5 linear layers in FP16; 0 reformats"
    assert [block.name for block in found.blocks] == [f"encoder.layers.{number}" for number in (2, 3, 8)] + [""]
    assert [(each.head, each.tokens, each.is_documented) for each in found.attentions] == [(64, 40, True)] * 2
    # Key, query and value are one kernel.
    assert found.blocks[0].linear == dict.fromkeys(
        (f"encoder.layers.2.mha.attn.{name}" for name in ("mha_prob.key", "mha_prob.query", "value")), "FP16"
    )
    assert [check.status for check in checks(found)] == ["passed"]


def test_a_recorded_engine_of_tensorrt_11() -> None:
    layers = read_layers((RECORDED / "cnn-11.0.json").read_text(encoding="utf-8"))
    by_name = {layer.name: layer for layer in layers}
    assert by_name["node_linear_myl0_7"].precision == "TF32"
    assert [(tensor.precision, tensor.shape) for tensor in by_name["node_linear_myl0_7"].inputs] == [("FP32", (-1, 3136))]
    assert by_name["node_conv2d_myl0_2"].nodes == ("node_conv2d", "node_relu")
    assert [layer.name for layer in layers if layer.is_reformat] == ["__myl_Move_myl0_1", "__myl_CastReshCast_myl0_11"]
    [check] = checks(recorded("cnn-11.0.json"))
    assert (check.status, check.message) == ("skipped", "no attention is to be seen in the engine's 6 layers")


def test_recorded_gemms_with_q_dq_of_which_one_stayed_float() -> None:
    found = recorded("mlp-int8-10.json")
    assert found.linear == {"fc1": "INT8", "fc2": "TF32"}
    check = checks(found, ["fc1", "fc2"])[1]
    assert (check.status, check.measured, check.limit) == ("failed", 50.0, 90.0)
    assert check.message == "1 of 2 layers of the INT8 recipe are multiplied in INT8; fc2 in TF32"


def test_of_what_tensorrt_8_compiled_as_a_whole_nothing_is_said() -> None:
    found = recorded("diffusion-8.6.json")
    assert found.sentence == "1 of 3 layers are whole subgraphs, of which TensorRT shows nothing; 1 reformat"
    assert found.linear == {"input_blocks.2.input_blocks.2.1.proj_out": "FP16"}
    for check in checks(found, ["blocks.0.attn.qkv"]):
        assert check.status == "skipped"
        assert "TensorRT shows 1 of the engine's 3 layers as whole subgraphs (8.x does" in check.message


# ---- sentences, tables and checks


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_network_as_it_should_be(layout: str) -> None:
    found = inspect_engine(vit(layout=layout))
    assert found.sentence == "12/12 attentions fused; all 48 linear layers in INT8; 1 reformat"
    assert block_rows(found.to_json()["blocks"]) == [
        ("blocks.0 … blocks.11", "fused, FP16", f"INT8 {', '.join(LINEAR)}", "0"),
        ("elsewhere", "", "FP16 patch_embed.proj", "1"),
    ]
    assert [(check.name, check.status, check.measured) for check in checks(found, names())] == [
        ("fused_attention", "passed", 0),
        ("int8_layers", "passed", 100.0),
    ]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_differs_is_named(layout: str) -> None:
    found = inspect_engine(vit(layout=layout, unfused=[3], wide=["blocks.7.mlp.fc2"]))
    assert found.sentence == (
        "11/12 attentions fused; 47 of 48 linear layers in INT8, mlp.fc2 of blocks.7 in FP32; 1 reformat"
    )
    rows = block_rows(found.to_json()["blocks"])
    assert [row[0] for row in rows] == [
        "blocks.0 … blocks.2",
        "blocks.3",
        "blocks.4 … blocks.6",
        "blocks.7",
        "blocks.8 … blocks.11",
        "elsewhere",
    ]
    assert rows[1][1] == "not fused, FP16"
    assert rows[3][2] == "INT8 attn.qkv, attn.proj, mlp.fc1; FP32 mlp.fc2"
    fused, int8 = checks(found, names())
    assert (fused.status, fused.measured, fused.limit) == ("failed", 1, 0)
    assert fused.message.endswith("not fused although TensorRT documents it: blocks.3.attn")
    assert (int8.status, int8.limit) == ("passed", 90.0)
    assert int8.message.endswith("; blocks.7.mlp.fc2 in FP32")


def test_more_than_one_layer_in_ten_in_float_fails() -> None:
    wide = names()[:5]
    check = checks(inspect_engine(vit(wide=wide)), names())[1]
    assert check.status == "failed"
    assert check.message == (
        "43 of 48 layers of the INT8 recipe are multiplied in INT8; blocks.0.attn.qkv in FP32, blocks.0.attn.proj in FP32, "
        "blocks.0.mlp.fc1 in FP32 and 2 more"
    )
    assert checks(inspect_engine(vit(wide=wide[:4])), names())[1].status == "passed"


@pytest.mark.parametrize(
    ("precision", "head", "tokens", "expected"),
    [
        ("Half", 64, 197, "failed"),
        ("BFloat16", 64, 197, "failed"),
        ("Half", 16, 5000, "failed"),
        ("Half", 12, 197, "passed"),
        ("Half", 264, 197, "passed"),
        ("Float", 64, 197, "passed"),
        ("Int8", 64, 512, "failed"),
        ("Int8", 64, 577, "passed"),
        ("Int8", 48, 197, "passed"),
    ],
)
def test_only_an_attention_that_is_documented_to_be_fused_has_to_be(
    precision: str, head: int, tokens: int, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(fake_inspector.KERNELS, "BFloat16", "sm80_xmma_gemm_bf16bf16_bf16f32_f32_tn_n_tilesize32x32x64")
    found = inspect_engine(vit(unfused=range(12), precision=precision, head=head, tokens=tokens))
    assert {(each.head, each.tokens) for each in found.attentions} == {(head, tokens)}
    [check] = checks(found)
    assert check.status == expected
    assert ("does not document" in check.message) == (expected == "passed")


def test_an_attention_of_one_odd_kernel_is_fused() -> None:
    layers = fake_inspector.attention("blocks.0.attn", "Half", fused=True, kernel=False)
    found = inspect_engine(fake_inspector.say(layers, [], layout="10", detailed=True))
    assert [each.fused for each in found.attentions] == [True]


def test_a_layer_that_is_not_to_be_seen_does_not_count_as_int8() -> None:
    found = inspect_engine(vit(depth=1))
    check = checks(found, [*names(1), "blocks.9.mlp.fc1"])[1]
    assert (
        check.message == "4 of 4 layers of the INT8 recipe are multiplied in INT8 (1 more are not to be seen in the engine)"
    )
    assert checks(found, ["blocks.9.mlp.fc1"])[1].status == "skipped"


def test_what_prepares_an_operand_does_not_say_how_it_is_multiplied() -> None:
    nodes = ["blocks.0.mlp.fc1/MatMul"]
    layers = [
        fake_inspector.layer("__myl_MoveConc_myl0_0", "kgen", nodes, [("Float", (1, 4))], [("Float", (1, 4))], "__myl_0x1"),
        fake_inspector.linear("blocks.0.mlp.fc1", "Int8"),
    ]
    assert inspect_engine(fake_inspector.say(layers, [], layout="10", detailed=True)).linear == {"blocks.0.mlp.fc1": "INT8"}


def test_without_detailed_verbosity_only_kernels_are_counted() -> None:
    text = fake_inspector.say(json.loads(vit())["Layers"], [], layout="10", detailed=False)
    found = inspect_engine(text)
    assert found.named_only
    assert found.sentence.startswith("12 fused attentions, by the names of their kernels")
    for check in checks(found, names()):
        assert check.status == "skipped"
        assert "names of its layers only" in check.message


@pytest.mark.parametrize(
    ("tactic", "precision"),
    [
        ("sm80_xmma_gemm_i8f32_i8i32_f32_tn_n_tilesize64x64x64", "INT8"),
        ("sm80_xmma_gemm_f16f16_f16f32_f32_tn_n_tilesize32x32x64", "FP16"),
        ("cutlass3x_sm100_tensorop_s256x256x32gemm_f8_f8_f32_f16_f16", "FP8"),
        ("ampere_h16816gemm_128x64_ldg8_relu_stages_32x6_nn_v1", "FP16"),
        ("turing_int8_i8816gemm_int8_128x128_ldg16_mma_int8", "INT8"),
        ("sm50_xmma_cublas_gemvx_f16f16_f32", "FP16"),
        # A kernel whose name does not say: by what goes in.
        ("__myl_FcCastAddErf_0x1657adf8", "INT8"),
    ],
)
def test_a_kernel_says_what_it_multiplies(tactic: str, precision: str) -> None:
    inputs = [("Half", (1, 4)), ("Int8", (1, 4))]
    layer = fake_inspector.layer("x", "gemm", ["blocks.0.mlp.fc1/MatMul"], inputs, [("Half", (1, 4))], tactic)
    [read] = read_layers(json.dumps({"Layers": [layer]}))
    assert read.precision == precision


@pytest.mark.parametrize(
    ("module", "block"),
    [
        ("blocks.7.mlp.fc2", "blocks.7"),
        ("blocks.7", "blocks.7"),
        ("layers.0.blocks.1.attn.qkv", "layers.0.blocks.1"),
        ("layers.2.downsample.reduction", "layers.2"),
        ("stages.3.blocks.0.conv.conv1_1x1", "stages.3.blocks.0"),
        ("blocks.0.1.attn", "blocks.0.1"),
        ("encoder.layers.encoder_layer_11.mlp.0", "encoder.layers.encoder_layer_11"),
        ("patch_embed.proj", ""),
        ("head", ""),
        ("", ""),
    ],
)
def test_the_block_of_a_module(module: str, block: str) -> None:
    assert block_of(module) == block


# ---- files


@pytest.mark.parametrize(
    "text",
    ["", "no JSON", "[]", "{}", '{"Layers": 3}', '{"Layers": "abc"}', '{"Layers": [3]}', '{"Layers": [{"LayerType": "x"}]}'],
)
def test_what_is_no_inspectors_file_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "layers.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(
        InputError, match=r"layers\.json: This is not what TensorRT's engine inspector writes .*exportLayerInfo"
    ):
        inspect_file(path, None)


@pytest.mark.parametrize("make", [lambda path: None, lambda path: path.write_bytes(b"\xff\xfe{}"), Path.mkdir])
def test_a_file_that_cannot_be_read_is_refused(make: Any, tmp_path: Path) -> None:
    make(tmp_path / "layers.json")
    with pytest.raises(InputError, match="cannot be read"):
        inspect_file(tmp_path / "layers.json", None)


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=9),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["Name", "LayerType", "Inputs", "Metadata", "Dimensions", "Datatype"]), inner, max_size=4
        )
    ),
    max_leaves=9,
)


@given(JSON_VALUES)
def test_any_json_is_read_or_refused(value: Any) -> None:
    with contextlib.suppress(InputError):
        checks(inspect_engine(json.dumps({"Layers": [value]})), ["blocks.0.mlp.fc1"])


def test_the_command_reads_a_file_of_any_engine(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "layers.json"
    path.write_text(vit(unfused=[3]), encoding="utf-8")
    assert cli.main(["layers", str(path)], standalone_mode=False) == 1
    shown = capsys.readouterr().out
    assert "failed  fused_attention  11/12 attentions fused" in shown
    assert "blocks.3" in shown
    assert cli.main(["layers", str(path), "--json"], standalone_mode=False) == 1
    assert json.loads(capsys.readouterr().out)["measurements"]["blocks"]["blocks.3"]["attention"] == "not fused, FP16"


def test_the_command_holds_an_engine_against_a_bundles_recipe(jetson_bundle: Built, tmp_path: Path) -> None:
    path = tmp_path / "layers.json"
    path.write_text(vit(depth=3), encoding="utf-8")
    report = inspect_file(path, jetson_bundle.root)
    assert [(check.name, check.status) for check in report.checks] == [
        ("fused_attention", "passed"),
        ("int8_layers", "passed"),
    ]
    assert "12 of 12 layers of the INT8 recipe" in report.checks[1].message
    assert "What TensorRT made of the blocks" in report.to_markdown()
