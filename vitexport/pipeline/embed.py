"""Put the preprocessing into the graph that ships: one file for an application, compared with the Python preprocessing.

``model.app.onnx`` takes the picture, uint8 [batch, any height, any width, 3], and names the classes; labels, preprocessing
and provenance are in its metadata. Where it does not do what the bundle does in Python, it does not ship. For a model of two
channels, or of more than three, the picture is an array of as many.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from vitexport.artifacts import (
    BINARY_NAMES,
    ModelSource,
    OnnxModel,
    Outputs,
    OutputSpec,
    Precision,
    answer_of,
    data_file,
    is_binary,
)
from vitexport.errors import ToolchainError
from vitexport.machine import library_versions
from vitexport.pipeline.prepare import Prepared
from vitexport.pipeline.request import BuildRequest
from vitexport.pipeline.session import Session
from vitexport.pipeline.stages import EMBEDDING
from vitexport.preprocess import ImageLike, PreprocessSpec, preprocess
from vitexport.report import Check, at_least, at_most, skipped
from vitexport.rewrites import InPlacePass, apply, remove, save
from vitexport.rewrites import session as open_session
from vitexport.rewrites.embed_preprocess import EmbedPreprocess, preprocess_model
from vitexport.rewrites.rank_classes import RankClasses
from vitexport.runtime.backends.onnx_runtime import OnnxRuntimeBackend
from vitexport.validate.latency import Runner, measure
from vitexport.validate.metrics import agreement, cosine
from vitexport.validate.pictures import compare_pictures, odd_pictures, typical_picture
from vitexport.validate.task_metrics import deviation, sides

APP_FILE = "model.app.onnx"
# Outputs that name no classes follow the pixels, which are at most a level off.
LEAST_COSINE = 0.9999
# Percent of the spread of labels' logits and of values: about what that cosine allows.
MOST_DEVIATION = 2.0
# How many classes or labels the file names where the user does not say it.
TOP_INDICES = 5
COST_SECONDS = 1.0


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Embedded:
    """What came of it.

    Attributes:
        onnx: The file; None where it was refused.
        graph: In it.
        checks: What it was checked against.
        figures: JSON values for the report: errors, size, and times of the preprocessing, and of the model where it runs.
        notes: Sentences for the report.
    """

    onnx: OnnxModel | None
    checks: tuple[Check, ...]
    figures: Mapping[str, Any]
    notes: tuple[str, ...] = ()
    graph: ir.Model | None = None


def embed(request: BuildRequest, prepared: Prepared, session: Session, shipped: OnnxModel, graph: ir.Model) -> Embedded:
    """Write ``model.app.onnx`` beside `shipped`, whose graph is `graph`, and compare both."""
    session.progress.begin(EMBEDDING)
    with session.watch.stage("embed"):
        if data_file(shipped.path).exists():
            reason = "the weights need more than the 2 GB that one ONNX file holds; use `precision=int8` or a smaller model"
            return Embedded(onnx=None, checks=(skipped("picture_mean", reason),), figures={})
        scores, count = answer_of(prepared.source.outputs), request.top_indices
        model = graph.clone()
        steps: list[InPlacePass] = [EmbedPreprocess(prepared.source.preprocess)]
        if scores is not None and scores.kind != "values" and count != 0:
            steps.append(RankClasses(scores, TOP_INDICES if count is None else count))
        apply(model, *steps)
        model.metadata_props.update(_metadata(prepared, request.threshold, shipped.precision))
        path = session.folder / APP_FILE
        save(model, path)
        onnx = OnnxModel.of(path, opset=shipped.opset, batch=shipped.batch, precision=shipped.precision)
        return _judged(prepared, shipped, onnx, model)


def _metadata(prepared: Prepared, threshold: float, precision: Precision) -> dict[str, str]:
    """What somebody who has only the file needs to know, each entry one JSON value."""
    entries = {
        "task": prepared.source.task,
        "threshold": threshold,
        "labels": prepared.labels or (BINARY_NAMES if is_binary(prepared.source.outputs) else None),
        "preprocess": prepared.source.preprocess.to_json(),
        "model": prepared.source.to_json(),
        "precision": precision,
        "target": prepared.target.id,
        "versions": library_versions(),
    }
    return {f"vitexport.{key}": json.dumps(value, ensure_ascii=False, sort_keys=True) for key, value in entries.items()}


def _judged(prepared: Prepared, shipped: OnnxModel, onnx: OnnxModel, graph: ir.Model) -> Embedded:
    spec, count = prepared.source.preprocess, shipped.batch.minimum
    pictures = odd_pictures(spec)
    alone = preprocess_model(spec, output="pixels", opset=shipped.opset)
    apply(alone, EmbedPreprocess(spec))
    pixels = open_session(alone)
    error = compare_pictures(pictures, spec, lambda picture: _first(pixels.tensors(picture[None])))
    checks = list(error.checks)
    figures: dict[str, Any] = {
        "mean_levels": error.mean,
        "largest_levels": error.largest,
        "pictures": error.pictures,
        "worst": error.worst,
        "onnx_bytes": onnx.size,
        "outputs": {str(output.name): _sizes(output) for output in graph.graph.outputs},
    }
    plain, app = (OnnxRuntimeBackend(path) for path in (shipped.path, onnx.path))
    try:
        # Both compute in one arithmetic, whichever this machine has for the target's integers.
        checks.append(_outputs_check(prepared.source, plain, app, pictures, count))
    except ToolchainError as error:
        if not prepared.stack.is_foreign:
            raise
        checks.append(skipped("picture_outputs", f"for {prepared.target.name} only: {error}"))
        figures["latency"], note = _cost(spec, count, pixels)
    else:
        figures["latency"], note = _cost(spec, count, pixels, plain, app)
    where = f", on the machine of the build, not in {prepared.target.name}" if prepared.stack.is_foreign else ""
    note = f"{note} (medians of one run, {pixels.description}{where})."
    if any(check.status == "failed" for check in checks):
        remove(onnx.path)
        refused = f"{APP_FILE} was refused and is not in the bundle: it does not do what the bundle does in Python."
        return Embedded(onnx=None, checks=tuple(checks), figures=figures, notes=(refused,))
    return Embedded(onnx=onnx, checks=tuple(checks), figures=figures, notes=(note,), graph=graph)


def _sizes(output: ir.Value) -> list[int]:
    """The shape of an output for one picture."""
    return [int(str(size)) for size in tuple(output.shape or ())[1:]]


def _first(results: list[NDArray[Any]]) -> NDArray[np.float32]:
    result: NDArray[np.float32] = results[0][0]
    return result


def _outputs_check(
    source: ModelSource, plain: OnnxRuntimeBackend, app: OnnxRuntimeBackend, pictures: Mapping[str, ImageLike], count: int
) -> Check:
    """The same pictures, `count` at a time, through both files: the same class first, or values that hardly differ."""
    outputs, spec = source.outputs, source.preprocess
    expected, seen = [], []
    for picture in pictures.values():
        expected.append(plain.run(np.repeat(preprocess(picture, spec)[None], count, axis=0)))
        seen.append(app.run(np.repeat(np.asarray(picture)[None], count, axis=0)))
    if (answer := answer_of(outputs)) is not None:
        return _same_answer(answer, _stack(expected, answer.name), _stack(seen, answer.name))
    least = min(cosine(_stack(expected, output.name), _stack(seen, output.name)) for output in outputs)
    message = f"cosine {least:.6f} with the Python preprocessing over {len(pictures)} pictures"
    return at_least("picture_outputs", least, LEAST_COSINE, message)


def _same_answer(answer: OutputSpec, expected: NDArray[np.float32], seen: NDArray[np.float32]) -> Check:
    """Classes are decided alike; labels (some always lie at their threshold) and values differ by next to nothing."""
    what = f"with the Python preprocessing on {len(expected)} pictures"
    if answer.names_classes:
        same = agreement(expected, seen)
        message = f"same top-1 as with the Python preprocessing on {same:.0f} % of {len(expected)} pictures"
        return at_least("picture_outputs", same, 100.0, message, "percent")
    if answer.is_binary:
        same = sides(expected, seen).agreement_percent
        message = f"same sign as with the Python preprocessing on {same:.0f} % of {len(expected)} pictures"
        return at_least("picture_outputs", same, 100.0, message, "percent")
    far = max(deviation(expected[:, index], seen[:, index]).percent for index in range(expected.shape[1]))
    message = f"{answer.name} differ by {far:.3f} % of their spread from those {what}"
    return at_most("picture_outputs", far, MOST_DEVIATION, message, "percent")


def _stack(results: list[Outputs], name: str) -> NDArray[np.float32]:
    return np.concatenate([result[name][:1] for result in results])


def _cost(
    spec: PreprocessSpec,
    count: int,
    pixels: OnnxRuntimeBackend,
    plain: OnnxRuntimeBackend | None = None,
    app: OnnxRuntimeBackend | None = None,
) -> tuple[dict[str, dict[str, Any]], str]:
    """One photograph of 640 x 480 through both ways, in turn in one run; without the model where this machine has none."""
    picture = typical_picture(spec)
    prepared = np.repeat(preprocess(picture, spec)[None], count, axis=0)
    array = np.repeat(np.asarray(picture)[None], count, axis=0)
    runners: dict[str, Runner] = {
        "python preprocessing": lambda _: [preprocess(picture, spec) for _ in range(count)],
        "preprocessing in the graph": lambda _: pixels.tensors(array[:1]),
    }
    if plain is not None and app is not None:
        without, whole = plain, app
        runners |= {"model without": lambda _: without.run(prepared), "model with": lambda _: whole.run(array)}
    timing = measure(runners, prepared, seconds=COST_SECONDS)
    took = {name: row["p50_ms"] for name, row in timing.figures.items()}
    note = (
        f"Preprocessing a picture of 640 x 480 takes {took['preprocessing in the graph']:.2f} ms in the graph, "
        f"{took['python preprocessing']:.2f} ms in Pillow and NumPy"
    )
    if "model with" in took:
        note += (
            f"; the model takes {took['model with']:.2f} ms from the picture, {took['model without']:.2f} ms from its pixels"
        )
    return timing.figures, note
