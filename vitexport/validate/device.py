"""Input: a loaded bundle; output: a `Report` on this device, made without torch and without the training data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitexport.artifacts import OutputSpec, Progress, answer_of
from vitexport.datasets import ImageSet
from vitexport.errors import UsageError
from vitexport.machine import describe_machine
from vitexport.preprocess import normalize
from vitexport.report import Check, Report, skipped
from vitexport.runtime.model import Model, run_in_batches
from vitexport.validate import plausibility
from vitexport.validate.answers import ACCURACY, judge_here
from vitexport.validate.budget import Budget, Reading
from vitexport.validate.numerics import golden, not_finite
from vitexport.validate.preprocessing import same_preprocessing

DEVICE_BATCH = 8
# The check of the golden inputs, which nothing else takes the place of.
GOLDEN = "golden"


def title(model: Model) -> str:
    """For example ``vit_small_patch16_224 · int8 · NVIDIA L4``."""
    manifest = model.manifest
    return f"{manifest.model['name']} · {manifest.precision} · {manifest.target.name}"


def validate_bundle(
    model: Model, data: ImageSet | None, budget: Budget, progress: Progress, *, expect_top1: float | None = None
) -> Report:
    """Run the golden inputs, and `data` if given, through the artifact that ships.

    Args:
        model: A loaded bundle.
        data: Labelled images, or None.
        budget: What may be lost against PyTorch on `data`.
        progress: Told after each batch.
        expect_top1: Top-1 in percent that the model is known to have on `data`; None where nothing is known.
    """
    pixels, reference = model.bundle.golden()
    built = model.bundle.report().measurements
    progress("golden inputs")
    outputs = run_in_batches(model.backend, normalize(pixels, model.manifest.preprocess), model.manifest.batch)
    where = model.backend.description
    specs, at_build = model.manifest.outputs, built.get("golden", {})
    figures: dict[str, Any] = {}
    if "outputs" in at_build:
        check, figures = golden(reference, outputs, at_build, specs=specs, name=GOLDEN, where=where, reading=_reading(model))
    elif broken := not_finite(reference, outputs, name=GOLDEN, where=where):
        check = broken
    else:
        check = skipped(GOLDEN, "the bundle's own golden figures are absent: its build computed NaN or infinity")
    checks = [check, *same_preprocessing(model.bundle.preprocessed(), model.manifest.preprocess)]
    if model.fallback is not None:
        missed = "target" if model.manifest.engine is None else "engine"
        checks.insert(0, skipped(missed, f"{where} runs instead: {model.fallback}"))
    measurements: dict[str, Any] = {"golden": figures, "runtime": where}
    answer = answer_of(specs)
    if answer is None:
        if data is not None:
            raise UsageError(f"`data`: {title(model)} names no classes, so it has no accuracy; leave `data` out.")
        checks.append(skipped("accuracy", "the model names no classes"))
    elif data is None:
        form = "DIR" if model.manifest.task == "classification" else "FILE.csv"
        checks.append(skipped(ACCURACY[model.manifest.task], f"no labelled images were given (`data` {form})"))
    else:
        scores = answers(model, answer, data, progress)
        found, measurements["accuracy"] = judge_data(model, answer, data, scores, built.get("accuracy", {}), budget)
        checks += [*found, *_absolute(model, scores, data, expect_top1)]
    verified = f"{len(model.manifest.files)} files were checked against the manifest's sha256 before anything was loaded."
    return Report(
        title=title(model),
        checks=tuple(checks),
        measurements=measurements,
        machine=describe_machine(),
        notes=(verified,),
    )


def judge_data(  # noqa: PLR0913, PLR0917 - what is judged, on what, and by what
    model: Model,
    answer: OutputSpec,
    data: ImageSet,
    outputs: NDArray[np.float32],
    built: Mapping[str, Any],
    budget: Budget,
) -> tuple[list[Check], dict[str, Any]]:
    """The answer on `data`, against PyTorch's at build time if that was measured on the same images."""
    task = model.manifest.task
    truth = data.labels if data.targets is None else data.targets
    if truth is None:
        return [skipped(ACCURACY[task], "the images have no labels")], {}
    if broken := not_finite({answer.name: outputs}, {answer.name: outputs}, name=ACCURACY[task], where=data.name):
        return [broken], {}
    same = built if built.get("data_sha256") == data.sha256 else {}
    found = judge_here(answer, outputs, truth, built=same, budget=budget, reading=_reading(model))
    more = {"data": data.name, "data_sha256": data.sha256, "skipped_images": dict(data.skipped)}
    return found[0], {"images": len(truth), **found[1], **more}


def _reading(model: Model) -> Reading:
    return Reading(names=model.manifest.labels, threshold=model.manifest.threshold)


def _absolute(model: Model, logits: NDArray[np.float32], data: ImageSet, expect_top1: float | None) -> list[Check]:
    """Whether the answers can be right at all, and reach what the user knows of the model."""
    labels = data.labels
    if labels is None or plausibility.classifier_output(model.manifest.outputs) is None:
        return []
    reason = plausibility.untrained(model.manifest.model.get("weights"))
    check = skipped(plausibility.NAME, reason) if reason else plausibility.labelled(logits, labels, "the")
    if expect_top1 is None:
        return [check]
    measured = {"here": plausibility.in_percent(logits, labels)}
    return [check, plausibility.expected_top1(expect_top1, measured, len(labels))]


def answers(model: Model, answer: OutputSpec, data: ImageSet, progress: Progress) -> NDArray[np.float32]:
    """The output `answer` for every picture of `data`, float32 [n, width]; other outputs are not kept."""
    size = max(model.manifest.batch.optimum, min(DEVICE_BATCH, model.manifest.batch.maximum))
    parts = []
    done = 0
    for images in data.batches(model.manifest.preprocess, size):
        parts.append(run_in_batches(model.backend, images, model.manifest.batch)[answer.name])
        done += len(images)
        progress("running the images", done, len(data.files))
    return np.concatenate(parts)
