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
# Keywords of timm.create_model that a script may keep by their own names, and that tensors do not show.
OWN_KEYS = ("global_pool", "num_heads", "act_layer", "class_token", "no_embed_class", "pre_norm", "qk_norm", "fc_norm")
# Where a nested configuration keeps how pictures are prepared, and under which keys.
SECTIONS = (
    "data",
    "data_config",
    "dataset",
    "datamodule",
    "transform",
    "transforms",
    "preprocess",
    "preprocessing",
    "model",
)
PREPARED = ("mean", "std", "interpolation", "crop_pct", "crop_mode")
# Under which keys the names of the classes are, in the order of the logits.
CLASS_KEYS = ("class_names", "classes", "label_names")
HUB = re.compile(r"^(?:hf[-_]hub:)?timm/")
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
        class_map: The file that gave the training its order of the classes.
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
    class_map: str | None = None
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
    record = Recorded()
    for key in ("args", "hyper_parameters", "config", "hparams"):
        values = _mapping(file.extra.get(key))
        if values:
            found = dict(_names(values))
            if len({name.partition(".")[0] for name in found.values()}) > 1:
                seen = ", ".join(f"{key}.{name} is {value}" for name, value in found.items())
                raise InputError(f"Checkpoint {file.path} names several models: {seen}. Give MODEL.")
            place = max(found, key=lambda place: "." in found[place], default=None)
            record = _of_arguments(values, found.get(place or ""), f"{key}.{place}" if place else key)
            break
    arch = _timm_name(file.extra.get("arch"))
    if record.name is None and arch is not None:
        record = dataclasses.replace(record, name=arch, where="arch")
    data = _mapping(file.extra.get("pretrained_cfg"))
    told = {name: value for name, value in _prepared(data).items() if getattr(record, name) is None}
    labels = record.labels or _class_order(file.extra, str(file.path))
    return dataclasses.replace(record, **told, labels=labels)


def _of_arguments(values: Mapping[str, Any], name: str | None, where: str) -> Recorded:
    # A nested configuration keeps the model's arguments beside its name.
    beside = _mapping(values.get(where.split(".")[1])) if where.count(".") == 2 else {}
    values = {**beside, **values}
    kwargs = {ours: values[key] for key, ours in ARGUMENT_KEYS.items() if values.get(key) is not None}
    kwargs |= {key: values[key] for key in OWN_KEYS if isinstance(values.get(key), (str, int)) and values[key] != ""}
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
        if isinstance(side, (tuple, list)) and len(side) == 2:
            size = (int(side[0]), int(side[1]))
    prepared: dict[str, Any] = {}
    for section in (values, *(_mapping(values.get(key)) for key in SECTIONS)):
        prepared = {**_prepared(section), **prepared}
    if "crop_pct" not in prepared and (share := _number(values.get("eval_crop_ratio"))) is not None:
        prepared["crop_pct"] = share  # DeiT's
    return Recorded(
        name=name,
        where=where,
        kwargs=kwargs,
        **prepared,
        size=size,
        labels=_class_order(values, where),
        class_map=_text(values.get("class_map")),
    )


def _prepared(values: Mapping[str, Any]) -> dict[str, Any]:
    """What `values` say of how pictures are prepared, without what they leave open."""
    read = {"mean": _numbers, "std": _numbers, "interpolation": _text, "crop_pct": _number, "crop_mode": _text}
    found = {key: read[key](values.get(key)) for key in PREPARED}
    return {key: value for key, value in found.items() if value is not None}


def _class_order(values: Mapping[str, Any], where: str) -> tuple[str, ...] | None:
    """Names of the classes in the order of the logits, as torchvision's ``class_to_idx`` or a list has them.

    Raises:
        InputError: Numbers that are not 0 to n - 1.
    """
    numbered = _mapping(values.get("class_to_idx")) or {
        str(name): number for number, name in _mapping(values.get("idx_to_class")).items()
    }
    if numbered:
        order = sorted(numbered, key=lambda name: int(numbered[name]))
        if [int(numbered[name]) for name in order] != list(range(len(order))):
            raise InputError(f"class_to_idx in {where} does not number its classes from 0; mend it.")
        return tuple(order)
    for key in CLASS_KEYS:
        names = values.get(key)
        if isinstance(names, (tuple, list)) and names and all(isinstance(name, str) for name in names):
            return tuple(names)
    return None


def _timm_name(value: Any) -> str | None:
    """A name of timm's, as it is or as the hub has it; None for anything else."""
    name = HUB.sub("", value) if isinstance(value, str) else ""
    return name if timm.is_model(name.partition(".")[0]) else None


