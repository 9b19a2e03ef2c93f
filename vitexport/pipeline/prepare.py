"""A `BuildRequest` enters; everything the cheap steps can find out, and every problem at once, leaves."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from vitexport import bundle as bundles
from vitexport import source as sources
from vitexport.artifacts import ModelSource, Precision, Product, describe_outputs
from vitexport.datasets import ImageSet, open_images, open_labelled, read_labels
from vitexport.errors import InputError, UsageError, VitexportError
from vitexport.machine import memory_bytes
from vitexport.pipeline.recipe import Replay, read_recipe
from vitexport.pipeline.request import BuildRequest, Plan
from vitexport.quantize.settings import QuantSettings, check_placement
from vitexport.roofline import WEIGHT_BYTES, Prediction, predict
from vitexport.runtime.backends.tensorrt_api import is_installed, missing_library
from vitexport.targets import Finding, ModelFacts, Target, findings, resolve_all

T = TypeVar("T")
FEW_CALIBRATION_IMAGES = 32
UNLABELLED_EVALUATION = 256
ENOUGH_UNUSED = 64
USABLE_SHARE = 0.8


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Prepared:
    """What the cheap steps found; the slow ones start from here."""

    target: Target
    out: Path
    precisions: tuple[Precision, ...]
    model: sources.LiveModel
    source: ModelSource
    labels: tuple[str, ...] | None
    calibration: ImageSet | None
    data: ImageSet | None
    evaluation: ImageSet | None
    evaluation_about: str
    settings: QuantSettings
    replay: Replay | None
    findings: tuple[Finding, ...]


class _Problems:
    """Collects errors instead of stopping at the first, so that the user sees them all before anything slow starts."""

    def __init__(self) -> None:
        self.errors: list[VitexportError] = []

    def attempt(self, step: Callable[[], T]) -> T | None:
        """The result of `step`, or None with its error noted."""
        try:
            return step()
        except VitexportError as error:
            self.errors.append(error)
            return None

    def raise_all(self) -> None:
        """Raise one error that tells them all, of the first one's class."""
        if not self.errors:
            return
        if len(self.errors) == 1:
            raise self.errors[0]
        lines = "\n".join(f"  {index}. {error}" for index, error in enumerate(self.errors, 1))
        raise type(self.errors[0])(f"{len(self.errors)} problems:\n{lines}")


def plan(request: BuildRequest) -> Plan:
    """Everything that can be known without running a slow step. Downloads nothing and writes nothing."""
    problems = _Problems()
    prepared_findings: list[Finding] = []
    target, precisions, out = _arguments(request, problems)
    loaded = problems.attempt(lambda: sources.load(request.model, weights=False))
    source = loaded[1] if loaded else None
    prediction = _prediction(request, target, source)
    precisions = _fastest_first(precisions, prediction)
    if target is not None:
        prepared_findings += _target_findings(request, target, precisions, source, problems)
    _labels, calibration, data = _image_sets(request, source, problems, needs_calibration="int8" in precisions)
    evaluation, _ = _evaluation(request, calibration, data, problems)
    _replay(request, target, calibration, problems)
    prepared_findings += _image_findings(calibration, evaluation)
    errors = [Finding(level="error", message=str(error)) for error in problems.errors]
    return Plan(
        target=target,
        out=out,
        precisions=precisions,
        steps=_steps(request, target, precisions, source, calibration, data, out) if target else (),
        prediction=prediction,
        findings=(*errors, *prepared_findings),
        exit_code=problems.errors[0].exit_code if problems.errors else 0,
    )


