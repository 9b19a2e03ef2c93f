"""Ask whether PyTorch's outputs, which everything else is compared with, can be right themselves."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitexport.artifacts import ModelSource
from vitexport.datasets import ImageSet
from vitexport.pipeline.prepare import Prepared
from vitexport.pipeline.reference import Reference
from vitexport.pipeline.request import BuildRequest
from vitexport.pipeline.session import Session
from vitexport.report import Check, skipped
from vitexport.validate import alternatives, class_order, plausibility
from vitexport.validate.reference import reference_outputs

# Other preprocessings get so long, or this share of the time that PyTorch took for all pictures.
SECONDS, SHARE_OF_REFERENCE = 20.0, 0.25
# The same where one of them is ahead on the first pictures.
MORE_SECONDS, MORE_SHARE_OF_REFERENCE = 60.0, 1.0
WHOSE = "PyTorch's"


def reference_checks(
    request: BuildRequest, prepared: Prepared, reference: Reference, session: Session
) -> tuple[list[Check], dict[str, Any]]:
    """Judge PyTorch's outputs by the pictures themselves.

    Returns:
        The checks: none for a model that names no classes, or whose weights are untrained and no labels are there. And
        their figures for the report.
    """
    source = prepared.source
    spec = plausibility.classifier_output(source.outputs)
    if spec is None:
        return [], {}
    images = reference.images
    if (reason := plausibility.untrained(source.weights)) is not None:
        return ([skipped(plausibility.NAME, reason)] if reference.truth is not None else []), {}
    if images is None:
        return [skipped(plausibility.NAME, "no pictures of your own were given (`data`)")], {}
    if constant := _constant_input(reference, images):
        return [constant], {}
    scores, labels = reference.outputs[spec.name], images.labels
    if labels is None:
        folders = [file.relative.rpartition("/")[0] for file in images.files]
        return [plausibility.unlabelled(scores, folders, WHOSE)], {}
    checks = [plausibility.labelled(scores, labels, WHOSE)]
    order, names = class_order.class_order(_answers(images, scores.argmax(axis=1), labels))
    checks.append(order)
    figures: dict[str, Any] = {"order_that_fits": list(names)} if names is not None else {}
    if order.status == "failed":
        checks.append(skipped(alternatives.NAME, "the order of the classes has to be right first"))
    elif not _is_untouched(request, source):
        choice, tried = _alternatives(prepared, session, images, scores.argmax(axis=1), spec.name)
        checks.append(choice)
        figures["other_preprocessings"] = tried
    return checks, figures


def expectation(percent: float | None, figures: Mapping[str, Any]) -> list[Check]:
    """Whether PyTorch and what ships reach the top-1 that the user knows of; none if nothing is known.

    Args:
        percent: What the user knows.
        figures: Of the chosen candidate against PyTorch.
    """
    if percent is None:
        return []
    if "reference_top1" not in figures:
        return [skipped(plausibility.EXPECTED, "the outputs hold NaN or infinity, so there is no top-1")]
    measured = {"PyTorch": float(figures["reference_top1"]), "what ships": float(figures["candidate_top1"])}
    return [plausibility.expected_top1(percent, measured, int(figures["images"]))]


def _constant_input(reference: Reference, images: ImageSet) -> Check | None:
    if len({file.sha256 for file in images.files}) < len(images.files):
        # Copies are the same whatever preprocesses them.
        return None
    return plausibility.constant_input(reference.golden_images, reference.spec)


def _answers(images: ImageSet, predicted: NDArray[np.int64], labels: NDArray[np.int64]) -> class_order.Answers:
    folders = {file.label: file.relative.partition("/")[0] for file in images.files if file.label is not None}
    return class_order.Answers(predicted=predicted, labels=labels, names=images.classes or (), folders=folders)


def _is_untouched(request: BuildRequest, source: ModelSource) -> bool:
    """Whether the weights are pretrained ones of a library, fed as it says; its authors measured them so."""
    model = request.model
    changes = (model.mean, model.std, model.crop_pct, model.interpolation)
    return source.weights.startswith("pretrained:") and all(change is None for change in changes)


def _alternatives(
    prepared: Prepared, session: Session, images: ImageSet, predicted: NDArray[np.int64], output: str
) -> tuple[Check, dict[str, Any]]:
    def run(batch: NDArray[np.float32]) -> NDArray[np.int64]:
        outputs = reference_outputs(prepared.model, prepared.source.outputs, batch)
        result: NDArray[np.int64] = outputs[output].argmax(axis=1)
        return result

    session.progress("trying other preprocessings")
    with session.watch.stage("other preprocessings"):
        took = sum(cost.seconds for cost in session.watch.costs if cost.name == "reference")
        shares = {
            "first": max(SECONDS, SHARE_OF_REFERENCE * took),
            "rest": max(MORE_SECONDS, MORE_SHARE_OF_REFERENCE * took),
        }
        begin = time.perf_counter()
        return alternatives.try_alternatives(
            images, prepared.source.preprocess, predicted, run, lambda which: time.perf_counter() < begin + shares[which]
        )
