from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import SAMPLE, VALIDATION, Built
from numpy.typing import NDArray

from vitexport.artifacts import silent
from vitexport.datasets import ImageSet, open_images, open_labelled
from vitexport.report import Check, Report
from vitexport.runtime import Model, load
from vitexport.validate.device import bench_bundle, evaluate, validate_bundle
from vitexport.validate.numerics import Budget

BUDGET = Budget(max_drop=1.0, min_agreement=95.0)


class AlteredBackend:
    """A backend whose logits are changed on their way out, as a faulty kernel would."""

    description = "altered"

    def __init__(self, model: Model, alter: Callable[[NDArray[np.float32]], NDArray[np.float32]]) -> None:
        self.inner = model.backend
        self.alter = alter
        self.sizes: list[int] = []

    def run(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        self.sizes.append(len(images))
        return self.alter(self.inner.run(images))


@pytest.fixture(scope="module")
def model(cpu_bundle: Built) -> Model:
    return load(cpu_bundle.root)


def labelled(root: Path, model: Model) -> ImageSet:
    manifest = model.manifest
    return open_labelled(root, labels=manifest.labels, synsets=manifest.synsets, classes=manifest.num_classes)


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
    assert check_of(report, "agreement").status == "failed"
    assert (report.verdict, report.exit_code) == ("failed", 1)


def test_golden_inputs_alone_catch_a_backend_that_computes_something_else(model: Model) -> None:
    report = validate_bundle(Model(model.bundle, AlteredBackend(model, np.negative)), None, BUDGET, silent)
    assert check_of(report, "agreement").status == "failed"
    assert check_of(report, "accuracy").status == "skipped"
    assert report.exit_code == 1


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_backend_that_computes_no_numbers_fails(bad: float, model: Model) -> None:
    report = validate_bundle(
        Model(model.bundle, AlteredBackend(model, lambda logits: logits * np.float32(bad))), None, BUDGET, silent
    )
    assert check_of(report, "finite").status == "failed"


def test_without_images_accuracy_is_skipped_and_the_rest_is_done(model: Model) -> None:
    report = validate_bundle(model, None, BUDGET, silent)
    assert check_of(report, "accuracy").status == "skipped"
    assert "--data" in check_of(report, "accuracy").message
    assert check_of(report, "agreement").status == "passed"
    assert "accuracy" not in report.measurements
    assert report.summary == "1 passed, 0 failed, 1 skipped"


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
    logits = evaluate(Model(model.bundle, backend), images, progress)
    assert logits.shape == (21, 10)
    assert backend.sizes == [8, 8, 5]
    assert steps == [(8, 21), (16, 21), (21, 21)]


@pytest.mark.parametrize(("asked", "size"), [(None, 4), (1, 1), (40, 40)])
def test_a_benchmark_runs_the_batch_that_was_asked_for(asked: int | None, size: int, l4_bundle: Built) -> None:
    model = load(l4_bundle.root, backend="onnxruntime")
    backend = AlteredBackend(model, lambda logits: logits)
    backend.inner = FakeInner()
    report = bench_bundle(Model(model.bundle, backend), batch=asked, seconds=0, progress=silent)
    figures = report.measurements["latency"]["shipped"]
    assert figures["batch"] == size
    assert figures["rounds"] >= 20
    assert figures["p50_ms"] <= figures["p90_ms"] <= figures["p99_ms"]
    assert figures["images_per_second"] == pytest.approx(size / figures["p50_ms"] * 1e3)
    assert max(backend.sizes) == min(size, 8)
    assert report.checks[0].status == "skipped"


class FakeInner:
    """A backend that costs nothing."""

    description = "fake"

    def run(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.zeros((len(images), 10), np.float32)
