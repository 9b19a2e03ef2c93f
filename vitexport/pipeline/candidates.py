"""Make each precision of a float graph and judge it against PyTorch; of INT8, with the fewest layers left in float."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import onnx_ir as ir

from vitexport.artifacts import BatchRange, ModelSource, Precision, QuantRecipe
from vitexport.legality import refuse
from vitexport.pipeline.recipe import Replay
from vitexport.pipeline.reference import Reference, over, raw_count, repeated
from vitexport.pipeline.session import Session
from vitexport.quantize import Calibrated, Calibration, calibrate, integers, output_db, recipe
from vitexport.quantize.calibrate import FOLD_LIMIT, RESIDUAL_SQNR_DB
from vitexport.quantize.fallback import fewest_float, most_sensitive_first
from vitexport.runtime.model import run_in_batches
from vitexport.stacks import Stack, Variant
from vitexport.validate import metrics
from vitexport.validate.budget import Budget, Reading
from vitexport.validate.numerics import Numerics, compare


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Candidate:
    """One precision, built and judged.

    Attributes:
        variant: What would ship.
        recipe: Of INT8.
        numerics: Against PyTorch on the images that it is judged on.
        golden: Figures on the golden inputs.
        raw_db: SQNR of each output on those of them that ship as raw files.
        notes: What the reader of the report needs to know.
    """

    variant: Variant
    recipe: QuantRecipe | None
    numerics: Numerics
    golden: dict[str, Any]
    raw_db: Mapping[str, float]
    notes: tuple[str, ...] = ()

    @property
    def precision(self) -> Precision:
        """Of the variant."""
        return self.variant.precision


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Judge:
    """What every variant of one model is judged by.

    Attributes:
        stack: Says what this machine computes to judge a variant.
        reference: PyTorch's outputs.
        source: Of the model.
        batch: Sizes that the graph takes.
        budget: What may be lost.
        reading: How the model's answer is read.
        session: Of the build.
    """

    stack: Stack
    reference: Reference
    source: ModelSource
    batch: BatchRange
    budget: Budget
    reading: Reading
    session: Session

    def stay_float32(self, graph: ir.Model) -> frozenset[str]:
        """Nodes of the float `graph` that the stack's float16 cannot compute safely, found on golden inputs."""
        with self.session.watch.stage("float16"):
            return self.stack.stay_float32(graph, self.reference.peak_images(self.batch))

    def __call__(self, variant: Variant, made_by: QuantRecipe | None = None) -> Candidate:
        """Check `variant` against the target's rules, and compare it with PyTorch.

        Raises:
            ToolchainError: It breaks a rule, or ONNX Runtime refuses it.
        """
        refuse(variant.graph, self.stack.target)
        reference, precision = self.reference, variant.precision
        self.session.progress(f"validating {precision}")
        with self.session.watch.stage(f"validate {precision}"):
            emulation = self.stack.emulated(variant)
            backend, remark = self.stack.open(emulation), emulation.remark
            # Its rounded constants are as large as the model's.
            del emulation
            golden_outputs = run_in_batches(backend, reference.golden_images, self.batch)
            outputs = golden_outputs
            if reference.images is not None:
                what = f"validating {precision}"
                outputs = over(
                    reference.images,
                    self.source,
                    self.session,
                    what,
                    lambda part: run_in_batches(backend, part, self.batch),
                )
        specs, read, count = self.source.outputs, self.reading, raw_count(self.batch)
        seen = compare(
            reference.golden_outputs, golden_outputs, None, self.budget, specs=specs, where="golden inputs", reading=read
        )
        about = reference.about + remark
        return Candidate(
            variant=variant,
            recipe=made_by,
            numerics=compare(
                reference.outputs, outputs, reference.truth, self.budget, specs=specs, where=about, reading=read
            ),
            golden=seen.figures,
            raw_db={
                name: metrics.sqnr_db(repeated(reference.golden_outputs[name], count), repeated(golden_outputs[name], count))
                for name in reference.golden_outputs
            },
        )


def float_candidate(graph: ir.Model, precision: Precision, judge: Judge, stay_float32: frozenset[str]) -> Candidate:
    """fp32 or fp16, from the float `graph`."""
    with judge.session.watch.stage(precision):
        variant = judge.stack.variant(graph, precision, None, stay_float32)
    return judge(variant)