def _names(values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Where a timm name is, and which."""
    for key in NAME_KEYS:
        value = values.get(key)
        if (name := _timm_name(value)) is not None:
            yield key, name
        for inner in NAME_KEYS:
            if (name := _timm_name(_mapping(value).get(inner))) is not None:
                yield f"{key}.{inner}", name


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
        **_prepared(data),
        size=size,
        labels=_agreed_names(_labels(config, file), _own_names(data, config), file),
        task=_task(config),
    )


def _own_names(data: Mapping[str, Any], config: Mapping[str, Any]) -> tuple[str, ...] | None:
    """Names in ``label_names``, or what ``label_descriptions`` calls them."""
    names = config.get("label_names") or data.get("label_names") or config.get("labels")
    if isinstance(names, dict) and names.keys() == {str(index) for index in range(len(names))}:
        names = [names[str(index)] for index in range(len(names))]
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        return None
    if all(UNNAMED.fullmatch(name) for name in names):
        return None
    described = _mapping(config.get("label_descriptions") or data.get("label_descriptions"))
    return tuple(str(described.get(name, name)) for name in names)


def _agreed_names(
    first: tuple[str, ...] | None, second: tuple[str, ...] | None, file: WeightsFile
) -> tuple[str, ...] | None:
    if first is not None and second is not None and first != second and sorted(first) == sorted(second):
        raise InputError(
            f"id2label and label_names in the config.json of {file.path} have different orders; mend one of them."
        )
    return first if first is not None else second


def _labels(config: Mapping[str, Any], file: WeightsFile) -> tuple[str, ...] | None:
    """Names in ``id2label``; None where it only counts."""
    given = _mapping(config.get("id2label"))
    if not given:
        return None
    if sorted(given, key=lambda key: (len(str(key)), str(key))) != [str(index) for index in range(len(given))]:
        raise InputError(f"id2label in the config.json of {file.path} does not number its names from 0; mend it.")
    names = tuple(str(given[str(index)]) for index in range(len(given)))
    numbers = _mapping(config.get("label2id"))
    both = len(set(names)) == len(names) and numbers.keys() == set(names)
    if both and [int(numbers[name]) for name in names] != list(range(len(names))):
        raise InputError(f"id2label and label2id in the config.json of {file.path} contradict each other; mend one of them.")
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
            # transformers leaves its own default, two labels without names, out of the file.
            **({"num_classes": len(_mapping(config["id2label"]))} if config.get("id2label") else {}),
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
    rescale = float(processor.get("rescale_factor") or 1 / 255) if processor.get("do_rescale", True) else 1.0
    given = processor.get("size")
    # Before release 4.25 a number was the side of a square.
    size = {"height": given, "width": given} if isinstance(given, int) else _mapping(given)
    seen = (size.get("height"), size.get("width"))
    resample = processor.get("resample")
    if resample is not None and resample not in FILTERS:
        raise InputError(
            f"The preprocessor_config.json of {file.path} has resample {resample!r}, which Pillow does not know."
        )
    crops = bool(processor.get("do_center_crop")) or not processor.get("do_resize", True)
    if seen != input_size or crops or not math.isclose(rescale, 1 / 255, rel_tol=1e-6):
        raise InputError(
            f"The preprocessor_config.json of {file.path} has size {dict(size) or given}, do_center_crop "
            f"{bool(processor.get('do_center_crop'))}, do_resize {bool(processor.get('do_resize', True))} and "
            f"rescale_factor {rescale:g}; expected height and width {input_size}, no crop, resizing, and 1/255."
        )
    normalizes = bool(processor.get("do_normalize", True))
    return {
        "mean": _numbers(processor.get("image_mean")) if normalizes else (0.0,),
        "std": _numbers(processor.get("image_std")) if normalizes else (1.0,),
        "interpolation": FILTERS[2 if resample is None else resample],
        "crop_pct": 1.0,
        "crop_mode": "squash",
    }


# ---- plain values


def _mapping(value: Any) -> Mapping[str, Any]:
    if isinstance(value, argparse.Namespace):
        value = vars(value)
    return {str(key): entry for key, entry in value.items()} if isinstance(value, Mapping) else {}


def _numbers(value: Any) -> tuple[float, ...] | None:
    value = value.tolist() if hasattr(value, "tolist") else value
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return (float(value),)
    if not isinstance(value, (tuple, list)) or not value:
        return None
    return tuple(float(entry) for entry in value)


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, (int, float, str)) and value else None


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None
