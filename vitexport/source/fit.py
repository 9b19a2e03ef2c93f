"""Find the tensors of a file that are a model's weights, and bring them into its form.

Input: a `WeightsFile` and the module. Output: a `Fit`: tensors by the module's own names, and what was done to get there. A
tensor that is left out is named; one that might have mattered is a reason to refuse.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vitexport.errors import InputError
from vitexport.source.names import (
    ALIKE,
    converters,
    from_torchvision,
    from_transformers,
    numberless,
    prefixes_of,
    unwrapped,
    wrappers_of,
)
from vitexport.source.shapes import HEAD_ROOTS, head_name, linear_under
from vitexport.source.weights_file import Tensors, WeightsFile

# The last part of a key or a first part of a name that holds averaged weights.
AVERAGED = re.compile(r"(?i)(?:^|[._])(?:ema|averaged|swa|shadow|avg_?model|ema_?model|model_?ema)(?:$|[._])")
# Tensors that no forward pass at inference reads: what is computed from the shape alone, and what training needs.
UNREAD = re.compile(
    r"(?:^|\.)(?:mask_token|relative_position_index|relative_coords_table|attn_mask|logit_scale|logit_bias|n_averaged)$"
)
# Parts of a training module that are no part of its model.
TRAINING = re.compile(
    r"(?i)(?:^|\.)(?:(?:\w*_)?(?:loss|losses|criterion|metrics?|confmat|confusion_matrix|acc|accuracy|auroc|f1)\w*"
    r"|aux\w*|ema|ema_\w*|model_ema)(?:\.|$)"
)
# The text tower of a CLIP, and what compares the two towers.
TEXT_TOWER = re.compile(
    r"^(?:transformer|token_embedding|positional_embedding|ln_final|text\w*|logit_scale|logit_bias|attn_mask)(?:\.|$)"
)
# Where an optimizer keeps its own tensors, under the names of the model's.
OPTIMIZER = re.compile(r"(?:^|\.)(?:opt\w*|exp_avg\w*|momentum\w*|\w*scheduler\w*)(?:\.|$)")
# Fewer of the model's names than this share tell nothing.
LEAST_SHARE = 0.05
SEARCHED = 64


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Group:
    """One dictionary of tensors of a file.

    Attributes:
        key: That leads to it; empty for the file itself.
        prefix: Taken off the names.
        inside: The tensors with the prefix, without it.
        outside: The others.
        wrappers: What wrappers of a module had put into the names, and was taken out.
    """

    key: str
    prefix: str
    inside: Tensors
    outside: Tensors
    wrappers: tuple[str, ...] = ()

    @property
    def averaged(self) -> bool:
        """Whether its names say that these are averaged weights (EMA)."""
        return bool(AVERAGED.search(self.key) or AVERAGED.search(self.prefix))


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Fit:
    """The weights of a model.

    Attributes:
        group: Where they were found.
        tensors: By the model's names.
        done: What was done, a few words each.
        problems: Why they do not fit; empty where they do.
    """

    group: Group
    tensors: Tensors
    done: tuple[str, ...]
    problems: tuple[str, ...]


def choose_group(file: WeightsFile, model: nn.Module, *, key: str | None, ema: bool | None) -> tuple[Group, str]:
    """The dictionary of tensors that is the model's, by its names.

    Args:
        file: What was read.
        model: Made for the architecture; its names decide, not its shapes.
        key: The user's choice of a dictionary; None to find it.
        ema: Whether the averaged weights are asked for; None takes the others where both are there, as timm's validation
            does.

    Returns:
        The group, and what to say of the choice.

    Raises:
        InputError: Several fit equally, or the asked one is not there.
    """
    groups = [group for entry in file.groups.items() for group in _grouped(*entry, model)]
    groups = [group for group in groups if not OPTIMIZER.search(group.key)] or groups
    if key is not None:
        found = _under(groups, key)
        if not found:
            places = sorted({_place(group) for group in groups if group.prefix})
            prefixes = f", and the prefixes {', '.join(places)}" if places else ""
            raise InputError(f"Checkpoint {file.path} has no tensors under {key!r}; it has {file.contents}{prefixes}.")
        groups = found
    known = {numberless(name) for name in model.state_dict()}
    scores = {id(group): _share(group, known) for group in groups}
    best = max(scores.values())
    near = [group for group in groups if scores[id(group)] >= ALIKE * best]
    plain, averaged = ([group for group in near if group.averaged is wanted] for wanted in (False, True))
    if ema and not averaged:
        raise InputError(f"`ema`: checkpoint {file.path} holds no averaged weights; it has {file.contents}.")
    if ema is False and not plain:
        raise InputError(
            f"`ema=False`: checkpoint {file.path} holds averaged weights only ({averaged[0].key}); leave it out."
        )
    chosen = averaged if ema or not plain else plain
    if len(chosen) > 1 and best < LEAST_SHARE:
        largest = max(len(group.inside) for group in chosen)
        chosen = [group for group in chosen if len(group.inside) == largest]
    if len(chosen) > 1:
        names = ", ".join(_place(group) for group in chosen)
        raise InputError(f"Checkpoint {file.path} holds several sets of weights: {names}. Choose one with `checkpoint_key`.")
    return chosen[0], _said(chosen[0], plain, averaged)


def _under(groups: Sequence[Group], key: str) -> list[Group]:
    """Those that `key` leads to: a dictionary, or a prefix of the names, besides which nothing else then counts."""
    if whole := [group for group in groups if group.key == key]:
        return whole
    found = [group for group in groups if key in (group.prefix[:-1], f"{group.key}.{group.prefix[:-1]}")]
    return [dataclasses.replace(group, outside={}) for group in found]


def _said(chosen: Group, plain: Sequence[Group], averaged: Sequence[Group]) -> str:
    place = chosen.key or "its tensors"
    if not averaged:
        return place
    if not chosen.averaged:
        return f"{place} (EMA present, not used; `ema` takes it)"
    return f"{place} (EMA; `ema=False` takes the others)" if plain else f"{place} (EMA, the only weights)"


def _place(group: Group) -> str:
    return ".".join(part for part in (group.key, group.prefix[:-1]) if part) or "the file itself"


def _grouped(key: str, tensors: Tensors, model: nn.Module) -> Iterator[Group]:
    """The tensors by each prefix that has a whole model, and again those of averaged copies in the same dictionary."""
    named, known = unwrapped(tensors), set(model.state_dict())
    wrappers = wrappers_of(tensors)
    averaged = {name for name in named if AVERAGED.search(name.partition(".")[0])}
    for names in (named.keys() - averaged, averaged):
        for prefix in prefixes_of(names, known) if names else ():
            inside = {name.removeprefix(prefix): named[name] for name in named if name in names and name.startswith(prefix)}
            outside = {name: value for name, value in named.items() if not name.startswith(prefix) and name in names}
            yield Group(key=key, prefix=prefix, inside=inside, outside=outside, wrappers=wrappers)


def _share(group: Group, known: set[str]) -> float:
    """Share of the model's names, without numbers, that are there; where another library named them, just above none."""
    return len(known & {numberless(name) for name in group.inside}) / len(known) or 0.01


