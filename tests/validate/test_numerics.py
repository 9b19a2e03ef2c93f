from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from graphs import LOGITS
from numpy.typing import NDArray

from vitexport.artifacts import Outputs, OutputSpec
from vitexport.report import Check, Report
from vitexport.validate.budget import Budget
from vitexport.validate.numerics import GOLDEN_CEILING_DB, PARITY_LIMIT, Numerics, compare, golden, parity

BUDGET = Budget(max_drop=1.0, min_agreement=99.0)
ANYTHING = Budget(max_drop=100, min_agreement=0)
LABELS = np.arange(200) % 4
bad_values = pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
labelled = pytest.mark.parametrize("labels", [None, LABELS], ids=["unlabelled", "labelled"])


def of(logits: NDArray[np.float32]) -> Outputs:
    """What a model without other outputs computes."""
    return {LOGITS: logits}


def specs_of(logits: NDArray[np.float32]) -> tuple[OutputSpec, ...]:
    return (OutputSpec(name=LOGITS, kind="logits", shape=logits.shape[1:]),)


def perfect() -> NDArray[np.float32]:
    return np.eye(4, dtype=np.float32)[LABELS]


def wrong_on(count: int) -> NDArray[np.float32]:
    logits = perfect()
    logits[:count] = np.roll(logits[:count], 1, axis=1)
    return logits


def compared(
    reference: NDArray[np.float32],
    candidate: NDArray[np.float32],
    labels: NDArray[np.int64] | None,
    budget: Budget,
    where: str = "here",
) -> Numerics:
    return compare(of(reference), of(candidate), labels, budget, specs=specs_of(reference), where=where)


def golden_of(
    reference: NDArray[np.float32], candidate: NDArray[np.float32], built: float, *, name: str = "golden"
) -> tuple[Check, dict[str, Any]]:
    """`golden` of logits alone, that lay `built` dB from PyTorch's at build time."""
    at_build = {"outputs": {LOGITS: {"sqnr_db": built}}}
    return golden(of(reference), of(candidate), at_build, specs=specs_of(reference), name=name, where="here")


@pytest.mark.parametrize(("wrong", "status"), [(0, "passed"), (2, "passed"), (3, "failed")])
def test_labelled_images_are_judged_by_the_drop(wrong: int, status: str) -> None:
    [check] = compared(perfect(), wrong_on(wrong), LABELS, BUDGET).checks
    assert (check.name, check.status, check.limit, check.unit) == ("accuracy", status, 1.0, "points")
    assert check.measured == pytest.approx(wrong / 2)


@pytest.mark.parametrize(("wrong", "status"), [(0, "passed"), (2, "passed"), (3, "failed")])
def test_unlabelled_images_are_judged_by_agreement(wrong: int, status: str) -> None:
    [check] = compared(perfect(), wrong_on(wrong), None, BUDGET).checks
    assert (check.name, check.status, check.limit, check.unit) == ("agreement", status, 99.0, "percent")
    assert check.measured == pytest.approx(100 - wrong / 2)


def test_a_candidate_that_is_better_than_the_reference_passes() -> None:
    numerics = compared(wrong_on(20), perfect(), LABELS, Budget(max_drop=0, min_agreement=100))
    assert numerics.within_budget
    assert numerics.figures["drop"] == pytest.approx(-10)


def test_figures_and_message_say_what_was_measured_and_where() -> None:
    numerics = compared(perfect(), wrong_on(3), LABELS, BUDGET, where="digits, on a CPU")
    assert {"images", "agreement_percent", "cosine", "sqnr_db", "reference_top1", "drop_low"} <= set(numerics.figures)
    message = numerics.checks[0].message
    assert "top-1 98.50 %, PyTorch 100.00 %, drop +1.50 points" in message
    assert "200 images (digits, on a CPU)" in message


@bad_values
@labelled
def test_a_candidate_that_is_not_finite_never_passes(bad: float, labels: NDArray[np.int64] | None) -> None:
    candidate = perfect()
    candidate[[3, 7], 1] = bad
    candidate[7, 2] = bad
    numerics = compared(perfect(), candidate, labels, ANYTHING)
    [check] = numerics.checks
    assert not numerics.within_budget
    assert (check.name, check.status) == ("finite", "failed")
    assert "the logits of 2 of 200 images" in check.message


@bad_values
@labelled
def test_a_reference_that_is_not_finite_passes_nobody(bad: float, labels: NDArray[np.int64] | None) -> None:
    reference = perfect()
    reference[3, 1] = bad
    for candidate in (perfect(), reference):
        assert not compared(reference, candidate, labels, ANYTHING).within_budget
    [check] = compared(reference, perfect(), labels, BUDGET).checks
    assert "PyTorch's logits of 1 of 200 images" in check.message


