"""Parsed words of a command line enter; a `BuildRequest` leaves."""

from __future__ import annotations

from typing import Any

from vitexport.artifacts import BatchRange
from vitexport.errors import UsageError
from vitexport.pipeline import BuildRequest
from vitexport.quantize.settings import Observer, Placement, QuantSettings
from vitexport.source.request import ModelRequest
from vitexport.validate.numerics import Budget


def build_request(arguments: dict[str, Any]) -> BuildRequest:
    """Words to a `BuildRequest`."""
    if arguments["checkpoint"] is not None and arguments["pretrained"]:
        raise UsageError("--checkpoint and --pretrained exclude each other; give one of them.")
    if arguments["model"] is not None and arguments["model_from"] is not None:
        raise UsageError("MODEL and --model-from exclude each other; give one of them.")
    pretrained = arguments["pretrained"]
    model = ModelRequest(
        name=arguments["model"] or (arguments["model_from"] or "").rpartition(":")[2] or None,
        model_from=arguments["model_from"],
        checkpoint=arguments["checkpoint"],
        checkpoint_key=arguments["checkpoint_key"],
        ema=arguments["ema"],
        pretrained=arguments["checkpoint"] is None if pretrained is None else pretrained,
        kwargs=dict(arguments["model_kwargs"]),
        num_classes=arguments["num_classes"],
        img_size=arguments["img_size"],
        head=arguments["head"],
        features=arguments["features"],
        softmax=arguments["softmax"],
        mean=arguments["mean"],
        std=arguments["std"],
        crop_pct=arguments["crop_pct"],
        interpolation=arguments["interpolation"],
        crop_mode=arguments["crop_mode"],
        seed=arguments["seed"],
    )
    return BuildRequest(
        model=model,
        target=arguments["target"][0],
        more_targets=arguments["target"][1:],
        jetpack=arguments["jetpack"],
        precision=arguments["precision"],
        calibration=arguments["calibration"],
        calibration_size=arguments["calibration_size"],
        quantization=QuantSettings(
            placement=Placement.parse(arguments["placement"]),
            observer=Observer.parse(arguments["observer"]),
            rounding=arguments["rounding"],
            degraded=arguments["degraded"],
            equalize=arguments["equalize"],
            include=tuple(arguments["include"]),
            exclude=tuple(arguments["exclude"]),
        ),
        recipe=arguments["recipe"],
        data=arguments["data"],
        labels=arguments["labels"],
        batch=BatchRange.parse(arguments["batch"]),
        embed_preprocess=arguments["embed_preprocess"],
        top_indices=arguments["top_indices"],
        budget=Budget(
            max_drop=arguments["max_drop"],
            min_agreement=arguments["min_agreement"],
            min_cosine=arguments["min_cosine"],
        ),
        out=arguments["out"],
        force=arguments["force"],
    )