def fit(group: Group, model: nn.Module, architecture: str, *, whole_model: bool = True) -> Fit:
    """Bring the tensors of `group` into the form of `model`, by the first way that fits wholly; else the nearest.

    Args:
        group: Of `choose_group`.
        model: In the shape of the tensors.
        architecture: timm's name of it.
        whole_model: Whether the file's own result is wanted, so that no head and nothing behind the model may be left out;
            False where the user asked for the model without a head.
    """
    for name, value in group.inside.items():
        if value.layout != torch.strided:
            return Fit(group=group, tensors={}, done=(), problems=(f"{name} is {_kind(value)}; expected a dense tensor",))
    tries = []
    for index, convert in enumerate(converters(model, architecture)):
        whole = {f"{group.prefix}{name}": value for name, value in group.inside.items()} | group.outside
        # timm's filters know some prefixes themselves; what they leave out is then the rest of a larger model.
        for given in (group.inside, whole) if group.prefix or index > 2 else (group.inside,):
            attempt = _attempt(group, given, convert, model, own_names=index == 0)
            if not attempt.problems and whole_model:
                attempt = dataclasses.replace(attempt, problems=_beyond(attempt, given, model))
            if not attempt.problems:
                return attempt
            tries.append(attempt)
    # What most names of the model are found by tells best where it fails; the untouched names win a tie.
    return min(tries, key=lambda attempt: len(attempt.problems))


