"""Judge the output that holds a model's answer, each task by its own figure and its own limit."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from vitexport.artifacts import OutputSpec, Task
from vitexport.report import Check, at_least, at_most, skipped
from vitexport.validate import metrics
from vitexport.validate.budget import Budget, Reading
from vitexport.validate.task_metrics import (
    Deviation,
    as_two_classes,
    decisions,
    deviation,
    errors,
    kept,
    label_agreement,
    label_scores,
    sides,
)

Floats: TypeAlias = NDArray[np.float32]
# Class of each picture, int64 [n]; or its labels (0 or 1) or targets, float32 [n, k].
Truth: TypeAlias = NDArray[np.int64] | NDArray[np.float32]
# Name of the check of pictures whose truth is known.
ACCURACY: Mapping[Task, str] = {
    "classification": "accuracy",
    "multi-label": "map",
    "regression": "error",
    "embedding": "accuracy",
}
# Where most pictures lack most labels, saying no to all of them agrees with PyTorch on nearly every decision. So a label
# that PyTorch finds on a few pictures must be found again on half of them.
FEW_PICTURES = 5
LEAST_KEPT = 50.0
NAMED_LABELS = 5


def agreement_figures(spec: OutputSpec, reference: Floats, candidate: Floats, reading: Reading) -> dict[str, Any]:
    """JSON values that say how alike the two answers are; none of an output that is no answer."""
    if spec.names_classes:
        return {"agreement_percent": metrics.agreement(reference, candidate)}
    if spec.is_binary:
        found = dataclasses.asdict(sides(reference, candidate))
        return {"sign_agreement_percent": found.pop("agreement_percent"), **found}
    if spec.kind == "label_logits":
        each = label_agreement(decisions(reference, reading.threshold), decisions(candidate, reading.threshold))
        worst = np.argsort(each, kind="stable")[:NAMED_LABELS]
        return {
            "threshold": reading.threshold,
            "label_agreement_percent": float(each.mean()),
            "worst_labels": {reading.name(int(index)): float(each[index]) for index in worst},
        }
    if spec.kind == "values":
        found_each = _deviations(reference, candidate)
        each_value = {reading.name(index): dataclasses.asdict(found) for index, found in enumerate(found_each)}
        return {"deviation_percent": _worst(found_each)[1].percent, "deviations": each_value}
    return {}


def agreement_words(spec: OutputSpec, figures: dict[str, Any]) -> str:
    """One clause about `agreement_figures`; empty of an output that is no answer."""
    if spec.names_classes:
        return f"same top-1 on {figures['agreement_percent']:.2f} %"
    if spec.is_binary:
        return f"same sign on {figures['sign_agreement_percent']:.2f} %"
    if spec.kind == "label_logits":
        return f"{figures['label_agreement_percent']:.2f} % of the decisions alike"
    if spec.kind == "values":
        return f"{figures['deviation_percent']:.2f} % of the spread from PyTorch"
    return ""


def judge(  # noqa: PLR0913 - the two sides, and all that decides how they are judged
    spec: OutputSpec,
    reference: Floats,
    candidate: Floats,
    truth: Truth | None,
    *,
    budget: Budget,
    reading: Reading,
    where: str,
) -> tuple[list[Check], dict[str, Any]]:
    """Checks of the answer `spec`, and figures beyond `agreement_figures`."""
    if spec.names_classes or spec.is_binary:
        return _judge_classes(spec, reference, candidate, truth, budget, where)
    if spec.kind == "label_logits":
        return _judge_labels(reference, candidate, truth, budget, reading, where)
    return _judge_values(reference, candidate, truth, budget, reading, where)


def _judge_classes(  # noqa: PLR0913, PLR0917 - as `judge`
    spec: OutputSpec, reference: Floats, candidate: Floats, truth: Truth | None, budget: Budget, where: str
) -> tuple[list[Check], dict[str, Any]]:
    if truth is None:
        if spec.is_binary:
            return [_same_sign(reference, candidate, budget, where)], {}
        measured = metrics.agreement(reference, candidate)
        message = f"same top-1 as PyTorch on {measured:.2f} % of {len(reference)} images ({where})"
        return [at_least("agreement", measured, budget.min_agreement, message, "percent")], {}
    what = "top-1"
    if spec.is_binary:
        reference, candidate, what = as_two_classes(reference), as_two_classes(candidate), "accuracy"
    result = metrics.accuracy(reference, candidate, truth.astype(np.int64))
    message = (
        f"{what} {result.candidate_top1:.2f} %, PyTorch {result.reference_top1:.2f} %, drop {result.drop:+.2f} "
        f"points (95 % interval {result.drop_low:+.2f} to {result.drop_high:+.2f}) on {result.images} images "
        f"({where})"
    )
    figures = dataclasses.asdict(result)
    if spec.is_binary:
        # Two classes have no top-5.
        figures = {key.replace("top1", "accuracy"): value for key, value in figures.items() if not key.endswith("top5")}
    return [at_most("accuracy", result.drop, budget.max_drop, message, "points")], figures


def _same_sign(reference: Floats, candidate: Floats, budget: Budget, where: str) -> Check:
    """One logit: its sign, and how near to 0 PyTorch's is where the sign is another."""
    found = sides(reference, candidate)
    message = f"same sign as PyTorch on {found.agreement_percent:.2f} % of {len(reference)} images"
    if found.flipped:
        message += (
            f"; {found.flipped} change sides, with |logit| {found.flipped_margin:.2g} in PyTorch at the median and "
            f"{found.flipped_largest:.2g} at most"
        )
    message += f"; PyTorch is positive on {int((reference > 0).sum())}, median |logit| {found.margin:.2g} ({where})"
    return at_least("sign_agreement", found.agreement_percent, budget.min_agreement, message, "percent")


