"""Whole builds through the library: what ships, what is measured, and that the same inputs give the same bytes."""

from __future__ import annotations

import dataclasses
import importlib
import json
import re
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from conftest import CALIBRATION, SAMPLE, TINY, VALIDATION, Built, sample_request, several_request
from graphs import LOGITS
from numpy.typing import NDArray

from vitexport.artifacts import BatchRange, Outputs, OutputSpec, Precision, Product, silent
from vitexport.bundle import open_bundle
from vitexport.errors import NothingToQuantizeError, UsageError, VitexportError
from vitexport.pipeline import BuildRequest, plan, run
from vitexport.pipeline import reference as pipeline_reference
from vitexport.pipeline.candidates import Candidate
from vitexport.pipeline.choose import choose
from vitexport.preprocess import normalize
from vitexport.report import Check, Status
from vitexport.roofline import predict
from vitexport.runtime import load
from vitexport.source import ModelRequest
from vitexport.source import load as load_model
from vitexport.stacks import Variant
from vitexport.targets import machine_cpu, misfit, resolve
from vitexport.validate.budget import Budget
from vitexport.validate.metrics import sqnr_db
from vitexport.validate.numerics import Numerics
from vitexport.validate.reference import reference_outputs

ANYTHING = Budget(max_drop=100, min_agreement=0)


def checks(built: Built) -> dict[str, str]:
    return {check.name: check.status for check in built.report.checks}


def tiny(tmp_path: Path, target: str, **changes: object) -> Built:
    request = BuildRequest(model=TINY, target=target, out=tmp_path / "out", budget=ANYTHING)
    return Built(*run(dataclasses.replace(request, **changes), silent))  # type: ignore[arg-type]


def test_the_cpu_bundle_is_what_the_issue_asks_for(cpu_bundle: Built) -> None:
    manifest = cpu_bundle.bundle.manifest
    assert (manifest.precision, manifest.target.kind) == ("int8", "cpu")
    assert manifest.labels == ("0", "1", "2", "3", "4", "5", "6", "7", "8", "9")
    assert {"onnx", "onnx_float", "golden_pixels", "golden_preprocessed", "golden_logits"} == set(manifest.artifacts)
    assert manifest.recipe is not None
    assert len(manifest.recipe["images"]) == 64
    assert checks(cpu_bundle)["accuracy"] == "passed"
    stages = {stage.name for stage in cpu_bundle.report.stages}
    assert {"source", "export", "quantize", "validate int8", "latency"} <= stages
    assert all(stage.seconds >= 0 for stage in cpu_bundle.report.stages)
    assert {"pytorch", "int8", "fp32"} <= set(cpu_bundle.report.measurements["latency"])


def test_the_report_on_disk_is_the_report_returned(cpu_bundle: Built) -> None:
    assert open_bundle(cpu_bundle.root).report().to_json() == cpu_bundle.report.to_json()
    assert cpu_bundle.report.title in (cpu_bundle.root / "report.md").read_text(encoding="utf-8")


def test_the_int8_file_is_about_a_quarter_of_the_float_one(cpu_bundle: Built) -> None:
    size = cpu_bundle.report.measurements["size"]
    assert 0.2 < size["onnx_bytes"] / size["onnx_float_bytes"] < 0.33


def test_an_engine_is_compiled_and_its_run_skipped_with_a_reason(l4_bundle: Built) -> None:
    status = checks(l4_bundle)
    assert status["engine"] == "passed"
    engine = l4_bundle.bundle.artifact("engine")
    assert engine is not None
    assert engine.stat().st_size > 1_000_000
    if status["engine_output"] != "passed":
        message = next(check.message for check in l4_bundle.report.checks if check.name == "engine_output")
        assert "NVIDIA L4" in message


