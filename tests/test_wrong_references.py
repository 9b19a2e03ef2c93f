"""Builds whose reference is wrong fail or are refused by name, and builds whose reference is right pass.

A case says what differs from a right build of the sample: the class folders, the labels, the preprocessing, the weights or
the pictures. `WRONG` and `RIGHT` are tables to add to.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import SAMPLE, VALIDATION
from numpy.typing import NDArray
from PIL import Image

from vitexport.artifacts import silent
from vitexport.datasets import ClassOrder, ImageSet, open_images, open_labelled
from vitexport.errors import VitexportError
from vitexport.machine import Stopwatch
from vitexport.pipeline import BuildRequest, reference_checks
from vitexport.pipeline.prepare import Prepared, prepare
from vitexport.pipeline.stages import Stages
from vitexport.pipeline.work import Reference, Work, over
from vitexport.validate import class_order
from vitexport.validate.probes import probe_pixels
from vitexport.validate.reference import reference_outputs

A_CLASS = 20
DIGITS = tuple("0123456789")
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
FROM_ONE = tuple(str(digit + 1) for digit in range(10))
GREY = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
Pixels = NDArray[np.uint8]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """What differs from a right build.

    Attributes:
        folders: Name of each digit's class folder.
        labels: As from ``--labels``; None for none.
        order: As from ``--class-order``.
        spec: Changed fields of the preprocessing.
        change: Changes the weights in place.
        draw: Changes a picture, uint8 [8, 8, 3]; the second argument is another digit's, for pictures that need two.
        digits: Which have pictures.
        a_class: How many pictures of each digit.
        labelled: Whether the pictures are given as labelled ones.
        weights: As `ModelSource.weights`.
    """

    folders: Sequence[str] = DIGITS
    labels: Sequence[str] | None = None
    order: ClassOrder | None = None
    spec: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    change: Callable[[Any], None] | None = None
    draw: Callable[[Pixels, Pixels], Pixels] | None = None
    digits: Sequence[int] = tuple(range(10))
    a_class: int | Mapping[int, int] = A_CLASS
    labelled: bool = True
    weights: str = "checkpoint:model.safetensors"


def randomize(name: str, share: float = 1.0) -> Callable[[Any], None]:
    """Replace parameters whose names begin so by noise of their own spread, or mix such noise in."""

    def change(model: Any) -> None:
        generator = torch.Generator().manual_seed(3)
        for key, value in model.named_parameters():
            if key.startswith(name):
                noise = torch.randn(value.shape, generator=generator) * value.std()
                value.data.copy_((1 - share) * value + share * noise)

    return change


def prefer_three(model: Any) -> None:
    model.head.bias.data[3] += 1000


def string_ordered(model: Any) -> None:
    """Rows of the head in string order of 1 to 10, as a model has that ImageFolder's order was trained with."""
    order = [int(name) - 1 for name in sorted(FROM_ONE)]
    model.head.weight.data.copy_(model.head.weight.data[order].clone())
    model.head.bias.data.copy_(model.head.bias.data[order].clone())


def read_channel(channel: int) -> Callable[[Any], None]:
    """Let the model see one channel only, which changes nothing on grey pictures."""

    def change(model: Any) -> None:
        weight = model.patch_embed.proj.weight.data
        total = weight.sum(dim=1)
        weight.zero_()
        weight[:, channel] = total

    return change


def red_digit(pixels: Pixels, other: Pixels) -> Pixels:
    """The digit in red, and another one in green and blue."""
    return np.stack([pixels[..., 0], other[..., 1], other[..., 2]], axis=-1)


def swapped(first: int, second: int) -> tuple[str, ...]:
    names = list(DIGITS)
    names[first], names[second] = names[second], names[first]
    return tuple(names)


