"""Input: scikit-learn's 1797 handwritten digits; output: two folders of PNGs and a trained sample ViT.

The digits are split once into three parts that share no image: 256 for calibration, 400 for validation and
the rest for training. The calibration and validation parts are written as 8x8 greyscale PNGs, the model is
trained on the rest, and its top-1 accuracy is measured on the validation PNGs through timm's evaluation
transform, which is the way any other user of the checkpoint prepares its input::

    DIR/calibration/digits/<class>/digit_<index>.png        calibration
    DIR/calibration/digits-val/<class>/digit_<index>.png    validation (held out)
    DIR/scripts/sample/model.safetensors                    weights, float32, keys as timm names them
    DIR/scripts/sample/config.json                          architecture, preprocessing and labels, as timm reads them
    DIR/scripts/sample/training.json                        how the weights came about, and the held-out accuracy

scripts/sample is a folder that timm loads by itself: ``timm.create_model("local-dir:scripts/sample", pretrained=True)``.

DIR is the repository unless `--out` names another folder. The same machine, library versions and number of
threads give the same bytes again.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeAlias

import click
import numpy as np
import timm
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import save
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from timm.data.config import resolve_model_data_config
from timm.data.transforms_factory import create_transform
from torch import Tensor, nn
from torch.nn import functional

Indices: TypeAlias = "NDArray[np.int64]"

REPOSITORY = Path(__file__).resolve().parent.parent
SEED = 0
CALIBRATION_IMAGES = 256
VALIDATION_IMAGES = 400
REQUIRED_ACCURACY = 0.97
LIBRARIES = ("torch", "torchvision", "timm", "scikit-learn", "numpy", "Pillow", "safetensors")

CLASSES = 10
# Matrices that are no weights of a layer, by the last part of their name.
UNDECAYED = frozenset({"pos_embed", "cls_token", "dist_token", "relative_position_bias_table"})
PREPROCESSING: dict[str, Any] = {
    "input_size": [3, 32, 32],
    "mean": [0.5, 0.5, 0.5],
    "std": [0.5, 0.5, 0.5],
    "crop_pct": 1.0,
    "interpolation": "bicubic",
}


@dataclass(frozen=True)
class Architecture:
    """What is trained.

    Attributes:
        name: As timm knows it.
        kwargs: Arguments of `timm.create_model`, without the number of classes.
        classifier: Name of the last layer.
    """

    name: str
    kwargs: Mapping[str, Any]
    classifier: str = "head"


SAMPLE = Architecture(
    "vit_tiny_patch16_224", {"img_size": 32, "patch_size": 4, "embed_dim": 128, "depth": 3, "num_heads": 4}
)


@dataclass(frozen=True)
class Layout:
    """Where everything lies under one root."""

    root: Path

    @property
    def calibration(self) -> Path:
        """The calibration images."""
        return self.root / "calibration" / "digits"

    @property
    def validation(self) -> Path:
        """The held-out images."""
        return self.root / "calibration" / "digits-val"

    @property
    def sample(self) -> Path:
        """The checkpoint, its configuration and how it was trained."""
        return self.root / "scripts" / "sample"

    @property
    def weights(self) -> Path:
        """The checkpoint."""
        return self.sample / "model.safetensors"

    @property
    def config(self) -> Path:
        """What timm needs to build the model and prepare its input."""
        return self.sample / "config.json"

    @property
    def training(self) -> Path:
        """How the weights came about."""
        return self.sample / "training.json"


@dataclass(frozen=True)
class Recipe:
    """The training's numbers. They were set before the held-out images were looked at."""

    epochs: int = 80
    warmup_epochs: int = 5
    batch: int = 64
    learning_rate: float = 1e-3
    weight_decay: float = 0.05
    head_dropout: float = 0.1
    drop_path: float = 0.1
    label_smoothing: float = 0.05
    gradient_clip: float = 1.0


@dataclass(frozen=True)
class Augmentation:
    """How far a training image may be moved, in the units named; each is drawn anew for every image."""

    share_left_alone: float = 0.2
    rotation_degrees: float = 12.0
    shear_degrees: float = 8.0
    scale: float = 0.12
    shift_pixels: float = 3.0
    contrast: float = 0.2
    noise: float = 0.05


@dataclass(frozen=True)
class Split:
    """Indices into `load_digits`, sorted; the three share none."""

    training: Indices
    calibration: Indices
    validation: Indices


