"""Logits of PyTorch and of a candidate enter; the checks that say whether the candidate may ship leave."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitexport.report import Check, at_least, at_most
from vitexport.validate import metrics

PARITY_LIMIT = 1e-4
# Golden logits may be this much noisier than when the bundle was built (twice the error), and need no more than the
# ceiling: what computes in TF32 or sums in another order is not wrong.
GOLDEN_SLACK_DB = 6.0
GOLDEN_CEILING_DB = 50.0


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """What the user allows.

    Attributes:
        max_drop: Top-1 drop in percentage points, where there are labels.
        min_agreement: Top-1 agreement with PyTorch in percent, where there are none.
    """

    max_drop: float
    min_agreement: float


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Numerics:
    """Checks and figures of one candidate against PyTorch on one set of images."""

    checks: tuple[Check, ...]
    figures: dict[str, Any]

    @property
    def within_budget(self) -> bool:
        """Whether no check failed."""
        return all(check.status != "failed" for check in self.checks)


def parity(references: Sequence[NDArray[np.float32]], results: Sequence[NDArray[np.float32]]) -> Check:
    """The float ONNX model against PyTorch, one entry for each batch size."""
    errors = [metrics.relative_error(*pair) for pair in zip(references, results, strict=True)]
    sizes = ", ".join(str(len(result)) for result in results)
    # A NaN must win over every number, and max() would lose it.
    worst = float(np.max(errors))
    return at_most(
        "export_parity",
        worst,
        PARITY_LIMIT,
        f"float ONNX against PyTorch at batch {sizes}: largest error {worst:.1e} of the largest logit",
        "ratio",
    )


def compare(
    reference: NDArray[np.float32],
    candidate: NDArray[np.float32],
    labels: NDArray[np.int64] | None,
    budget: Budget,
    *,
    where: str,
) -> Numerics:
    """Hold a candidate's logits against PyTorch's.

    Args:
        reference: PyTorch's logits, float32 [n, classes].
        candidate: float32 [n, classes], for the same images.
        labels: int64 [n], or None.
        budget: What is allowed.
        where: What computed the candidate's logits and on which images, for the messages.
    """
    if broken := _not_finite(reference, candidate, name="finite", where=where):
        return Numerics(checks=(broken,), figures={"images": len(reference)})
    figures = _figures(reference, candidate)
    if labels is None:
        measured = figures["agreement_percent"]
        message = f"same top-1 as PyTorch on {measured:.2f} % of {len(reference)} images ({where})"
        return Numerics(checks=(at_least("agreement", measured, budget.min_agreement, message, "percent"),), figures=figures)
    result = metrics.accuracy(reference, candidate, labels)
    figures |= dataclasses.asdict(result)
    message = (
        f"top-1 {result.candidate_top1:.2f} %, PyTorch {result.reference_top1:.2f} %, drop {result.drop:+.2f} points "
        f"(95 % interval {result.drop_low:+.2f} to {result.drop_high:+.2f}) on {result.images} images ({where})"
    )
    return Numerics(checks=(at_most("accuracy", result.drop, budget.max_drop, message, "points"),), figures=figures)


def golden(
    reference: NDArray[np.float32], candidate: NDArray[np.float32], built_db: float, *, name: str, where: str
) -> tuple[Check, dict[str, Any]]:
    """The golden inputs' logits against PyTorch's, held to what was found when the bundle was built.

    Args:
        reference: PyTorch's logits, float32 [n, classes].
        candidate: From the artifact that ships, on this machine.
        built_db: SQNR of the same comparison at build time.
        name: Of the check.
        where: What computed the candidate's logits.

    Returns:
        The check and its figures. Top-1 agreement is among them without a limit: on few images one flip is chance.
    """
    if broken := _not_finite(reference, candidate, name=name, where=where):
        return broken, {"images": len(reference)}
    figures = _figures(reference, candidate)
    limit = min(built_db - GOLDEN_SLACK_DB, GOLDEN_CEILING_DB)
    message = (
        f"logits of {len(reference)} golden inputs at {figures['sqnr_db']:.1f} dB SQNR against PyTorch, {built_db:.1f} dB "
        f"when the bundle was built; same top-1 on {figures['agreement_percent']:.2f} % ({where})"
    )
    return at_least(name, figures["sqnr_db"], limit, message, "dB"), figures


def _not_finite(reference: NDArray[np.float32], candidate: NDArray[np.float32], *, name: str, where: str) -> Check | None:
    """A failed check if either side holds NaN or infinity, on which every other figure would be meaningless."""
    for logits, whose in ((candidate, "the logits"), (reference, "PyTorch's logits")):
        if bad := int((~np.isfinite(logits)).any(axis=1).sum()):
            message = f"NaN or infinity in {whose} of {bad} of {len(logits)} images ({where})"
            return Check(name=name, status="failed", message=message)
    return None


def _figures(reference: NDArray[np.float32], candidate: NDArray[np.float32]) -> dict[str, Any]:
    return {
        "images": len(reference),
        "agreement_percent": metrics.agreement(reference, candidate),
        "cosine": metrics.cosine(reference, candidate),
        "sqnr_db": metrics.sqnr_db(reference, candidate),
    }
