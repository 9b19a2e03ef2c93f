"""Input: a work folder; output: the paths of the trained models in it, each a folder that timm reads as ``local-dir:``.

What is there already is taken as it is, so that a second run trains nothing. All are trained by the sample's recipe, on the
sample's images, and must reach the sample's held-out accuracy.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import time
from collections.abc import Mapping
from pathlib import Path

import timm
import torch
import train_sample
from torch import nn
from train_sample import Architecture, Recipe

from quantizers.outliers import EXTREME, MODERATE, scale_channels

SAMPLE = "sample"
RESCALED = {"sample-outliers": MODERATE, "sample-outliers-1000": EXTREME}
# Shorter and steeper than the sample's, and narrower models: two minutes each on two cores.
RECIPE = Recipe(epochs=45, learning_rate=2e-3)
LONGER = {"beit": dataclasses.replace(RECIPE, epochs=60)}
SMALL = {"img_size": 32, "patch_size": 4, "embed_dim": 96, "depth": 3, "num_heads": 3}
FAMILIES = {
    "deit-distilled": Architecture("deit_tiny_distilled_patch16_224", SMALL),
    # timm's layer scale of 0.1, and positions that are relative only, are made for longer training.
    "beit": Architecture("beit_base_patch16_224", {**SMALL, "init_values": 1.0, "use_abs_pos_emb": True}),
    "eva02": Architecture("eva02_tiny_patch14_224", SMALL),
    "swin": Architecture(
        "swin_tiny_patch4_window7_224",
        {"img_size": 32, "patch_size": 4, "window_size": 4, "embed_dim": 64, "depths": [2, 2], "num_heads": [2, 4]},
        classifier="head.fc",
    ),
}
NAMES = (SAMPLE, *RESCALED, *FAMILIES)
# Equal in exact arithmetic and, with powers of two, in float32 as well; anything above this is a mistake.
LARGEST_CHANGE = 1e-5


def make(name: str, work: Path) -> Path:
    """The folder of model `name`, trained or rescaled now if it is not there yet.

    Raises:
        SystemExit: It stays below the held-out accuracy that the sample must reach, or rescaling changed its function.
    """
    if name == SAMPLE:
        return train_sample.Layout(train_sample.REPOSITORY).sample
    folder = work / "models" / name
    if not (folder / "training.json").is_file():
        shutil.rmtree(folder, ignore_errors=True)
        torch.use_deterministic_algorithms(mode=True)
        if name in RESCALED:
            _rescale_sample(name, folder)
        else:
            _train(name, FAMILIES[name], folder)
    return folder


def load(folder: Path) -> nn.Module:
    """The model in `folder`, in evaluation mode."""
    model: nn.Module = timm.create_model(f"local-dir:{folder}", pretrained=True)
    return model.eval()


def _train(name: str, architecture: Architecture, folder: Path) -> None:
    images, labels = train_sample.digits()
    chosen = train_sample.split_digits(labels).training
    inputs = train_sample.preprocess([train_sample.picture(images[i]) for i in chosen], train_sample.PREPROCESSING)
    start = time.perf_counter()
    recipe = LONGER.get(name, RECIPE)
    model = train_sample.train(inputs, torch.from_numpy(labels[chosen]), recipe, architecture)
    seconds = time.perf_counter() - start
    score = train_sample.measure(model, *_held_out())
    print(f"{name}: trained in {seconds:.0f} s, held-out top-1 {score}", flush=True)
    if score.accuracy < train_sample.REQUIRED_ACCURACY:
        raise SystemExit(f"{name} is below {train_sample.REQUIRED_ACCURACY:.0%}; give it more than {recipe.epochs} epochs.")
    about = {"held_out_top1": score.accuracy, "epochs": recipe.epochs, "seconds": round(seconds)}
    _write(folder, model, architecture, about)


def _rescale_sample(name: str, folder: Path) -> None:
    """The sample with large channels behind LayerNorm and in v: other numbers inside, the same function."""
    model = load(train_sample.Layout(train_sample.REPOSITORY).sample)
    inputs, labels = _held_out()
    with torch.inference_mode():
        before = model(inputs)
        factors = scale_channels(model, RESCALED[name])
        change = float((model(inputs) - before).abs().max() / before.abs().max())
    print(f"{name}: {len(factors)} rescaled tensors change the logits by {change:.1e} of the largest", flush=True)
    if change > LARGEST_CHANGE:
        raise SystemExit(f"Rescaling changed the logits by {change:.1e} of the largest; {LARGEST_CHANGE:.0e} was expected.")
    accuracy = train_sample.measure(model, inputs, labels).accuracy
    _write(folder, model, train_sample.SAMPLE, {"held_out_top1": accuracy, "change": change, "factors": factors})


def _held_out() -> tuple[torch.Tensor, torch.Tensor]:
    images, labels = train_sample.read_pngs(train_sample.Layout(train_sample.REPOSITORY).validation)
    return train_sample.preprocess(images, train_sample.PREPROCESSING), labels


def _write(folder: Path, model: nn.Module, architecture: Architecture, about: Mapping[str, object]) -> None:
    """The folder; ``training.json`` comes last and says that it is whole."""
    train_sample.replace_file(folder / "model.safetensors", train_sample.checkpoint(model))
    train_sample.replace_file(folder / "config.json", train_sample.configuration(architecture))
    train_sample.replace_file(folder / "training.json", (json.dumps(about, indent=2) + "\n").encode())