def _attempt(
    group: Group, given: Tensors, convert: Callable[[Tensors], Tensors], model: nn.Module, *, own_names: bool
) -> Fit:
    own = model.state_dict()
    tensors = convert(dict(given))
    done, problems = list[str](), list[str]()
    if not own_names:
        lost = _lost(given, tensors, convert) if tensors else []
        problems += [f"{name} is not in the model" for name in lost if not _may_go(name, given, lost)]
        if rest := [name for name in lost if not UNREAD.search(name)]:
            done.append(f"left out: {_names(rest)}")
    tensors, head = _head(tensors, group.outside if given is group.inside else {}, model)
    done += head
    strangers = [name for name in tensors if name not in own]
    unread = [name for name in strangers if UNREAD.search(name) or _is_unwanted_head(name, model)]
    tensors = {name: value for name, value in tensors.items() if name not in unread}
    if dropped := [name for name in unread if not UNREAD.search(name)]:
        done.append(f"left out: {_names(dropped)}")
    problems += misfits(tensors, own)
    if not problems:
        # Of names that are timm's already these leave all as it is.
        done += _changes(from_transformers(from_torchvision(given)), tensors, own, model)
    return Fit(group=group, tensors=tensors, done=tuple(done), problems=tuple(problems))


def _beyond(attempt: Fit, given: Tensors, model: nn.Module) -> tuple[str, ...]:
    """What of the file may change the model's result, and is in none of the model's tensors."""
    group = attempt.group
    heads = [name for name in group.inside if _is_unwanted_head(name, model)]
    used = {value.data_ptr() for value in attempt.tensors.values() if value.numel()}
    left = (
        []
        if given is not group.inside
        else [
            name
            for name, value in group.outside.items()
            if not (TRAINING.search(name) or TEXT_TOWER.search(name) or UNREAD.search(name)) and value.data_ptr() not in used
        ]
    )
    return tuple(f"{name} {BEYOND}" for name in (*heads, *left))


def _may_go(name: str, given: Tensors, lost: Sequence[str]) -> bool:
    """Whether a filter may leave `name` out: nothing reads it, or it is of another tower than everything that was used."""
    if UNREAD.search(name):
        return True
    used = [other for other in given if other not in set(lost)]
    root = used[0].partition(".")[0] if used else ""
    return bool(used) and all(other.startswith(f"{root}.") for other in used) and not name.startswith(f"{root}.")


def _lost(given: Tensors, result: Tensors, convert: Callable[[Tensors], Tensors]) -> list[str]:
    """Tensors whose values do not reach the result, found by changing them."""
    kept = {value.data_ptr() for value in result.values()}
    suspects = [name for name, value in given.items() if value.data_ptr() not in kept or not value.numel()]
    depth = next((depth for depth in (9, 3, 2, 1) if len(_rooms(suspects, depth)) <= SEARCHED), 1)
    lost: list[str] = []
    for names in _rooms(suspects, depth).values():
        changed = convert({**given, **{name: _other(given[name]) for name in names}})
        if changed.keys() == result.keys() and all(torch.equal(changed[name], result[name]) for name in result):
            lost += names
    return lost