@dataclass(frozen=True)
class Score:
    """How many images of a set were classified correctly."""

    correct: int
    total: int

    @property
    def accuracy(self) -> float:
        """Top-1 accuracy between 0 and 1."""
        return self.correct / self.total

    def __str__(self) -> str:
        """For people: the percentage and both counts."""
        return f"{self.accuracy:.2%} ({self.correct} of {self.total})"


def replace_file(path: Path, content: bytes) -> None:
    """Write a file under a temporary name and rename it, so that no half-written file bears the real name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(content)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def digits() -> tuple[NDArray[np.uint8], Indices]:
    """The images as uint8 from 0 to 255 and their classes, in the order of `load_digits`."""
    bunch = load_digits()
    images = np.rint(bunch.images * (255.0 / 16.0)).astype(np.uint8)
    return images, bunch.target.astype(np.int64)


def split_digits(labels: Indices) -> Split:
    """The fixed three-way split, with each class in its share of every part."""
    everything = np.arange(len(labels))
    rest, validation = _stratified(everything, VALIDATION_IMAGES, labels)
    training, calibration = _stratified(rest, CALIBRATION_IMAGES, labels[rest])
    return Split(np.sort(training), np.sort(calibration), np.sort(validation))


def _stratified(indices: Indices, second: int, labels: Indices) -> tuple[Indices, Indices]:
    first_part, second_part = train_test_split(indices, test_size=second, stratify=labels, random_state=SEED)
    return first_part, second_part


def png_paths(folder: Path, indices: Indices, labels: Indices) -> dict[int, Path]:
    """The file of each image: its class is the folder's name, its index in `load_digits` is in its own."""
    return {int(i): folder / str(int(labels[i])) / f"digit_{int(i):04d}.png" for i in indices}


def write_pngs(folder: Path, indices: Indices, images: NDArray[np.uint8], labels: Indices) -> None:
    """Write one part of the split; refuse a folder with other files, which would silently join the set."""
    paths = png_paths(folder, indices, labels)
    foreign = sorted(p for p in folder.rglob("*") if p.is_file() and p not in set(paths.values()))
    if foreign:
        raise click.ClickException(
            f"{folder} holds {len(foreign)} files that are not part of this split, "
            f"the first is {foreign[0].name}. Move them away, or choose another folder with --out."
        )
    for index, path in paths.items():
        buffer = io.BytesIO()
        Image.fromarray(images[index]).save(buffer, format="PNG", optimize=True)
        replace_file(path, buffer.getvalue())


def picture(image: NDArray[np.uint8]) -> Image.Image:
    """A grey array as an RGB image."""
    return Image.fromarray(image).convert("RGB")


def read_pngs(folder: Path) -> tuple[list[Image.Image], Tensor]:
    """Every PNG under class folders as an RGB image, and the classes that the folders name."""
    paths = sorted(folder.glob("*/*.png"))
    if not paths:
        raise click.ClickException(f"{folder} holds no images; train first, or name its root with --out.")
    images = []
    for path in paths:
        with Image.open(path) as image:
            images.append(image.convert("RGB"))
    return images, torch.tensor([int(path.parent.name) for path in paths])


def preprocess(images: list[Image.Image], preprocessing: dict[str, Any]) -> Tensor:
    """A batch through timm's own evaluation transform, the only preprocessing in this file."""
    wanted = {key: tuple(value) if isinstance(value, list) else value for key, value in preprocessing.items()}
    transform = create_transform(**wanted, is_training=False)
    return torch.stack([transform(image) for image in images])


def measure(model: nn.Module, inputs: Tensor, labels: Tensor) -> Score:
    """Top-1 accuracy in evaluation mode."""
    model.eval()
    with torch.inference_mode():
        predicted = torch.cat([model(batch).argmax(1) for batch in torch.split(inputs, 100)])
    return Score(int((predicted == labels).sum()), len(labels))


def affine_matrices(count: int, size: int, limits: Augmentation, generator: torch.Generator) -> Tensor:
    """One random rotation, shear, scale and shift for each image, in `affine_grid`'s coordinates."""

    def draw(limit: float) -> Tensor:
        return (torch.rand(count, generator=generator) * 2 - 1) * limit

    angle, shear = torch.deg2rad(draw(limits.rotation_degrees)), torch.deg2rad(draw(limits.shear_degrees))
    across, down = 1 + draw(limits.scale), 1 + draw(limits.scale)
    # affine_grid measures in half images: its coordinates run from -1 to 1.
    right, below = draw(limits.shift_pixels * 2 / size), draw(limits.shift_pixels * 2 / size)
    first = torch.stack([across * angle.cos(), -down * (angle + shear).sin(), right], 1)
    second = torch.stack([across * angle.sin(), down * (angle + shear).cos(), below], 1)
    matrices = torch.stack([first, second], 1)
    alone = torch.rand(count, generator=generator) < limits.share_left_alone
    matrices[alone] = torch.eye(2, 3)
    return matrices


