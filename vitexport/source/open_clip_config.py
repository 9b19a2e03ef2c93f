"""What an ``open_clip_config.json`` says of its image tower, in timm's words.

open_clip writes the file beside its weights. The tower is either one of timm's models, or open_clip's own ViT, which timm
has under the names ``vit_*_clip_*``; those with QuickGELU have names of their own, and nothing in the tensors tells the two
apart.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vitexport.errors import InputError

NAME = "open_clip_config.json"
# open_clip's own ViT where the configuration says nothing else (open_clip.model.CLIPVisionCfg).
HEAD_WIDTH = 64
# What open_clip calls the ways to make a picture square.
CROP_MODES = {"shortest": "center", "squash": "squash", "longest": "border"}
# Pooling of a tower of timm's.
POOLS = {"tok": "token", "avg": "avg", "map": "map"}
# What changes open_clip's own ViT into one that timm does not have.
UNREAD = ("attentional_pool", "final_ln_after_pool", "no_ln_pre", "norm_kwargs", "act_kwargs", "block_type", "qk_norm")


def image_tower(config: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Fields of a `vitexport.source.recorded.Recorded`.

    Args:
        config: The file's object.
        where: Names the file or folder in messages.

    Raises:
        InputError: The tower is none that timm has: a ResNet, attentional pooling, a projection of several layers.
    """
    model = _mapping(config.get("model_cfg"))
    vision = _mapping(model.get("vision_cfg"))
    preprocess = _mapping(config.get("preprocess_cfg"))
    named = vision.get("timm_model_name")
    name, kwargs = _of_timm(str(named), vision, model, where) if named else _own(vision, model, where)
    resize = preprocess.get("resize_mode", "shortest")
    if resize not in CROP_MODES:
        raise InputError(f"{NAME} of {where} has resize_mode {resize!r}; expected {', '.join(CROP_MODES)}.")
    return {
        "name": name,
        "where": NAME,
        "kwargs": kwargs,
        "mean": tuple(map(float, preprocess["mean"])) if "mean" in preprocess else None,
        "std": tuple(map(float, preprocess["std"])) if "std" in preprocess else None,
        "interpolation": preprocess.get("interpolation"),
        "crop_pct": 1.0 if preprocess else None,
        "crop_mode": CROP_MODES[resize] if preprocess else None,
    }


def _of_timm(name: str, vision: Mapping[str, Any], model: Mapping[str, Any], where: str) -> tuple[str, dict[str, Any]]:
    projection, pool = vision.get("timm_proj", "linear"), vision.get("timm_pool", "avg")
    if projection not in ("linear", "none", "", None):
        raise InputError(f"{NAME} of {where} has timm_proj {projection!r}; a projection of several layers is not read.")
    if pool and pool not in POOLS:
        raise InputError(f"{NAME} of {where} has timm_pool {pool!r}, which is not read; expected {', '.join(POOLS)}.")
    kwargs: dict[str, Any] = {"num_classes": model["embed_dim"] if projection == "linear" else 0}
    if pool:
        kwargs["global_pool"] = POOLS[pool]
    if "image_size" in vision:
        kwargs["img_size"] = _size(vision["image_size"])
    return name, kwargs


def _own(vision: Mapping[str, Any], model: Mapping[str, Any], where: str) -> tuple[str, dict[str, Any]]:
    layers, width = vision.get("layers"), vision.get("width")
    if not isinstance(layers, int) or not isinstance(width, int):
        raise InputError(f"{NAME} of {where} describes no Vision Transformer (vision_cfg has layers {layers!r}).")
    unread = [key for key in UNREAD if vision.get(key)]
    if vision.get("pool_type", "tok") != "tok":
        unread.append("pool_type")
    if unread:
        raise InputError(f"{NAME} of {where} has {', '.join(unread)} in vision_cfg, which timm's CLIP towers do not have.")
    kwargs: dict[str, Any] = {
        "embed_dim": width,
        "depth": layers,
        "num_heads": width // int(vision.get("head_width", HEAD_WIDTH)),
        "patch_size": vision.get("patch_size", 16),
        "mlp_ratio": float(vision.get("mlp_ratio", 4.0)),
        "img_size": _size(vision.get("image_size", 224)),
        "num_classes": model["embed_dim"],
    }
    if vision.get("ls_init_value") is not None:
        kwargs["init_values"] = vision["ls_init_value"]
    return f"vit_base_patch16_clip_{'quickgelu_' if model.get('quick_gelu') else ''}224", kwargs


def _size(value: Any) -> tuple[int, int]:
    height, width = value if isinstance(value, (list, tuple)) else (value, value)
    return int(height), int(width)


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