def test_parity_allows_a_ten_thousandth_of_the_largest_logit() -> None:
    reference = perfect() * 50
    assert parity([of(reference)], [of(reference + np.float32(0.004))]).status == "passed"
    assert parity([of(reference)], [of(reference + np.float32(0.006))]).status == "failed"


def test_parity_is_judged_by_the_worst_batch() -> None:
    good, bad = of(perfect()), of(perfect() + np.float32(0.01))
    for results in ([bad, good], [good, bad]):
        check = parity([good, good], results)
        assert check.status == "failed"
        assert check.measured == pytest.approx(0.01, rel=1e-3)
        assert check.limit == PARITY_LIMIT


@bad_values
@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_value_that_is_not_finite_in_any_batch_fails_parity(bad: float, place: int) -> None:
    results = [of(perfect()) for _ in range(3)]
    results[place][LOGITS][0, 0] = bad
    check = parity([of(perfect())] * 3, results)
    assert check.status == "failed"
    assert parity(results, [of(perfect())] * 3).status == "failed"
    report = Report(title="t", checks=(check,), measurements={}, machine={})
    assert report.to_json()["checks"][0]["measured"] is None


def test_parity_names_the_batch_sizes() -> None:
    check = parity([of(perfect()[:1]), of(perfect()[:8])], [of(perfect()[:1]), of(perfect()[:8])])
    assert "at batch 1, 8:" in check.message


def test_parity_of_unequal_lists_is_a_mistake() -> None:
    with pytest.raises(ValueError, match="shorter"):
        parity([of(perfect()), of(perfect())], [of(perfect())])


RANDOM = np.random.default_rng(11)
REFERENCE = RANDOM.normal(0, 3, (64, 10)).astype(np.float32)
NOISE = RANDOM.normal(0, 1, REFERENCE.shape)


def noisy(decibels: float) -> NDArray[np.float32]:
    """The reference with noise that lies `decibels` below it."""
    amplitude = np.linalg.norm(REFERENCE) / np.linalg.norm(NOISE) * 10 ** (-decibels / 20)
    return (REFERENCE + amplitude * NOISE).astype(np.float32)


@pytest.mark.parametrize(
    ("built", "seen", "status"),
    [
        (30, 30, "passed"),
        (30, 60, "passed"),
        (30, 24.1, "passed"),
        (30, 23.9, "failed"),
        (30, 0, "failed"),
        (50, 44.1, "passed"),
        (50, 43.9, "failed"),
        # From 56 dB on the ceiling holds: TF32 is not wrong.
        (57, 50.1, "passed"),
        (120, 50.1, "passed"),
        (120, 49.9, "failed"),
    ],
)
def test_golden_logits_may_be_twice_as_noisy_as_at_build_time(built: float, seen: float, status: str) -> None:
    check, figures = golden_of(REFERENCE, noisy(seen), built)
    assert (check.name, check.status, check.unit) == ("golden", status, "dB")
    assert check.measured == figures["sqnr_db"] == pytest.approx(seen, abs=0.05)
    assert check.limit == pytest.approx(min(built - 6, GOLDEN_CEILING_DB))


@pytest.mark.parametrize("broken", [np.negative, lambda logits: np.roll(logits, 1, axis=0), np.zeros_like, lambda x: 2 * x])
def test_a_broken_kernel_fails_even_after_a_noisy_build(
    broken: Callable[[NDArray[np.float32]], NDArray[np.float32]],
) -> None:
    check, _ = golden_of(REFERENCE, broken(REFERENCE), 15.0)
    assert check.status == "failed"


@bad_values
def test_golden_logits_that_are_not_finite_fail_on_either_side(bad: float) -> None:
    broken = REFERENCE.copy()
    broken[5, 2] = bad
    for reference, candidate, whose in ((REFERENCE, broken, "the logits"), (broken, REFERENCE, "PyTorch's logits")):
        check, figures = golden_of(reference, candidate, -100.0, name="engine_output")
        assert (check.name, check.status) == ("engine_output", "failed")
        assert f"{whose} of 1 of 64 images (here)" in check.message
        assert figures == {"images": 64}


def test_golden_agreement_is_a_figure_and_no_limit() -> None:
    close = np.tile(np.asarray([[1.0, 1.001, -9.0, 4.0]], np.float32), (8, 1))
    close[:, 3] = 0.9
    candidate = close.copy()
    candidate[:, [0, 1]] = close[:, [1, 0]]
    check, figures = golden_of(close, candidate, 60.0)
    assert figures["agreement_percent"] == 0
    assert check.status == "passed"
    assert "same top-1 on 0.00 %" in check.message