def augment(batch: Tensor, limits: Augmentation, generator: torch.Generator) -> Tensor:
    """Preprocessed images, moved, with other contrast and noise, in the range that preprocessing gives."""
    count, _, size, _ = batch.shape
    mean, std = float(PREPROCESSING["mean"][0]), float(PREPROCESSING["std"][0])
    # Between 0 and 1 the digits' background is 0, which is what grid_sample puts beyond the border.
    pixels = batch * std + mean
    matrices = affine_matrices(count, size, limits, generator)
    grid = functional.affine_grid(matrices, list(batch.shape), align_corners=False)
    pixels = functional.grid_sample(pixels, grid, mode="bicubic", padding_mode="zeros", align_corners=False)
    gain = 1 + (torch.rand(count, 1, 1, 1, generator=generator) * 2 - 1) * limits.contrast
    strength = torch.rand(count, 1, 1, 1, generator=generator) * limits.noise
    # One noise for the three channels: the images are grey, and so are those of any deployment of this model.
    noise = torch.randn(count, 1, size, size, generator=generator) * strength
    return ((pixels * gain + noise).clamp(0, 1) - mean) / std


def batches(count: int, recipe: Recipe, generator: torch.Generator) -> Iterator[tuple[int, Tensor]]:
    """The epoch's number and a shuffled batch of indices; the last, smaller batch of an epoch is kept."""
    for epoch in range(recipe.epochs):
        for chosen in torch.split(torch.randperm(count, generator=generator), recipe.batch):
            yield epoch, chosen


def optimizer_and_schedule(
    model: nn.Module, recipe: Recipe, steps_per_epoch: int
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LambdaLR]:
    """AdamW that decays weight matrices only; a linear warm-up, then half a cosine down to zero."""
    named = list(model.named_parameters())
    free = {name for name, p in named if p.ndim <= 1 or name.rpartition(".")[2] in UNDECAYED}
    decayed, exempt = [p for name, p in named if name not in free], [p for name, p in named if name in free]
    groups = [
        {"params": decayed, "weight_decay": recipe.weight_decay},
        {"params": exempt, "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=recipe.learning_rate)
    warmup, total = recipe.warmup_epochs * steps_per_epoch, recipe.epochs * steps_per_epoch

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))

    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


def train(inputs: Tensor, labels: Tensor, recipe: Recipe, architecture: Architecture) -> nn.Module:
    """A model trained on the preprocessed training images; the last step's weights are the result."""
    torch.manual_seed(SEED)
    generator = torch.Generator().manual_seed(SEED)
    model: nn.Module = timm.create_model(
        architecture.name,
        pretrained=False,
        drop_rate=recipe.head_dropout,
        drop_path_rate=recipe.drop_path,
        num_classes=CLASSES,
        **architecture.kwargs,
    )
    optimizer, schedule = optimizer_and_schedule(model, recipe, math.ceil(len(inputs) / recipe.batch))
    loss_function = nn.CrossEntropyLoss(label_smoothing=recipe.label_smoothing)
    model.train()
    reported = -1
    for epoch, chosen in batches(len(inputs), recipe, generator):
        loss = loss_function(model(augment(inputs[chosen], Augmentation(), generator)), labels[chosen])
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), recipe.gradient_clip)
        optimizer.step()
        schedule.step()
        if epoch % 10 == 0 and epoch != reported:
            reported = epoch
            print(f"epoch {epoch:3d} of {recipe.epochs}: loss {loss.item():.3f}", flush=True)
    return model


def configuration(architecture: Architecture) -> bytes:
    """What timm reads from a ``local-dir:`` folder: architecture, its arguments, preprocessing and labels."""
    content = {
        "architecture": architecture.name,
        "num_classes": CLASSES,
        "model_args": dict(architecture.kwargs),
        "label_names": [str(digit) for digit in range(CLASSES)],
        "pretrained_cfg": {
            **PREPROCESSING,
            "crop_mode": "center",
            "fixed_input_size": True,
            "first_conv": "patch_embed.proj",
            "classifier": architecture.classifier,
        },
    }
    return (json.dumps(content, indent=2) + "\n").encode()