def _judge_labels(  # noqa: PLR0913, PLR0917 - as `judge`
    reference: Floats, candidate: Floats, truth: Truth | None, budget: Budget, reading: Reading, where: str
) -> tuple[list[Check], dict[str, Any]]:
    if truth is not None:
        return _judge_found(reference, candidate, truth > 0, budget, reading, where)
    one, other = (decisions(logits, reading.threshold) for logits in (reference, candidate))
    each = label_agreement(one, other)
    worst = int(each.argmin())
    message = (
        f"{each.mean():.2f} % of the decisions (image and label, from {reading.threshold:g} on) are PyTorch's on {len(one)} "
        f"images; worst label {reading.name(worst)} with {each[worst]:.2f} % ({where})"
    )
    checks = [at_least("label_agreement", float(each.mean()), budget.min_label_agreement, message, "percent")]
    shares = kept(one, other, FEW_PICTURES)
    if not np.isnan(shares).all():
        lost = int(np.nanargmin(shares))
        message = (
            f"each label is found again on {shares[lost]:.0f} % or more of the images on which PyTorch finds it; the least "
            f"is {reading.name(lost)}, of {int(one[:, lost].sum())} images ({where})"
        )
        checks.append(at_least("labels_kept", float(shares[lost]), LEAST_KEPT, message, "percent"))
    return checks, {}