def test_golden_logits_that_are_equal_pass_whatever_the_build_measured() -> None:
    check, _ = golden_of(REFERENCE, REFERENCE.copy(), math.inf)
    assert check.status == "passed"


# ---- several outputs

SEVERAL = (
    OutputSpec(name=LOGITS, kind="logits", shape=(10,)),
    OutputSpec(name="embedding", kind="embedding", shape=(24,)),
    OutputSpec(name="feature_1", kind="feature_map", shape=(6, 2, 2)),
)
NAMES = [spec.name for spec in SEVERAL]


def several(count: int = 64) -> dict[str, NDArray[np.float32]]:
    random = np.random.default_rng(3)
    return {spec.name: random.normal(0, 2, (count, *spec.shape)).astype(np.float32) for spec in SEVERAL}


def turned(values: NDArray[np.float32], cosine: float) -> NDArray[np.float32]:
    """For each image another vector of the same length, at exactly that cosine."""
    flat = values.reshape(len(values), -1).astype(np.float64)
    other = np.random.default_rng(4).normal(0, 1, flat.shape)
    other -= flat * ((other * flat).sum(1) / (flat**2).sum(1))[:, None]
    other *= (np.linalg.norm(flat, axis=1) / np.linalg.norm(other, axis=1))[:, None]
    return (cosine * flat + math.sqrt(1 - cosine**2) * other).reshape(values.shape).astype(np.float32)


@pytest.mark.parametrize("bad", NAMES)
def test_one_bad_output_fails_its_own_check_and_no_other(bad: str) -> None:
    candidate = several()
    candidate[bad] = -candidate[bad]
    numerics = compare(several(), candidate, None, BUDGET, specs=SEVERAL, where="here")
    check_names = {LOGITS: "agreement", "embedding": "cosine_embedding", "feature_1": "cosine_feature_1"}
    assert {check.name: check.status for check in numerics.checks} == {
        name: "failed" if output == bad else "passed" for output, name in check_names.items()
    }
    assert not numerics.within_budget


@pytest.mark.parametrize("name", ["embedding", "feature_1"])
@pytest.mark.parametrize(
    ("cosine", "limit", "status"),
    [(0.9901, 0.99, "passed"), (0.9899, 0.99, "failed"), (0.9501, 0.95, "passed"), (0.9499, 0.95, "failed")],
)
def test_an_output_without_classes_is_judged_by_its_cosine(cosine: float, limit: float, status: str, name: str) -> None:
    candidate = several()
    candidate[name] = turned(candidate[name], cosine)
    budget = Budget(min_cosine=limit)
    [check] = [
        check
        for check in compare(several(), candidate, None, budget, specs=SEVERAL, where="here").checks
        if check.name == f"cosine_{name}"
    ]
    assert (check.status, check.limit, check.unit) == (status, limit, "cosine")
    assert check.measured == pytest.approx(cosine, abs=2e-6)
    assert check.message.startswith(f"{name}: cosine {cosine:.5f} with PyTorch")


def test_labels_judge_the_classes_and_cosine_the_rest() -> None:
    candidate = several()
    labels = candidate[LOGITS].argmax(axis=1)
    candidate[LOGITS][:2] *= -1
    numerics = compare(several(), candidate, labels, BUDGET, specs=SEVERAL, where="here")
    assert [(check.name, check.status) for check in numerics.checks] == [
        ("accuracy", "failed"),
        ("cosine_embedding", "passed"),
        ("cosine_feature_1", "passed"),
    ]
    assert numerics.figures["drop"] == pytest.approx(100 * 2 / 64)


def test_probabilities_are_judged_by_their_top_1() -> None:
    specs = (OutputSpec(name="probabilities", kind="probabilities", shape=(4,)),)
    for wrong, status in ((2, "passed"), (3, "failed")):
        reference, candidate = {"probabilities": perfect()}, {"probabilities": wrong_on(wrong)}
        [check] = compare(reference, candidate, None, BUDGET, specs=specs, where="here").checks
        assert (check.name, check.status) == ("agreement", status)


