"""Builds whose reference is wrong fail or are refused by name, and builds whose reference is right pass."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import SAMPLE
from numpy.typing import NDArray
from references import RIGHT, RIGHT_FILES, WRONG, WRONG_FILES, Case, judge, open_file

from vitexport.errors import VitexportError
from vitexport.pipeline import BuildRequest, reference_checks
from vitexport.pipeline.prepare import Prepared, prepare
from vitexport.validate import class_order


@pytest.fixture(scope="module")
def sample() -> Prepared:
    return prepare(BuildRequest(model=SAMPLE, target="cpu", precision="fp32"))


@pytest.fixture(scope="module")
def answers() -> dict[tuple[str, ...], Any]:
    """PyTorch's logits of the unchanged sample by the names of the pictures, kept for the cases that only rename."""
    return {}


@pytest.fixture(autouse=True)
def unhurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a busy machine has no time for is skipped, which is not what these cases ask."""
    monkeypatch.setattr(reference_checks, "SECONDS", 1e9)


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_reference_fails_or_is_refused(
    name: str, sample: Prepared, answers: dict[tuple[str, ...], Any], tmp_path: Path
) -> None:
    expected, case = WRONG[name]
    if expected == "refused":
        with pytest.raises(VitexportError):
            judge(case, sample, answers, tmp_path)
    else:
        assert judge(case, sample, answers, tmp_path)[expected] == "failed"


@pytest.mark.parametrize("name", RIGHT)
def test_a_right_reference_does_not_fail(
    name: str, sample: Prepared, answers: dict[tuple[str, ...], Any], tmp_path: Path
) -> None:
    case = RIGHT[name]
    found = judge(case, sample, answers, tmp_path)
    assert found
    assert "failed" not in found.values()
    is_asked = case.labelled and case.weights.startswith("checkpoint:")
    assert (found.get("plausibility") == "passed") == is_asked


@pytest.mark.parametrize("name", WRONG_FILES)
def test_a_wrong_file_fails_or_is_refused_or_named(name: str, tmp_path: Path) -> None:
    expected, case = WRONG_FILES[name]
    if expected == "refused":
        with pytest.raises(VitexportError):
            open_file(case, tmp_path)
        return
    prepared = open_file(case, tmp_path)
    if expected == "named":
        assert [note for note in prepared.source.notes if case.note in note]
    else:
        assert judge(Case(), prepared, {}, tmp_path)[expected] == "failed"


@pytest.mark.parametrize("name", RIGHT_FILES)
def test_a_right_file_does_not_fail(name: str, tmp_path: Path) -> None:
    case = RIGHT_FILES[name]
    prepared = open_file(case, tmp_path)
    assert [note for note in prepared.source.notes if not case.note or case.note not in note] == []
    found = judge(Case(), prepared, {}, tmp_path)
    assert found["plausibility"] == "passed"
    assert "failed" not in found.values()


def test_there_are_forty_of_each() -> None:
    assert len(WRONG) + len(WRONG_FILES) >= 40
    assert len(RIGHT) + len(RIGHT_FILES) >= 40


def confusion(classes: int, signal: float, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Labels and answers of a partly learned model.

    Classes look alike in pairs, though none more like another than like itself, and some are named more often.
    """
    random = np.random.default_rng(seed)
    labels = np.repeat(np.arange(classes), 40)
    alike = random.normal(size=(classes, classes))
    alike = np.minimum(0.3 * (alike + alike.T), 0.8 * signal)
    np.fill_diagonal(alike, signal)
    scores = alike[labels] + random.normal(size=classes) * 0.5
    return labels, (scores + random.normal(size=scores.shape)).argmax(axis=1)


@pytest.mark.parametrize("classes", [2, 3, 10, 40])
@pytest.mark.parametrize("signal", [0.5, 1.0, 2.0, 4.0])
def test_no_order_is_found_in_a_partly_learned_model_and_a_shuffled_one_never_passes(classes: int, signal: float) -> None:
    for seed in range(5):
        labels, predicted = confusion(classes, signal, seed)
        names = [f"class {index:02}" for index in range(classes)]
        right = class_order.Answers(predicted=predicted, labels=labels, names=names, folders=dict(enumerate(names)))
        assert class_order.class_order(right)[0].status != "failed"
        shuffle = np.roll(np.arange(classes), 1)
        wrong = dataclasses.replace(right, predicted=shuffle[predicted])
        check, fitting = class_order.class_order(wrong)
        if signal >= 4:
            assert check.status == "failed"
            assert fitting == tuple(names[index] for index in np.argsort(shuffle))
