"""Find the timm architecture that a file's tensors are of, where neither the user nor the file names it.

Shapes tell width, depth and patch, but neither how many heads share the width nor which activation is used: an architecture
is taken only where all that fit compute the same.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Mapping
from typing import Any

import timm
import torch
from torch import nn

from vitexport.errors import InputError
from vitexport.quiet import quiet
from vitexport.source.fit import Group, choose_group
from vitexport.source.shapes import HEAD_ROOTS, SWIN, embeds_patches_alone, read_shapes
from vitexport.source.weights_file import Tensors, WeightsFile

# A small member of each family whose shapes are read, with one block, and the modules of timm that have such models.
PROBES: Mapping[str, tuple[str, ...]] = {
    "vit_tiny_patch16_224": ("vision_transformer", "deit"),
    "eva02_tiny_patch14_224": ("eva",),
    "beit_base_patch16_224": ("beit",),
    "swin_tiny_patch4_window7_224": (SWIN,),
}
SHOWN = 5
# Of the names of a family: fewer found in the file, and it is of another.
LEAST_SHARE = 0.5
# What a picture's size, the depth and training change of a module, and not what it computes.
INCIDENTAL = frozenset(
    {
        *("training", "dump_patches", "call_super_init", "T_destination", "num_classes", "depth", "pretrained_cfg"),
        *("default_cfg", "feature_info", "img_size", "grid_size", "num_patches", "in_chans", "in_channels", "feat_shape"),
        *("input_resolution", "weight_init", "p", "drop_prob", "fused_attn", "drop_rate", "attn_drop_rate"),
    }
)


def identify(file: WeightsFile, *, key: str | None, ema: bool | None) -> str:
    """Timm's name of the architecture that the weights in `file` are of.

    Raises:
        InputError: No architecture of timm has these shapes, or several that compute different things have.
    """
    found = _family(file, key=key, ema=ema)
    if found is None:
        raise InputError(
            f"Checkpoint {file.path} does not say which model it is of, and its names are those of no family whose shapes "
            f"are read ({', '.join(sorted(family for families in PROBES.values() for family in families))}); it has "
            f"{file.contents}. Give MODEL, a timm name."
        )
    group, families = found
    fitting: dict[str, list[str]] = {}
    for name in (name for family in families for name in timm.list_models(module=family)):
        model = _skeleton(name, group.inside)
        if model is not None and _is_of(group.inside, model):
            fitting.setdefault(_signature(model), []).append(name)
    if len(fitting) == 1:
        (names,) = fitting.values()
        return min(names, key=lambda name: (len(name), name))
    raise _undecided(file, group, families[0], [names[0] for names in fitting.values()])


def _probe(family: str) -> str:
    """The small member of a family, whose shape `kwargs` and the tensors change."""
    return next(name for name, families in PROBES.items() if family in families)


def _undecided(file: WeightsFile, group: Group, family: str, names: list[str]) -> InputError:
    if names:
        more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
        seen = f"several of timm's models have its shapes and compute different things ({', '.join(names[:SHOWN])}{more})"
        return InputError(f"Checkpoint {file.path} does not say which model it is of, and {seen}. Give MODEL.")
    shapes = ", ".join(f"{key} {value}" for key, value in _told(group.inside, family).items())
    return InputError(
        f"Checkpoint {file.path} does not say which model it is of, and no model of timm has its shapes ({shapes}). Give a "
        "MODEL of its family, whose shape is then read from the tensors, and the number of heads N, which is not in them:\n"
        f"  {_probe(family)} `checkpoint={file.path}` `kwargs=num_heads=N`"
    )


def _told(tensors: Tensors, family: str) -> Mapping[str, Any]:
    known = {"embed_dim": "width", "depth": "depth", "depths": "depths", "patch_size": "patch size"}
    model = _skeleton(_probe(family), tensors)
    shapes = read_shapes(tensors, model, family) if model is not None else {}
    return {word: shapes[key] for key, word in known.items() if key in shapes}


def _family(file: WeightsFile, *, key: str | None, ema: bool | None) -> tuple[Group, tuple[str, ...]] | None:
    best: tuple[float, Group, tuple[str, ...]] | None = None
    for probe, families in PROBES.items():
        model = _skeleton(probe, {})
        if model is None:
            continue
        own = {name for name in model.state_dict() if not _is_head(name)}
        group = choose_group(file, model, key=key, ema=ema)[0]
        share = len(own & group.inside.keys()) / len(own)
        if share >= LEAST_SHARE and (best is None or share > best[0]):
            best = share, group, families
    return None if best is None else (best[1], best[2])


def _skeleton(name: str, tensors: Tensors) -> nn.Module | None:
    """The architecture with one block a stage and without weights; None where timm cannot make it so."""
    classes = {"num_classes": 0} if not any(_is_head(key) for key in tensors) and tensors else {}
    for shallow in ({"depth": 1}, {"depths": (1, 1, 1, 1)}):
        with contextlib.suppress(Exception), quiet("timm"), torch.device("meta"):
            model: nn.Module = timm.create_model(name, pretrained=False, **shallow, **classes)
            return model
    return None


def _is_of(tensors: Tensors, model: nn.Module) -> bool:
    """Whether the first blocks and all that surrounds them have the file's names and shapes, sizes of pictures apart."""
    own = {name: value.shape for name, value in model.state_dict().items() if not _is_head(name)}
    seen = {name: value.shape for name, value in tensors.items() if not _is_head(name) and not _is_later(name)}
    own.pop("pos_embed", None)
    has_positions = seen.pop("pos_embed", None) is not None
    if has_positions and hasattr(model, "no_embed_class") and model.no_embed_class != embeds_patches_alone(tensors):
        return False
    return own == seen and has_positions == ("pos_embed" in model.state_dict())


def _is_later(name: str) -> bool:
    """Whether it is of a block that the skeleton leaves out, or needed by none."""
    parts = name.split(".")
    later = any(part == "blocks" and number.isdigit() and int(number) > 0 for part, number in itertools.pairwise(parts))
    return later or name.endswith(("mask_token", "relative_position_index", "attn_mask"))


def _is_head(name: str) -> bool:
    return any(name.startswith(f"{root}.") for root in HEAD_ROOTS)


def _signature(model: nn.Module) -> str:
    """What decides the function besides weights: the modules, and their plain attributes."""
    return "\n".join([repr(model), *_attributes(model)])


def _attributes(model: nn.Module) -> Iterator[str]:
    for name, module in model.named_modules():
        if _is_head(f"{name}."):
            continue
        for key, value in sorted(vars(module).items()):
            if not key.startswith("_") and key not in INCIDENTAL and isinstance(value, (bool, int, float, str, tuple)):
                yield f"{name}.{key}={value}"
