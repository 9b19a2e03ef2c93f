"""Find the first timm module that departs from PyTorch in an engine that can be built again.

The network is built again with the blocks' outputs marked as outputs of the engine, then with those of the first wrong
block's modules, and each is checked against what the float graph computed when the bundle was built. That works under strong
typing too, where no layer can be asked for another precision.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import TypeAlias

from vitexport.artifacts import Outputs
from vitexport.report import Check, at_least
from vitexport.runtime.checkpoints import Checkpoint, Checkpoints, lasts, sample
from vitexport.validate import metrics
from vitexport.validate.numerics import GOLDEN_CEILING_DB, GOLDEN_SLACK_DB

NAME = "localize"
# Builds the engine with these tensors as outputs too, runs the first golden inputs, and returns what it computed of them.
Run: TypeAlias = Callable[[Sequence[str]], Outputs]


def localize(checkpoints: Checkpoints, run: Run, *, is_wrong: bool) -> Check:
    """Name the first module whose output is worse than when the bundle was built.

    Args:
        checkpoints: Of the bundle.
        run: Builds and runs the engine.
        is_wrong: Whether the engine, as it was built, computes wrong.

    Returns:
        Passed if nothing departs and the engine is not wrong.
    """
    outer = lasts(checkpoints.items)
    found = _first(checkpoints, outer, run)
    if found is None:
        return _nothing(outer, is_wrong=is_wrong)
    inside = [item for item in checkpoints.items if item.block and item.block == found.item.block]
    if len(inside) > 1:
        within = _first(checkpoints, inside, run)
        if within is None:
            return found.check(
                f"{found.item.block} is the first block that departs, but none of its modules does once their outputs leave "
                "the engine too, so what TensorRT fuses across them computes wrong"
            )
        found = dataclasses.replace(within, before=within.before or found.before)
    nearest = f" ({found.before.module} before it does not)" if found.before is not None else ""
    return found.check(f"{found.item.module} is the first module that departs{nearest}")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Departure:
    """Something that computes wrong.

    Attributes:
        item: What.
        seen_db: SQNR of its output here; NaN if it holds NaN or infinity.
        before: The last one before it that does not, if any: modules between the two are not compared.
    """

    item: Checkpoint
    seen_db: float
    before: Checkpoint | None

    def check(self, message: str) -> Check:
        """Failed, with the figures."""
        then = f"{self.item.built_db:.1f} dB when the bundle was built"
        seen = "holds NaN or infinity" if math.isnan(self.seen_db) else f"is at {self.seen_db:.1f} dB SQNR"
        figures = f"{self.item.tensor} {seen} against the float graph, {then}"
        return at_least(NAME, self.seen_db, _limit(self.item), f"{message}; {figures}", "dB")


def _first(checkpoints: Checkpoints, wanted: Sequence[Checkpoint], run: Run) -> _Departure | None:
    """The first of `wanted` that is worse than it may be; what the engine does not have is passed over."""
    outputs = run([item.tensor for item in wanted])
    index = {item.tensor: number for number, item in enumerate(checkpoints.items)}
    before = None
    for item in wanted:
        if item.tensor not in outputs:
            continue
        reference = checkpoints.values[:, index[item.tensor]]
        seen = metrics.sqnr_db(reference, sample(outputs[item.tensor], reference.shape[1]))
        if not seen >= _limit(item):
            return _Departure(item=item, seen_db=seen, before=before)
        before = item
    return None


def _limit(item: Checkpoint) -> float:
    return min(item.built_db - GOLDEN_SLACK_DB, GOLDEN_CEILING_DB)


def _nothing(outer: Sequence[Checkpoint], *, is_wrong: bool) -> Check:
    if not is_wrong:
        message = f"the outputs of {len(outer)} blocks and other modules are as near to the float graph's as at build time"
        return Check(name=NAME, status="passed", message=message)
    message = (
        f"no module up to {outer[-1].module} departs when the blocks' outputs leave the engine too: the fault lies behind "
        "it, or in a fusion across blocks that is not made then"
    )
    return Check(name=NAME, status="failed", message=message)