def _rooms(names: Sequence[str], depth: int) -> dict[str, list[str]]:
    rooms: dict[str, list[str]] = {}
    for name in names:
        rooms.setdefault(".".join(name.split(".")[:depth]), []).append(name)
    return rooms


def _other(value: torch.Tensor) -> torch.Tensor:
    return ~value if value.dtype == torch.bool else value + 1


# ---- the head

BEYOND = "is beyond the model"


def _is_unwanted_head(name: str, model: nn.Module) -> bool:
    """A classifier in the file, where the model is asked for without one."""
    return not getattr(model, "num_classes", 1) and any(name.startswith(f"{root}.") for root in HEAD_ROOTS)


def _head(tensors: Tensors, outside: Mapping[str, torch.Tensor], model: nn.Module) -> tuple[Tensors, list[str]]:
    """The one Linear that took the place of timm's head, by timm's name; its Dropout has no weights."""
    name, own = head_name(model), model.state_dict()
    if name is None or f"{name}.weight" in tensors or f"{name}.weight" not in own:
        return tensors, []
    given: Mapping[str, torch.Tensor] = {key: value for key, value in tensors.items() if key not in own}
    linear = linear_under(given, HEAD_ROOTS)
    if linear is None:
        given = {key: value for key, value in outside.items() if not TRAINING.search(key)}
        # Whatever else lies there might come between the model and that Linear.
        linear = _only_linear(given)
    if linear is None:
        return tensors, []
    result = {key: value for key, value in tensors.items() if key not in {f"{linear}.weight", f"{linear}.bias"}}
    result[f"{name}.weight"] = given[f"{linear}.weight"]
    if f"{linear}.bias" in given:
        result[f"{name}.bias"] = given[f"{linear}.bias"]
    return result, [f"classifier {linear}"]


def _only_linear(outside: Mapping[str, torch.Tensor]) -> str | None:
    """The Linear that is all that lies outside the prefix."""
    weights = [
        name.removesuffix(".weight") for name, value in outside.items() if name.endswith(".weight") and value.dim() == 2
    ]
    if len(weights) != 1 or not outside.keys() <= {f"{weights[0]}.weight", f"{weights[0]}.bias"}:
        return None
    return weights[0]


# ---- what is said


def misfits(tensors: Mapping[str, torch.Tensor], own: Mapping[str, torch.Tensor]) -> list[str]:
    """Where names, shapes or kinds of numbers are not the model's own."""
    return [
        *(f"{name} is missing" for name in own if name not in tensors),
        *(f"{name} is not in the model" for name in tensors if name not in own),
        *(
            f"{name} is {list(tensors[name].shape)} in the file and {list(own[name].shape)} in the model"
            for name in own
            if name in tensors and tensors[name].shape != own[name].shape
        ),
        *(
            f"{name} is {_kind(tensors[name])} in the file and {_kind(own[name])} in the model"
            for name in own
            if name in tensors and not _same_kind(tensors[name], own[name])
        ),
    ]


def _same_kind(given: torch.Tensor, own: torch.Tensor) -> bool:
    """Float weights may have any float type; everything else would be converted with a loss that nobody asked for."""
    plain = given.layout == torch.strided and not given.is_quantized and given.device.type == "cpu"
    return plain and given.is_floating_point() == own.is_floating_point() and not given.is_complex()


def _kind(tensor: torch.Tensor) -> str:
    layout = "" if tensor.layout == torch.strided else f" {tensor.layout}"
    device = "" if tensor.device.type == "cpu" else f" on {tensor.device.type}"
    return f"{tensor.dtype}{layout}{device}".replace("torch.", "")


