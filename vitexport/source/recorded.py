"""What a file of weights says of its model: name, arguments, preprocessing, class names and task.

Input: a `WeightsFile`. Output: a `Recorded`, with where each statement was found. Nothing is guessed: what no framework
writes in a known place is not recorded.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

import timm
from PIL import Image

from vitexport.artifacts import Task
from vitexport.errors import InputError
from vitexport.source import open_clip_config
from vitexport.source.weights_file import WeightsFile, first_sentence

# Under which keys training scripts keep the name of a timm model: timm's, Lightning's hyper-parameters, MAE's and DeiT's.
NAME_KEYS = (
    *("model", "model_name", "arch", "architecture", "backbone", "backbone_name", "encoder", "encoder_name", "timm_model"),
    *("name", "variant", "network"),
)
# Keys of training arguments, and the keyword of timm.create_model that each stands for.
ARGUMENT_KEYS = {"num_classes": "num_classes", "nb_classes": "num_classes", "in_chans": "in_chans", "gp": "global_pool"}
PROBLEM_TYPES: Mapping[str, Task] = {
    "single_label_classification": "classification",
    "multi_label_classification": "multi-label",
    "regression": "regression",
}
# What transformers writes where nobody named the classes.
UNNAMED = re.compile(r"LABEL_\d+")
FILTERS = {int(resampling): resampling.name.lower() for resampling in Image.Resampling}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """What a file says of its model; None and empty where it says nothing.

    Attributes:
        name: timm's name of the architecture.
        where: What says so, for messages: ``args.model``, ``config.json``.
        kwargs: Keyword arguments for `timm.create_model`.
        mean, std, interpolation, crop_pct, crop_mode: Preprocessing, each None where it is the model's own.
        size: Height and width of the input in pixels.
        labels: Class names in the order of the logits.
        task: Of the head.
        epoch: Of the training.
        layer_norm_eps: Of every LayerNorm, where it is not timm's.
        transformers: Whether the names of the tensors are those of transformers' own ViT.
        tower: Whether open_clip's configuration says it; its own towers have several names in timm.
    """

    name: str | None = None
    where: str = ""
    kwargs: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    interpolation: str | None = None
    crop_pct: float | None = None
    crop_mode: str | None = None
    size: tuple[int, int] | None = None
    labels: tuple[str, ...] | None = None
    task: Task | None = None
    epoch: int | None = None
    layer_norm_eps: float | None = None
    transformers: bool = False
    tower: bool = False


def read_record(file: WeightsFile) -> Recorded:
    """What `file` says.

    Raises:
        InputError: It is of a model that is none of timm's and that is not read, or it contradicts itself.
    """
    epoch = file.extra.get("epoch")
    try:
        record = _config(file) if file.config else _arguments(file)
    except (TypeError, ValueError, LookupError, ArithmeticError) as error:
        where = "config.json, preprocessor_config.json or open_clip_config.json" if file.config else "the training arguments"
        raise InputError(
            f"{where} of {file.path} cannot be read: {type(error).__name__}: {first_sentence(error)}."
        ) from None
    return dataclasses.replace(record, epoch=epoch if isinstance(epoch, int) else None)


# ---- training arguments


def _arguments(file: WeightsFile) -> Recorded:
    """``args`` of timm's, DeiT's and MAE's scripts, or the hyper-parameters of Lightning."""
    for key in ("args", "hyper_parameters", "config", "hparams"):
        values = _mapping(file.extra.get(key))
        if values:
            found = dict(_names(values))
            if len(set(found.values())) > 1:
                seen = ", ".join(f"{key}.{name} is {value}" for name, value in found.items())
                raise InputError(f"Checkpoint {file.path} names several models: {seen}. Give MODEL.")
            place = next(iter(found), None)
            return _of_arguments(values, found.get(place or ""), f"{key}.{place}" if place else key)
    arch = file.extra.get("arch")
    known = isinstance(arch, str) and timm.is_model(arch.partition(".")[0])
    return Recorded(name=arch, where="arch") if known else Recorded()


