"""Models of each task, from the checkpoint to what an application gets: the sample's backbone with heads of its own."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from conftest import CALIBRATION, SAMPLE, TRAINED, VALIDATION, Built
from task_models import LABELS, black, digits_csv, request

from vitexport.annotations import Truth, open_annotated
from vitexport.apps import KINDS, write_app
from vitexport.artifacts import Task, silent
from vitexport.bundle import Manifest
from vitexport.cli.predictions import check_options, predictions_json, show_predictions
from vitexport.datasets import open_labelled
from vitexport.errors import InputError, UsageError
from vitexport.pipeline import plan, run
from vitexport.preprocess import load_image
from vitexport.runtime import load as load_bundle
from vitexport.runtime.backends.onnx_runtime import OnnxRuntimeBackend
from vitexport.runtime.model import Prediction
from vitexport.source import ModelRequest
from vitexport.source.tasks import check_softmax, decide_task
from vitexport.triton import ServeRequest, write_repository
from vitexport.validate.budget import Budget
from vitexport.validate.device import validate_bundle

# The check of pictures without labels, and that of pictures with them.
WITHOUT: dict[Task, str] = {"classification": "sign_agreement", "multi-label": "label_agreement", "regression": "deviation"}
SEVEN, FOUR = (str(min((VALIDATION / name).glob("*.png"))) for name in "74")


@pytest.fixture(scope="session")
def models(task_requests: dict[Task, ModelRequest]) -> dict[Task, ModelRequest]:
    return task_requests


@pytest.fixture(scope="session")
def built(task_bundles: dict[Task, Built]) -> dict[Task, Built]:
    return task_bundles


def status(built: Built) -> dict[str, str]:
    return {check.name: check.status for check in built.report.checks}


def predicted(built: Built) -> Prediction:
    with load_bundle(built.root) as model:
        return model.predict([SEVEN, FOUR])


@pytest.mark.parametrize("task", TRAINED)
def test_int8_that_is_far_off_fails_and_good_int8_passes(
    task: Task, models: dict[Task, ModelRequest], tmp_path: Path
) -> None:
    words: dict[str, Any] = {"target": "web", "embed_preprocess": False}
    bad = Built(*run(request(models[task], tmp_path / "bad", calibration=black(tmp_path / "black"), **words), silent))
    assert (bad.bundle.manifest.precision, bad.report.exit_code) == ("fp16", 1)
    missed = next(check for check in bad.report.checks if check.name == "int8")
    assert missed.status == "failed"
    assert "since the calibration images are of one colour each" in missed.message
    good = Built(*run(request(models[task], tmp_path / "good", calibration=CALIBRATION, **words), silent))
    assert (good.bundle.manifest.precision, good.report.exit_code) == ("int8", 0)
    assert status(good)[WITHOUT[task]] == "passed"
    figures = good.report.measurements["candidates"]["int8"]
    assert "agreement_percent" not in figures
    page = (good.root / "report.md").read_text(encoding="utf-8")
    assert {"classification": "same sign %", "multi-label": "same labels %", "regression": "deviation, % of spread"}[
        task
    ] in page


def test_each_task_is_judged_by_its_own_figures(built: dict[Task, Built]) -> None:
    assert {task: status(each) for task, each in built.items()} == {
        task: dict.fromkeys(("export_parity", *names, "picture_mean", "picture_largest", "picture_outputs"), "passed")
        | {"latency": "skipped"}
        for task, names in {
            "classification": ("accuracy",),
            "multi-label": ("map", "f1"),
            "regression": ("error",),
        }.items()
    }
    figures = built["regression"].report.measurements["accuracy"]["values"]["digit"]
    assert 0 < figures["candidate_mean_error"] < 1 < figures["candidate_largest_error"]
    assert 0.9 < figures["candidate_r2"] == pytest.approx(figures["reference_r2"], abs=1e-4)


def test_a_device_finds_what_the_build_found(built: dict[Task, Built], tmp_path: Path) -> None:
    data: dict[Task, Path] = {
        "multi-label": digits_csv(tmp_path / "labels.csv", "multi-label", LABELS, every=8),
        "regression": digits_csv(tmp_path / "values.csv", "regression", ("digit",), every=8),
    }
    for task, path in data.items():
        manifest = built[task].bundle.manifest
        names = manifest.labels
        assert names is not None
        images = open_annotated(path, Truth(task=task, names=names, synsets=None, count=len(names)))
        with load_bundle(built[task].root) as model:
            report = validate_bundle(model, images, Budget(), silent)
        found = {check.name: check for check in report.checks}
        for name in ("map", "f1") if task == "multi-label" else ("error",):
            assert found[name].status == "passed"
            assert found[name].measured == pytest.approx(0, abs=1e-3)


def test_a_prediction_says_what_the_task_is(built: dict[Task, Built]) -> None:
    binary, labels, values = (predicted(built[task]) for task in TRAINED)
    assert binary.labels == ("odd", "even")
    assert binary.logits.shape == (2, 1)
    assert binary.probabilities.shape == (2, 2)
    np.testing.assert_allclose(binary.probabilities[:, 1], 1 / (1 + np.exp(-binary.logits[:, 0])), rtol=1e-6)
    np.testing.assert_allclose(binary.probabilities.sum(axis=1), 1, rtol=1e-6)
    assert [label for label, _ in binary.top(5)[0]] == ["odd", "even"]
    np.testing.assert_allclose(labels.probabilities, 1 / (1 + np.exp(-labels.logits)), rtol=1e-5)
    assert [{label for label, _ in found} for found in labels.above()] == [set(LABELS), set()]
    assert len(labels.above(1e-6)[1]) > 0
    assert values.values.shape == (2, 1)
    assert values.values[:, 0] == pytest.approx([7, 4], abs=1)
    for wrong in (
        lambda: labels.labels,
        binary.above,
        lambda: values.probabilities,
        values.top,
        lambda: labels.above(1),
    ):
        with pytest.raises(UsageError):
            wrong()


def test_large_logits_overflow_nothing() -> None:
    logits = np.array([[1000.0, -1000.0, 0.0]], np.float32)
    found = Prediction(outputs={"logits": logits}, class_names=LABELS, task="multi-label").probabilities
    np.testing.assert_array_equal(found, [[1, 0, 0.5]])


def test_what_predict_shows(built: dict[Task, Built], capsys: pytest.CaptureFixture[str]) -> None:
    shown: dict[Task, str] = {}
    for task in TRAINED:
        show_predictions(["7.png", "4.png"], predicted(built[task]), top=None, threshold=None)
        shown[task] = capsys.readouterr().out
    seven, four = shown["multi-label"].split("4.png")
    assert all(label in seven for label in LABELS)
    assert "no label from 50 % on; the likeliest is" in four
    assert "odd   " in shown["classification"]
    assert shown["regression"].split()[:2] == ["image", "digit"]
    [first, second] = predictions_json(["a", "b"], predicted(built["multi-label"]), top=None, threshold=None)
    assert {entry["label"] for entry in first["labels"]} == set(LABELS)
    assert second == {"image": "b", "labels": []}
    [number, _] = predictions_json(["a", "b"], predicted(built["regression"]), top=None, threshold=None)
    assert number["values"]["digit"] == pytest.approx(7, abs=1)


@pytest.mark.parametrize(
    ("task", "words"),
    [
        ("classification", {"threshold": 0.3, "top": None}),
        ("multi-label", {"threshold": 1.0, "top": None}),
        ("multi-label", {"threshold": 0.3, "top": 2}),
        ("regression", {"threshold": None, "top": 2}),
    ],
)
def test_predict_refuses_what_the_task_has_no_use_for(task: Task, words: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        check_options(task, **words)


@pytest.mark.parametrize("task", TRAINED)
def test_the_model_that_takes_the_picture_answers_as_python_does(task: Task, built: dict[Task, Built]) -> None:
    path = built[task].bundle.artifact("onnx_app")
    assert path is not None
    seen = OnnxRuntimeBackend(path).run(np.asarray(load_image(SEVEN))[None])
    expected = predicted(built[task])
    if task == "regression":
        assert list(seen) == ["values"]
        np.testing.assert_allclose(seen["values"][0], expected.values[0], rtol=1e-3)
    else:
        np.testing.assert_allclose(seen["probabilities"][0], expected.probabilities[0], atol=1e-4)
        ranked = [expected.class_names[index] for index in seen["top_indices"][0]]
        assert ranked == [label for label, _ in expected.top()[0]]
    entries = {entry.key: json.loads(entry.value) for entry in onnx.load(str(path)).metadata_props}
    assert (entries["vitexport.task"], entries["vitexport.threshold"]) == (task, 0.5)


@pytest.mark.parametrize("task", TRAINED)
def test_what_is_written_says_nothing_of_softmax(task: Task, built: dict[Task, Built], tmp_path: Path) -> None:
    for kind in KINDS:
        write_app(built[task].bundle, kind, tmp_path / kind)
    write_repository([built[task].bundle], tmp_path / "triton", ServeRequest(name="model"))
    texts = {
        path: path.read_text(encoding="utf-8")
        for path in tmp_path.rglob("*")
        if path.is_file() and path.suffix in (".js", ".md", ".kt", ".cpp", ".hpp", ".html", ".py", ".pbtxt")
    }
    assert not [path for path, text in texts.items() if "softmax" in text.lower()]
    config = (tmp_path / "triton" / "model" / "config.pbtxt").read_text(encoding="utf-8")
    assert ('"probabilities"' in config, '"values"' in config) == (task != "regression", task == "regression")
    shares = "need not sum to 1"
    for page in ("node/README.md", "triton/SERVING-model.md"):
        assert (shares in texts[tmp_path / page]) == (task == "multi-label")
    compile(texts[tmp_path / "triton" / "client-model.py"], "client-model.py", "exec")


def test_bundles_of_before_there_were_tasks_open(
    built: dict[Task, Built], cpu_bundle: Built, embedding_bundle: Built
) -> None:
    for bundle, task in ((cpu_bundle, "classification"), (embedding_bundle, "embedding")):
        data = bundle.bundle.manifest.to_json()
        for key in ("task", "threshold"):
            del data[key]
        assert Manifest.from_json(data).task == task
    lying = {**built["multi-label"].bundle.manifest.to_json(), "task": "classification"}
    with pytest.raises(ValueError, match="does not fit the outputs"):
        Manifest.from_json(lying)


def test_one_positive_name_is_enough(models: dict[Task, ModelRequest], tmp_path: Path) -> None:
    words: dict[str, Any] = {"precision": "fp32", "target": "web", "calibration": None, "embed_preprocess": False}
    (tmp_path / "one.txt").write_text("odd\n", encoding="utf-8")
    bundle, _ = run(request(models["classification"], tmp_path / "b", labels=tmp_path / "one.txt", **words), silent)
    assert bundle.manifest.labels == ("not odd", "odd")
    (tmp_path / "one.txt").write_text("a\nb\nc\n", encoding="utf-8")
    found = plan(request(models["classification"], tmp_path / "c", labels=tmp_path / "one.txt", **words))
    assert "has 3 names, but one logit tells two classes apart" in found.findings[0].message


@pytest.mark.parametrize(
    ("change", "words", "expected"),
    [
        ({"task": None, "num_classes": 1}, {}, "`task=classification` .* `task=regression`"),
        ({"task": "classification", "num_classes": 1, "softmax": True}, {}, "`softmax` of one logit is always 1"),
        ({"task": "multi-label", "softmax": True}, {}, "`softmax` makes the labels share one whole"),
        ({"task": "regression", "softmax": True}, {}, "`softmax` makes shares of numbers"),
        ({"task": "embedding", "softmax": True}, {}, "`task=embedding` gives what the classifier reads"),
        ({"task": "embedding", "head": "classifier"}, {}, "`head=classifier` contradicts it"),
        ({"task": "regression", "head": "features"}, {}, "`task=regression` reads a classifier"),
        ({"task": "regression"}, {"top_indices": 3}, "`top_indices` ranks classes or labels"),
        ({"task": "embedding"}, {"top_indices": 3}, "`top_indices` ranks classes or labels"),
        ({"task": "regression"}, {"threshold": 0.3}, "`threshold` is for `task=multi-label`"),
        ({"task": "multi-label"}, {"threshold": 1.0}, "`threshold` is 1; it must be above 0 and below 1"),
        ({"task": "multi-label"}, {"data": VALIDATION}, "is a folder, and a multi-label model is judged on a CSV file"),
        ({"task": "multi-label"}, {"budget": Budget(max_map_drop=-1)}, "`max_map_drop` is -1; it must be 0 or more"),
        ({"task": "multi-label"}, {"budget": Budget(min_label_agreement=101)}, "must be 0 to 100"),
    ],
)
def test_what_makes_no_sense_is_refused(
    change: dict[str, Any], words: dict[str, Any], expected: str, tmp_path: Path
) -> None:
    model = dataclasses.replace(SAMPLE, checkpoint=None, **change)
    found = plan(request(model, tmp_path / "out", **{"calibration": None, "precision": "fp32", **words}))
    assert found.exit_code in (2, 3)
    with pytest.raises((UsageError, InputError), match=expected):
        raise UsageError("\n".join(finding.message for finding in found.findings))


def test_an_embedding_by_its_task_is_what_the_classifier_reads(tmp_path: Path) -> None:
    model = dataclasses.replace(SAMPLE, checkpoint=None, task="embedding")
    found = plan(request(model, tmp_path / "out", calibration=None, precision="fp32"))
    assert not found.exit_code
    assert "embedding [128]" in found.steps[0]


def test_the_user_and_the_checkpoint_settle_the_task() -> None:
    assert decide_task(None, None, classes=10, name="m") == "classification"
    assert decide_task(None, "multi-label", classes=10, name="m") == "multi-label"
    assert decide_task("regression", None, classes=1, name="m") == "regression"
    assert decide_task(None, "regression", classes=1, name="m") == "regression"
    assert decide_task(None, "multi-label", classes=None, name="m") == "embedding"
    with pytest.raises(UsageError, match=r"`task=regression` contradicts the checkpoint, .* for multi-label"):
        decide_task("regression", "multi-label", classes=3, name="m")
    with pytest.raises(UsageError, match="one output, and nothing says what it is"):
        decide_task(None, None, classes=1, name="m")
    check_softmax("classification", 2)


def test_class_folders_of_two_classes_go_with_one_logit(built: dict[Task, Built], tmp_path: Path) -> None:
    manifest = built["classification"].bundle.manifest
    assert (manifest.num_classes, manifest.labels) == (2, ("even", "odd"))
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "7.png").symlink_to(SEVEN)
    images = open_labelled(tmp_path, labels=manifest.labels, synsets=None, classes=2)
    with load_bundle(built["classification"].root) as model:
        report = validate_bundle(model, images, Budget(), silent)
    assert report.measurements["accuracy"]["accuracy"] == 100
