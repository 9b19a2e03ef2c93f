"""Input: the model's data config, the file's word and the user's; output: one `PreprocessSpec`, and who said what of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from timm.data import resolve_model_data_config
from torch import nn

from vitexport.errors import UsageError
from vitexport.preprocess import PreprocessSpec
from vitexport.quiet import quiet
from vitexport.source.request import ModelRequest, create_kwargs

TYPED = "as given"


def preprocess_spec(model: nn.Module, request: ModelRequest) -> PreprocessSpec:
    """How pictures become the input of `model`, by `request` where it says something.

    Raises:
        UsageError: Another number of values than the model has channels.
    """
    with quiet("timm", "huggingface_hub"):
        config = resolve_model_data_config(model)
    channels, height, width = config["input_size"]
    # timm's data config stays that of RGB where another number of channels was asked for.
    channels = int(getattr(model, "in_chans", None) or create_kwargs(request).get("in_chans", channels))
    # A model that was made with another img_size still carries the pretrained size in its data config.
    made_for = create_kwargs(request).get("img_size") or getattr(getattr(model, "patch_embed", None), "img_size", None)
    if made_for is not None:
        height, width = (made_for, made_for) if isinstance(made_for, int) else (int(made_for[0]), int(made_for[1]))
    return PreprocessSpec(
        height=int(height),
        width=int(width),
        mean=_per_channel("mean", request.mean, config["mean"], channels),
        std=_per_channel("std", request.std, config["std"], channels),
        interpolation=request.interpolation or str(config["interpolation"]),
        crop_pct=float(config["crop_pct"] if request.crop_pct is None else request.crop_pct),
        crop_mode=request.crop_mode or config.get("crop_mode", "center"),
    )


def _per_channel(name: str, asked: Sequence[float] | None, own: Sequence[float], channels: int) -> tuple[float, ...]:
    """What was `asked` for, which must fit; else the model's `own`, averaged as timm's loader does it where it does not."""
    numbers = tuple(float(value) for value in asked or own)
    if len(numbers) == channels:
        return numbers
    if len(numbers) == 1 or (channels == 1 and len(set(numbers)) == 1):
        return numbers[:1] * channels
    if asked:
        raise UsageError(f"{name} has {len(numbers)} values; give one, or one for each of the model's {channels} channels.")
    return (float(np.mean(numbers)),) * channels


def told(spec: PreprocessSpec, typed: ModelRequest, recorded: Mapping[str, Any], file: str, own: str) -> str:
    """Each setting of `spec` with who says so, in a line.

    Args:
        spec: The preprocessing in use.
        typed: What the user asked for, which counts first.
        recorded: What the checkpoint's file says; None where it says nothing.
        file: The file's name.
        own: Whose word the rest is, for example ``timm's default for vit_tiny_patch16_224``.
    """
    shown = {
        "mean": f"mean {_numbers(spec.mean)}",
        "std": f"std {_numbers(spec.std)}",
        "crop_pct": f"crop_pct {spec.crop_pct:g}",
        "crop_mode": f"crop mode {spec.crop_mode}",
        "interpolation": spec.interpolation,
    }
    said: dict[str, list[str]] = {TYPED: [], f"by {file}": [], own: []}
    for key, text in shown.items():
        whose = TYPED if getattr(typed, key) is not None else f"by {file}" if recorded.get(key) is not None else own
        said[whose].append(text)
    return "; ".join(f"{', '.join(texts)} ({whose})" for whose, texts in said.items() if texts)


def _numbers(values: Sequence[float]) -> str:
    same = len(set(values)) == 1
    return ",".join(f"{value:.4g}" for value in (values[:1] if same else values))
