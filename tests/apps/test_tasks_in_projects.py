"""Written projects of other models than a classifier in colour: one logit, labels, numbers, and one channel."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import TRAINED, VALIDATION, Built
from projects import BROWSER, NODE, WHOLE, browsed, compiled, ran, released, written

from vitexport.artifacts import Task
from vitexport.runtime import load as load_bundle
from vitexport.runtime.model import Prediction

PICTURES = [str(min((VALIDATION / name).glob("*.png"))) for name in "740"]


def predicted(built: Built) -> Prediction:
    with load_bundle(built.root) as model:
        return model.predict(PICTURES)


def shown(prediction: Prediction) -> list[list[tuple[str, float]]]:
    """What an application shows of each picture: likeliest classes, labels that are true, or numbers."""
    if prediction.task == "regression":
        return [list(zip(prediction.value_names, map(float, row), strict=True)) for row in prediction.values]
    found = [list(ranked) for ranked in prediction.top()]
    if prediction.task == "multi-label":
        return [[entry for entry in ranked if entry[1] >= 0.5] for ranked in found]
    return found


def same(seen: list[tuple[str, float]], expected: list[tuple[str, float]], *, atol: float = 1e-3) -> None:
    assert [label for label, _ in seen] == [label for label, _ in expected]
    np.testing.assert_allclose([value for _, value in seen], [value for _, value in expected], atol=atol)


@NODE
@pytest.mark.parametrize("task", TRAINED)
def test_node_shows_what_python_shows(task: Task, task_bundles: dict[Task, Built], tmp_path: Path) -> None:
    project = written(task_bundles[task].bundle, "node", tmp_path / "node")
    answers = json.loads(ran(["node", "classify.js", "--json", *PICTURES], project))
    for answer, expected in zip(answers, shown(predicted(task_bundles[task])), strict=True):
        if task == "regression":
            seen = [(entry["label"], entry["value"]) for entry in answer["values"]]
        else:
            seen = [(entry["label"], entry["probability"]) for entry in answer["top"] if entry.get("isTrue") is not False]
        same(seen, expected)
    text = ran(["node", "classify.js", *PICTURES], project)
    assert text.count("\n") == len(PICTURES) + sum(map(len, shown(predicted(task_bundles[task]))))
    assert "# fail 0" in ran(["node", "--test", "--test-reporter=tap"], project)


@WHOLE
def test_cpp_shows_what_python_shows(task_bundles: dict[Task, Built], grey_bundle: Built, tmp_path: Path) -> None:
    # The sources are the same for all of them, so one program runs every model.
    root = written(task_bundles["regression"].bundle, "cpp", tmp_path / "cpp")
    project = compiled(root, released(tmp_path / "release"))
    for built in (*task_bundles.values(), grey_bundle):
        model = str(built.bundle.artifact("onnx_app"))
        lines = ran(["build/classify", model, *PICTURES], project).splitlines()
        seen: list[list[tuple[str, float]]] = []
        for line in lines:
            if not line.startswith(" "):
                seen.append([])
                continue
            number, _, label = line.strip().replace(" %  ", "  ").partition("  ")
            seen[-1].append((label, float(number) / (1 if built.bundle.manifest.task == "regression" else 100)))
        for found, expected in zip(seen, shown(predicted(built)), strict=True):
            same(found, expected)


@NODE
@BROWSER
@pytest.mark.parametrize("task", ["multi-label", "regression"])
def test_the_page_shows_what_python_shows(task: Task, task_bundles: dict[Task, Built], tmp_path: Path) -> None:
    report: dict[str, Any] = browsed(task_bundles[task].bundle, Path(PICTURES[0]), tmp_path)
    (expected, *_) = shown(predicted(task_bundles[task]))
    assert report["complaints"] == []
    assert report["labels"][: len(expected)] == [label for label, _ in expected]
    assert all(label in report["announcement"] for label, _ in expected)
    numbers = [float(text.split()[0]) / (1 if task == "regression" else 100) for text in report["percents"][: len(expected)]]
    np.testing.assert_allclose(numbers, [value for _, value in expected], atol=2e-3)


@NODE
def test_node_computes_one_channel_as_python_does(grey_bundle: Built, tmp_path: Path) -> None:
    project = written(grey_bundle.bundle, "node", tmp_path / "node")
    answers = json.loads(ran(["node", "classify.js", "--json", *PICTURES], project))
    logits = predicted(grey_bundle).logits
    np.testing.assert_allclose([answer["logits"] for answer in answers], logits, atol=1e-3)