def prepare(request: BuildRequest) -> Prepared:
    """Load the model and read the image folders.

    Raises:
        VitexportError: Of the first problem's class; its message tells every problem that was found.
    """
    problems = _Problems()
    target, precisions, out = _arguments(request, problems)
    problems.raise_all()
    loaded = problems.attempt(lambda: sources.load(request.model))
    source = loaded[1] if loaded else None
    precisions = _fastest_first(precisions, _prediction(request, target, source))
    notes: list[Finding] = []
    if target is not None:
        notes += _target_findings(request, target, precisions, source, problems)
    labels, calibration, data = _image_sets(request, source, problems, needs_calibration="int8" in precisions)
    evaluation, about = _evaluation(request, calibration, data, problems)
    replay = _replay(request, target, calibration, problems)
    problems.raise_all()
    if loaded is None or target is None or out is None:
        raise InputError("The build could not be prepared.")
    notes += _image_findings(calibration, evaluation)
    return Prepared(
        target=target,
        out=out,
        precisions=precisions,
        model=loaded[0],
        source=loaded[1],
        labels=labels,
        calibration=calibration,
        data=data,
        evaluation=evaluation,
        evaluation_about=about,
        settings=replay.settings if replay is not None else request.quantization,
        replay=replay,
        findings=tuple(notes),
    )


def _arguments(request: BuildRequest, problems: _Problems) -> tuple[Target | None, tuple[Precision, ...], Path | None]:
    """What can be judged from the arguments alone."""
    target = problems.attempt(lambda: resolve_all((request.target, *request.more_targets), jetpack=request.jetpack))
    precisions: tuple[Precision, ...] = ()
    if target is not None:
        resolved = target
        precisions = _candidates(request, resolved)
        if resolved.runtime == "tensorrt-rtx" and not is_installed("tensorrt-rtx"):
            problems.errors.append(missing_library("tensorrt-rtx", f"Compiling the engine for {resolved.name}"))
        out = request.out or Path(default_name(request.model.name, resolved))
        problems.attempt(lambda: bundles.check_output(out, force=request.force))
    else:
        out = request.out or Path()
    if request.precision == "int8" and request.calibration is None:
        problems.errors.append(
            UsageError("Precision int8 needs real images to choose its ranges from: give --calibration DIR.")
        )
    if target is not None:
        cpu = target.cpu
        problems.attempt(lambda: check_placement(request.quantization.placement, cpu))
    if request.calibration_size < 1:
        problems.errors.append(UsageError(f"Calibration size {request.calibration_size} is refused; use 32 or more."))
    if request.embed_preprocess and target is not None and target.kind != "cpu":
        problems.errors.append(
            UsageError(
                f"--embed-preprocess is for ONNX Runtime; {target.name} runs {target.runtime}, which resizes no picture. "
                "Leave it out; vitexport triton puts the preprocessing in front of the engine."
            )
        )
    budget = request.budget
    if not budget.max_drop >= 0 or not 0 <= budget.min_agreement <= 100 or not 0 <= budget.min_cosine <= 1:
        message = "The budget must be a drop of 0 or more points, an agreement of 0 to 100 % and a cosine of 0 to 1."
        problems.errors.append(UsageError(message))
    return target, precisions, out if target is not None else None