@pytest.mark.parametrize("worst", NAMES)
def test_figures_are_of_each_output_and_over_all_the_worst(worst: str) -> None:
    candidate = several()
    for name in NAMES:
        candidate[name] = turned(candidate[name], 0.9 if name == worst else 0.999)
    figures = compare(several(), candidate, None, BUDGET, specs=SEVERAL, where="here").figures
    assert figures["images"] == 64
    assert list(figures["outputs"]) == NAMES
    for name in NAMES:
        cosine = 0.9 if name == worst else 0.999
        assert figures["outputs"][name]["cosine"] == pytest.approx(cosine, abs=1e-6)
        # Of two vectors of one length: noise over signal is 2 - 2 cos.
        assert figures["outputs"][name]["sqnr_db"] == pytest.approx(-10 * math.log10(2 - 2 * cosine), abs=1e-3)
    assert {key: figures[key] for key in ("cosine", "sqnr_db")} == figures["outputs"][worst]


def test_a_model_without_classes_has_no_agreement() -> None:
    reference = several()
    del reference[LOGITS]
    figures = compare(reference, reference, None, BUDGET, specs=SEVERAL[1:], where="here").figures
    assert "agreement_percent" not in figures
    assert figures["cosine"] == pytest.approx(1)


def test_outputs_may_be_kept_of_the_first_images_only() -> None:
    reference = several()
    reference["feature_1"] = reference["feature_1"][:5]
    numerics = compare(reference, reference, reference[LOGITS].argmax(axis=1), BUDGET, specs=SEVERAL, where="here")
    assert numerics.within_budget
    assert numerics.figures["images"] == 64


@bad_values
@pytest.mark.parametrize("name", NAMES)
def test_the_output_that_is_not_finite_is_named(name: str, bad: float) -> None:
    broken = several()
    broken[name].reshape(64, -1)[[3, 7], 1] = bad
    for reference, candidate, whose in ((several(), broken, "the"), (broken, several(), "PyTorch's")):
        [check] = compare(reference, candidate, None, Budget(min_agreement=0, min_cosine=0), specs=SEVERAL, where="x").checks
        assert (check.name, check.status) == ("finite", "failed")
        assert f"in {whose} {name} of 2 of 64 images (x)" in check.message


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("batch", [0, 1])
def test_parity_is_judged_by_the_worst_output_of_any_batch(batch: int, name: str) -> None:
    references = [several(1), several(8)]
    results = [several(1), several(8)]
    assert parity(references, results).status == "passed"
    largest = np.abs(references[batch][name]).max()
    results[batch][name][0].flat[0] += np.float32(0.01) * largest
    check = parity(references, results)
    assert check.status == "failed"
    assert check.measured == pytest.approx(0.01, rel=1e-3)
    results[batch][name][0].flat[0] = math.nan
    assert parity(references, results).status == "failed"


def test_parity_says_of_what_the_error_is_a_share() -> None:
    one, two = {"embedding": several(1)["embedding"]}, {name: several(1)[name] for name in NAMES[:2]}
    for outputs, what in ((one, "value of embedding"), (two, "value of logits and embedding"), (several(1), "each output")):
        assert parity([outputs], [outputs]).message.endswith(what)


def built(decibels: float, **others: float) -> dict[str, Any]:
    return {"outputs": {name: {"sqnr_db": others.get(name, decibels)} for name in NAMES}}


@pytest.mark.parametrize("bad", NAMES)
def test_golden_fails_by_the_output_that_fell_the_furthest_and_names_it(bad: str) -> None:
    candidate = several()
    for name in NAMES:
        candidate[name] = turned(candidate[name], 0.99 if name == bad else 0.9999)
    check, figures = golden(several(), candidate, built(30), specs=SEVERAL, name="golden", where="here")
    assert (check.name, check.status, check.limit) == ("golden", "failed", 24)
    assert check.message.startswith(f"{bad} of 64 golden inputs at 17.0 dB")
    assert check.measured == figures["outputs"][bad]["sqnr_db"]


def test_golden_holds_each_output_to_its_own_figure_at_build_time() -> None:
    candidate = {name: turned(values, 0.999) for name, values in several().items()}
    # 27 dB each: enough for what was built at 30 dB, too little for what was built at 40 dB.
    assert golden(several(), candidate, built(30), specs=SEVERAL, name="golden", where="here")[0].status == "passed"
    for name in NAMES:
        check, _ = golden(several(), candidate, built(30, **{name: 40.0}), specs=SEVERAL, name="golden", where="here")
        assert (check.status, check.limit, check.message.partition(" ")[0]) == ("failed", 34, name)


@bad_values
def test_golden_names_the_output_that_is_not_finite(bad: float) -> None:
    broken = several()
    broken["feature_1"][9, 2, 0, 1] = bad
    check, figures = golden(several(), broken, built(-100), specs=SEVERAL, name="golden", where="here")
    assert check.status == "failed"
    assert "in the feature_1 of 1 of 64 images" in check.message
    assert figures == {"images": 64}