def int8_candidate(work: Calibration, judge: Judge, replay: Replay | None) -> Candidate:
    """INT8 of every layer that was asked for; where that misses the budget, the fewest go back to float.

    Args:
        work: What is calibrated, and on which images.
        judge: Decides on the budget.
        replay: An earlier build's decisions, which are then followed; None to search.
    """
    stack, watch = judge.stack, judge.session.watch
    with watch.stage("calibrate"):
        calibrated = calibrate(work)
    # Of the graph that is quantized: equalization moves magnitudes from one tensor to another.
    wide = judge.stay_float32(calibrated.folded)
    beyond = frozenset(module for node, module in calibrated.modules.items() if node in wide)

    def make(stay_float: frozenset[str]) -> Candidate:
        left = stay_float | beyond
        with watch.stage("quantize"):
            variant = stack.variant(calibrated.folded, "int8", integers(calibrated, left), wide)
        return judge(variant, recipe(work, calibrated, left))

    if replay is not None:
        replay.check_layers(calibrated.layer_db)
        restored, decibels = replay.stay_float - beyond, calibrated.layer_db
        candidate = make(restored)
    else:
        candidate, restored, decibels = _searched(make, work, calibrated, beyond, judge.session)
    notes = _placement_notes(work, calibrated)
    if calibrated.unequalized:
        change = f"the float outputs would have changed by more than {FOLD_LIMIT:.0e}"
        notes += (f"{calibrated.unequalized} groups of layers were quantized without equalization: with it {change}.",)
    if beyond:
        notes += (f"{len(beyond)} layers stay float, since their results are beyond float16: {', '.join(sorted(beyond))}.",)
    if restored:
        ranking = [name for name in most_sensitive_first(decibels) if name in restored]
        names = ", ".join(f"{name} ({decibels[name]:.1f} dB)" for name in ranking)
        count = len(decibels.keys() - beyond)
        notes += (f"{len(restored)} of {count} layers stay float{_SEARCHED if replay is None else _REPLAYED}: {names}.",)
    return dataclasses.replace(candidate, notes=notes)


def _searched(
    make: Callable[[frozenset[str]], Candidate],
    work: Calibration,
    calibrated: Calibrated,
    beyond: frozenset[str],
    session: Session,
) -> tuple[Candidate, frozenset[str], Mapping[str, float]]:
    """The candidate with the fewest layers in float that is within the budget, those layers, and what ranked them."""
    everything = frozenset[str]()
    first = make(everything)
    if first.numerics.within_budget:
        return first, everything, calibrated.layer_db
    with session.watch.stage("sensitivity"):
        decibels = output_db(work, calibrated)
    # Graphs are large: of all that are tried, the last one that was accepted is kept.
    tried, kept = {everything: False}, dict[frozenset[str], Candidate]()

    def accept(stay_float: frozenset[str]) -> bool:
        if stay_float not in tried:
            candidate = make(stay_float)
            tried[stay_float] = candidate.numerics.within_budget
            if tried[stay_float]:
                kept.clear()
                kept[stay_float] = candidate
        return tried[stay_float]

    ranking = [name for name in most_sensitive_first(decibels) if name not in beyond]
    found = fewest_float(ranking, accept)
    if found is None:
        return first, everything, decibels
    return kept.get(found) or make(found), found, decibels


_SEARCHED = (
    " to meet the budget, and no single one could be quantized within it. They were found on the images that accuracy is "
    "judged on; in brackets the SQNR of the outputs with this layer alone in INT8"
)
_REPLAYED = ", as the recipe says; in brackets the SQNR of the layer's own output"


def _placement_notes(work: Calibration, calibrated: Calibrated) -> tuple[str, ...]:
    """What placements B and C found to quantize beyond the layers; C may find that no range allows it."""
    placement = work.settings.placement
    if placement.base == "A":
        return ()
    if placement.base == "B":
        what = "inputs of attention products"
        folded = sum(calibrated.strengths[group] > 0 for group in {item.group for item in calibrated.inputs})
        detail = f"; q and k were equalized against each other in {folded} attentions"
    else:
        what = "skip operands of residual Adds"
        detail = f"; a skip that rounding leaves at less than {RESIDUAL_SQNR_DB:.0f} dB stays float"
    return (f"Placement {placement} quantizes {len(calibrated.inputs)} {what} beyond the linear layers{detail}.",)
