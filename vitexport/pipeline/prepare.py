"""Input: a `BuildRequest`; output: everything the cheap steps can find out, and every problem at once."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np

from vitexport import bundle as bundles
from vitexport import source as sources
from vitexport import stacks
from vitexport.annotations import Truth, open_validation
from vitexport.artifacts import (
    DEFAULT_THRESHOLD,
    BatchRange,
    ModelSource,
    Precision,
    Product,
    Task,
    describe_outputs,
    is_binary,
    num_names,
)
from vitexport.datasets import ImageSet, open_images
from vitexport.errors import InputError, UsageError, VitexportError
from vitexport.labels import ClassNames, read_class_names
from vitexport.machine import memory_bytes
from vitexport.pipeline.arguments import request_checks
from vitexport.pipeline.recipe import Replay, read_recipe
from vitexport.pipeline.request import BuildRequest, Plan
from vitexport.preprocess import PreprocessSpec
from vitexport.quantize.settings import QuantSettings, check_placement
from vitexport.roofline import WEIGHT_BYTES, Prediction, predict
from vitexport.source.request import channels_asked
from vitexport.stacks import Stack
from vitexport.targets import Finding, ModelFacts, Target, findings, resolve_all, with_opset
from vitexport.validate.plausibility import check_expectation

T = TypeVar("T")
FEW_CALIBRATION_IMAGES = 32
UNLABELLED_EVALUATION = 256
PHOTOGRAPHS = "views of the package's photographs"
# An image whose pixels differ by less (standard deviation in each channel, in levels of 255) is of one colour.
BLANK_LEVELS = 1.0
BLANK_SAMPLE = 32
ENOUGH_UNUSED = 64
USABLE_SHARE = 0.8
# What is said of them: nothing where they are what one expects.
_CHANNELS = {1: ", grey", 3: ""}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Prepared:
    """What the cheap steps found; the slow ones start from here."""

    stack: Stack
    batch: BatchRange
    threshold: float
    out: Path
    precisions: tuple[Precision, ...]
    model: sources.LiveModel
    source: ModelSource
    labels: tuple[str, ...] | None
    synsets: tuple[str, ...] | None
    calibration: ImageSet | None
    data: ImageSet | None
    evaluation: ImageSet | None
    evaluation_about: str
    settings: QuantSettings
    replay: Replay | None
    findings: tuple[Finding, ...]

    @property
    def target(self) -> Target:
        """What is built for."""
        return self.stack.target


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

    def findings(self) -> tuple[Finding, ...]:
        """One error each."""
        return tuple(Finding(level="error", message=str(error)) for error in self.errors)

    def raise_all(self) -> None:
        """Raise one error that tells them all, of the first one's class."""
        if not self.errors:
            return
        if len(self.errors) == 1:
            raise self.errors[0]
        lines = "\n".join(f"  {index}. {error}" for index, error in enumerate(self.errors, 1))
        raise type(self.errors[0])(f"{len(self.errors)} problems:\n{lines}")


_NOT_LOOKED_AT = "The model was not looked at: mend this first, then plan again."


def refuse_early(request: BuildRequest) -> tuple[Target, tuple[Precision, ...]]:
    """Refuse what can be refused without the model.

    Returns:
        The target, and the precisions to try.

    Raises:
        VitexportError: Of the first problem's class; its message tells every problem that was found.
    """
    problems = _Problems()
    target, precisions, _ = _early(request, problems)
    problems.raise_all()
    if target is None:
        raise InputError("The build could not be prepared.")
    return target, precisions


def refused_plan(request: BuildRequest) -> Plan | None:
    """A plan of problems that can be told without the model; None if there are none."""
    problems = _Problems()
    target, precisions, out = _early(request, problems)
    if not problems.errors:
        return None
    return Plan(
        target=target,
        out=out,
        precisions=precisions,
        steps=(),
        prediction=None,
        findings=(*problems.findings(), Finding(level="note", message=_NOT_LOOKED_AT)),
        exit_code=problems.errors[0].exit_code,
    )


def _early(request: BuildRequest, problems: _Problems) -> tuple[Target | None, tuple[Precision, ...], Path | None]:
    """What the request and the files that it names tell; neither PyTorch nor the model."""
    target, precisions, out = _arguments(request, problems)
    for check in request_checks(request):
        problems.attempt(check)
    if target is not None:
        _target_findings(request, target, precisions, None, problems)
    _replay(request, target, None, problems)
    return target, precisions, out