def default_name(model: str, target: Target) -> str:
    """Folder name of a bundle: model and target, with what a path cannot hold replaced."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", f"{model.removeprefix('local-dir:')}-{target.id}").strip("-.")


def _candidates(request: BuildRequest, target: Target) -> tuple[Precision, ...]:
    """Precisions to build: the asked one, or for ``auto`` all that the target has, INT8 first."""
    if request.precision != "auto":
        return (request.precision,)
    offered: list[Precision] = [name for name in ("int8", "fp16", "fp32") if name in target.precisions]
    if request.calibration is None and "int8" in offered:
        offered.remove("int8")
    if "fp16" in offered and "fp32" in offered:
        # On a GPU float32 is the fallback of nobody: it is slower than float16 everywhere, and float16 is validated.
        offered.remove("fp32")
    return tuple(offered)


def _prediction(request: BuildRequest, target: Target | None, source: ModelSource | None) -> Prediction | None:
    """What a call takes at least in every precision that the target has, whichever are built; None without a model."""
    if target is None or source is None:
        return None
    products = [dataclasses.replace(product, int8=_in_int8(product, request.quantization)) for product in source.products]
    offered: list[Precision] = [name for name in ("int8", "fp16") if name in target.precisions and name in WEIGHT_BYTES]
    return predict(target, dict.fromkeys(offered, products), request.batch.optimum)


def _in_int8(product: Product, settings: QuantSettings) -> bool:
    """Whether the placement that is asked for covers the product; what falls back to float later is not known yet."""
    placement = settings.placement
    covered = {"body": True, "patch": placement.patch, "head": placement.head, "attention": placement.base == "B"}
    return covered.get(product.part, False) and settings.wants(product.module)


def _fastest_first(precisions: tuple[Precision, ...], prediction: Prediction | None) -> tuple[Precision, ...]:
    """By the estimate, where there is one for all of them."""
    seconds = {name: prediction.seconds(name) for name in precisions} if prediction is not None else {}
    known = {name: value for name, value in seconds.items() if value is not None}
    return tuple(sorted(precisions, key=known.__getitem__)) if len(known) == len(precisions) else precisions


def _target_findings(
    request: BuildRequest,
    target: Target,
    precisions: Sequence[Precision],
    source: ModelSource | None,
    problems: _Problems,
) -> list[Finding]:
    facts = (
        ModelFacts(parameters=source.parameters, peak_activation_elements=source.peak_activation_elements)
        if source
        else None
    )
    if source is not None:
        problems.attempt(lambda: _check_this_machine(source, request))
    kept: dict[str, Finding] = {}
    for precision in precisions:
        for finding in findings(target, precision=precision, batch_max=request.batch.maximum, model=facts):
            if finding.level == "error":
                problems.errors.append(UsageError(finding.message))
            else:
                kept[finding.message] = finding
    return list(kept.values())


def _check_this_machine(source: ModelSource, request: BuildRequest) -> None:
    """The largest batch is run here, in PyTorch and ONNX Runtime, to check the export; both hold float32 activations.

    Raises:
        UsageError: That would need more than 80 % of this machine's memory.
    """
    memory = memory_bytes()
    if memory is None:
        return
    # Weights: PyTorch's, the exporter's, the serialized file and ONNX Runtime's. Activations: one layer's, in each library.
    weights, image = 4 * 4 * source.parameters, 2 * 4 * source.peak_activation_elements
    needed = weights + request.batch.maximum * image
    if needed > USABLE_SHARE * memory:
        fits = int((USABLE_SHARE * memory - weights) // image)
        cure = f"The largest batch that can be checked here is {fits}." if fits >= 1 else "Build on a larger machine."
        raise UsageError(
            f"A batch of {request.batch.maximum} needs about {needed / 1e9:.1f} GB to be checked against PyTorch; this "
            f"machine has {memory / 1e9:.1f} GB, of which {USABLE_SHARE:.0%} can be counted on. {cure}"
        )


def _image_sets(
    request: BuildRequest, source: ModelSource | None, problems: _Problems, *, needs_calibration: bool
) -> tuple[tuple[str, ...] | None, ImageSet | None, ImageSet | None]:
    """Labels, calibration images and labelled images, each read once so that a bad one is known now."""
    classes = source.num_classes if source else None
    if source is not None and classes is None and (request.labels is not None or request.data is not None):
        problems.errors.append(_no_classes(source))
        return None, None, None
    labels: tuple[str, ...] | None = None
    if request.labels is not None:
        file = request.labels
        labels = problems.attempt(lambda: read_labels(file, classes))
    elif source is not None:
        labels = source.labels
    calibration = None
    if request.calibration is not None and (needs_calibration or request.data is None):
        folder = request.calibration
        calibration = problems.attempt(lambda: open_images(folder, limit=max(request.calibration_size, 1)))
    data = None
    if request.data is not None and classes is not None and not (request.labels is not None and labels is None):
        root = request.data
        synsets = source.synsets if source is not None and request.labels is None else None
        data = problems.attempt(lambda: open_labelled(root, labels=labels, synsets=synsets, classes=classes))
    if labels is None and data is not None:
        labels = data.classes
    return labels, calibration, data


def _no_classes(source: ModelSource) -> UsageError:
    names = ", ".join(output.name for output in source.outputs)
    return UsageError(
        f"--data and --labels need classes, and {source.name} returns {names}; leave them out (each output is then judged "
        "by its cosine with PyTorch), or ask for --head classifier."
    )


def _evaluation(
    request: BuildRequest, calibration: ImageSet | None, data: ImageSet | None, problems: _Problems
) -> tuple[ImageSet | None, str]:
    """What the result is judged on: labelled images; else images that calibration left over; else what there is."""
    if data is not None:
        return data, data.name
    folder = request.calibration
    if calibration is None or folder is None:
        return None, "views of the package's photographs"
    if len(calibration.unused) >= ENOUGH_UNUSED:
        unused = calibration.unused
        left = problems.attempt(lambda: open_images(folder, limit=UNLABELLED_EVALUATION, among=unused))
        return left, "images that calibration did not use"
    return calibration, "the calibration images themselves, for want of others"


def _replay(
    request: BuildRequest, target: Target | None, calibration: ImageSet | None, problems: _Problems
) -> Replay | None:
    """The recipe that is to be followed, held against the target and the images; None without one."""
    file = request.recipe
    if file is None:
        return None
    if request.quantization != QuantSettings():
        problems.errors.append(
            UsageError(
                "--recipe decides how INT8 is made; leave out --placement, --observer, --rounding and the others with it."
            )
        )
    replay = problems.attempt(lambda: read_recipe(file))
    if replay is not None and target is not None:
        followed, device = replay, target
        problems.attempt(lambda: followed.check_target(device))
    if replay is not None and calibration is not None:
        kept, images = replay, calibration
        problems.attempt(lambda: kept.check_images(images))
    return replay


def _image_findings(calibration: ImageSet | None, evaluation: ImageSet | None) -> list[Finding]:
    result = []
    judged_on = evaluation if evaluation is not calibration else None
    for title, images in (("Calibration", calibration), ("Validation", judged_on)):
        if images is not None and images.skipped:
            names = ", ".join(f"{name} ({reason})" for name, reason in list(images.skipped.items())[:3])
            message = f"{title}: {len(images.skipped)} unreadable images are left out: {names}"
            result.append(Finding(level="warning", message=message))
    if calibration is not None and len(calibration.files) < FEW_CALIBRATION_IMAGES:
        message = (
            f"Calibration: {len(calibration.files)} images are few; ranges from fewer than {FEW_CALIBRATION_IMAGES} "
            "depend on which ones they are. Give more, up to a few hundred."
        )
        result.append(Finding(level="warning", message=message))
    return result


def _steps(  # noqa: PLR0913, PLR0917 - a plan tells of all of them
    request: BuildRequest,
    target: Target,
    precisions: Sequence[Precision],
    source: ModelSource | None,
    calibration: ImageSet | None,
    data: ImageSet | None,
    out: Path | None,
) -> tuple[str, ...]:
    steps = []
    if source is not None:
        spec = source.preprocess
        weights = "pretrained" if request.model.pretrained and request.model.checkpoint is None else source.weights
        steps.append(
            f"load {source.name} ({source.parameters / 1e6:.1f} million parameters, {describe_outputs(source.outputs)}, "
            f"{spec.height} x {spec.width} pixels), weights {weights}"
        )
        if source.zero_shot is not None:
            steps.append(f"make it a {source.zero_shot}")
        elif request.model.classes is not None:
            steps.append(f"embed {source.num_classes} class names with open_clip's text tower, for a zero-shot classifier")
    steps.append(f"export to ONNX opset {target.opset} with batch {request.batch}, and hold it against PyTorch")
    if "int8" in precisions and calibration is not None:
        steps.append(f"quantize the linear layers to INT8 with {len(calibration.files)} calibration images")
    if target.typing == "strong" and ("fp16" in precisions or "int8" in precisions):
        steps.append("bake float16 into the graph")
    if target.runtime == "tensorrt-rtx":
        steps.append(f"compile a TensorRT-RTX engine for compute capability {', '.join(target.compute_capabilities)}")
    elif target.runtime == "tensorrt":
        steps.append(f"write the recipe for TensorRT {target.tensorrt}; the engine is built on the device")
    how = "agreement" if source is None or source.num_classes is not None else "cosine"
    where = f"{len(data.files)} labelled images" if data is not None else f"unlabelled images, by {how}"
    steps.append(f"validate {' and '.join(precisions)} against PyTorch on {where}")
    if target.kind == "cpu" and not target.app:
        steps.append("time it beside PyTorch")
    if request.embeds(target):
        steps.append("put the preprocessing into a graph of its own, and hold it against Pillow's")
    steps.append(f"write the bundle {out}")
    return tuple(steps)
