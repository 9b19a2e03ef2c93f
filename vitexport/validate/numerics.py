"""Input: outputs of PyTorch and of a candidate; output: the checks that say whether the candidate may ship."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np

from vitexport.artifacts import Outputs, OutputSpec
from vitexport.report import Check, at_least, at_most
from vitexport.validate import metrics
from vitexport.validate.answers import Truth, agreement_figures, agreement_words, judge
from vitexport.validate.budget import Budget, Reading

PLAIN = Reading()
PARITY_LIMIT = 1e-4
# Golden outputs may be this much noisier than when the bundle was built (twice the error), and need no more than the
# ceiling: what computes in TF32 or sums in another order is not wrong.
GOLDEN_SLACK_DB = 6.0
GOLDEN_CEILING_DB = 50.0


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Numerics:
    """Checks and figures of one candidate against PyTorch on one set of images."""

    checks: tuple[Check, ...]
    figures: dict[str, Any]

    @property
    def within_budget(self) -> bool:
        """Whether no check failed."""
        return all(check.status != "failed" for check in self.checks)


def parity(
    references: Sequence[Outputs], results: Sequence[Outputs], scales: Mapping[str, float] = MappingProxyType({})
) -> Check:
    """The float ONNX model against PyTorch, one entry for each batch size; `scales` as `metrics.relative_error`'s."""
    errors = [
        metrics.relative_error(reference[name], result[name], scales.get(name, 0.0))
        for reference, result in zip(references, results, strict=True)
        for name in reference
    ]
    sizes = ", ".join(str(len(next(iter(result.values())))) for result in results)
    # A NaN must win over every number, and max() would lose it.
    worst = float(np.max(errors))
    names = list(references[0])
    what = (
        "logit" if names == ["logits"] else f"value of {' and '.join(names)}" if len(names) < 3 else "value of each output"
    )
    return at_most(
        "export_parity",
        worst,
        PARITY_LIMIT,
        f"float ONNX against PyTorch at batch {sizes}: largest error {worst:.1e} of the largest {what}",
        "ratio",
    )


def compare(  # noqa: PLR0913 - the two sides, and all that decides how they are judged
    reference: Outputs,
    candidate: Outputs,
    truth: Truth | None,
    budget: Budget,
    *,
    specs: Sequence[OutputSpec],
    where: str,
    reading: Reading = PLAIN,
) -> Numerics:
    """Compare a candidate's outputs with PyTorch's.

    Args:
        reference: PyTorch's, float32 [n, …] each.
        candidate: For the same images.
        truth: Classes, int64 [n]; labels or targets, float32 [n, k]; or None.
        budget: What is allowed.
        specs: The model's outputs. The one that holds its answer is judged as its task is, all others by their cosine.
        where: What computed the candidate's outputs and on which images, for the messages.
        reading: How the answer is read.
    """
    if broken := not_finite(reference, candidate, name="finite", where=where):
        return Numerics(checks=(broken,), figures={"images": _count(reference)})
    figures = _figures(reference, candidate, specs, reading)
    checks: list[Check] = []
    for spec in specs:
        if not spec.is_answer:
            checks.append(_close_in_cosine(spec.name, figures["outputs"][spec.name]["cosine"], budget, where))
            continue
        one, other = reference[spec.name], candidate[spec.name]
        found, more = judge(spec, one, other, truth, budget=budget, reading=reading, where=where)
        checks += found
        figures |= more
    return Numerics(checks=tuple(checks), figures=figures)


def golden(  # noqa: PLR0913 - as `compare`, and the name of the check
    reference: Outputs,
    candidate: Outputs,
    built: Mapping[str, Any],
    *,
    specs: Sequence[OutputSpec],
    name: str,
    where: str,
    reading: Reading = PLAIN,
) -> tuple[Check, dict[str, Any]]:
    """The golden inputs' outputs against PyTorch's, held to what was found when the bundle was built.

    Args:
        reference: PyTorch's, float32 [n, …] each.
        candidate: From the artifact that ships, on this machine.
        built: Figures of the same comparison at build time.
        specs: The model's outputs.
        name: Of the check.
        where: What computed the candidate's outputs.
        reading: How the answer is read.

    Returns:
        The check, of the output that fell the furthest below its limit, and its figures. Agreement is among them
        without a limit: on few images one flip is chance.
    """
    if broken := not_finite(reference, candidate, name=name, where=where):
        return broken, {"images": _count(reference)}
    figures = _figures(reference, candidate, specs, reading)
    checks = []
    for spec in specs:
        seen, then = figures["outputs"][spec.name]["sqnr_db"], float(built["outputs"][spec.name]["sqnr_db"])
        message = (
            f"{spec.name} of {figures['images']} golden inputs at {seen:.1f} dB SQNR against PyTorch, {then:.1f} dB "
            "when the bundle was built"
        )
        if words := agreement_words(spec, figures):
            message += f"; {words}"
        if len(specs) > 1:
            message += f"; of {len(specs)} outputs the nearest to its limit"
        limit = min(then - GOLDEN_SLACK_DB, GOLDEN_CEILING_DB)
        checks.append((seen - limit, at_least(name, seen, limit, f"{message} ({where})", "dB")))
    return min(checks, key=lambda pair: pair[0])[1], figures


def _close_in_cosine(name: str, cosine: float, budget: Budget, where: str) -> Check:
    """One output that names no classes."""
    return at_least(
        f"cosine_{name}", cosine, budget.min_cosine, f"{name}: cosine {cosine:.5f} with PyTorch ({where})", "cosine"
    )


def not_finite(reference: Outputs, candidate: Outputs, *, name: str, where: str) -> Check | None:
    """A failed check if either side holds NaN or infinity, on which every other figure would be meaningless."""
    for outputs, whose in ((candidate, "the"), (reference, "PyTorch's")):
        for output, values in outputs.items():
            if bad := int((~np.isfinite(values.reshape(len(values), -1))).any(axis=1).sum()):
                message = f"NaN or infinity in {whose} {output} of {bad} of {len(values)} images ({where})"
                return Check(name=name, status="failed", message=message)
    return None


def _count(outputs: Outputs) -> int:
    return max(map(len, outputs.values()))


def _figures(reference: Outputs, candidate: Outputs, specs: Sequence[OutputSpec], reading: Reading) -> dict[str, Any]:
    """Of each output, and over all: the lowest cosine and SQNR, and how alike the answers are."""
    each: dict[str, dict[str, float]] = {}
    figures: dict[str, Any] = {"images": _count(reference)}
    for spec in specs:
        one, other = reference[spec.name], candidate[spec.name]
        each[spec.name] = {"sqnr_db": metrics.sqnr_db(one, other)}
        # The cosine of a single number is its sign, and values in a unit of their own have no common direction.
        if not spec.is_binary and spec.kind != "values":
            each[spec.name]["cosine"] = metrics.cosine(one, other)
        figures |= agreement_figures(spec, one, other, reading)
    for key in ("cosine", "sqnr_db"):
        values = [row[key] for row in each.values() if key in row]
        figures |= {key: min(values)} if values else {}
    return figures | {"outputs": each}