WRONG: dict[str, tuple[str, Case]] = {
    "numbered folders, order not said": ("refused", Case(folders=FROM_ONE)),
    "upper and lower case, order not said": ("refused", Case(folders=("A", "b", "C", "d", "E", "f", "G", "h", "I", "j"))),
    "string order of a model in natural order": ("class_order", Case(folders=FROM_ONE, order="string")),
    "natural order of a model in string order": (
        "class_order",
        Case(folders=FROM_ONE, order="natural", change=string_ordered),
    ),
    "words sorted by alphabet": ("class_order", Case(folders=WORDS)),
    "labels reversed": ("class_order", Case(labels=DIGITS[::-1])),
    "labels shifted by one": ("class_order", Case(labels=(*DIGITS[1:], "0"))),
    "labels even first": ("class_order", Case(labels=(*DIGITS[::2], *DIGITS[1::2]))),
    "labels shuffled": ("class_order", Case(labels=tuple("3907142685"))),
    "two labels swapped": ("class_order", Case(labels=swapped(2, 7))),
    "three labels turned": ("class_order", Case(labels=tuple("0123856749"))),
    "labels shuffled, half of the classes": ("class_order", Case(labels=tuple("3907142685"), digits=(0, 2, 4, 6, 8))),
    "labels shuffled of a weak model": (
        "class_order",
        Case(labels=tuple("3907142685"), change=randomize("head.weight", 0.6)),
    ),
    "labels of other classes": ("refused", Case(labels=WORDS)),
    "random head": ("plausibility", Case(change=randomize("head."))),
    "random blocks": ("plausibility", Case(change=randomize("blocks."))),
    "everything random": ("plausibility", Case(change=randomize(""))),
    "one class for all": ("plausibility", Case(change=prefer_three)),
    "one class for all, unlabelled": ("plausibility", Case(change=prefer_three, labelled=False)),
    "black pictures": ("plausibility", Case(draw=lambda pixels, _: pixels // 255)),
    "black pictures, unlabelled": ("plausibility", Case(draw=lambda pixels, _: pixels // 255, labelled=False)),
    "mean and std of 0 to 255": ("refused", Case(spec={"mean": (123.675, 116.28, 103.53), "std": (58.395, 57.12, 57.375)})),
    "std of 0 to 255": ("refused", Case(spec={"std": (58.395, 57.12, 57.375)})),
    "std divided by 255 twice": ("refused", Case(spec={"std": (0.000898, 0.000879, 0.000882)})),
    "values of 0 to 1": ("preprocessing_choice", Case(spec={"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)})),
    "std forgotten": ("preprocessing_choice", Case(spec={"std": (1.0, 1.0, 1.0)})),
    "half of the picture": ("preprocessing_choice", Case(spec={"crop_pct": 0.5})),
    "nearest": ("preprocessing_choice", Case(spec={"interpolation": "nearest"})),
    "BGR": ("preprocessing_choice", Case(change=read_channel(2), draw=red_digit)),
}

RIGHT: dict[str, Case] = {
    "as trained": Case(),
    "natural order": Case(folders=FROM_ONE, order="natural"),
    "string order": Case(folders=FROM_ONE, order="string", change=string_ordered),
    "labels in words": Case(folders=WORDS, labels=WORDS),
    "labels and upper case": Case(folders=[word.upper() for word in WORDS], labels=[word.upper() for word in WORDS]),
    "half of the classes": Case(labels=DIGITS, digits=(1, 3, 5, 7, 9)),
    "two of the classes": Case(labels=DIGITS, digits=(4, 9)),
    "three pictures a class": Case(a_class=3),
    "one picture a class": Case(a_class=1),
    "uneven classes": Case(a_class={0: 40, 1: 3, 2: 30, 3: 20, 4: 2, 5: 20, 6: 10, 7: 20, 8: 20, 9: 1}),
    "crop_pct 0.95": Case(spec={"crop_pct": 0.95}),
    "crop_pct 0.875": Case(spec={"crop_pct": 0.875}),
    "bilinear": Case(spec={"interpolation": "bilinear"}),
    "squashed": Case(spec={"crop_mode": "squash"}),
    "CLIP's mean and std": Case(spec={"mean": (0.48, 0.457, 0.408), "std": (0.268, 0.261, 0.275)}),
    "weak head": Case(change=randomize("head.weight", 0.5)),
    "weaker head": Case(change=randomize("head.weight", 0.6)),
    "weak blocks": Case(change=randomize("blocks.0.", 0.2)),
    "colour": Case(change=read_channel(0), draw=red_digit),
    "inverted in part": Case(draw=lambda pixels, _: np.maximum(pixels, 20).astype(np.uint8)),
    "unlabelled": Case(labelled=False),
    "unlabelled, one folder": Case(labelled=False, digits=(3,), a_class=40),
    "untrained weights": Case(change=randomize(""), weights="random:seed=0"),
}


@pytest.fixture(scope="module")
def sample() -> Prepared:
    return prepare(BuildRequest(model=SAMPLE, target="cpu", precision="fp32"))


@pytest.fixture(scope="module")
def answers() -> dict[tuple[str, ...], Any]:
    """PyTorch's logits of the unchanged sample by the names of the pictures, kept for the cases that only rename."""
    return {}


def write(case: Case, root: Path) -> Path:
    pictures = {digit: sorted((VALIDATION / str(digit)).glob("*.png")) for digit in range(10)}
    for digit in case.digits:
        count = case.a_class if isinstance(case.a_class, int) else case.a_class[digit]
        folder = root / case.folders[digit]
        folder.mkdir(parents=True)
        for place, path in enumerate(pictures[digit][:count]):
            if case.draw is None:
                (folder / path.name).write_bytes(path.read_bytes())
            else:
                other = pictures[place * 7 % 10][(3 * place + digit) % 40]
                pixels = case.draw(*(np.asarray(Image.open(file).convert("RGB")) for file in (path, other)))
                Image.fromarray(pixels).save(folder / path.name)
    return root


def judge(case: Case, sample: Prepared, answers: dict[tuple[str, ...], Any], folder: Path) -> dict[str, str]:
    """Status of every check of the reference by name, without what does not concern it."""
    spec = dataclasses.replace(sample.source.preprocess, **case.spec)
    root = write(case, folder / "data")
    images: ImageSet = (
        open_labelled(root, labels=case.labels, synsets=None, classes=10, order=case.order)
        if case.labelled
        else open_images(root)
    )
    model = sample.model
    if case.change is not None:
        model = copy.deepcopy(model)
        case.change(model.model)
    source = dataclasses.replace(sample.source, preprocess=spec, weights=case.weights)
    prepared = dataclasses.replace(sample, model=model, source=source, evaluation=images)
    request = BuildRequest(model=SAMPLE, target="cpu")
    work = Work(request=request, prepared=prepared, folder=folder, watch=Stopwatch(), progress=Stages((), silent))
    key = tuple(sorted(file.path.name for file in images.files))
    if case.change is None and case.draw is None and not case.spec:
        if key not in answers:
            outputs = over(images, work, "", lambda batch: reference_outputs(model, source.outputs, batch))
            answers[key] = dict(zip((file.path.name for file in images.files), outputs["logits"], strict=True))
        logits = np.stack([answers[key][file.path.name] for file in images.files])
    else:
        logits = over(images, work, "", lambda batch: reference_outputs(model, source.outputs, batch))["logits"]
    reference = Reference(
        images=images,
        outputs={"logits": logits},
        truth=images.labels,
        about="",
        golden_pixels=probe_pixels(images, spec),
        golden_outputs={},
        stay_float32=frozenset(),
    )
    checks, _ = reference_checks.reference_checks(work, reference)
    return {check.name: check.status for check in checks}


@pytest.fixture(autouse=True)
def unhurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a busy machine has no time for is skipped, which is not what these cases ask."""
    monkeypatch.setattr(reference_checks, "SECONDS", 1e9)


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_reference_fails_or_is_refused(
    name: str, sample: Prepared, answers: dict[tuple[str, ...], Any], tmp_path: Path
) -> None:
    expected, case = WRONG[name]
    if expected == "refused":
        with pytest.raises(VitexportError):
            judge(case, sample, answers, tmp_path)
    else:
        assert judge(case, sample, answers, tmp_path)[expected] == "failed"


@pytest.mark.parametrize("name", RIGHT)
def test_a_right_reference_does_not_fail(
    name: str, sample: Prepared, answers: dict[tuple[str, ...], Any], tmp_path: Path
) -> None:
    case = RIGHT[name]
    found = judge(case, sample, answers, tmp_path)
    assert found
    assert "failed" not in found.values()
    is_asked = case.labelled and case.weights.startswith("checkpoint:")
    assert (found.get("plausibility") == "passed") == is_asked


def confusion(classes: int, signal: float, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Labels and answers of a partly learned model.

    Classes look alike in pairs, though none more like another than like itself, and some are named more often.
    """
    random = np.random.default_rng(seed)
    labels = np.repeat(np.arange(classes), 40)
    alike = random.normal(size=(classes, classes))
    alike = np.minimum(0.3 * (alike + alike.T), 0.8 * signal)
    np.fill_diagonal(alike, signal)
    scores = alike[labels] + random.normal(size=classes) * 0.5
    return labels, (scores + random.normal(size=scores.shape)).argmax(axis=1)


@pytest.mark.parametrize("classes", [2, 3, 10, 40])
@pytest.mark.parametrize("signal", [0.5, 1.0, 2.0, 4.0])
def test_no_order_is_found_in_a_partly_learned_model_and_a_shuffled_one_never_passes(classes: int, signal: float) -> None:
    for seed in range(5):
        labels, predicted = confusion(classes, signal, seed)
        names = [f"class {index:02}" for index in range(classes)]
        right = class_order.Answers(predicted=predicted, labels=labels, names=names, folders=dict(enumerate(names)))
        assert class_order.class_order(right)[0].status != "failed"
        shuffle = np.roll(np.arange(classes), 1)
        wrong = dataclasses.replace(right, predicted=shuffle[predicted])
        check, fitting = class_order.class_order(wrong)
        if signal >= 4:
            assert check.status == "failed"
            assert fitting == tuple(names[index] for index in np.argsort(shuffle))
