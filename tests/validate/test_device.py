from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import SAMPLE, VALIDATION, Built
from graphs import LOGITS
from numpy.typing import NDArray

from vitexport.artifacts import Outputs, silent
from vitexport.bundle import GOLDEN_PIXELS, REPORT, hash_files, write_json, write_manifest
from vitexport.datasets import ImageSet, open_images, open_labelled
from vitexport.errors import UsageError
from vitexport.preprocess import normalize
from vitexport.report import Check, Report
from vitexport.runtime import Model, load
from vitexport.runtime.backends import Backend, open_onnx
from vitexport.validate.budget import Budget
from vitexport.validate.device import answers, validate_bundle
from vitexport.validate.numerics import GOLDEN_CEILING_DB, GOLDEN_SLACK_DB

BUDGET = Budget(max_drop=1.0)


class AlteredBackend:
    """A backend whose logits are changed on their way out, as a faulty kernel would."""

    description = "altered"

    def __init__(
        self, model: Model, alter: Callable[[NDArray[np.float32]], NDArray[np.float32]], *, only: int | None = None
    ) -> None:
        self.inner: Backend = model.backend
        self.alter = alter
        self.only = only  # the call that is altered, counted from 1; None for all
        self.sizes: list[int] = []

    def run(self, images: NDArray[np.float32]) -> Outputs:
        self.sizes.append(len(images))
        outputs = self.inner.run(images)
        return {LOGITS: self.alter(outputs[LOGITS])} if self.only in (None, len(self.sizes)) else outputs

    def close(self) -> None:
        self.inner.close()


@pytest.fixture(scope="module")
def model(cpu_bundle: Built) -> Model:
    return load(cpu_bundle.root)


def labelled(root: Path, model: Model) -> ImageSet:
    manifest = model.manifest
    return open_labelled(root, labels=manifest.labels, synsets=manifest.synsets, classes=10)


@pytest.fixture(scope="module")
def data(model: Model) -> ImageSet:
    return labelled(VALIDATION, model)


@pytest.fixture(scope="module")
def validated(model: Model, data: ImageSet) -> Report:
    return validate_bundle(model, data, BUDGET, silent)


def check_of(report: Report, name: str) -> Check:
    [check] = [check for check in report.checks if check.name == name]
    return check


def test_the_sample_keeps_97_percent_on_the_validation_digits(validated: Report) -> None:
    accuracy = validated.measurements["accuracy"]
    assert accuracy["images"] == len(list(VALIDATION.glob("*/*"))) == 400
    assert accuracy["top1"] >= 97.0
    assert accuracy["top5"] >= accuracy["top1"]
    assert check_of(validated, "accuracy").status == "passed"


def test_the_accuracy_in_the_report_is_what_an_application_gets(model: Model, data: ImageSet, validated: Report) -> None:
    paths = [file.path for file in data.files]
    right = [path.parent.name == best[0][0] for path, best in zip(paths, model.predict(paths).top(1), strict=True)]
    assert validated.measurements["accuracy"]["top1"] == pytest.approx(np.mean(right) * 100)


def test_the_drop_is_held_against_pytorch_at_build_time(cpu_bundle: Built, validated: Report) -> None:
    built = cpu_bundle.report.measurements["accuracy"]
    seen = validated.measurements["accuracy"]
    check = check_of(validated, "accuracy")
    assert check.measured == seen["drop"] == pytest.approx(built["reference_top1"] - seen["top1"])
    assert seen["top1"] == pytest.approx(built["candidate_top1"])
    assert check.limit == 1.0
    assert "on the same 400 images at build time" in check.message


def test_a_drop_beyond_the_budget_fails_and_gives_exit_code_1(model: Model, data: ImageSet) -> None:
    broken = Model(model.bundle, AlteredBackend(model, lambda logits: np.roll(logits, 1, axis=1)))
    report = validate_bundle(broken, data, BUDGET, silent)
    assert check_of(report, "accuracy").status == "failed"
    assert check_of(report, "golden").status == "failed"
    assert (report.verdict, report.exit_code) == ("failed", 1)