def _judge_found(  # noqa: PLR0913, PLR0917 - as `judge`
    reference: Floats, candidate: Floats, truth: NDArray[np.bool_], budget: Budget, reading: Reading, where: str
) -> tuple[list[Check], dict[str, Any]]:
    """Labels that are known: mAP, which knows no threshold, and F1, which does."""
    pytorch, ours = (label_scores(logits, truth, reading.threshold) for logits in (reference, candidate))
    figures: dict[str, Any] = {"labels_without_images": int((~truth.any(axis=0)).sum())}
    for whose, scores in (("reference", pytorch), ("candidate", ours)):
        figures |= {f"{whose}_{key}": value for key, value in dataclasses.asdict(scores).items()}
    absent = figures["labels_without_images"]
    left_out = f", without {absent} labels that no image has" if absent else ""
    drop, loss = pytorch.map - ours.map, pytorch.f1_micro - ours.f1_micro
    figures |= {"map_drop": drop, "f1_drop": loss}
    first = (
        f"mAP {ours.map:.2f} %, PyTorch {pytorch.map:.2f} %, drop {drop:+.2f} points on {len(truth)} images{left_out} "
        f"({where})"
    )
    second = (
        f"F1 from {reading.threshold:g} on: micro {ours.f1_micro:.2f} %, PyTorch {pytorch.f1_micro:.2f} %, drop {loss:+.2f} "
        f"points; macro {ours.f1_macro:.2f} %, PyTorch {pytorch.f1_macro:.2f} %"
    )
    return [
        at_most("map", drop, budget.max_map_drop, first, "points"),
        at_most("f1", loss, budget.max_map_drop, second, "points"),
    ], figures


def _judge_values(  # noqa: PLR0913, PLR0917 - as `judge`
    reference: Floats, candidate: Floats, truth: Truth | None, budget: Budget, reading: Reading, where: str
) -> tuple[list[Check], dict[str, Any]]:
    if truth is None:
        index, found = _worst(_deviations(reference, candidate))
        message = (
            f"{_value(reading, index, reference)}RMS difference from PyTorch is {found.percent:.2f} % of the spread "
            f"({found.spread:.4g}) of its values: mean {found.mean_difference:.4g}, largest {found.largest_difference:.4g}, "
            f"R² {found.r2:.4f} on {len(reference)} images ({where})"
        )
        return [at_most("deviation", found.percent, budget.max_deviation, message, "percent")], {}
    figures: dict[str, Any] = {"values": {}}
    grown: list[tuple[float, str]] = []
    for index in range(reference.shape[1]):
        pytorch, ours = (errors(side[:, index], truth[:, index].astype(np.float32)) for side in (reference, candidate))
        increase = error_increase(pytorch.mean_error, ours.mean_error)
        figures["values"][reading.name(index)] = {
            **{f"reference_{key}": value for key, value in dataclasses.asdict(pytorch).items()},
            **{f"candidate_{key}": value for key, value in dataclasses.asdict(ours).items()},
            "error_increase_percent": increase,
        }
        message = (
            f"{_value(reading, index, reference)}mean error {ours.mean_error:.4g}, PyTorch {pytorch.mean_error:.4g} "
            f"({increase:+.2f} %); largest {ours.largest_error:.4g}, PyTorch {pytorch.largest_error:.4g}; R² {ours.r2:.4f}, "
            f"PyTorch {pytorch.r2:.4f} on {len(reference)} images ({where})"
        )
        grown.append((increase, message))
    increase, message = max(grown, key=lambda pair: pair[0])
    figures["error_increase_percent"] = increase
    return [at_most("error", increase, budget.max_error_increase, message, "percent")], figures


