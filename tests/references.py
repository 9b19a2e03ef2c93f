"""Builds of the sample whose reference is wrong, and builds whose reference is right.

A `Case` says what differs from a right build: the class folders, the labels, the preprocessing, the weights or the pictures;
a `FileCase` what the checkpoint holds and what was typed with it. The tables are there to be added to.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from conftest import ROOT, SAMPLE, VALIDATION
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file, save_file

from vitexport.artifacts import silent
from vitexport.datasets import ClassOrder, ImageSet, open_images, open_labelled
from vitexport.machine import Stopwatch
from vitexport.pipeline import BuildRequest, reference_checks
from vitexport.pipeline.prepare import Prepared, prepare
from vitexport.pipeline.reference import Reference, over
from vitexport.pipeline.session import Session
from vitexport.pipeline.stages import Stages
from vitexport.source import ModelRequest
from vitexport.validate.probes import probe_pixels
from vitexport.validate.reference import reference_outputs

A_CLASS = 20
DIGITS = tuple("0123456789")
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
FROM_ONE = tuple(str(digit + 1) for digit in range(10))
GREY = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
# What is said of a number of heads that no tensor shows.
HEADS = "`kwargs=num_heads=4`: taken as given"
Pixels = NDArray[np.uint8]
State = dict[str, torch.Tensor]
SAMPLE_WEIGHTS = ROOT / "scripts" / "sample" / "model.safetensors"


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


@dataclasses.dataclass(frozen=True, kw_only=True)
class FileCase:
    """A checkpoint of the sample, and what was typed with it.

    Attributes:
        entries: What is saved, from the sample's tensors.
        typed: Fields of the `ModelRequest`.
        container: Name of the file; safetensors where it ends so.
        note: What a note of the source has to say; of a right file the only thing that one may say.
    """

    entries: Callable[[State], dict[str, Any]]
    typed: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    container: str = "model_best.pth.tar"
    note: str = ""


SHAPE = {"img_size": 32, "patch_size": 4, "embed_dim": 128, "depth": 3, "num_heads": 4}
MODEL = "vit_tiny_patch16_224"


def trained_as(state: State, **changes: Any) -> dict[str, Any]:
    """What timm's train.py keeps of the sample."""
    values = {"model": MODEL, "num_classes": 10, "model_kwargs": SHAPE, "crop_pct": 1.0, "interpolation": "bicubic"}
    args = argparse.Namespace(**{**values, "mean": [0.5] * 3, "std": [0.5] * 3, **changes})
    return {"epoch": 7, "state_dict": state, "args": args}


def noise(state: State) -> State:
    generator = torch.Generator().manual_seed(5)
    return {name: torch.randn(value.shape, generator=generator) * 0.02 for name, value in state.items()}


def prefixed(state: State, prefix: str) -> State:
    return {f"{prefix}{name}": value for name, value in state.items()}


def without(state: State, *names: str) -> State:
    return {name: value for name, value in state.items() if not name.startswith(names)}


def moved_head(state: State, name: str, prefix: str = "") -> State:
    head = {f"{name}.{part}": state[f"head.{part}"] for part in ("weight", "bias")}
    return prefixed(without(state, "head."), prefix) | head


WRONG_FILES: dict[str, tuple[str, FileCase]] = {
    "averaged weights that never trained, --ema": (
        "plausibility",
        FileCase(entries=lambda s: trained_as(s) | {"state_dict_ema": noise(s)}, typed={"ema": True}),
    ),
    "weights that diverged, the average is good": (
        "plausibility",
        FileCase(entries=lambda s: trained_as(noise(s)) | {"state_dict_ema": s}),
    ),
    "mean pooling of a class token's model": (
        "refused",
        FileCase(entries=trained_as, typed={"kwargs": {"global_pool": "avg"}}),
    ),
    "another number of heads": ("refused", FileCase(entries=trained_as, typed={"kwargs": {"num_heads": 2}})),
    "fewer blocks": ("refused", FileCase(entries=trained_as, typed={"kwargs": {"depth": 2}})),
    "a block is missing": ("refused", FileCase(entries=lambda s: trained_as(without(s, "blocks.2.")))),
    "head is missing": ("refused", FileCase(entries=lambda s: trained_as(without(s, "head.")))),
    "another number of classes": ("refused", FileCase(entries=trained_as, typed={"num_classes": 9})),
    "classes that the tensors do not have": ("refused", FileCase(entries=lambda s: trained_as(s, num_classes=12))),
    "another MODEL": ("refused", FileCase(entries=trained_as, typed={"name": "deit_tiny_patch16_224"})),
    "student and teacher": ("refused", FileCase(entries=lambda s: {"student": s, "teacher": noise(s)})),
    "a layer more than the model has": (
        "refused",
        FileCase(entries=lambda s: trained_as(s | {"pre_logits.fc.weight": torch.eye(128)})),
    ),
    "another crop than in training": (
        "named",
        FileCase(entries=trained_as, typed={"crop_pct": 0.875}, note="`crop_pct=0.875` is used, and model_best.pth.tar"),
    ),
    "another mean than in training": (
        "named",
        FileCase(entries=trained_as, typed={"mean": (0.4, 0.4, 0.4)}, note="`mean=0.4,0.4,0.4` is used"),
    ),
    "other resizing than in training": (
        "named",
        FileCase(entries=trained_as, typed={"interpolation": "nearest"}, note="`interpolation=nearest` is used"),
    ),
    "a model made for another size than its pictures had": (
        "named",
        FileCase(
            entries=lambda s: trained_as(s, img_size=48, model_kwargs=SHAPE | {"dynamic_img_size": True}),
            note="was trained on pictures of 48 x 48, with a model made for 32×32",
        ),
    ),
    "another size than in training": (
        "named",
        FileCase(entries=trained_as, typed={"img_size": 48}, note="position embedding 8×8 → 12×12, resampled"),
    ),
}