def _changes(given: Tensors, tensors: Tensors, own: Mapping[str, torch.Tensor], model: nn.Module) -> list[str]:
    """What was resampled."""
    changed = [name for name in own if name in given and given[name].shape != tensors[name].shape]
    resized = [name for name in changed if given[name].numel() != tensors[name].numel()]
    said = []
    if "pos_embed" in resized and given["pos_embed"].dim() == 3:
        resized.remove("pos_embed")
        before, after = _grids(given, model)
        said += [f"position embedding {before} → {after}, resampled"] if before != after else []
    said += [f"{name} {_size(given[name])} → {_size(tensors[name])}, resampled" for name in resized[:2]]
    if len(resized) > 2:
        said.append(f"and {len(resized) - 2} more like it")
    return said


def _grids(given: Tensors, model: nn.Module) -> tuple[str, str]:
    """The grid of the position embedding in the file, and the model's."""
    embed: Any = getattr(model, "patch_embed", None)
    rows, columns = embed.grid_size
    others = int(model.state_dict()["pos_embed"].shape[1]) - rows * columns
    tokens = int(given["pos_embed"].shape[1])
    # The official DINOv2 has a place for its class token there, and timm's has none where there are registers.
    side = max(tokens - (1 if "register_tokens" in given else others), 0) ** 0.5
    return f"{side:.0f}×{side:.0f}" if side.is_integer() else f"of {tokens} tokens", f"{rows}×{columns}"


def _size(tensor: torch.Tensor) -> str:
    return "×".join(map(str, tensor.shape))


def _names(names: Sequence[str]) -> str:
    """The modules that `names` are of, few by name."""
    rooms = list(dict.fromkeys(name.rpartition(".")[0].split(".")[0] or name for name in names))
    more = f" and {len(rooms) - 4} more" if len(rooms) > 4 else ""
    return ", ".join(rooms[:4]) + more


def explain(fitted: Fit, file: WeightsFile, path: Path) -> InputError:
    """The error for weights that do not fit."""
    group, problems = fitted.group, fitted.problems
    if all(problem.endswith(BEYOND) for problem in problems):
        rest = _names([problem.removesuffix(f" {BEYOND}") for problem in problems])
        place = _place(group)
        alone = f"give `checkpoint_key={place}` to take {place} alone, or " if group.prefix else "give "
        where = f" under {place}" if group.prefix else ""
        return InputError(
            f"The weights in {path} have the model{where}, and more that may change its result: {rest}. If it does "
            f"not, {alone}`head=none` for the model's embedding; if it does, give the module itself: `model_from`, or "
            "vitexport.build(model=…)."
        )
    more = f" (and {len(problems) - 4} more)" if len(problems) > 4 else ""
    lora = any(".lora_" in name or name.startswith("lora_") for name in group.inside)
    if lora:
        return InputError(
            f"The weights in {path} are those of a PEFT model with LoRA layers. Merge them first "
            "(model = peft_model.merge_and_unload()) and save model.state_dict()."
        )
    prefix = f" The names in the file begin with {group.prefix}" if group.prefix else ""
    key = f" Taken from {group.key}; the file has {file.contents}." if group.key else ""
    heads = [problem for problem in problems if any(problem.startswith(f"{root}.") for root in HEAD_ROOTS)]
    if len(heads) == len(problems):
        roots = ", ".join(sorted({name for name in group.inside if any(name.startswith(f"{root}.") for root in HEAD_ROOTS)}))
        return InputError(
            f"The weights in {path} do not fit the model: {'; '.join(problems[:4])}{more}. The file's own head is "
            f"{roots or 'not there'}. A head other than one Linear with a bias needs the module itself: "
            f"`model_from`, or vitexport.build(model=…). Otherwise check `num_classes`.{key}"
        )
    return InputError(
        f"The weights in {path} do not fit the model: {'; '.join(problems[:4])}{more}. Check the model name, `num_classes`, "
        f"`img_size` and `kwargs` against those it was trained with.{prefix}{key}"
    )