def judge_here(  # noqa: PLR0913 - as `judge`, with PyTorch's figures in the place of its outputs
    spec: OutputSpec,
    outputs: Floats,
    truth: Truth,
    *,
    built: Mapping[str, Any],
    budget: Budget,
    reading: Reading,
) -> tuple[list[Check], dict[str, Any]]:
    """Checks and figures of the answer alone, on a machine without PyTorch.

    Args:
        spec: The output.
        outputs: float32 [n, width].
        truth: As for `judge`.
        built: PyTorch's figures of the same images at build time; empty where it was not measured on them.
        budget: What is allowed.
        reading: How the answer is read.
    """
    if spec.names_classes or spec.is_binary:
        figures = _class_figures(spec, outputs, truth.astype(np.int64))
        key, what = ("accuracy", "accuracy") if spec.is_binary else ("top1", "top-1")
        pytorch = built.get(f"reference_{key}")
        check = _here("accuracy", what, figures[key], pytorch, budget.max_drop, len(truth))
        return [check], figures if pytorch is None else figures | {"drop": check.measured}
    if spec.kind == "label_logits":
        scores = label_scores(outputs, truth > 0, reading.threshold)
        limit, pytorch = budget.max_map_drop, built.get("reference_map")
        checks = [_here("map", "mAP", scores.map, pytorch, limit, len(truth))]
        # At another threshold F1 is another figure.
        alike = built.get("threshold") == reading.threshold
        micro = built.get("reference_f1_micro") if alike else None
        checks.append(_here("f1", f"micro F1 from {reading.threshold:g} on", scores.f1_micro, micro, limit, len(truth)))
        return checks, dataclasses.asdict(scores)
    return _values_here(outputs, truth.astype(np.float32), built.get("values", {}), budget, reading)


def _class_figures(spec: OutputSpec, outputs: Floats, labels: NDArray[np.int64]) -> dict[str, Any]:
    if spec.is_binary:
        return {"accuracy": float(metrics.in_top(as_two_classes(outputs), labels, 1).mean() * 100)}
    return {f"top{count}": float(metrics.in_top(outputs, labels, count).mean() * 100) for count in (1, 5)}


def _here(name: str, what: str, seen: float, pytorch: float | None, limit: float, images: int) -> Check:  # noqa: PLR0913, PLR0917
    """A share in percent, against PyTorch's if that is known."""
    if pytorch is None:
        message = f"{what} {seen:.2f} % on {images} images; PyTorch was not measured on them, so no drop is known"
        return skipped(name, message)
    message = f"{what} {seen:.2f} %, PyTorch {pytorch:.2f} % on the same {images} images at build time"
    return at_most(name, pytorch - seen, limit, message, "points")


def _values_here(
    outputs: Floats, truth: Floats, built: Mapping[str, Any], budget: Budget, reading: Reading
) -> tuple[list[Check], dict[str, Any]]:
    found = {reading.name(index): errors(outputs[:, index], truth[:, index]) for index in range(outputs.shape[1])}
    figures = {"values": {name: dataclasses.asdict(each) for name, each in found.items()}}
    several = len(found) > 1 or reading.names is not None
    checks = []
    for name, each in found.items():
        about = f"mean error {each.mean_error:.4g}, largest {each.largest_error:.4g}, R² {each.r2:.4f}"
        message = f"{f'{name}: ' if several else ''}{about} on {len(outputs)} images"
        pytorch = built.get(name, {}).get("reference_mean_error")
        if pytorch is None:
            checks.append(skipped("error", f"{message}; PyTorch was not measured on them, so no increase is known"))
            continue
        increase = error_increase(float(pytorch), each.mean_error)
        message += f"; PyTorch's mean error at build time {pytorch:.4g} ({increase:+.2f} %)"
        checks.append(at_most("error", increase, budget.max_error_increase, message, "percent"))
    return checks, figures


def error_increase(reference: float, candidate: float) -> float:
    """How much larger `candidate` is, in percent of `reference`; infinite where that is 0 and it is not."""
    if reference:
        return (candidate / reference - 1) * 100
    return math.inf if candidate else 0.0


def _deviations(reference: Floats, candidate: Floats) -> list[Deviation]:
    return [deviation(reference[:, index], candidate[:, index]) for index in range(reference.shape[1])]


def _worst(found: list[Deviation]) -> tuple[int, Deviation]:
    return max(enumerate(found), key=lambda pair: pair[1].percent)


def _value(reading: Reading, index: int, values: Floats) -> str:
    """Which value is spoken of, where there are several or it has a name."""
    if values.shape[1] == 1:
        return f"{reading.name(0)}: " if reading.names is not None else ""
    return f"{reading.name(index)}, the worst of {values.shape[1]} values: "
