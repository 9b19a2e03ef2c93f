"""Parsed words of a command line enter; a `BuildRequest` leaves."""

from __future__ import annotations

from typing import Any

from vitexport.artifacts import BatchRange
from vitexport.errors import ToolchainError, UsageError, missing


def build_request(arguments: dict[str, Any]) -> Any:
    """Words to a `BuildRequest`."""
    try:
        from vitexport.pipeline import BuildRequest
        from vitexport.quantize.settings import Observer, Placement, QuantSettings
        from vitexport.source import ModelRequest
        from vitexport.validate.numerics import Budget
    except ModuleNotFoundError as error:
        raise missing(str(error.name).partition(".")[0], "build", "Building a bundle") from None
    except (ImportError, RuntimeError, OSError) as error:
        # "operator torchvision::nms does not exist": torchvision's wheels need the torch wheel of the same release and kind.
        raise ToolchainError(
            f"PyTorch, torchvision or timm is installed but cannot be imported ({error}). torch and torchvision must come "
            "from one release and be of one kind (CPU or CUDA); install them together."
        ) from error
    if arguments["checkpoint"] is not None and arguments["pretrained"]:
        raise UsageError("--checkpoint and --pretrained exclude each other; give one of them.")
    pretrained = arguments["pretrained"]
    model = ModelRequest(
        name=arguments["model"],
        checkpoint=arguments["checkpoint"],
        pretrained=arguments["checkpoint"] is None if pretrained is None else pretrained,
        kwargs=dict(arguments["model_kwargs"]),
        num_classes=arguments["num_classes"],
        img_size=arguments["img_size"],
        head=arguments["head"],
        features=arguments["features"],
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
