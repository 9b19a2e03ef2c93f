"""Input: parsed words of a command line; output: a `BuildRequest`."""

from __future__ import annotations

import dataclasses
from typing import Any

from vitexport.artifacts import BatchRange
from vitexport.errors import UsageError
from vitexport.pipeline import BuildRequest
from vitexport.quantize.settings import Observer, Placement, QuantSettings
from vitexport.source.request import ModelRequest
from vitexport.validate.budget import Budget


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
        in_chans=arguments["in_chans"],
        head=arguments["head"],
        features=arguments["features"],
        task=arguments["task"],
        softmax=arguments["softmax"],
        class_embeddings=arguments["class_embeddings"],
        classes=arguments["classes"],
        templates=arguments["templates"],
        open_clip=arguments["open_clip"],
        logit_scale=arguments["logit_scale"],
        logit_bias=arguments["logit_bias"],
        mean=arguments["mean"],
        std=arguments["std"],
        crop_pct=arguments["crop_pct"],
        crop_mode=arguments["crop_mode"],
        interpolation=arguments["interpolation"],
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
        class_order=arguments["class_order"],
        expect_top1=arguments["expect_top1"],
        threshold=arguments["threshold"],
        batch=BatchRange.parse(arguments["batch"]),
        opset=arguments["opset"],
        embed_preprocess=arguments["embed_preprocess"],
        top_indices=arguments["top_indices"],
        budget=Budget(**{field.name: arguments[field.name] for field in dataclasses.fields(Budget)}),
        out=arguments["out"],
        force=arguments["force"],
    )
