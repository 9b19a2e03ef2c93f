"""Inputs other than a square RGB picture, end to end: grey, arrays, sizes of two sides, opsets and what runs them."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from click.testing import CliRunner
from conftest import CALIBRATION, SAMPLE_WORDS, TINY, VALIDATION, Built
from exports import export_onnx
from PIL import Image

from vitexport import eager
from vitexport.apps import write_app
from vitexport.artifacts import BatchRange, silent
from vitexport.bundle import Manifest
from vitexport.cli.commands import cli
from vitexport.datasets import open_labelled
from vitexport.errors import InputError, UsageError, VitexportError
from vitexport.legality.requirements import BY_OPERATOR, BY_OPSET, least_onnx_runtime
from vitexport.pipeline import BuildRequest, plan, run
from vitexport.pipeline import choose as choosing
from vitexport.quantize.degrade import KINDS, degraded
from vitexport.rewrites import apply
from vitexport.rewrites import load as load_onnx
from vitexport.rewrites.cpu_fusions import cpu_fusions
from vitexport.runtime import load as load_bundle
from vitexport.runtime.backends.onnx_runtime import OnnxRuntimeBackend
from vitexport.source import ModelRequest, load
from vitexport.source.request import create_kwargs
from vitexport.stacks.delivery import least_tensorrt
from vitexport.targets import resolve, with_opset
from vitexport.triton import ServeRequest
from vitexport.triton.models import models_of
from vitexport.validate.budget import Budget
from vitexport.validate.device import validate_bundle

LOOSE = Budget(max_drop=100, min_agreement=0)


def build(out: Path, **changes: Any) -> Built:
    values: dict[str, Any] = {"target": "cpu", "precision": "fp32", "out": out, "budget": LOOSE}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(choosing, "LATENCY_SECONDS", 0.2)
        return Built(*run(BuildRequest(**(values | changes)), silent))


def tiny(**changes: Any) -> ModelRequest:
    return dataclasses.replace(TINY, **changes)


def statuses(built: Built) -> dict[str, str]:
    return {check.name: check.status for check in built.report.checks}


# ---- one channel


@pytest.fixture(scope="module")
def grey(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """INT8 from pictures, with the model that takes the picture; written in opset 17."""
    return build(
        tmp_path_factory.mktemp("grey") / "grey",
        model=tiny(in_chans=1, num_classes=10),
        precision="int8",
        calibration=CALIBRATION,
        calibration_size=32,
        data=VALIDATION,
        embed_preprocess=True,
        opset=17,
    )


def test_a_grey_model_is_built_quantized_and_judged(grey: Built) -> None:
    manifest, seen = grey.bundle.manifest, statuses(grey)
    assert manifest.preprocess.channels == 1
    assert manifest.model["kwargs"]["in_chans"] == 1
    assert manifest.precision == "int8"
    assert manifest.labels == tuple("0123456789")
    kept = ("export_parity", "picture_mean", "picture_largest", "picture_outputs")
    assert {name: seen[name] for name in kept} == dict.fromkeys(kept, "passed")
    pixels, _ = grey.bundle.golden()
    assert pixels.shape[1:] == (32, 32, 1)


def test_it_sees_a_picture_in_colour_and_its_grey_alike(grey: Built, tmp_path: Path) -> None:
    with load_bundle(grey.root) as model:
        colour = Image.fromarray(np.random.default_rng(0).integers(0, 256, (45, 60, 3), dtype=np.uint8))
        colour.save(tmp_path / "colour.png")
        colour.convert("L").save(tmp_path / "grey.png")
        files = model.predict([tmp_path / "colour.png", tmp_path / "grey.png"]).logits
        arrays = model.predict([colour, np.asarray(colour), np.asarray(colour.convert("L"))]).logits
        np.testing.assert_array_equal(files, np.repeat(files[:1], 2, axis=0))
        np.testing.assert_array_equal(arrays, np.repeat(files[:1], 3, axis=0))
        with pytest.raises(InputError, match=r"\(1, 3, 32, 32\); expected \[n, 1, 32, 32\]"):
            model.predict_tensor(np.zeros((1, 3, 32, 32), np.float32))


def test_the_file_that_takes_pictures_takes_rgb_and_answers_the_same(grey: Built) -> None:
    app = OnnxRuntimeBackend(grey.root / "model.app.onnx")
    with load_bundle(grey.root) as model:
        for path in sorted(VALIDATION.glob("*/*.png"))[::60]:
            with Image.open(path) as picture:
                rgb = np.asarray(picture.convert("RGB"))
            np.testing.assert_allclose(app.run(rgb[None])["logits"], model.predict(rgb).logits, atol=1e-5)


def test_the_device_and_the_command_line_judge_it(grey: Built) -> None:
    with load_bundle(grey.root) as model:
        data = open_labelled(VALIDATION, labels=None, synsets=None, classes=10, channels=1)
        report = validate_bundle(model, data, LOOSE, silent)
    passed = {check.name for check in report.checks if check.status == "passed"}
    assert {"preprocessing", "decoding", "golden"} <= passed
    result = CliRunner().invoke(cli, ["inspect", str(grey.root)], catch_exceptions=False)
    assert "32 x 32 grey" in result.output
    assert "model.onnx: ONNX Runtime 1.16 (opset 17, IR version 8)" in result.output


def test_projects_and_triton_show_it_pictures_in_colour(grey: Built, tmp_path: Path) -> None:
    assert "model.onnx" in write_app(grey.bundle, "node", tmp_path / "node")
    picture = models_of([grey.bundle], "grey", ServeRequest())[0]
    assert picture.golden is not None
    assert picture.golden.shape == (1, 32, 32, 3)
    assert [-1, -1, 3] in [entry["dims"][-3:] for entry in picture.config["input"]]


def test_statistics_are_averaged_as_timms_loader_does_and_the_user_s_must_fit() -> None:
    from timm.data.loader import adapt_to_chs

    _, source = load(ModelRequest(name="deit_tiny_patch16_224", pretrained=False, kwargs={"depth": 1, "in_chans": 1}))
    assert source.preprocess.mean == adapt_to_chs((0.485, 0.456, 0.406), 1)
    assert source.preprocess.std == adapt_to_chs((0.229, 0.224, 0.225), 1)
    _, source = load(tiny(in_chans=1, mean=(0.5, 0.5, 0.5), std=(0.25,)))
    assert (source.preprocess.mean, source.preprocess.std) == ((0.5,), (0.25,))
    with pytest.raises(UsageError, match="mean has 3 values; give one, or one for each of the model's 1 channels"):
        load(tiny(in_chans=1, mean=(0.4, 0.5, 0.6)))


# ---- arrays


def put_arrays(root: Path, count: int) -> Path:
    """Digits as arrays of four channels, by class."""
    for folder in ("3", "7"):
        (root / folder).mkdir(parents=True)
        for path in sorted((VALIDATION / folder).glob("*.png"))[:count]:
            with Image.open(path) as picture:
                rgb = np.asarray(picture.convert("RGB").resize((40, 36)))
            np.save(root / folder / f"{path.stem}.npy", np.concatenate([rgb, rgb[:, ::-1, :1]], axis=2))
    return root


@pytest.fixture(scope="module")
def arrays(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return put_arrays(tmp_path_factory.mktemp("arrays"), 16)


@pytest.fixture(scope="module")
def four(arrays: Path, tmp_path_factory: pytest.TempPathFactory) -> Built:
    """Four channels, not square, INT8 from arrays."""
    return build(
        tmp_path_factory.mktemp("four") / "four",
        model=tiny(in_chans=4, num_classes=2, img_size=(32, 48), mean=(0.1, 0.2, 0.3, 0.4), std=(0.2,)),
        precision="int8",
        calibration=arrays,
        data=arrays,
        embed_preprocess=True,
    )


def test_a_model_of_four_channels_is_built_from_arrays(four: Built, arrays: Path) -> None:
    manifest, seen = four.bundle.manifest, statuses(four)
    assert manifest.preprocess.mean == (0.1, 0.2, 0.3, 0.4)
    assert {seen[name] for name in ("export_parity", "picture_mean", "picture_largest", "picture_outputs")} == {"passed"}
    path = next(arrays.glob("3/*.npy"))
    app = OnnxRuntimeBackend(four.root / "model.app.onnx")
    with load_bundle(four.root) as model:
        array = np.load(path)
        wanted = model.predict(array).logits
        np.testing.assert_array_equal(model.predict([str(path)]).logits, wanted)
        np.testing.assert_allclose(app.run(array[None])["logits"], wanted, atol=1e-5)
        with pytest.raises(InputError, match="a model of 4 channels takes arrays"):
            model.predict(VALIDATION / "3" / "digit_0045.png")
        labelled = open_labelled(arrays, labels=manifest.labels, synsets=None, classes=2, channels=4)
        report = validate_bundle(model, labelled, LOOSE, silent)
    passed = {check.name for check in report.checks if check.status == "passed"}
    assert {"preprocessing", "decoding", "golden"} <= passed


def test_pytorch_is_timed_with_the_same_input(four: Built) -> None:
    module = eager._same_architecture(Manifest.from_json(four.bundle.manifest.to_json()))
    assert not isinstance(module, str), module


def test_an_application_shows_pictures_and_triton_takes_arrays(four: Built, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="takes arrays of 4 channels"):
        write_app(four.bundle, "node", tmp_path / "node")
    golden = models_of([four.bundle], "four", ServeRequest())[0].golden
    assert golden is not None
    assert golden.shape[-3:] == (32, 48, 4)


def test_a_folder_of_pictures_is_none_of_arrays(tmp_path: Path) -> None:
    request = BuildRequest(
        model=tiny(in_chans=4), target="cpu", precision="int8", calibration=CALIBRATION, out=tmp_path / "out"
    )
    messages = [finding.message for finding in plan(request).findings]
    assert any(r"expected files ending in .npy, arrays uint8 [height, width, 4]" in message for message in messages)


@pytest.mark.parametrize("channels", [1, 2, 3, 5])
def test_every_kind_of_degradation_takes_any_channels(channels: int) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (24, 40, channels), dtype=np.uint8)
    for number in range(KINDS):
        changed = degraded(pixels, number)
        assert changed.shape == pixels.shape
        assert changed.dtype == np.uint8
        assert not np.array_equal(changed, pixels)
        if channels != 3 and number != 0:  # noise is drawn for all channels together
            alone = [degraded(pixels[:, :, index : index + 1], number) for index in range(channels)]
            np.testing.assert_array_equal(changed, np.concatenate(alone, axis=2))


def test_channels_given_twice_must_agree() -> None:
    assert create_kwargs(tiny(in_chans=1, kwargs={"in_chans": 1}))["in_chans"] == 1
    with pytest.raises(UsageError, match="in_chans was given twice, as 1 and as model keyword 4"):
        create_kwargs(tiny(in_chans=1, kwargs={"in_chans": 4}))
    assert create_kwargs(tiny(img_size=32, kwargs={"img_size": [32, 32]}))["img_size"] == 32
    with pytest.raises(InputError, match="torchvision's models take 3 channels"):
        load(ModelRequest(name="torchvision:vit_b_32", pretrained=False, in_chans=1))


# ---- sizes

SMALL: dict[str, dict[str, Any]] = {
    "vit_tiny_patch16_224": {"embed_dim": 32, "depth": 1, "num_heads": 2},
    "deit_tiny_distilled_patch16_224": {"embed_dim": 32, "depth": 1, "num_heads": 2},
    "beit_base_patch16_224": {"embed_dim": 32, "depth": 1, "num_heads": 2},
    "eva02_tiny_patch14_224": {"patch_size": 16, "embed_dim": 32, "depth": 1, "num_heads": 2},
    "swin_tiny_patch4_window7_224": {"embed_dim": 16, "depths": (2, 1), "num_heads": (1, 2), "window_size": 4},
}


@pytest.mark.parametrize("name", SMALL)
def test_a_size_of_two_sides_is_exported_and_computes_the_same(name: str, tmp_path: Path) -> None:
    model, source = load(ModelRequest(name=name, pretrained=False, kwargs=SMALL[name], num_classes=5, img_size=(64, 96)))
    assert (source.preprocess.height, source.preprocess.width) == (64, 96)
    onnx = export_onnx(model, source, tmp_path, opset=20, layernorm_op=True, batch=BatchRange.parse("1"))
    image = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(1))
    wanted = model(image)[0].numpy()
    assert np.abs(OnnxRuntimeBackend(onnx.path).run(image.numpy())["logits"] - wanted).max() < 1e-4 * np.abs(wanted).max()
    graph = load_onnx(onnx.path)
    apply(graph, *cpu_fusions())
    backend = OnnxRuntimeBackend(ir.to_proto(graph).SerializeToString())
    assert np.abs(backend.run(image.numpy())["logits"] - wanted).max() < 1e-4 * np.abs(wanted).max()


@pytest.mark.parametrize("words", ["256x", "0", "axb", "1x2x3", "32x0", "-4", ""])
def test_what_is_no_size_is_refused(words: str) -> None:
    result = CliRunner().invoke(cli, ["plan", "vit_tiny_patch16_224", "--target", "cpu", "--img-size", words])
    assert result.exit_code == 2
    assert "is not a size in pixels, for example 224, or 256x128 (height x width)" in " ".join(result.output.split())


def test_the_words_of_the_command_line_reach_the_plan(tmp_path: Path) -> None:
    words = [*SAMPLE_WORDS[:-8], "--img-size", "32x64", "--num-classes", "10", "--crop-mode", "squash", "--in-chans", "1"]
    words = [word for word in words if word != str(SAMPLE_WORDS[2])]
    words.remove("--checkpoint")
    words += ["--no-pretrained", "--model-kwarg", "dynamic_img_size=True", "--opset", "15", "-o", str(tmp_path / "out")]
    result = CliRunner().invoke(cli, ["plan", *words, "--target", "cpu"], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert "32 x 64 pixels, grey" in result.output
    assert "ONNX opset 15" in result.output
    assert "was made with dynamic_img_size; it is exported for 32 x 64 only" in result.output


def test_the_crop_mode_is_the_user_s_or_the_model_s_own() -> None:
    assert load(tiny())[1].preprocess.crop_mode == "center"
    assert load(tiny(crop_mode="border"))[1].preprocess.crop_mode == "border"


# ---- opsets, and what runs them


@pytest.mark.parametrize(
    ("target", "jetpack", "precision", "legal", "illegal", "reason"),
    [
        ("cpu", None, "int8", range(13, 21), 12, "vitexport writes 13 and newer. Give one from 13 to 20"),
        ("cpu", None, "fp32", (20,), 21, "20 is the newest that vitexport writes for ONNX Runtime"),
        ("l4", None, "int8", (19, 20), 18, "needs Q/DQ with float16 scales, which opset 19 brought. Give one from 19 to 20"),
        ("l4", None, "fp16", (17, 20), 16, "needs LayerNormalization, which opset 17 brought. Give one from 17 to 20"),
        ("l4", None, "fp32", (13, 20), 12, "Give one from 13 to 20"),
        ("jetson-xavier-nx", "5.1", "int8", (13, 17), 18, "17 is the newest that vitexport writes for TensorRT 8.5.2"),
        ("jetson-nano", "4.6", "fp32", (13,), 14, r"TensorRT 8.2.1. Give one 13"),
    ],
)
def test_an_opset_is_taken_where_the_target_reads_it(  # noqa: PLR0917
    target: str, jetpack: str | None, precision: str, legal: Any, illegal: int, reason: str
) -> None:
    resolved = resolve(target, jetpack=jetpack)
    for opset in legal:
        changed = with_opset(resolved, opset, [precision])
        assert changed.opset == opset
        assert changed.layernorm_op == (resolved.layernorm_op and opset >= 17)
    with pytest.raises(UsageError, match=f"Opset {illegal} is refused for .*{reason}"):
        with_opset(resolved, illegal, [precision])


@pytest.fixture(scope="module")
def sources() -> Any:
    return load(tiny())


@pytest.mark.parametrize("opset", [13, 16, 18])
def test_every_opset_computes_the_same_and_names_the_runtime_that_was_tried(
    opset: int, sources: Any, tmp_path: Path
) -> None:
    model, source = sources
    path = export_onnx(model, source, tmp_path, opset=opset, layernorm_op=opset >= 17, batch=BatchRange.parse("1")).path
    graph = load_onnx(path)
    assert graph.opset_imports[""] == opset
    image = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    np.testing.assert_allclose(OnnxRuntimeBackend(path).run(image.numpy())["logits"], model(image)[0].numpy(), atol=1e-5)
    assert least_onnx_runtime(graph) == BY_OPSET[opset]
    apply(graph, *cpu_fusions())
    assert least_onnx_runtime(graph) == max(BY_OPSET[opset], BY_OPERATOR["MultiHeadAttention"], key=float)
    weak, strong = resolve("jetson-xavier-nx", jetpack="5.1"), resolve("jetson-orin-nano-8gb", jetpack="6.2")
    # The fused graph has LayerNormalization where the opset has it, and no TensorRT before 8.6 does.
    assert least_tensorrt(graph, strong, held_layers=False) == "10.3.0"
    if opset == 13:
        assert least_tensorrt(graph, weak, held_layers=False) == "8.2.1"
    if opset < 17:
        assert least_tensorrt(graph, weak, held_layers=True) == "8.4.1"


def test_the_manifest_says_what_runs_each_file(grey: Built, weak_bundle: Built, l4_bundle: Built) -> None:
    needs = grey.bundle.manifest.requires
    assert set(needs) == {"onnx", "onnx_float", "onnx_app"}
    assert needs["onnx_float"] == {"onnxruntime": "1.12", "opset": 17, "ir_version": 8}
    assert needs["onnx_app"]["onnxruntime"] == "1.16"
    assert weak_bundle.bundle.manifest.requires["engine"] == {"tensorrt": "8.4.1"}
    assert l4_bundle.bundle.manifest.requires["engine"] == {"tensorrt-rtx": "1.7.1"}
    old = {key: value for key, value in grey.bundle.manifest.to_json().items() if key != "requires"}
    assert Manifest.from_json(old).requires == {}
    with pytest.raises(TypeError, match="requires is not what vitexport writes"):
        Manifest.from_json({**old, "requires": {"onnx": {"onnxruntime": [1]}}})


def test_an_operator_of_no_known_release_is_an_error() -> None:
    graph = ir.Graph([], [], nodes=[ir.Node("com.microsoft", "Unheard", [])], opset_imports={"": 17, "com.microsoft": 1})
    with pytest.raises(VitexportError, match=r"No release of ONNX Runtime is known to have com\.microsoft\.Unheard"):
        least_onnx_runtime(ir.Model(graph, ir_version=8))