def describe(split: Split, score: Score, recipe: Recipe, threads: int, digest: str) -> bytes:
    """How the weights came about, without date or path: the same training gives the same file."""
    content = {
        "split": {
            "training": len(split.training),
            "calibration": len(split.calibration),
            "validation": len(split.validation),
        },
        "held_out_top1": score.accuracy,
        "held_out_correct": score.correct,
        "seed": SEED,
        "epochs": recipe.epochs,
        "threads": threads,
        "sha256": digest,
        "versions": {name: version(name) for name in LIBRARIES},
    }
    return (json.dumps(content, indent=2) + "\n").encode()


def make_sample(layout: Layout, recipe: Recipe, threads: int) -> None:
    """Write both folders, train, measure on the held-out PNGs, and write a checkpoint that is good enough."""
    images, labels = digits()
    split = split_digits(labels)
    write_pngs(layout.calibration, split.calibration, images, labels)
    write_pngs(layout.validation, split.validation, images, labels)
    counts = f"{len(split.calibration)} calibration and {len(split.validation)} validation"
    print(f"wrote {counts} images", flush=True)
    pictures = [picture(images[i]) for i in split.training]
    started = time.perf_counter()
    model = train(preprocess(pictures, PREPROCESSING), torch.from_numpy(labels[split.training]), recipe, SAMPLE)
    print(f"trained on {len(pictures)} images in {time.perf_counter() - started:.0f} s")
    held_out, held_out_labels = read_pngs(layout.validation)
    score = measure(model, preprocess(held_out, PREPROCESSING), held_out_labels)
    print(f"held-out top-1: {score}")
    if score.accuracy < REQUIRED_ACCURACY:
        raise click.ClickException(f"that is below {REQUIRED_ACCURACY:.0%}; the checkpoint was not written.")
    weights = checkpoint(model)
    digest = hashlib.sha256(weights).hexdigest()
    replace_file(layout.weights, weights)
    replace_file(layout.config, configuration(SAMPLE))
    replace_file(layout.training, describe(split, score, recipe, threads, digest))
    print(f"wrote {layout.weights.name}: {len(weights)} bytes, sha256 {digest}")


def checkpoint(model: nn.Module) -> bytes:
    """The weights as a safetensors file."""
    # One metadata entry only: safetensors does not fix the order of several.
    weights: bytes = save({key: value.contiguous() for key, value in model.state_dict().items()}, {"format": "pt"})
    return weights


def check_sample(layout: Layout) -> Score:
    """Measure the checkpoint that is there on the validation PNGs that are there; nothing is written."""
    for path in (layout.weights, layout.config):
        if not path.is_file():
            raise click.ClickException(f"{path} does not exist; train first, or name its root with --out.")
    model: nn.Module = timm.create_model(f"local-dir:{layout.sample}", pretrained=True)
    images, labels = read_pngs(layout.validation)
    config = resolve_model_data_config(model)
    return measure(model, preprocess(images, {key: config[key] for key in PREPROCESSING}), labels)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--out",
    metavar="DIR",
    type=click.Path(file_okay=False, path_type=Path),
    default=REPOSITORY,
    show_default="the repository",
    help="Root that gets (or, with --check, has) calibration/ and scripts/sample/.",
)
@click.option("--check", is_flag=True, help="Only measure the checkpoint there on the held-out images.")
@click.option("--epochs", type=click.IntRange(min=1), default=Recipe.epochs, show_default=True)
@click.option(
    "--threads",
    type=click.IntRange(min=1),
    default=2,
    show_default=True,
    help="CPU threads; another number gives slightly different weights.",
)
def main(*, out: Path, check: bool, epochs: int, threads: int) -> None:
    """Train the sample ViT on scikit-learn's digits, and write its calibration and validation images."""
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(mode=True)
    layout = Layout(out)
    if not check:
        make_sample(layout, Recipe(epochs=epochs), threads)
        return
    score = check_sample(layout)
    print(f"held-out top-1: {score}")
    if score.accuracy < REQUIRED_ACCURACY:
        raise click.ClickException(f"that is below {REQUIRED_ACCURACY:.0%}.")


if __name__ == "__main__":
    main()