def test_golden_inputs_alone_catch_a_backend_that_computes_something_else(model: Model) -> None:
    report = validate_bundle(Model(model.bundle, AlteredBackend(model, np.negative)), None, BUDGET, silent)
    assert check_of(report, "golden").status == "failed"
    assert check_of(report, "accuracy").status == "skipped"
    assert report.exit_code == 1


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_backend_that_computes_no_numbers_fails(bad: float, model: Model) -> None:
    report = validate_bundle(
        Model(model.bundle, AlteredBackend(model, lambda logits: logits * np.float32(bad))), None, BUDGET, silent
    )
    assert check_of(report, "golden").status == "failed"


def test_a_constant_added_to_every_logit_is_seen_though_no_label_changes(model: Model) -> None:
    altered = AlteredBackend(model, lambda logits: logits + np.float32(5))
    report = validate_bundle(Model(model.bundle, altered), None, BUDGET, silent)
    assert check_of(report, "golden").status == "failed"
    assert report.measurements["golden"]["agreement_percent"] == pytest.approx(
        model.bundle.report().measurements["golden"]["agreement_percent"]
    )


def with_a_picture_between_two_digits(root: Path) -> Path:
    """The bundle at `root` with one more golden input: the mixture of two whose choice is closest."""
    model = load(root)
    pixels, outputs = model.bundle.golden()
    logits = outputs[LOGITS]
    other = (logits.argmax(axis=1) != logits[0].argmax()).argmax()
    shares = np.linspace(0, 1, 401)[:, None, None, None]
    mixtures = np.rint((1 - shares) * pixels[0] + shares * pixels[other]).astype(np.uint8)
    judge = load(root, backend="onnxruntime")
    judge.backend = open_onnx(root / model.manifest.artifacts["onnx_float"])
    reference = judge.predict_tensor(normalize(mixtures, model.manifest.preprocess)).logits
    best = np.sort(reference, axis=1)
    closest = (best[:, -1] - best[:, -2]).argmin()
    np.save(root / GOLDEN_PIXELS, np.concatenate([pixels, mixtures[[closest]]]))
    np.save(root / "golden" / "logits.npy", np.concatenate([logits, reference[[closest]]]))
    write_manifest(root, dataclasses.replace(model.manifest, files=hash_files(root)))
    return root


