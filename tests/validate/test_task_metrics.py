"""Figures of tasks that have no top-1, against scikit-learn's."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score, f1_score, r2_score

from vitexport.artifacts import OutputSpec
from vitexport.validate.budget import Budget, Reading
from vitexport.validate.numerics import Numerics, compare, parity
from vitexport.validate.task_metrics import (
    average_precision,
    decisions,
    deviation,
    errors,
    label_agreement,
    label_scores,
    sides,
)

RANDOM = np.random.default_rng(5)
TRUTH = RANDOM.random((300, 6)) < np.linspace(0.02, 0.7, 6)
LOGITS = (RANDOM.normal(0, 2, TRUTH.shape) + 2 * TRUTH).astype(np.float32)
LABELS = OutputSpec(name="logits", kind="label_logits", shape=(6,))
BINARY = OutputSpec(name="logits", kind="logits", shape=(1,))
VALUES = OutputSpec(name="values", kind="values", shape=(2,))
VALUE = (RANDOM.normal(50, 1, (300, 2)) * [1, 20]).astype(np.float32)


def compared(
    spec: OutputSpec,
    reference: NDArray[np.float32],
    candidate: NDArray[np.float32],
    truth: NDArray[np.float32] | NDArray[np.int64] | None = None,
    budget: Budget = Budget(),  # noqa: B008 - a frozen value
) -> Numerics:
    outputs = {spec.name: reference}, {spec.name: candidate.astype(np.float32)}
    reading = Reading(names=tuple("abcdef"[: spec.shape[0]]))
    return compare(*outputs, truth, budget, specs=(spec,), where="here", reading=reading)


def status(numerics: Numerics) -> dict[str, str]:
    return {check.name: check.status for check in numerics.checks}


@pytest.mark.parametrize("step", [None, 1.0], ids=["distinct", "ties"])
def test_average_precision_is_sklearn_s(step: float | None) -> None:
    scores = LOGITS if step is None else np.round(LOGITS / np.float32(step))
    for index in range(6):
        expected = average_precision_score(TRUTH[:, index], scores[:, index])
        assert average_precision(scores[:, index], TRUTH[:, index]) == pytest.approx(expected, abs=1e-12)
    assert math.isnan(average_precision(LOGITS[:, 0], np.zeros(300, np.bool_)))


@pytest.mark.parametrize("threshold", [0.2, 0.5, 0.9])
def test_label_scores_are_sklearn_s(threshold: float) -> None:
    found, said = label_scores(LOGITS, TRUTH, threshold), decisions(LOGITS, threshold)
    assert found.map == pytest.approx(100 * average_precision_score(TRUTH, LOGITS, average="macro"))
    assert found.f1_macro == pytest.approx(100 * f1_score(TRUTH, said, average="macro"))
    assert found.f1_micro == pytest.approx(100 * f1_score(TRUTH, said, average="micro"))
    np.testing.assert_array_equal(said, 1 / (1 + np.exp(-LOGITS.astype(np.float64))) >= threshold)


def test_a_label_that_no_picture_has_is_left_out_of_the_means() -> None:
    truth = TRUTH.copy()
    truth[:, 2] = False
    kept = [0, 1, 3, 4, 5]
    found = label_scores(LOGITS, truth, 0.5)
    assert found.map == pytest.approx(100 * average_precision_score(truth[:, kept], LOGITS[:, kept]))
    assert found.f1_macro == pytest.approx(100 * f1_score(truth[:, kept], LOGITS[:, kept] >= 0, average="macro"))
    numerics = compared(LABELS, LOGITS, LOGITS, truth.astype(np.float32))
    assert numerics.figures["labels_without_images"] == 1
    assert "without 1 labels that no image has" in numerics.checks[0].message


def test_errors_are_sklearn_s_and_in_the_unit() -> None:
    noisy = (VALUE + RANDOM.normal(0, 0.5, VALUE.shape)).astype(np.float32)
    for index in range(2):
        found = errors(noisy[:, index], VALUE[:, index])
        assert found.r2 == pytest.approx(r2_score(VALUE[:, index], noisy[:, index]), abs=1e-6)
        assert found.mean_error == pytest.approx(np.abs(noisy - VALUE)[:, index].mean(), rel=1e-5)
        assert found.largest_error == pytest.approx(np.abs(noisy - VALUE)[:, index].max(), rel=1e-5)
    same = np.full(5, 3, np.float32)
    assert (errors(same, same).r2, errors(same + 1, same).r2) == (1, 0)
    # As scikit-learn's.
    assert (r2_score(same, same), r2_score(same, same + 1)) == (1, 0)


def test_deviation_is_a_share_of_the_spread_whatever_the_offset() -> None:
    shifted = VALUE[:, 0] + np.float32(0.1)
    found = deviation(VALUE[:, 0], shifted)
    assert found.percent == pytest.approx(10 / VALUE[:, 0].std(), rel=1e-3)
    assert deviation(VALUE[:, 0] + 1000, shifted + 1000).percent == pytest.approx(found.percent, rel=1e-2)
    same = np.full(5, 3, np.float32)
    assert deviation(same, same).percent == 0
    assert deviation(same, same + 1).percent == math.inf


def test_the_sides_of_one_logit_and_its_margin() -> None:
    reference = np.array([[-4], [-0.2], [0.1], [5], [3]], np.float32)
    found = sides(reference, reference + np.float32(-0.3))
    assert (found.agreement_percent, found.flipped) == (80, 1)
    assert found.flipped_margin == pytest.approx(0.1)
    assert found.margin == 3


@pytest.mark.parametrize(("flips", "expected"), [(3, "passed"), (4, "failed")])
def test_one_logit_is_judged_by_its_sign(flips: int, expected: str) -> None:
    reference = LOGITS[:, :1]
    candidate = reference.copy()
    candidate[:flips] *= -1
    numerics = compared(BINARY, reference, candidate)
    assert status(numerics) == {"sign_agreement": expected}
    assert f"{flips} change sides" in numerics.checks[0].message
    assert "cosine" not in numerics.figures


def test_one_logit_with_labels_is_judged_by_its_accuracy() -> None:
    labels = (LOGITS[:, 0] > 0).astype(np.int64)
    candidate = LOGITS[:, :1].copy()
    candidate[:6] *= -1
    numerics = compared(BINARY, LOGITS[:, :1], candidate, labels)
    assert status(numerics) == {"accuracy": "failed"}
    assert (numerics.figures["reference_accuracy"], numerics.figures["drop"]) == (100, pytest.approx(2))


def test_labels_are_judged_by_their_decisions_and_the_worst_is_named() -> None:
    candidate = LOGITS.copy()
    candidate[:30, 4] *= -1
    numerics = compared(LABELS, LOGITS, candidate)
    assert status(numerics)["label_agreement"] == "failed"
    each = label_agreement(LOGITS >= 0, candidate >= 0)
    assert numerics.checks[0].measured == pytest.approx(each.mean())
    assert f"worst label e with {each[4]:.2f} %" in numerics.checks[0].message
    assert compared(LABELS, LOGITS, LOGITS).within_budget


def test_a_model_that_says_no_to_every_rare_label_does_not_pass() -> None:
    reference = np.full((400, 6), -3, np.float32)
    reference[:6, 1] = 3
    nothing = np.full_like(reference, -3)
    numerics = compared(LABELS, reference, nothing)
    assert numerics.figures["label_agreement_percent"] == pytest.approx(99.75)
    assert status(numerics) == {"label_agreement": "passed", "labels_kept": "failed"}


def test_labels_that_are_known_are_judged_by_map_and_f1() -> None:
    truth = TRUTH.astype(np.float32)
    assert status(compared(LABELS, LOGITS, LOGITS, truth)) == {"map": "passed", "f1": "passed"}
    # A ranking is blind to a shift of all logits; decisions are not.
    assert status(compared(LABELS, LOGITS, LOGITS - 3, truth)) == {"map": "passed", "f1": "failed"}
    shuffled = RANDOM.permutation(LOGITS)
    assert status(compared(LABELS, LOGITS, shuffled, truth))["map"] == "failed"


def test_values_are_judged_by_the_worst_of_them() -> None:
    candidate = VALUE.copy()
    candidate[:, 0] += np.float32(0.2)
    without = compared(VALUES, VALUE, candidate)
    assert status(without) == {"deviation": "failed"}
    assert without.checks[0].message.startswith("a, the worst of 2 values: ")
    targets = (VALUE + RANDOM.normal(0, 1, VALUE.shape)).astype(np.float32)
    found = compared(VALUES, VALUE, candidate, targets, Budget(max_error_increase=0.5))
    assert status(found) == {"error": "failed"}
    assert found.figures["values"]["b"]["error_increase_percent"] == 0
    assert compared(VALUES, VALUE, VALUE, targets, Budget(max_error_increase=0)).within_budget
    # Without an error of its own PyTorch leaves none to grow by.
    assert not compared(VALUES, VALUE, candidate, VALUE, Budget(max_error_increase=1e9)).within_budget


@pytest.mark.parametrize("spec", [LABELS, BINARY, VALUES], ids=lambda spec: spec.kind)
def test_what_is_not_finite_never_passes(spec: OutputSpec) -> None:
    reference = LOGITS[:, : spec.shape[0]]
    candidate = reference.copy()
    candidate[3, 0] = math.nan
    assert not compared(spec, reference, candidate).within_budget


def test_parity_does_not_divide_by_one_number_that_is_near_zero() -> None:
    reference, result = {"values": np.array([[1e-3]], np.float32)}, {"values": np.array([[1.001e-3]], np.float32)}
    assert parity([reference], [result]).status == "failed"
    assert parity([reference], [result], {"values": 9.0}).status == "passed"
    assert parity([reference], [{"values": np.array([[0.01]], np.float32)}], {"values": 9.0}).status == "failed"
    assert parity([reference], [{"values": np.array([[math.nan]], np.float32)}], {"values": 9.0}).status == "failed"
