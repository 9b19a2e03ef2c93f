"""A loaded bundle enters; a `Report` on this device, made without torch and without the training data, leaves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitexport.artifacts import Progress
from vitexport.datasets import ImageSet
from vitexport.errors import UsageError
from vitexport.machine import describe_machine
from vitexport.preprocess import normalize
from vitexport.report import Check, Report, at_most, skipped
from vitexport.runtime.model import Model, run_in_batches
from vitexport.validate import metrics, plausibility
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
    model: Model, data: ImageSet | None, max_drop: float, progress: Progress, *, expect_top1: float | None = None
) -> Report:
    """Run the golden inputs, and `data` if given, through the artifact that ships.

    Args:
        model: A loaded bundle.
        data: Labelled images, or None.
        max_drop: Top-1 that may be lost against PyTorch on `data`, in percentage points.
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
        check, figures = golden(reference, outputs, at_build, specs=specs, name=GOLDEN, where=where)
    elif broken := not_finite(reference, outputs, name=GOLDEN, where=where):
        check = broken
    else:
        check = skipped(GOLDEN, "the bundle's own golden figures are absent: its build computed NaN or infinity")
    checks = [check, *same_preprocessing(model.bundle.preprocessed(), model.manifest.preprocess)]
    if model.fallback is not None:
        missed = "target" if model.manifest.engine is None else "engine"
        checks.insert(0, skipped(missed, f"{where} runs instead: {model.fallback}"))
    measurements: dict[str, Any] = {"golden": figures, "runtime": where}
    if model.manifest.num_classes is None:
        if data is not None:
            raise UsageError(f"--data: {title(model)} names no classes, so it has no accuracy; leave --data out.")
        checks.append(skipped("accuracy", "the model names no classes"))
    elif data is None:
        checks.append(skipped("accuracy", "no labelled images were given (--data DIR)"))
    else:
        logits = classify(model, data, progress)
        check, measurements["accuracy"] = _accuracy(logits, data, built.get("accuracy", {}), max_drop)
        checks += [check, *_absolute(model, logits, data, expect_top1)]
    verified = f"{len(model.manifest.files)} files were held against the manifest's sha256 before anything was loaded."
    return Report(
        title=title(model),
        checks=tuple(checks),
        measurements=measurements,
        machine=describe_machine(),
        notes=(verified,),
    )


def _accuracy(
    logits: NDArray[np.float32], data: ImageSet, built: Mapping[str, Any], max_drop: float
) -> tuple[Check, dict[str, Any]]:
    """Accuracy here, held against PyTorch's at build time if that was measured on the same images."""
    labels = data.labels
    if labels is None:
        return skipped("accuracy", "the images have no labels"), {}
    top1 = float(metrics.in_top(logits, labels, 1).mean() * 100)
    top5 = float(metrics.in_top(logits, labels, 5).mean() * 100)
    figures: dict[str, Any] = {
        "images": len(labels),
        "top1": top1,
        "top5": top5,
        "data": data.name,
        "data_sha256": data.sha256,
        "skipped_images": dict(data.skipped),
    }
    if built.get("data_sha256") == data.sha256 and "reference_top1" in built:
        drop = float(built["reference_top1"]) - top1
        message = (
            f"top-1 {top1:.2f} %, PyTorch {built['reference_top1']:.2f} % on the same {len(labels)} images at build time"
        )
        return at_most("accuracy", drop, max_drop, message, "points"), figures | {"drop": drop}
    message = f"top-1 {top1:.2f} % on {len(labels)} images; PyTorch was not measured on them, so no drop is known"
    return skipped("accuracy", message), figures


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


def classify(model: Model, data: ImageSet, progress: Progress) -> NDArray[np.float32]:
    """What names the class of every picture of `data`, float32 [n, classes]; other outputs are not kept."""
    named = next(output.name for output in model.manifest.outputs if output.names_classes)
    size = max(model.manifest.batch.optimum, min(DEVICE_BATCH, model.manifest.batch.maximum))
    parts = []
    done = 0
    for images in data.batches(model.manifest.preprocess, size):
        parts.append(run_in_batches(model.backend, images, model.manifest.batch)[named])
        done += len(images)
        progress("classifying", done, len(data.files))
    return np.concatenate(parts)
