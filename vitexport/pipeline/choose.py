"""Time the candidates where that counts, estimate them where it does not, and choose the one that ships."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx_ir as ir

from vitexport.artifacts import BatchRange
from vitexport.errors import InputError
from vitexport.legality.counts import graph_products
from vitexport.pipeline.candidates import Candidate
from vitexport.pipeline.prepare import Prepared
from vitexport.pipeline.reference import Reference
from vitexport.pipeline.request import BuildRequest
from vitexport.pipeline.session import Session
from vitexport.pipeline.stages import TIMING
from vitexport.report import Check
from vitexport.roofline import Prediction, predict
from vitexport.runtime.backends.onnx_runtime import available_threads
from vitexport.stacks import Emulation
from vitexport.targets import Target
from vitexport.validate.latency import Runner, Timing, measure
from vitexport.validate.reference import description, reference_runner

LATENCY_SECONDS = 6.0
WIDEST_FIRST = ("fp32", "fp16", "int8")


def time_here(
    prepared: Prepared, exported: ir.Model, candidates: Sequence[Candidate], reference: Reference, session: Session
) -> Timing | None:
    """Latency of every candidate, the float graph and PyTorch, in turn in one run; None where it would not count."""
    stack = prepared.stack
    if not stack.is_timed:
        return None
    session.progress.begin(TIMING)
    with session.watch.stage("latency"):
        images = reference.golden_batch(prepared.batch.optimum)
        graphs: Mapping[str, ir.Model] = {candidate.precision: candidate.variant.graph for candidate in candidates}
        if "fp32" not in graphs:
            graphs = {**graphs, "fp32": stack.variant(exported, "fp32", None, frozenset()).graph}
        backends = {name: stack.open(Emulation(graph=graph, exact=False)) for name, graph in graphs.items()}
        threads = available_threads()
        runners: dict[str, Runner] = {"pytorch": reference_runner(prepared.model, threads)}
        runners |= {name: backend.run for name, backend in backends.items()}
        timing = measure(runners, images, seconds=LATENCY_SECONDS)
    for name, backend in backends.items():
        timing.figures[name]["runtime"] = backend.description
    timing.figures["pytorch"]["runtime"] = f"{description()}, {threads} threads"
    return timing


def predict_there(target: Target, candidates: Sequence[Candidate], batch: BatchRange) -> Prediction:
    """What the target takes at least for each candidate, from the graph that would ship."""
    try:
        products = {candidate.precision: graph_products(candidate.variant.graph) for candidate in candidates}
    except InputError as error:
        return Prediction(skipped=str(error))
    return predict(target, products, batch.optimum)


def choose(
    request: BuildRequest,
    target: Target,
    candidates: Sequence[Candidate],
    timing: Timing | None,
    prediction: Prediction,
) -> tuple[Candidate, list[str]]:
    """The fastest candidate within the budget; float if none is, so that its failed check is seen. And a note on why."""
    if request.precision != "auto":
        # The last one is float where INT8 was asked for and does not meet the budget.
        return candidates[-1], []
    within = [candidate for candidate in candidates if candidate.numerics.within_budget]
    if timing is not None:
        figures = timing.figures
        within.sort(key=lambda candidate: figures[candidate.precision]["p50_ms"])
        how = "measured here, side by side"
    elif len(prediction.estimates) == len(candidates):
        within.sort(key=lambda candidate: prediction.seconds(candidate.precision) or 0.0)
        how = f"ordered by what the peak rates of {target.name} allow; nothing was measured on the device"
    else:
        how = f"INT8 presumed to be faster on {target.name}; nothing was measured there"
    # Nothing within the budget: the widest, so that what ships is at least as close to PyTorch as can be.
    chosen = within[0] if within else min(candidates, key=lambda candidate: WIDEST_FIRST.index(candidate.precision))
    tried = ", ".join(candidate.precision for candidate in candidates)
    reason = "the fastest within the budget" if within else "none was within the budget"
    note = f"Precision auto chose {chosen.precision} among {tried}: {reason} ({how})."
    if len(candidates) == 1:
        why = "no calibration images were given (`calibration`)" if request.calibration is None else "no other fits"
        note = f"Precision auto took {tried}: {why}."
    return chosen, [note]


def refused_int8(candidates: Sequence[Candidate], chosen: Candidate) -> list[Check]:
    """A failed check where INT8 was asked for and float ships."""
    asked = candidates[0]
    if asked is chosen or asked.precision != "int8" or asked.numerics.within_budget:
        return []
    missed = "; ".join(check.message for check in asked.numerics.checks if check.status == "failed")
    message = f"no set of INT8 layers meets the budget, so {chosen.precision} ships; with all of them: {missed}"
    return [Check(name="int8", status="failed", message=message)]
