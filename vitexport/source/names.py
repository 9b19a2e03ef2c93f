"""Names of tensors: what wraps them, the prefix that all of a model's names share, and other libraries' names for timm's.

Input: a dictionary of tensors as a training script saved it. Output: the same tensors by names that timm's module may have.
"""

from __future__ import annotations

import functools
import inspect
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from typing import Any

import timm
import torch
from torch import nn

from vitexport.quiet import quiet
from vitexport.source.weights_file import Tensors

# What DistributedDataParallel, torch.compile, FSDP and activation checkpointing put into the names of what they wrap.
WRAPPERS = frozenset({"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})
# A prefix that fewer of the file's names have than this share is none of the model's.
LEAST_SHARE = 0.1
# Of the best prefix or dictionary: one with as many of the model's names may be meant as well.
ALIKE = 0.9
# A prefix with fewer of the model's names than this share is a part of a model: a stage, whose blocks are named alike.
WHOLE = 0.75
DEEPEST_PREFIX = 5
# torchvision's names of a ViT's parts, and timm's.
TORCHVISION = (
    (r"^class_token$", "cls_token"),
    (r"^conv_proj\.", "patch_embed.proj."),
    (r"^encoder\.pos_embedding$", "pos_embed"),
    (r"^encoder\.ln\.", "norm."),
    (r"^heads\.head\.", "head."),
    (r"^encoder\.layers\.encoder_layer_(\d+)\.", r"blocks.\1."),
    (r"\.ln_(\d)\.", r".norm\1."),
    (r"\.self_attention\.in_proj_", ".attn.qkv."),
    (r"\.self_attention\.out_proj\.", ".attn.proj."),
    (r"\.mlp\.(?:linear_1|0)\.", ".mlp.fc1."),
    (r"\.mlp\.(?:linear_2|3)\.", ".mlp.fc2."),
)
# transformers' names of its own ViT, before and since release 5, and timm's; q, k and v are joined afterwards.
TRANSFORMERS = (
    (r"^vit\.embeddings\.cls_token$", "cls_token"),
    (r"^vit\.embeddings\.position_embeddings$", "pos_embed"),
    (r"^vit\.embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"^vit\.layernorm\.", "norm."),
    (r"^classifier\.", "head."),
    (r"^vit\.(?:encoder\.layer|layers)\.(\d+)\.", r"blocks.\1."),
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
    (r"\.attention\.(?:attention\.query|q_proj)\.", ".attn.q."),
    (r"\.attention\.(?:attention\.key|k_proj)\.", ".attn.k."),
    (r"\.attention\.(?:attention\.value|v_proj)\.", ".attn.v."),
    (r"\.attention\.(?:output\.dense|o_proj)\.", ".attn.proj."),
    (r"\.intermediate\.dense\.", ".mlp.fc1."),
    (r"^(blocks\.\d+)\.output\.dense\.", r"\1.mlp.fc2."),
)


def unwrapped(tensors: Mapping[str, torch.Tensor]) -> Tensors:
    """`tensors` without the parts of their names that wrappers put there, wherever they stand."""
    return {".".join(part for part in name.split(".") if part not in WRAPPERS): value for name, value in tensors.items()}


def wrappers_of(tensors: Mapping[str, torch.Tensor]) -> tuple[str, ...]:
    """What `unwrapped` takes out, in the order in which it is met."""
    return tuple(dict.fromkeys(part for name in tensors for part in name.split(".") if part in WRAPPERS))


def torchvision_name(name: str) -> str:
    """A parameter's name, of torchvision's ViT or already of timm's, as timm has it."""
    return _renamed(name, TORCHVISION)


def _renamed(name: str, rules: tuple[tuple[str, str], ...]) -> str:
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


def from_torchvision(tensors: Mapping[str, torch.Tensor]) -> Tensors:
    """The tensors of torchvision's ViT by timm's names."""
    return {torchvision_name(name): value for name, value in tensors.items()}


def from_transformers(tensors: Mapping[str, torch.Tensor]) -> Tensors:
    """The tensors of transformers' ViT by timm's names, with q, k and v of each block in one."""
    named = {_renamed(name, TRANSFORMERS): value for name, value in tensors.items()}
    for name in [name for name in named if ".attn.q." in name]:
        parts = [name.replace(".attn.q.", f".attn.{letter}.") for letter in "qkv"]
        if all(part in named for part in parts):
            named[name.replace(".attn.q.", ".attn.qkv.")] = torch.cat([named.pop(part) for part in parts])
    return named


def has_transformers_names(tensors: Mapping[str, torch.Tensor]) -> bool:
    """Whether the tensors have the names of transformers' own ViT."""
    return any(name.startswith("vit.") and ".layernorm_before." in name for name in tensors)


def prefixes_of(names: AbstractSet[str], known: AbstractSet[str]) -> list[str]:
    """The prefixes with a dot under which the names of a whole model are in a file.

    Args:
        names: Of the file's tensors, unwrapped.
        known: Of the model's own; numbers of blocks do not count.

    Returns:
        The prefix under which most of the model's names are, such as ``model.``, and those beside it under which there are
        nearly as many, as a student's and a teacher's; an empty one for none, and where no name is the model's.
    """
    shapes = {numberless(name) for name in known}
    found = {
        prefix: len({_shape(name.removeprefix(prefix), shapes) for name in names if name.startswith(prefix)} - {None})
        for prefix in _prefixes(names)
    }
    best = max(found.values())
    if not best:
        return [""]
    chosen: list[str] = []
    for prefix in sorted(found, key=lambda prefix: (-found[prefix], len(prefix), prefix)):
        apart = all(not prefix.startswith(other) and not other.startswith(prefix) for other in chosen)
        if not chosen or (found[prefix] >= max(ALIKE * best, WHOLE * len(shapes)) and apart):
            chosen.append(prefix)
    return chosen


def _shape(name: str, shapes: AbstractSet[str]) -> str | None:
    """The name without numbers by which the model knows `name`; None where it does not."""
    candidates = (numberless(_renamed(name, rules)) for rules in ((), TORCHVISION, _TRANSFORMERS_JOINED))
    return next((candidate for candidate in candidates if candidate in shapes), None)


_TRANSFORMERS_JOINED = (*TRANSFORMERS, (r"\.attn\.[qkv]\.", ".attn.qkv."))


def numberless(name: str) -> str:
    """`name` with the numbers of blocks taken out."""
    return re.sub(r"\.\d+(?=\.)", ".#", name)


def _prefixes(names: AbstractSet[str]) -> list[str]:
    counts: Counter[str] = Counter()
    for name in names:
        parts = name.split(".")
        counts.update(".".join(parts[:end]) + "." for end in range(1, min(len(parts), DEEPEST_PREFIX + 1)))
    return ["", *(prefix for prefix, count in counts.items() if count >= LEAST_SHARE * len(names))]


def converters(model: nn.Module, architecture: str) -> Iterator[Callable[[Tensors], Tensors]]:
    """Ways to bring another library's or an older timm's tensors into the form of `model`, to be tried in this order."""
    yield dict
    yield from_torchvision
    yield from_transformers
    # timm's filters resample, but know no names of these two.
    for renamed in (dict, from_torchvision, from_transformers):
        for function in _filters(model, architecture):
            yield functools.partial(_filtered, function, renamed, model)


def _filtered(
    function: Callable[..., Any], renamed: Callable[[Tensors], Tensors], model: nn.Module, tensors: Tensors
) -> Tensors:
    """What timm's own filter makes of `tensors`; nothing where it was made for other names."""
    try:
        with quiet("timm"), torch.no_grad():
            result = function(renamed(tensors), model)
    except MemoryError:
        raise
    except Exception:  # noqa: BLE001 - a filter that meets names it was not made for raises whatever that provokes
        return {}
    return {name: value for name, value in result.items() if isinstance(value, torch.Tensor)}


def _filters(model: nn.Module, architecture: str) -> Iterator[Callable[..., Any]]:
    """The ``checkpoint_filter_fn`` of the architecture, in the variants in which timm itself calls it."""
    known = timm.is_model(architecture)
    module = sys.modules[timm.model_entrypoint(architecture).__module__ if known else type(model).__module__]
    for name in (
        *("checkpoint_filter_fn", "pretrained_filter_fn"),
        *("checkpoint_filter_fn_classifier", "checkpoint_filter_fn_encoder"),
    ):
        function = getattr(module, name, None)
        if function is None:
            continue
        parameters = inspect.signature(function).parameters
        if len(parameters) == 1:
            yield lambda tensors, _model, function=function: function(tensors)
            continue
        if "flexi" in architecture and "interpolation" in parameters:
            function = functools.partial(function, interpolation="bilinear", antialias=False)
        yield function
        if "adapt_layer_scale" in parameters:
            yield functools.partial(function, adapt_layer_scale=True)