def other_choice(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """The last image of all takes its second choice, by a hair."""
    second, first = np.argsort(logits[-1])[-2:]
    changed = logits.copy()
    changed[-1, [first, second]] = logits[-1, [first, second]].mean() + np.asarray([-1e-3, 1e-3], np.float32)
    return changed


def test_one_golden_image_on_the_edge_may_flip_on_the_device(cpu_bundle: Built, tmp_path: Path) -> None:
    root = with_a_picture_between_two_digits(Path(shutil.copytree(cpu_bundle.root, tmp_path / "copy")))
    model = load(root)
    reports = [
        validate_bundle(Model(model.bundle, AlteredBackend(model, alter, only=only)), None, BUDGET, silent)
        for alter, only in ((np.copy, None), (other_choice, len(model.bundle.golden()[0])))
    ]
    agreement = [report.measurements["golden"]["agreement_percent"] for report in reports]
    assert abs(agreement[0] - agreement[1]) == pytest.approx(100 / reports[0].measurements["golden"]["images"])
    assert [report.exit_code for report in reports] == [0, 0]


def test_golden_is_held_to_what_the_build_measured(model: Model) -> None:
    check = check_of(validate_bundle(model, None, BUDGET, silent), "golden")
    built = model.bundle.report().measurements["golden"]["sqnr_db"]
    assert check.measured == pytest.approx(built)
    assert check.limit == pytest.approx(min(built - GOLDEN_SLACK_DB, GOLDEN_CEILING_DB))
    assert check.unit == "dB"


def test_a_bundle_whose_build_found_no_numbers_skips_golden_with_the_reason(model: Model, tmp_path: Path) -> None:
    root = Path(shutil.copytree(model.bundle.root, tmp_path / "copy"))
    report = model.bundle.report()
    measurements = {**report.measurements, "golden": {"images": 64}}
    write_json(root / REPORT, dataclasses.replace(report, measurements=measurements).to_json())
    write_manifest(root, dataclasses.replace(model.manifest, files=hash_files(root)))
    check = check_of(validate_bundle(load(root), None, BUDGET, silent), "golden")
    assert (check.status, "NaN or infinity" in check.message) == ("skipped", True)


def test_without_images_accuracy_is_skipped_and_the_rest_is_done(model: Model) -> None:
    report = validate_bundle(model, None, BUDGET, silent)
    assert check_of(report, "accuracy").status == "skipped"
    assert "`data`" in check_of(report, "accuracy").message
    assert check_of(report, "golden").status == "passed"
    assert "accuracy" not in report.measurements
    assert report.summary == "3 passed, 0 failed, 1 skipped"


def test_images_that_pytorch_never_saw_give_an_accuracy_but_no_verdict(model: Model, tmp_path: Path) -> None:
    for digit in "37":
        shutil.copytree(VALIDATION / digit, tmp_path / digit)
    report = validate_bundle(model, labelled(tmp_path, model), BUDGET, silent)
    check = check_of(report, "accuracy")
    assert check.status == "skipped"
    assert "PyTorch was not measured on them" in check.message
    assert report.measurements["accuracy"]["top1"] > 90
    assert "drop" not in report.measurements["accuracy"]


def test_one_changed_image_makes_it_another_set(model: Model, tmp_path: Path) -> None:
    shutil.copytree(VALIDATION, tmp_path / "digits-val")
    shutil.copyfile(min((VALIDATION / "9").iterdir()), min(tmp_path.rglob("*.png")))
    images = labelled(tmp_path / "digits-val", model)
    assert check_of(validate_bundle(model, images, BUDGET, silent), "accuracy").status == "skipped"


def test_images_without_labels_give_no_accuracy(model: Model) -> None:
    report = validate_bundle(model, open_images(VALIDATION, limit=10), BUDGET, silent)
    assert check_of(report, "accuracy").message == "the images have no labels"


def test_the_report_names_model_precision_target_and_runtime(validated: Report, model: Model) -> None:
    assert validated.title == f"{SAMPLE.name} · int8 · {model.manifest.target.name}"
    assert validated.measurements["runtime"] == model.backend.description
    assert "sha256" in validated.notes[0]
    assert Report.from_json(validated.to_json()) == dataclasses.replace(validated, stages=())


def test_a_build_for_a_gpu_is_judged_on_the_cpu_as_well(l4_bundle: Built) -> None:
    model = load(l4_bundle.root, backend="onnxruntime")
    report = validate_bundle(model, labelled(VALIDATION, model), BUDGET, silent)
    assert report.verdict == "passed"
    assert report.measurements["accuracy"]["top1"] >= 97.0
    assert report.measurements["accuracy"]["top1"] == pytest.approx(
        l4_bundle.report.measurements["accuracy"]["candidate_top1"], abs=0.5
    )


def test_evaluating_covers_every_image_once_and_tells_how_far_it_is(l4_bundle: Built) -> None:
    model = load(l4_bundle.root, backend="onnxruntime")
    backend = AlteredBackend(model, lambda logits: logits)
    steps: list[tuple[int, int]] = []

    def progress(what: str, done: int = 0, total: int = 0) -> None:
        steps.append((done, total))

    images = open_images(VALIDATION, limit=21)
    logits = answers(Model(model.bundle, backend), model.manifest.outputs[0], images, progress)
    assert logits.shape == (21, 10)
    assert backend.sizes == [8, 8, 5]
    assert steps == [(8, 21), (16, 21), (21, 21)]


def altered(built: Built, name: str, alter: Callable[[NDArray[np.float32]], NDArray[np.float32]]) -> Model:
    """The bundle's model with one of its outputs changed."""
    model = load(built.root)

    class Altered(AlteredBackend):
        def run(self, images: NDArray[np.float32]) -> Outputs:
            outputs = self.inner.run(images)
            return {**outputs, name: alter(outputs[name])}

    return Model(model.bundle, Altered(model, alter))


@pytest.mark.parametrize("name", [LOGITS, "feature_0", "feature_1"])
def test_golden_inputs_catch_any_output_that_is_computed_wrong(name: str, several_bundle: Built) -> None:
    report = validate_bundle(altered(several_bundle, name, np.negative), None, BUDGET, silent)
    check = check_of(report, "golden")
    assert check.status == "failed"
    assert check.message.startswith(f"{name} of ")
    untouched = validate_bundle(load(several_bundle.root), None, BUDGET, silent)
    assert check_of(untouched, "golden").status == "passed"
    built = several_bundle.report.measurements["golden"]["outputs"]
    assert {key: pytest.approx(value) for key, value in untouched.measurements["golden"]["outputs"].items()} == built


def test_accuracy_is_that_of_the_output_that_names_classes(several_bundle: Built) -> None:
    model = altered(several_bundle, "feature_0", np.negative)
    report = validate_bundle(model, labelled(VALIDATION, model), BUDGET, silent)
    assert report.measurements["accuracy"]["top1"] == several_bundle.report.measurements["accuracy"]["candidate_top1"]
    assert check_of(report, "accuracy").status == "passed"
    assert check_of(report, "golden").status == "failed"


def test_a_model_without_classes_is_held_to_its_golden_outputs(embedding_bundle: Built) -> None:
    report = validate_bundle(load(embedding_bundle.root), None, BUDGET, silent)
    assert [check.status for check in report.checks] == ["passed", "passed", "passed", "skipped"]
    assert [check.name for check in report.checks] == ["golden", "preprocessing", "decoding", "accuracy"]
    assert check_of(report, "accuracy").message == "the model names no classes"
    assert "top-1" not in check_of(report, "golden").message
    broken = validate_bundle(altered(embedding_bundle, "embedding", lambda values: values[:, ::-1]), None, BUDGET, silent)
    assert check_of(broken, "golden").status == "failed"


def test_labelled_images_are_nothing_to_a_model_without_classes(embedding_bundle: Built, data: ImageSet) -> None:
    with pytest.raises(UsageError, match="names no classes, so it has no accuracy; leave `data` out"):
        validate_bundle(load(embedding_bundle.root), data, BUDGET, silent)


def test_a_bundle_is_judged_by_the_labels_themselves_too(model: Model, data: ImageSet, validated: Report) -> None:
    [check] = [check for check in validated.checks if check.name == "plausibility"]
    assert check.status == "passed"
    for expected, status in ((99.0, "passed"), (100.0, "passed"), (75.0, "passed")):
        report = validate_bundle(model, data, BUDGET, silent, expect_top1=expected)
        assert {check.name: check.status for check in report.checks}["expected_top1"] == status


def test_labels_that_cannot_be_right_fail(model: Model, tmp_path: Path) -> None:
    for digit in range(10):
        shutil.copytree(VALIDATION / str(digit), tmp_path / str((digit + 1) % 10))
    report = validate_bundle(model, labelled(tmp_path, model), Budget(max_drop=100.0), silent, expect_top1=90.0)
    statuses = {check.name: check.status for check in report.checks}
    assert (statuses["plausibility"], statuses["expected_top1"]) == ("failed", "failed")