def test_a_jetson_bundle_says_how_its_engine_is_built(jetson_bundle: Built) -> None:
    assert checks(jetson_bundle)["engine"] == "skipped"
    engine = jetson_bundle.bundle.manifest.engine
    assert engine is not None
    how = "run vitexport engine BUNDLE there; or, without vitexport, its engine.sh, which calls trtexec"
    assert how in engine["skipped"]
    assert engine["recipe"]["trtexec"].startswith("trtexec --onnx=model.onnx --saveEngine=model.engine")
    assert "engine.sh" in jetson_bundle.bundle.manifest.files
    script = jetson_bundle.root / "engine.sh"
    assert engine["recipe"]["trtexec"] in script.read_text(encoding="utf-8")
    assert script.stat().st_mode & 0o111
    model = onnx.load(str(jetson_bundle.bundle.artifact("onnx")))
    scales = {node.input[1] for node in model.graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")}
    types = {tensor.data_type for tensor in model.graph.initializer if tensor.name in scales}
    assert types == {onnx.TensorProto.FLOAT16}


def test_the_same_inputs_give_the_same_bytes(cpu_bundle: Built, tmp_path: Path) -> None:
    again = Built(*run(sample_request(tmp_path / "again"), silent))
    before, after = cpu_bundle.bundle.manifest, again.bundle.manifest
    for role in ("onnx", "onnx_float", "golden_pixels", "golden_preprocessed", "golden_logits"):
        assert before.files[before.artifacts[role]] == after.files[after.artifacts[role]], role
    assert before.recipe == after.recipe


def test_another_calibration_set_gives_another_model(cpu_bundle: Built, tmp_path: Path) -> None:
    other = Built(*run(sample_request(tmp_path / "other", calibration=CALIBRATION / "3"), silent))
    assert other.bundle.manifest.files["model.onnx"] != cpu_bundle.bundle.manifest.files["model.onnx"]


@pytest.mark.parametrize(
    ("target", "jetpack", "opset", "absent"),
    [
        ("jetson-nano", None, 13, {"LayerNormalization", "Gelu"}),
        ("jetson-xavier-nx", "5.1", 17, {"LayerNormalization", "Gelu"}),
        ("jetson-orin-nano-8gb", "6.0", 17, {"Gelu"}),
    ],
)
def test_older_stacks_get_operators_that_they_have(
    tmp_path: Path, target: str, jetpack: str | None, opset: int, absent: set[str]
) -> None:
    built = tiny(tmp_path, target, jetpack=jetpack, batch=BatchRange.parse("1:2:4"))
    model = onnx.load(str(built.bundle.artifact("onnx")))
    assert {entry.domain: entry.version for entry in model.opset_import} == {"": opset}
    assert not absent & {node.op_type for node in model.graph.node}
    assert checks(built)["export_parity"] == "passed"
    engine = built.bundle.manifest.engine
    assert engine is not None
    assert engine["recipe"]["typing"] == "weak"
    # JetPack 4 has no way to hold a written-out LayerNormalization in float32 beside float16.
    assert engine["recipe"]["flags"] == ([] if target == "jetson-nano" else ["FP16"])


@pytest.mark.parametrize(("target", "jetpack"), [("jetson-orin-nano-8gb", "5.1"), ("h100-sxm", None)])
def test_float16_is_judged_as_float16_however_it_is_typed(target: str, jetpack: str | None, tmp_path: Path) -> None:
    built = Built(
        *run(sample_request(tmp_path / "out", target=target, jetpack=jetpack, precision="fp16", calibration=None), silent)
    )
    assert checks(built)["accuracy"] == "passed"
    # float32 against PyTorch is above 100 dB: whoever finds that has judged the graph before its types.
    for figures in (built.report.measurements["golden"], built.report.measurements["accuracy"]):
        assert 40 < figures["sqnr_db"] < 100
    # What was judged does not ship.
    assert {path.name for path in built.root.glob("*.onnx")} <= {"model.float.onnx", "model.onnx"}
    operators = [node.op_type for node in onnx.load(str(built.bundle.artifact("onnx"))).graph.node]
    assert operators.count("Cast") <= 2


def candidate(precision: Precision, status: Status) -> Candidate:
    check = Check(name="agreement", status=status, message="")
    graph = ir.Model(ir.Graph([], [], nodes=[]), ir_version=10)
    variant = Variant(precision=precision, graph=graph, plain=graph, stay_float32=frozenset())
    numerics = Numerics(checks=(check,), figures={})
    return Candidate(variant=variant, recipe=None, numerics=numerics, golden={}, raw_db={})


@pytest.mark.parametrize("target", ["b300", "l4"])
@pytest.mark.parametrize(
    ("int8", "fp16", "chosen", "why"),
    [
        ("failed", "failed", "fp16", "none was within the budget"),
        ("passed", "failed", "int8", "the fastest within the budget"),
        ("failed", "passed", "fp16", "the fastest within the budget"),
        ("passed", "passed", "the faster", "ordered by what the peak rates of"),
    ],
)
def test_auto_ships_what_is_within_the_budget_and_else_the_widest(
    target: str, int8: Status, fp16: Status, chosen: str, why: str
) -> None:
    # A B300 computes INT8 more slowly than FP16.
    peaks = resolve("b300").peaks
    assert peaks["int8"] < peaks["fp16"]
    candidates = [candidate("int8", int8), candidate("fp16", fp16)]
    request = BuildRequest(model=TINY, target=target, precision="auto", calibration=CALIBRATION)
    layer = Product(module="blocks.0.mlp.fc1", macs=10**9, weights=10**6, int8=True)
    prediction = predict(resolve(target), {"int8": [layer], "fp16": [layer]}, 1)
    best, [note] = choose(request, resolve(target), candidates, None, prediction)
    assert best.precision == {"the faster": "fp16" if target == "b300" else "int8"}.get(chosen, chosen)
    assert why in note


def test_auto_without_calibration_ships_float(tmp_path: Path) -> None:
    built = tiny(tmp_path, "cpu")
    assert built.bundle.manifest.precision == "fp32"
    assert any("`calibration`" in note for note in built.report.notes)
    # What ships is in ONNX Runtime's own operators; the float export, for any other runtime, lies beside it.
    operators = {
        role: {node.op_type for node in onnx.load(path).graph.node}
        for role in ("onnx", "onnx_float")
        if (path := built.bundle.artifact(role)) is not None
    }
    assert "MultiHeadAttention" in operators["onnx"]
    assert "MultiHeadAttention" not in operators["onnx_float"]


def test_auto_falls_back_when_int8_is_over_the_budget(tmp_path: Path) -> None:
    request = sample_request(
        tmp_path / "out", target="l4", precision="auto", budget=Budget(max_drop=0.0, min_agreement=100), data=None
    )
    built = Built(*run(request, silent))
    candidates = built.report.measurements["candidates"]
    assert set(candidates) == {"int8", "fp16"}
    expected = "int8" if candidates["int8"]["agreement_percent"] == 100 else "fp16"
    assert built.bundle.manifest.precision == expected


def test_a_bundle_for_another_cpu_is_judged_exactly_and_not_timed(tmp_path: Path) -> None:
    built = Built(*run(sample_request(tmp_path / "out", target="cpu-arm64-dotprod"), silent))
    assert misfit(resolve("cpu-arm64-dotprod"), machine_cpu(), precision="int8") is not None
    assert checks(built) == {
        "export_parity": "passed",
        "plausibility": "passed",
        "class_order": "passed",
        "preprocessing_choice": "passed",
        "accuracy": "passed",
        "latency": "skipped",
    }
    assert sorted(path.name for path in built.root.glob("*.onnx")) == ["model.float.onnx", "model.onnx"]
    with pytest.raises(VitexportError, match="AArch64"):
        load(built.root)


def test_a_dynamic_bundle_takes_every_batch_in_its_range(tmp_path: Path) -> None:
    built = tiny(tmp_path, "cpu", batch=BatchRange.parse("2:4:8"))
    model = load(built.root)
    pixels, _ = built.bundle.golden()
    for count in (1, 2, 7, 8, 20):
        result = model.predict(list(pixels[:count]))
        assert result.logits.shape == (count, 7)


def test_predictions_equal_the_golden_logits(cpu_bundle: Built) -> None:
    model = load(cpu_bundle.root)
    pixels, reference = cpu_bundle.bundle.golden()
    # Golden pixels have the input's size: resize and crop leave them as they are.
    result = model.predict(list(pixels))
    assert (result.logits.argmax(axis=1) == reference[LOGITS].argmax(axis=1)).mean() >= 0.97


# ---- several outputs, and none that names classes


def test_each_output_has_golden_arrays_figures_and_a_check(several_bundle: Built) -> None:
    manifest, report = several_bundle.bundle.manifest, several_bundle.report
    names = [LOGITS, "feature_0", "feature_1"]
    assert [output.name for output in manifest.outputs] == names
    assert manifest.num_classes == 10
    assert manifest.precision == "int8"
    assert {role for role in manifest.artifacts if role.startswith("golden_")} == {
        f"golden_{name}" for name in ("pixels", "preprocessed", *names)
    }
    assert set(manifest.files) >= {f"golden/{name}.npy" for name in names}
    seen = checks(several_bundle)
    assert [seen[name] for name in ("export_parity", "accuracy", "cosine_feature_0", "cosine_feature_1")] == ["passed"] * 4
    for figures in (report.measurements["candidates"]["int8"], report.measurements["golden"]):
        assert list(figures["outputs"]) == names
        for name in ("sqnr_db", "cosine"):
            assert figures[name] == min(of_output[name] for of_output in figures["outputs"].values())
        # INT8: neither float nor broken.
        assert all(25 < of_output["sqnr_db"] < 80 for of_output in figures["outputs"].values())
    page = (several_bundle.root / "report.md").read_text(encoding="utf-8")
    assert "## Each output against PyTorch" in page
    assert "| int8 | feature_1 | 0.99" in page


def test_golden_arrays_are_what_pytorch_computes(several_bundle: Built) -> None:
    pixels, golden = several_bundle.bundle.golden()
    exposed, source = load_model(several_request())
    computed = reference_outputs(exposed, source.outputs, normalize(pixels, source.preprocess))
    assert list(golden) == list(computed)
    for name, values in computed.items():
        np.testing.assert_allclose(golden[name], values, atol=1e-5 * float(np.abs(values).max()))
    # Without outputs of its own the model is the same: its classifier does not see that feature maps are taken.
    plain, alone = load_model(SAMPLE)
    logits = reference_outputs(plain, alone.outputs, normalize(pixels, source.preprocess))[LOGITS]
    np.testing.assert_allclose(golden[LOGITS], logits, atol=1e-5 * float(np.abs(logits).max()))


def test_a_prediction_has_every_output(several_bundle: Built, cpu_bundle: Built) -> None:
    pixels, golden = several_bundle.bundle.golden()
    prediction = load(several_bundle.root).predict(list(pixels[:3]))
    assert {name: values.shape for name, values in prediction.outputs.items()} == {
        LOGITS: (3, 10),
        "feature_0": (3, 128, 8, 8),
        "feature_1": (3, 128, 8, 8),
    }
    assert prediction.class_names == cpu_bundle.bundle.manifest.labels
    for name, values in prediction.outputs.items():
        assert sqnr_db(golden[name][:3], values) > 25


def test_a_bundle_without_classes_is_judged_by_cosine(embedding_bundle: Built) -> None:
    manifest = embedding_bundle.bundle.manifest
    assert manifest.outputs == (OutputSpec(name="embedding", kind="embedding", shape=(32,)),)
    assert (manifest.num_classes, manifest.labels, manifest.synsets) == (None, None, None)
    assert set(manifest.artifacts) == {"onnx", "onnx_float", "golden_pixels", "golden_preprocessed", "golden_embedding"}
    seen = checks(embedding_bundle)
    assert (seen["export_parity"], seen["cosine_embedding"]) == ("passed", "passed")
    assert not {"agreement", "accuracy"} & set(seen)
    assert "agreement_percent" not in embedding_bundle.report.measurements["golden"]
    # One output of one candidate is in the table already.
    page = (embedding_bundle.root / "report.md").read_text(encoding="utf-8")
    assert "## Against PyTorch" in page
    assert "## Each output against PyTorch" not in page


def test_float16_and_an_engine_with_several_outputs(tmp_path: Path) -> None:
    model = dataclasses.replace(TINY, head="tokens", features=(0,))
    built = tiny(tmp_path, "l4", model=model, precision="fp16", batch=BatchRange.parse("1:2:4"))
    assert checks(built)["engine"] == "passed"
    figures = built.report.measurements["golden"]["outputs"]
    assert list(figures) == ["tokens", "feature_0"]
    assert all(40 < figure["sqnr_db"] < 100 for figure in figures.values())
    graph = onnx.load(str(built.bundle.artifact("onnx"))).graph
    assert [(output.name, output.type.tensor_type.elem_type) for output in graph.output] == [
        ("tokens", onnx.TensorProto.FLOAT),
        ("feature_0", onnx.TensorProto.FLOAT),
    ]


@pytest.mark.parametrize("asked", ["data", "labels"])
def test_labels_for_a_model_without_classes_are_refused(asked: str, tmp_path: Path) -> None:
    labels = tmp_path / "labels.txt"
    labels.write_text("one\ntwo\n", encoding="utf-8")
    changes: dict[str, Any] = {"data": None, "labels": None, asked: {"data": VALIDATION, "labels": labels}[asked]}
    model = dataclasses.replace(SAMPLE, head="features", features=(1,))
    request = sample_request(tmp_path / "out", model=model, **changes)
    message = r"`data` and `labels` need classes, and vit_tiny_patch16_224 returns embedding, feature_1; leave them out"
    assert [finding.level for finding in plan(request).findings if re.search(message, finding.message)] == ["error"]
    with pytest.raises(UsageError, match=message):
        run(request, silent)
    assert list(tmp_path.iterdir()) == [labels]


def test_a_plan_says_what_comes_out_and_how_it_is_judged(tmp_path: Path) -> None:
    steps = plan(sample_request(tmp_path / "out", model=several_request())).steps
    assert any("10 classes, feature_0 [128, 8, 8], feature_1 [128, 8, 8], 32 x 32 pixels" in step for step in steps)
    without = dataclasses.replace(SAMPLE, head="none")
    steps = plan(sample_request(tmp_path / "out", model=without, data=None, precision="fp32", calibration=None)).steps
    assert any("embedding [128], 32 x 32 pixels" in step for step in steps)
    assert any(step.endswith("unlabelled images, by cosine") for step in steps)


def test_steps_keep_their_numbers_where_the_model_or_the_pictures_are_refused(tmp_path: Path) -> None:
    right = sample_request(tmp_path / "out")
    damaged = tmp_path / "w.pth"
    damaged.write_bytes(b"PK\x03\x04 cut short")
    steps = plan(right).steps
    assert steps[1].startswith("prepare pictures: mean 0.5, std 0.5")
    wrong_model = plan(dataclasses.replace(right, model=dataclasses.replace(SAMPLE, checkpoint=damaged)))
    assert wrong_model.exit_code != 0
    assert len(wrong_model.steps) == len(steps)
    assert "see the problem below" in wrong_model.steps[0]
    labels = tmp_path / "labels.txt"
    labels.write_text("\n".join("abcdefghij"), encoding="utf-8")
    wrong_labels = plan(dataclasses.replace(right, labels=labels))
    assert wrong_labels.exit_code != 0
    assert len(wrong_labels.steps) == len(steps)
    assert not any("unlabelled" in step for step in wrong_labels.steps)


def test_class_names_that_no_picture_checks_are_noted(tmp_path: Path) -> None:
    labels = tmp_path / "labels.txt"
    labels.write_text("\n".join("abcdefghij"), encoding="utf-8")
    request = dataclasses.replace(sample_request(tmp_path / "out"), labels=labels)
    unchecked = dataclasses.replace(request, data=None)
    notes = [finding.message for finding in plan(unchecked).findings]
    assert [note for note in notes if "taken in the order given" in note]


@pytest.mark.parametrize("cosine", [-0.01, 1.01, float("nan")])
def test_a_cosine_budget_that_is_none_is_refused(cosine: float, tmp_path: Path) -> None:
    request = sample_request(tmp_path / "out", budget=Budget(min_cosine=cosine))
    errors = [finding.message for finding in plan(request).findings if finding.level == "error"]
    assert len(errors) == 1
    assert f"`min_cosine` is {cosine:g}; it must be 0 to 1" in errors[0]


def test_a_cosine_below_the_budget_does_not_ship(tmp_path: Path) -> None:
    budget = Budget(min_cosine=1.0)
    model = dataclasses.replace(TINY, head="tokens")
    request = sample_request(
        tmp_path / "out", model=model, data=None, target="cpu-arm64-dotprod", precision="auto", budget=budget,
        calibration_size=32,
    )  # fmt: skip
    built = Built(*run(request, silent))
    candidates = built.report.measurements["candidates"]
    assert set(candidates) == {"int8", "fp32"}
    assert candidates["int8"]["cosine"] < 1
    assert built.bundle.manifest.precision == "fp32"


class Counted:
    """Images that are their own numbers, a batch at a time."""

    def __init__(self, count: int) -> None:
        self.files = range(count)

    def batches(self, _spec: object, size: int) -> Iterator[NDArray[np.float32]]:
        for start in range(0, len(self.files), size):
            yield np.arange(start, min(start + size, len(self.files)), dtype=np.float32)


def computed_over(count: int, kept: int, width: int, monkeypatch: pytest.MonkeyPatch) -> Outputs:
    """`over` on `count` images of a model with classes and with tokens of `width` values, of which `kept` may be kept."""
    specs = (
        OutputSpec(name=LOGITS, kind="logits", shape=(2,)),
        OutputSpec(name="tokens", kind="tokens", shape=(width // 4, 4)),
    )
    monkeypatch.setattr(pipeline_reference, "KEPT_BYTES", kept * width * 4)
    source: Any = SimpleNamespace(outputs=specs, preprocess=None)
    session: Any = SimpleNamespace(progress=silent)
    images: Any = Counted(count)

    def run_one(batch: NDArray[np.float32]) -> Outputs:
        return {spec.name: np.zeros((len(batch), *spec.shape), np.float32) + fill(batch, spec) for spec in specs}

    def fill(batch: NDArray[np.float32], spec: OutputSpec) -> NDArray[np.float32]:
        return batch.reshape(-1, *(1 for _ in spec.shape))

    return pipeline_reference.over(images, source, session, "running", run_one)


@pytest.mark.parametrize(("kept", "expected"), [(11, 11), (8, 8), (3, 3), (0, 1), (100, 20)])
def test_of_large_outputs_the_first_images_are_kept_and_of_classes_all(
    kept: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    outputs = computed_over(20, kept, 8, monkeypatch)
    np.testing.assert_array_equal(outputs[LOGITS][:, 1], np.arange(20))
    assert outputs["tokens"].shape == (expected, 2, 4)
    np.testing.assert_array_equal(outputs["tokens"][:, 1, 3], np.arange(expected))


def test_what_is_not_kept_takes_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    images, kept, width = 800, 8, 1 << 12
    tracemalloc.start()
    try:
        computed_over(images, kept, width, monkeypatch)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # What is kept, once joined, and the batch at hand, with its temporary copy; all of them would be 12.5 MiB.
    assert peak < 6 * kept * width * 4


def test_a_plan_collects_and_a_run_refuses(tmp_path: Path) -> None:
    request = dataclasses.replace(
        sample_request(tmp_path / "out"), target="jetson-nano", calibration=None, calibration_size=0
    )
    found = [finding.message for finding in plan(request).findings if finding.level == "error"]
    assert len(found) == 3
    with pytest.raises(UsageError, match="problems"):
        run(request, silent)
    assert list(tmp_path.iterdir()) == []


def test_the_manifest_names_every_calibration_image_by_its_hash(cpu_bundle: Built) -> None:
    data = json.loads((cpu_bundle.root / "manifest.json").read_text(encoding="utf-8"))
    assert all((CALIBRATION / name).is_file() for name in data["recipe"]["images"])
    assert data["versions"]["vitexport"]
    assert data["model"]["weights"] == "checkpoint:model.safetensors"
    assert not any(str(VALIDATION.parent) in value for value in data["recipe"]["images"])


def test_auto_goes_on_in_float_where_a_cpu_has_nothing_to_quantize(tmp_path: Path) -> None:
    """A network of convolutions: a CPU computes none of them in integers, and only who asks for INT8 is refused."""
    model = ModelRequest(name="efficientvit_b0", pretrained=False, img_size=64)
    words: dict[str, Any] = {"model": model, "data": None, "calibration_size": 8}
    bundle, report = run(sample_request(tmp_path / "auto", precision="auto", **words), silent)
    assert bundle.manifest.precision == "fp32"
    assert any(note.startswith("INT8 was left out: The model has no linear layer") for note in report.notes)
    with pytest.raises(NothingToQuantizeError, match="no linear layer with a constant weight"):
        run(sample_request(tmp_path / "int8", precision="int8", **words), silent)
    assert not (tmp_path / "int8").exists()


ORIN: dict[str, Any] = {"target": "jetson-orin-nano-8gb", "jetpack": "6.2"}


def test_equalization_that_would_change_the_float_model_is_left_out_and_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The room names a function as its module, so that the module is only to be had by its full name.
    monkeypatch.setattr(importlib.import_module("vitexport.quantize.calibrate"), "_difference", lambda *_: 1.0)
    bundle, report = run(sample_request(tmp_path / "out", **ORIN), silent)
    [note] = [note for note in report.notes if "without equalization" in note]
    assert note.startswith("12 groups of layers were quantized without equalization")
    assert bundle.manifest.recipe is not None
    assert set(bundle.manifest.recipe["strengths"].values()) == {0.0}


def test_a_layer_whose_result_is_beyond_float16_is_not_quantized(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Casts between its Q/DQ and its product would cost the rounding and leave no integer arithmetic."""
    wide = frozenset({"blocks.1.mlp.fc2/MatMul"})
    monkeypatch.setattr("vitexport.rewrites.stay_float32.float32_nodes", lambda *_: wide)
    bundle, report = run(sample_request(tmp_path / "out", **ORIN), silent)
    assert bundle.manifest.recipe is not None
    assert bundle.manifest.recipe["stay_float"] == ["blocks.1.mlp.fc2"]
    assert "1 layers stay float, since their results are beyond float16: blocks.1.mlp.fc2." in report.notes
    graph = onnx.load(str(bundle.artifact("onnx"))).graph
    [product] = [node for node in graph.node if node.name == "blocks.1.mlp.fc2/MatMul"]
    behind = {node.output[0]: node.op_type for node in graph.node}
    assert [behind.get(name) for name in product.input] == ["Cast", None]