def plan(request: BuildRequest) -> Plan:
    """As `vitexport.pipeline.entry.plan`, of a request that nothing early refuses."""
    problems = _Problems()
    prepared_findings: list[Finding] = []
    target, precisions, out = _arguments(request, problems)
    loaded = problems.attempt(lambda: sources.load(request.model, weights=False))
    source = loaded[1] if loaded else None
    prediction = _prediction(request, target, source)
    precisions = _fastest_first(precisions, prediction)
    if target is not None:
        prepared_findings += _target_findings(request, target, precisions, source, problems)
    if loaded is not None:
        prepared_findings += _frozen_size(*loaded)
    _check_task(request, source, problems)
    _names, calibration, data = _image_sets(request, source, problems, needs_calibration="int8" in precisions)
    evaluation, _ = _evaluation(request, source, calibration, data, problems)
    _replay(request, target, calibration, problems)
    prepared_findings += _image_findings(calibration, evaluation)
    prepared_findings += _unchecked_names(request, source)
    return Plan(
        target=target,
        out=out,
        precisions=precisions,
        steps=_steps(request, target, precisions, source, calibration, data, out) if target else (),
        prediction=prediction,
        findings=(*problems.findings(), *prepared_findings),
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
    if loaded is not None:
        notes += _frozen_size(*loaded)
    _check_task(request, source, problems)
    names, calibration, data = _image_sets(request, source, problems, needs_calibration="int8" in precisions)
    evaluation, about = _evaluation(request, source, calibration, data, problems)
    replay = _replay(request, target, calibration, problems)
    problems.raise_all()
    if loaded is None or target is None or out is None:
        raise InputError("The build could not be prepared.")
    notes += _image_findings(calibration, evaluation)
    notes += _unchecked_names(request, loaded[1])
    return Prepared(
        stack=stacks.of(target),
        batch=request.batch,
        threshold=request.threshold,
        out=out,
        precisions=precisions,
        model=loaded[0],
        source=loaded[1],
        labels=names.labels if names is not None else None,
        synsets=names.synsets if names is not None else None,
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
        if (opset := request.opset) is not None:
            resolved = problems.attempt(lambda: with_opset(resolved, opset, precisions)) or resolved
            target = resolved
        if (missing := stacks.of(resolved).missing()) is not None:
            problems.errors.append(missing)
        out = request.out or Path(default_name(_called(request), resolved))
        problems.attempt(lambda: bundles.check_output(out, force=request.force))
    else:
        out = request.out or Path()
    if request.precision == "int8" and request.calibration is None:
        problems.errors.append(UsageError("Precision int8 needs real images to choose its ranges from: give `calibration`."))
    stack = stacks.of(target) if target is not None else None
    if stack is not None:
        arithmetic = stack.arithmetic
        problems.attempt(lambda: check_placement(request.quantization.placement, arithmetic))
    if request.calibration_size < 1:
        problems.errors.append(UsageError(f"Calibration size {request.calibration_size} is refused; use 32 or more."))
    if request.embed_preprocess and stack is not None and not stack.may_take_pictures:
        problems.errors.append(
            UsageError(
                f"`embed_preprocess` is for ONNX Runtime; {stack.target.name} runs {stack.target.runtime}, which resizes no "
                "picture. Leave it out; vitexport triton puts the preprocessing in front of the engine."
            )
        )
    problems.attempt(request.budget.check)
    problems.attempt(lambda: check_expectation(request.expect_top1, labelled=request.data is not None))
    if not 0 < request.threshold < 1:
        problems.errors.append(UsageError(f"`threshold` is {request.threshold:g}; it must be above 0 and below 1."))
    return target, precisions, out if target is not None else None


def _called(request: BuildRequest) -> str:
    """The model's name, or the name of the file that says which model it is of."""
    model = request.model
    if model.name is not None:
        return model.name
    return model.checkpoint.name.partition(".")[0] if model.checkpoint is not None else "model"


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
    kept: dict[str, Finding] = {}
    if source is not None:
        problems.attempt(lambda: _check_this_machine(source, request))
        kept |= {note: Finding(level="warning", message=note) for note in source.notes}
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
) -> tuple[ClassNames | None, ImageSet | None, ImageSet | None]:
    """Class names, calibration images and labelled images, each read once so that a bad one is known now."""
    count = num_names(source.outputs) if source else None
    channels = _channels(request, source)
    if source is not None and count is None and (request.labels is not None or request.data is not None):
        problems.errors.append(_no_classes(source))
        return None, None, None
    names: ClassNames | None = None
    if request.labels is not None:
        file = request.labels
        names = problems.attempt(lambda: _read_names(file, source, count))
    elif source is not None and source.labels is not None:
        labels = _both_names(source.labels) if is_binary(source.outputs) else source.labels
        names = ClassNames(labels=labels, synsets=source.synsets)
    problems.attempt(lambda: _check_classes_known(request, names))
    calibration = None
    if request.calibration is not None and (needs_calibration or request.data is None):
        folder = request.calibration
        calibration = problems.attempt(
            lambda: open_images(folder, limit=max(request.calibration_size, 1), channels=channels)
        )
    data = None
    if request.data is not None and source is not None and count is not None and not (request.labels and names is None):
        truth = Truth(
            task=source.task,
            names=names.labels if names is not None else None,
            synsets=names.synsets if names is not None else None,
            count=count,
            order=request.class_order,
            channels=channels,
        )
        root = request.data
        data = problems.attempt(lambda: open_validation(root, truth))
    if names is None and data is not None and (found := data.classes or data.target_names) is not None:
        names = ClassNames(labels=found)
    return names, calibration, data


def _check_classes_known(request: BuildRequest, names: ClassNames | None) -> None:
    """Refuse a class order that would have no effect.

    Raises:
        UsageError: The classes' order is known, or there are no class folders.
    """
    if request.class_order is None:
        return
    if request.labels is not None:
        raise UsageError("`class_order` has no effect with `labels`, which gives the order; remove one of them.")
    if names is not None:
        raise UsageError(
            f"`class_order` has no effect: the model's own labels give the order ({', '.join(names.labels[:3])}, …). "
            "Remove it, or give `labels` to replace them."
        )
    if request.data is None:
        raise UsageError("`class_order` sorts the class folders of `data`, which was not given; remove it or give both.")


def _channels(request: BuildRequest, source: ModelSource | None) -> int:
    """Of the model; where it could not be loaded, what was asked for."""
    if source is not None:
        return source.preprocess.channels
    return channels_asked(request.model) or 3


def _read_names(file: Path, source: ModelSource | None, count: int | None) -> ClassNames:
    """Names of the classes, labels or values; of one logit's classes the positive one's alone is enough."""
    if source is None or not is_binary(source.outputs):
        return read_class_names(file, count)
    names = read_class_names(file).labels
    if len(names) > 2:
        raise InputError(
            f"Labels file {file} has {len(names)} names, but one logit tells two classes apart; expected two (negative, "
            "positive), or the positive one alone."
        )
    return ClassNames(labels=_both_names(names))


def _both_names(names: tuple[str, ...]) -> tuple[str, ...]:
    """Of the negative and the positive class of one logit."""
    return (f"not {names[0]}", names[0]) if len(names) == 1 else names


def _check_task(request: BuildRequest, source: ModelSource | None, problems: _Problems) -> None:
    """Options that the model's task has no use for."""
    if source is None:
        return
    if request.top_indices and source.task in ("regression", "embedding"):
        problems.errors.append(
            UsageError(f"`top_indices` ranks classes or labels, and a model for {source.task} has none; leave it out.")
        )
    if source.task != "classification":
        for option, value in (("`class_order`", request.class_order), ("`expect_top1`", request.expect_top1)):
            if value is not None:
                problems.errors.append(
                    UsageError(f"{option} is for `task=classification`, and this model is for {source.task}; leave it out.")
                )
    if request.threshold != DEFAULT_THRESHOLD and source.task != "multi-label":
        problems.errors.append(
            UsageError(f"`threshold` is for `task=multi-label`, and this model is for {source.task}; leave it out.")
        )


def _no_classes(source: ModelSource) -> UsageError:
    names = ", ".join(output.name for output in source.outputs)
    return UsageError(
        f"`data` and `labels` need classes, and {source.name} returns {names}; leave them out (each output is then judged "
        "by its cosine with PyTorch), or ask for `head=classifier`."
    )


def _evaluation(
    request: BuildRequest,
    source: ModelSource | None,
    calibration: ImageSet | None,
    data: ImageSet | None,
    problems: _Problems,
) -> tuple[ImageSet | None, str]:
    """What the result is judged on: labelled images; else images that calibration left over; else what there is.

    Images of one colour each say nothing: INT8 whose ranges fit them alone computes them well, and nothing else.
    """
    if data is not None:
        return data, data.name
    folder = request.calibration
    if calibration is None or folder is None:
        return None, PHOTOGRAPHS
    if source is not None and _are_blank(calibration, source.preprocess):
        return None, f"{PHOTOGRAPHS}, since the calibration images are of one colour each"
    if len(calibration.unused) >= ENOUGH_UNUSED:
        unused, channels = calibration.unused, _channels(request, source)
        left = problems.attempt(lambda: open_images(folder, limit=UNLABELLED_EVALUATION, among=unused, channels=channels))
        return left, "images that calibration did not use"
    return calibration, "the calibration images themselves, for want of others"


def _are_blank(images: ImageSet, spec: PreprocessSpec) -> bool:
    """Whether most of a few of them show nothing."""
    count = min(len(images.files), BLANK_SAMPLE)
    pixels = images.pixels(spec, [index * len(images.files) // count for index in range(count)])
    return float(np.mean(pixels.std(axis=(1, 2)).max(axis=1) < BLANK_LEVELS)) > 0.5


def _replay(
    request: BuildRequest, target: Target | None, calibration: ImageSet | None, problems: _Problems
) -> Replay | None:
    """The recipe that is to be followed, checked against the target and the images; None without one."""
    file = request.recipe
    if file is None:
        return None
    if request.quantization != QuantSettings():
        problems.errors.append(
            UsageError(
                "`recipe` decides how INT8 is made; leave out `placement`, `observer`, `rounding` and the others with it."
            )
        )
    replay = problems.attempt(lambda: read_recipe(file))
    if replay is not None and target is not None:
        followed, stack = replay, stacks.of(target)
        problems.attempt(lambda: followed.check_stack(stack))
    if replay is not None and calibration is not None:
        kept, images = replay, calibration
        problems.attempt(lambda: kept.check_images(images))
    return replay


def _frozen_size(model: sources.LiveModel, source: ModelSource) -> list[Finding]:
    """A note where the model takes other sizes in PyTorch; an exported graph takes one."""
    if not sources.takes_other_sizes(model):
        return []
    spec = source.preprocess
    message = (
        f"{source.name} was made with dynamic_img_size; it is exported for {spec.height} x {spec.width} only. Build it "
        "again with another `img_size` for another size."
    )
    return [Finding(level="note", message=message)]


def _unchecked_names(request: BuildRequest, source: ModelSource | None) -> list[Finding]:
    """A note where class names are typed and no labelled picture can show that they are in the model's order."""
    if request.labels is None or request.data is not None or source is None or source.task != "classification":
        return []
    message = (
        f"The class names of {request.labels} are taken in the order given; labelled pictures (`data`) show whether it is "
        "the model's."
    )
    return [Finding(level="note", message=message)]


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


# What unlabelled pictures are judged by.
_FIGURES: dict[Task, str] = {
    "classification": "agreement",
    "multi-label": "agreement per label",
    "regression": "deviation",
    "embedding": "cosine",
}


def _steps(  # noqa: PLR0913, PLR0917 - a plan tells of all of them
    request: BuildRequest,
    target: Target,
    precisions: Sequence[Precision],
    source: ModelSource | None,
    calibration: ImageSet | None,
    data: ImageSet | None,
    out: Path | None,
) -> tuple[str, ...]:
    # Numbers of steps stay what they are when the problem is mended.
    steps = _loading_steps(request, source)
    steps.append(f"export to ONNX opset {target.opset} with batch {request.batch}, and compare it with PyTorch")
    if "int8" in precisions and calibration is not None:
        steps.append(f"quantize the linear layers to INT8 with {len(calibration.files)} calibration images")
    stack = stacks.of(target)
    steps += stack.steps(precisions)
    how = _FIGURES[source.task] if source is not None else "agreement"
    where = f"unlabelled images, by {how}"
    if data is not None:
        where = f"{len(data.files)} labelled images"
    elif request.data is not None:
        where = f"the labelled images in {request.data}: see the problem below"
    steps.append(f"validate {' and '.join(precisions)} against PyTorch on {where}")
    if stack.is_timed:
        steps.append("time it beside PyTorch")
    if request.embeds(stack):
        steps.append("put the preprocessing into a graph of its own, and check it against Pillow's")
    steps.append(f"write the bundle {out}")
    return tuple(steps)


def _loading_steps(request: BuildRequest, source: ModelSource | None) -> list[str]:
    """How the model comes to be; numbers of steps stay what they are when a problem is mended."""
    if source is None:
        return [f"load {_called(request)}: see the problem below", "prepare pictures: as the model tells, once it is loaded"]
    spec = source.preprocess
    own = request.model.module is not None or request.model.model_from is not None
    pretrained = request.model.pretrained and request.model.checkpoint is None and not own
    weights = "pretrained" if pretrained else source.weights
    loading = (
        f"load {source.name} ({source.parameters / 1e6:.1f} million parameters, {describe_outputs(source.outputs)}, "
        f"{spec.height} x {spec.width} pixels{_CHANNELS.get(spec.channels, f', {spec.channels} channels')}), "
        f"weights {weights}"
    )
    steps = [loading if source.loading is None else f"{loading}: {source.loading}"]
    steps.append(f"prepare pictures: {source.preparation}")
    if source.zero_shot is not None:
        steps.append(f"make it a {source.zero_shot}")
    elif request.model.classes is not None:
        steps.append(f"embed {source.num_classes} class names with open_clip's text tower, for a zero-shot classifier")
    return steps
