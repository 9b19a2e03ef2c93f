"""What the shapes of tensors tell of a model: width, depth, patch, image size, classes, channels, pooling.

Input: tensors by timm's names, and the same of a model that was made without them. Output: the keyword arguments for
`timm.create_model` in which the two differ.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from vitexport.source.weights_file import Tensors

# Modules of timm whose blocks have these names and whose constructors have these arguments.
PLAIN = frozenset({"vision_transformer", "deit", "eva", "beit"})
SWIN = "swin_transformer"
# Under which names a head is found that took the place of timm's, as tutorials replace it.
HEAD_ROOTS = ("head", "heads", "classifier", "fc", "linear", "cls_head", "head.fc", "heads.head")
LAYER_SCALE = 1e-5


def head_name(model: nn.Module) -> str | None:
    """Name of the classifier in timm, or of the first of two; None where the architecture has none."""
    config: Any = getattr(model, "pretrained_cfg", None) or {}
    names = config.get("classifier") or ("head" if hasattr(model, "head") else None)
    return names[0] if isinstance(names, (tuple, list)) else names


def linear_under(tensors: Mapping[str, torch.Tensor], roots: tuple[str, ...]) -> str | None:
    """Name without ``.weight`` of the one Linear under `roots`; None where there is none, or anything besides it."""
    found = [name for name in tensors if any(name.startswith(f"{root}.") for root in roots)]
    weights = [name.removesuffix(".weight") for name in found if name.endswith(".weight") and tensors[name].dim() == 2]
    if len(weights) != 1 or not set(found) <= {f"{weights[0]}.weight", f"{weights[0]}.bias"}:
        return None
    return weights[0]


def read_shapes(tensors: Tensors, model: nn.Module, family: str) -> dict[str, Any]:
    """Keyword arguments that shapes tell, as far as they do.

    Args:
        tensors: By timm's names; those of a file, or `model`'s own.
        model: Made for the architecture; says which names its head and its first layer have.
        family: timm's module that defines the architecture.
    """
    config: Any = getattr(model, "pretrained_cfg", None) or {}
    known: dict[str, Any] = {}
    head = head_name(model)
    if head is not None:
        linear = head if f"{head}.weight" in tensors else linear_under(tensors, HEAD_ROOTS)
        if linear is not None and tensors[f"{linear}.weight"].dim() == 2:
            known["num_classes"] = int(tensors[f"{linear}.weight"].shape[0])
    for tower in ("", "visual."):
        # open_clip's and OpenAI's image towers: width x embedding.
        if f"{tower}class_embedding" in tensors and (projection := tensors.get(f"{tower}proj")) is not None:
            known["num_classes"] = int(projection.shape[1])
    first = config.get("first_conv")
    first = first[0] if isinstance(first, (tuple, list)) else first
    stem = tensors.get(f"{first}.weight")
    if stem is not None and stem.dim() == 4:
        known["in_chans"] = int(stem.shape[1])
    if family in PLAIN and stem is not None and stem.dim() == 4:
        known |= _plain(tensors, stem, model)
    if family == SWIN:
        known |= _swin(tensors, stem)
    return known


def _plain(tensors: Tensors, stem: torch.Tensor, model: nn.Module) -> dict[str, Any]:
    """Of a ViT with blocks of one width."""
    width, patch = int(stem.shape[0]), (int(stem.shape[2]), int(stem.shape[3]))
    known: dict[str, Any] = {"embed_dim": width, "patch_size": patch[0] if patch[0] == patch[1] else patch}
    known["depth"] = _count(tensors, r"blocks\.(\d+)\.")
    hidden = tensors.get("blocks.0.mlp.fc1.weight")
    if hidden is not None:
        known["mlp_ratio"] = hidden.shape[0] / width
    if "blocks.0.attn.qkv.weight" in tensors:
        known["qkv_bias"] = any(f"blocks.0.attn.{name}" in tensors for name in ("qkv.bias", "q_bias"))
    scaled = any(f"blocks.0.{name}" in tensors for name in ("ls1.gamma", "gamma_1"))
    known["init_values"] = LAYER_SCALE if scaled else None
    known["class_token"] = "cls_token" in tensors
    registers = tensors.get("reg_token", tensors.get("register_tokens"))
    known["reg_tokens"] = 0 if registers is None else int(registers.shape[1])
    known["global_pool"] = _pooling(tensors)
    if embeds_patches_alone(tensors) and hasattr(model, "no_embed_class"):
        known["no_embed_class"] = True
    if (size := _image_size(tensors, model, patch)) is not None:
        known["img_size"] = size
    return known


def _pooling(tensors: Tensors) -> str | None:
    """Which pooling the names tell; None where they do not (average pooling without a norm of its own)."""
    if any(name.startswith("attn_pool.") for name in tensors):
        return "map"
    if "fc_norm.weight" in tensors and "norm.weight" not in tensors:
        return "avg"
    return "token" if "norm.weight" in tensors and "cls_token" in tensors else None


def _image_size(tensors: Tensors, model: nn.Module, patch: tuple[int, int]) -> tuple[int, int] | None:
    """Of a square picture; None where the position embedding is no square grid."""
    embedding, own = tensors.get("pos_embed"), getattr(model, "pos_embed", None)
    grid = getattr(getattr(model, "patch_embed", None), "grid_size", None)
    table = tensors.get("blocks.0.attn.relative_position_bias_table")
    if embedding is None and table is not None and table.dim() and table.shape[0] > 3:
        # BEiT's: one row for each offset of two patches, and three for the class token.
        offsets = math.isqrt(int(table.shape[0]) - 3)
        side = (offsets + 1) // 2
        return (side * patch[0], side * patch[1]) if offsets * offsets + 3 == table.shape[0] else None
    if embedding is None or embedding.dim() != 3 or own is None or grid is None:
        return None
    others = int(own.shape[1]) - grid[0] * grid[1]
    if embedding.shape[1] == own.shape[1]:
        # The grid need not be square.
        return grid[0] * patch[0], grid[1] * patch[1]
    if embeds_patches_alone(tensors):
        others = 0
    elif "register_tokens" in tensors:
        others = 1
    elif not getattr(model, "no_embed_class", False):
        others += _extra_tokens(tensors) - _extra_tokens(dict(model.state_dict()))
    side = math.isqrt(max(int(embedding.shape[1]) - others, 0))
    if side * side + others != embedding.shape[1] or not side:
        return None
    return side * patch[0], side * patch[1]


def embeds_patches_alone(tensors: Tensors) -> bool:
    """Whether class and register tokens have no place in the position embedding of a square grid."""
    embedding, extra = tensors.get("pos_embed"), _extra_tokens(tensors)
    if embedding is None or embedding.dim() != 3 or not extra or "register_tokens" in tensors:
        return False
    count = int(embedding.shape[1])
    return math.isqrt(count) ** 2 == count and (count <= extra or math.isqrt(count - extra) ** 2 != count - extra)


def _extra_tokens(tensors: Tensors) -> int:
    """Class and register tokens."""
    return sum(int(tensors[name].shape[1]) for name in ("cls_token", "reg_token") if name in tensors)


def _swin(tensors: Tensors, stem: torch.Tensor | None) -> dict[str, Any]:
    """Of a Swin Transformer: its stages, their heads and their window."""
    known: dict[str, Any] = {}
    if stem is not None and stem.dim() == 4:
        known["embed_dim"] = int(stem.shape[0])
    stages = _count(tensors, r"layers\.(\d+)\.blocks\.")
    depths = tuple(_count(tensors, rf"layers\.{stage}\.blocks\.(\d+)\.") for stage in range(stages))
    if not depths:
        return known
    known["depths"] = depths
    tables = [tensors.get(f"layers.{stage}.blocks.0.attn.relative_position_bias_table") for stage in range(stages)]
    whole = [table for table in tables if table is not None]
    if len(whole) == stages:
        known["num_heads"] = tuple(int(table.shape[1]) for table in whole)
        known["window_size"] = (math.isqrt(int(whole[0].shape[0])) + 1) // 2
    return known


def _count(tensors: Tensors, pattern: str) -> int:
    """One more than the largest number that `pattern` finds at the start of a name."""
    found = [int(match[1]) for name in tensors if (match := re.match(pattern, name))]
    return max(found, default=-1) + 1