RIGHT_FILES: dict[str, FileCase] = {
    "timm's train.py": FileCase(entries=trained_as),
    "average beside it": FileCase(entries=lambda s: trained_as(s) | {"state_dict_ema": noise(s)}),
    "average taken": FileCase(entries=lambda s: trained_as(noise(s)) | {"state_dict_ema": s}, typed={"ema": True}),
    "average only": FileCase(entries=lambda s: {"args": trained_as(s)["args"], "state_dict_ema": s}),
    "from several GPUs": FileCase(entries=lambda s: trained_as(prefixed(s, "module."))),
    "compiled": FileCase(entries=lambda s: trained_as(prefixed(s, "_orig_mod."))),
    "Lightning": FileCase(
        entries=lambda s: {
            "state_dict": prefixed(s, "net."),
            "hyper_parameters": {"model_name": MODEL, "num_classes": 10, "model_kwargs": SHAPE},
        },
        container="epoch=3.ckpt",
        typed=GREY,
    ),
    "model_state_dict": FileCase(
        entries=lambda s: {"model_state_dict": s, "optimizer": {"state": {}}},
        typed={"name": MODEL, "kwargs": SHAPE, **GREY},
        note=HEADS,
    ),
    "shape from the tensors": FileCase(
        entries=dict,
        container="w.pth",
        typed={"name": MODEL, "kwargs": {"num_heads": 4}, **GREY, "crop_pct": 1.0},
        note=HEADS,
    ),
    "safetensors": FileCase(
        entries=dict, container="w.safetensors", typed={"name": MODEL, "kwargs": SHAPE, **GREY}, note=HEADS
    ),
    "float16": FileCase(entries=lambda s: trained_as({name: value.half() for name, value in s.items()})),
    "dropout before the head": FileCase(entries=lambda s: trained_as(moved_head(s, "head.1"))),
    "head outside the trunk": FileCase(entries=lambda s: trained_as(moved_head(s, "classifier", "backbone."))),
    "teacher chosen": FileCase(
        entries=lambda s: {"student": noise(s), "teacher": s},
        typed={"checkpoint_key": "teacher", "name": MODEL, "kwargs": SHAPE, **GREY},
        note=HEADS,
    ),
    "what the file says, typed": FileCase(entries=trained_as, typed={"crop_pct": 1.0, "num_classes": 10, "img_size": 32}),
    "MODEL typed": FileCase(entries=trained_as, typed={"name": MODEL}),
    "one mean for three channels": FileCase(entries=lambda s: trained_as(s, mean=[0.5], std=[0.5])),
}


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
    session = Session(folder=folder, watch=Stopwatch(), progress=Stages((), silent))
    key = tuple(sorted(file.path.name for file in images.files))
    if case.change is None and case.draw is None and not case.spec:
        if key not in answers:
            outputs = over(images, source, session, "", lambda batch: reference_outputs(model, source.outputs, batch))
            answers[key] = dict(zip((file.path.name for file in images.files), outputs["logits"], strict=True))
        logits = np.stack([answers[key][file.path.name] for file in images.files])
    else:
        logits = over(images, source, session, "", lambda batch: reference_outputs(model, source.outputs, batch))["logits"]
    reference = Reference(
        images=images,
        outputs={"logits": logits},
        truth=images.labels,
        about="",
        golden_pixels=probe_pixels(images, spec),
        golden_outputs={},
        spec=spec,
    )
    checks, _ = reference_checks.reference_checks(request, prepared, reference, session)
    return {check.name: check.status for check in checks}


def open_file(case: FileCase, folder: Path) -> Prepared:
    """The sample, loaded from the case's file.

    Raises:
        VitexportError: It was refused.
    """
    entries = dict(case.entries(load_file(SAMPLE_WEIGHTS)))
    path = folder / case.container
    if path.suffix == ".safetensors":
        save_file(entries, path)
    else:
        torch.save(entries, path)
    model = ModelRequest(**{"checkpoint": path, "pretrained": False, **case.typed})
    return prepare(BuildRequest(model=model, target="cpu", precision="fp32"))