def _of_arguments(values: Mapping[str, Any], name: str | None, where: str) -> Recorded:
    kwargs = {ours: values[key] for key, ours in ARGUMENT_KEYS.items() if values.get(key) is not None}
    kwargs |= _mapping(values.get("model_kwargs"))
    # DeiT's and MAE's input_size is one side; timm's has the channels first.
    input_size = values.get("input_size")
    if isinstance(input_size, int):
        size: tuple[int, int] | None = (input_size, input_size)
    elif isinstance(input_size, (tuple, list)) and len(input_size) == 3:
        size = (int(input_size[1]), int(input_size[2]))
    else:
        side = values.get("img_size") or values.get("image_size")
        size = (side, side) if isinstance(side, int) else None
    return Recorded(
        name=name,
        where=where,
        kwargs=kwargs,
        mean=_numbers(values.get("mean")),
        std=_numbers(values.get("std")),
        interpolation=_text(values.get("interpolation")),
        crop_pct=_number(values.get("crop_pct")),
        crop_mode=_text(values.get("crop_mode")),
        size=size,
    )


def _names(values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Where a timm name is, and which."""
    for key in NAME_KEYS:
        value = values.get(key)
        if isinstance(value, str) and timm.is_model(value.partition(".")[0]):
            yield key, value
        for inner in NAME_KEYS:
            nested = _mapping(value).get(inner)
            if isinstance(nested, str) and timm.is_model(nested.partition(".")[0]):
                yield f"{key}.{inner}", nested


# ---- config.json


def _config(file: WeightsFile) -> Recorded:
    config = file.config
    if "model_cfg" in config:
        return Recorded(**open_clip_config.image_tower(config, str(file.path)), tower=True)
    kind = config.get("model_type")
    if kind == "vit":
        return _transformers_vit(file)
    if isinstance(config.get("architecture"), str):
        return _timm_config(file)
    if isinstance(kind, str):
        raise InputError(
            f"{file.path} is a {kind} model of transformers, whose layers are not timm's; of transformers' own models only "
            "vit is read. Load it in Python and give the module: vitexport.build(model=…), or `model_from`."
        )
    return Recorded()


def _timm_config(file: WeightsFile) -> Recorded:
    """What ``timm.save_for_hf`` and transformers' TimmWrapper write."""
    config = file.config
    data = _mapping(config.get("pretrained_cfg")) or config
    kwargs = dict(_mapping(config.get("model_args")))
    for key in ("num_classes", "global_pool"):
        if config.get(key) is not None:
            kwargs.setdefault(key, config[key])
    input_size = data.get("input_size")
    size = (int(input_size[1]), int(input_size[2])) if isinstance(input_size, list) and len(input_size) == 3 else None
    return Recorded(
        name=str(config["architecture"]),
        where="config.json",
        kwargs=kwargs,
        mean=_numbers(data.get("mean")),
        std=_numbers(data.get("std")),
        interpolation=_text(data.get("interpolation")),
        crop_pct=_number(data.get("crop_pct")),
        crop_mode=_text(data.get("crop_mode")),
        size=size,
        labels=_labels(config, file) or _own_names(data, config),
        task=_task(config),
    )


def _own_names(data: Mapping[str, Any], config: Mapping[str, Any]) -> tuple[str, ...] | None:
    """Names in ``label_names``, or what ``label_descriptions`` calls them."""
    names = config.get("label_names") or data.get("label_names") or config.get("labels")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        return None
    described = _mapping(config.get("label_descriptions") or data.get("label_descriptions"))
    return tuple(str(described.get(name, name)) for name in names)


def _labels(config: Mapping[str, Any], file: WeightsFile) -> tuple[str, ...] | None:
    """Names in ``id2label``; None where it only counts."""
    given = _mapping(config.get("id2label"))
    if not given:
        return None
    if sorted(given, key=lambda key: (len(str(key)), str(key))) != [str(index) for index in range(len(given))]:
        raise InputError(f"id2label in the config.json of {file.path} does not number its names from 0; mend it.")
    names = tuple(str(given[str(index)]) for index in range(len(given)))
    return None if all(UNNAMED.fullmatch(name) for name in names) else names


def _task(config: Mapping[str, Any]) -> Task | None:
    return PROBLEM_TYPES.get(str(config.get("problem_type")))


def _transformers_vit(file: WeightsFile) -> Recorded:
    """The ViT of transformers: the same network as timm's, with other names and another epsilon."""
    config, processor = file.config, file.processor
    if (written := config.get("architectures")) and "ViTForImageClassification" not in written:
        raise InputError(
            f"{file.path} is a {written[0]} of transformers; of its own models only ViTForImageClassification is read."
        )
    if (activation := config.get("hidden_act")) != "gelu":
        raise InputError(f"{file.path} is a ViT of transformers with hidden_act {activation!r}; only gelu is read.")
    size = config.get("image_size")
    height, width = (size, size) if isinstance(size, int) else tuple(size or (224, 224))
    labels = _labels(config, file)
    return Recorded(
        name="vit_base_patch16_224",
        where="config.json",
        kwargs={
            "img_size": (height, width),
            "patch_size": config["patch_size"],
            "embed_dim": config["hidden_size"],
            "depth": config["num_hidden_layers"],
            "num_heads": config["num_attention_heads"],
            "mlp_ratio": config["intermediate_size"] / config["hidden_size"],
            "qkv_bias": bool(config.get("qkv_bias", True)),
            "in_chans": config.get("num_channels", 3),
            "num_classes": len(_mapping(config.get("id2label"))),
        },
        **_processor(file, processor, (height, width)),
        size=(height, width),
        labels=labels,
        task=_task(config),
        layer_norm_eps=float(config.get("layer_norm_eps", 1e-12)),
        transformers=True,
    )


def _processor(file: WeightsFile, processor: Mapping[str, Any], input_size: tuple[int, int]) -> dict[str, Any]:
    """Preprocessing of transformers' ViTImageProcessor: each side is resized on its own, nothing is cropped."""
    if not processor:
        raise InputError(
            f"{file.path} has no preprocessor_config.json, so the pictures that the model was trained on are not known; "
            "save the image processor there (processor.save_pretrained)."
        )
    rescale = float(processor.get("rescale_factor", 1 / 255)) if processor.get("do_rescale", True) else 1.0
    size = _mapping(processor.get("size"))
    seen = (size.get("height"), size.get("width"))
    crops = bool(processor.get("do_center_crop")) or not processor.get("do_resize", True)
    if seen != input_size or crops or not math.isclose(rescale, 1 / 255, rel_tol=1e-6):
        raise InputError(
            f"The preprocessor_config.json of {file.path} has size {dict(size) or processor.get('size')}, do_center_crop "
            f"{bool(processor.get('do_center_crop'))}, do_resize {bool(processor.get('do_resize', True))} and "
            f"rescale_factor {rescale:g}; expected height and width {input_size}, no crop, resizing, and 1/255."
        )
    normalizes = bool(processor.get("do_normalize", True))
    return {
        "mean": _numbers(processor.get("image_mean")) if normalizes else (0.0,),
        "std": _numbers(processor.get("image_std")) if normalizes else (1.0,),
        "interpolation": FILTERS[int(processor.get("resample", 2))],
        "crop_pct": 1.0,
        "crop_mode": "squash",
    }


# ---- plain values


def _mapping(value: Any) -> Mapping[str, Any]:
    if isinstance(value, argparse.Namespace):
        value = vars(value)
    return {str(key): entry for key, entry in value.items()} if isinstance(value, Mapping) else {}


def _numbers(value: Any) -> tuple[float, ...] | None:
    if not isinstance(value, (tuple, list)) or not value:
        return None
    return tuple(float(entry) for entry in value)


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, (int, float)) and value else None


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None
