"""The sample's backbone with a new head for each task, trained on the digits: checkpoints, requests and validation data."""

from __future__ import annotations

import csv
import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from conftest import CALIBRATION, SAMPLE, VALIDATION, sample_request
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import save_file

from vitexport.artifacts import Task
from vitexport.datasets import open_images
from vitexport.pipeline import BuildRequest
from vitexport.source import ModelRequest, load

LABELS = ("odd", "at least 5", "prime")


def truth(digits: NDArray[np.int64], task: Task) -> NDArray[np.float32]:
    """What is true of each digit: odd as one logit; odd, at least 5 and prime as labels; the digit itself as a value."""
    columns = {
        "classification": [digits % 2 == 1],
        "multi-label": [digits % 2 == 1, digits >= 5, np.isin(digits, (2, 3, 5, 7))],
        "regression": [digits],
    }[task]
    return np.stack(columns, axis=1).astype(np.float32)


@functools.lru_cache
def features() -> tuple[torch.Tensor, NDArray[np.int64], dict[str, torch.Tensor]]:
    """What the sample's classifier reads of the calibration digits, the digits, and the sample's weights."""
    model, source = load(dataclasses.replace(SAMPLE, head="features"))
    images = open_images(CALIBRATION)
    with torch.inference_mode():
        parts = [model(torch.from_numpy(batch))[0] for batch in images.batches(source.preprocess, 100)]
    digits = np.asarray([int(file.relative.split("/")[0]) for file in images.files])
    return torch.cat(parts).clone(), digits, dict(model.model.state_dict())


def train(task: Task, path: Path) -> ModelRequest:
    """Write a checkpoint with a head for `task`; returns the request for its model."""
    inputs, digits, weights = features()
    wanted = torch.from_numpy(truth(digits, task))
    torch.manual_seed(0)
    head = torch.nn.Linear(inputs.shape[1], wanted.shape[1])
    loss_of: Any = (
        torch.nn.functional.mse_loss if task == "regression" else torch.nn.functional.binary_cross_entropy_with_logits
    )
    optimizer = torch.optim.Adam(head.parameters(), 1e-2)
    for _ in range(800):
        loss = loss_of(head(inputs), wanted)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    own = {"head.weight": head.weight.detach().clone(), "head.bias": head.bias.detach().clone()}
    save_file({**weights, **own}, path)
    return dataclasses.replace(SAMPLE, checkpoint=path, num_classes=wanted.shape[1], task=task)


def digits_csv(path: Path, task: Task, columns: Sequence[str], every: int = 1) -> Path:
    """A CSV file of every `every`-th validation digit with its columns."""
    files = sorted(VALIDATION.glob("*/*.png"))[::every]
    digits = np.asarray([int(file.parent.name) for file in files])
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(("image", *columns))
        for file, row in zip(files, truth(digits, task), strict=True):
            writer.writerow((str(file), *(f"{value:g}" for value in row)))
    return path


def black(folder: Path) -> Path:
    """Calibration pictures that are all but black: ranges that fit nothing, so that INT8 is far off."""
    folder.mkdir()
    for index in range(40):
        Image.new("RGB", (32, 32), (index, 0, 0)).save(folder / f"{index}.png")
    return folder


def request(model: ModelRequest, out: Path, **changes: Any) -> BuildRequest:
    """A build of `model` in INT8 for this CPU, judged without labels."""
    return sample_request(out, model=model, **{"data": None, "calibration_size": 32, **changes})
