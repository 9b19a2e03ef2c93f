"""Make the model that a file of weights is for, and put the weights into it.

Input: a `ModelRequest` with a checkpoint, or with a folder as its name. Output: a `Checkpoint`: the request, completed by
what the file says and by what its tensors show. Where the user and the file contradict each other, an error names both; of
preprocessing the user's word counts, and a note names both.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import timm
from torch import nn

from vitexport.errors import InputError
from vitexport.source.fit import Group, choose_group, explain, fit
from vitexport.source.identify import identify
from vitexport.source.names import from_torchvision, from_transformers, has_transformers_names
from vitexport.source.recorded import OWN_KEYS, Recorded, read_record
from vitexport.source.request import ModelRequest, create_kwargs
from vitexport.source.shapes import read_shapes
from vitexport.source.weights_file import WeightsFile, read_config, read_weights

LOCAL = "local-dir:"
# Says that a name is told from the tensors.
TENSORS = "its tensors"
# transformers' ViTConfig where nothing else is said.
TRANSFORMERS_EPS = 1e-12
# Model keywords that an option of its own stands for.
OPTIONS = ("num_classes", "img_size", "in_chans")
PREPROCESSING = ("mean", "std", "interpolation", "crop_pct", "crop_mode")
# What is read off the tensors; of everything else the file's arguments are all that is known.
SHAPED = frozenset(
    {
        *("num_classes", "in_chans", "img_size", "embed_dim", "patch_size", "depth", "mlp_ratio", "qkv_bias", "init_values"),
        *("class_token", "reg_tokens", "depths", "window_size"),
    }
)
SAME_RATIO = 1e-3


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Checkpoint:
    """A file of weights, and the model that it is for.

    Attributes:
        request: The user's, with what was recorded where the user said nothing.
        file: What was read; None where only a folder's configuration counts and the weights are elsewhere.
        record: What the file says of the model.
        notes: What the user should know of how both were brought together.
    """

    request: ModelRequest
    file: WeightsFile
    record: Recorded
    notes: tuple[str, ...] = ()


def open_checkpoint(request: ModelRequest) -> Checkpoint | None:
    """Read the file that `request` names, and complete the request by what it records; None without a file.

    Raises:
        InputError: It cannot be read, names no model where the user names none either, or contradicts what was typed.
    """
    folder = Path(request.name.removeprefix(LOCAL)) if request.name and request.name.startswith(LOCAL) else None
    if request.checkpoint is None and (folder is None or not request.pretrained):
        return None if folder is None else _of_folder(request, folder)
    path = request.checkpoint or folder
    if path is None:
        return None
    file = read_weights(path)
    record = read_record(read_config(folder) if folder is not None and request.checkpoint is not None else file)
    if request.name is None and record.name is None:
        name = identify(file, key=request.checkpoint_key, ema=request.ema)
        record = dataclasses.replace(record, name=name, where=TENSORS)
    return _completed(request, file, record)


def _of_folder(request: ModelRequest, folder: Path) -> Checkpoint:
    """A folder's architecture without its weights."""
    file = read_config(folder)
    return _completed(request, file, read_record(file))


def _completed(request: ModelRequest, file: WeightsFile, record: Recorded) -> Checkpoint:
    """`request` with the file's word where the user has none."""
    name = request.name
    if name is None or name.startswith(LOCAL):
        name = record.name
    elif record.name is not None:
        _check_name(name, record, file)
        if "." not in name and record.name.partition(".")[0] == name:
            name = record.name  # with the tag, which says how pictures were prepared
    if name is None:
        raise InputError(f"{file.path} has no config.json that names an architecture of timm; give MODEL, a timm name.")
    typed = create_kwargs(request)
    for key, value in record.kwargs.items():
        if key in typed and key not in SHAPED and _listed(typed[key]) != _listed(value):
            raise InputError(
                f"{record.where.partition('.')[0]} in {file.path} has {key} {value!r}, and `kwargs={key}={typed[key]}` "
                "says otherwise; leave it out, or correct it."
            )
    kwargs = {key: value for key, value in record.kwargs.items() if key not in typed}
    completed = dataclasses.replace(request, name=name, kwargs={**kwargs, **request.kwargs})
    # Where a position embedding is of another size, that decides (`_settle`).
    if record.size is not None and "img_size" not in create_kwargs(completed):
        completed = dataclasses.replace(completed, img_size=record.size)
    notes = _other_size(file, record) if "img_size" not in typed else ()
    return _preprocessed(request, Checkpoint(request=completed, file=file, record=record, notes=notes))


def _other_size(file: WeightsFile, record: Recorded) -> tuple[str, ...]:
    """A note where the model was made for another size than its pictures had, as ``dynamic_img_size`` allows."""
    made_for = record.kwargs.get("img_size")
    sides = tuple(made_for) if isinstance(made_for, (list, tuple)) else (made_for, made_for)
    if record.size is None or made_for is None or sides == record.size:
        return ()
    height, width = record.size
    asked = height if height == width else f"{height}x{width}"
    note = (
        f"{file.file.name} was trained on pictures of {height} x {width}, with a model made for {_said(sides)}, which is "
        f"taken; give `img_size={asked}` for the size of the pictures."
    )
    return (note,)


def _listed(value: Any) -> Any:
    """A file's list and a typed tuple are the same value."""
    return list(value) if isinstance(value, tuple) else value


def _preprocessed(typed: ModelRequest, checkpoint: Checkpoint) -> Checkpoint:
    """With the preprocessing of the file, or a note for each contradiction."""
    changes, notes = {}, []
    for key in PREPROCESSING:
        own, said = getattr(typed, key), getattr(checkpoint.record, key)
        if said is None:
            continue
        if own is None:
            changes[key] = said
        elif not _equal(own, said):
            notes.append(
                f"`{key}={_shown(own)}` is used, and {checkpoint.file.file.name} was trained with {_shown(said)}; leave "
                "it out to use that."
            )
    request, record = dataclasses.replace(checkpoint.request, **changes), checkpoint.record
    if record.class_map is not None and record.labels is None:
        notes.append(f"the training took the order of its classes from {record.class_map}; give `labels` in that order.")
    if words := [key for key in typed.kwargs if key in OWN_KEYS and key not in SHAPED and key not in record.kwargs]:
        given = ", ".join(f"`kwargs={key}={_shown(typed.kwargs[key])}`" for key in words)
        notes.append(
            f"{given}: taken as given, since {checkpoint.file.file.name} shows it nowhere; labelled pictures (`data`) show "
            "whether it is right."
        )
    if record.where == TENSORS and request.mean is None:
        notes.append(
            f"{checkpoint.file.file.name} does not say how pictures were prepared; {request.name} is told from its tensors, "
            "and that model's preprocessing is used. Give `mean`, `std` and `crop_pct` if others were trained with."
        )
    return dataclasses.replace(checkpoint, request=request, notes=(*checkpoint.notes, *notes))


def _equal(first: Any, second: Any) -> bool:
    if isinstance(first, str):
        return bool(first == second)
    one, other = (tuple(value) if isinstance(value, (tuple, list)) else (value,) for value in (first, second))
    length = max(len(one), len(other))
    one, other = (values * length if len(values) == 1 else values for values in (one, other))
    return len(one) == len(other) and all(abs(a - b) < 1e-6 for a, b in zip(one, other, strict=True))


def _shown(value: Any) -> str:
    return ",".join(f"{number:g}" for number in value) if isinstance(value, (tuple, list)) else str(value)


def _family(name: str) -> str:
    """Module of timm that defines the architecture of `name`, or torchvision's counterpart."""
    architecture = name.partition(".")[0]
    known = timm.is_model(architecture)
    return timm.model_entrypoint(architecture).__module__.rpartition(".")[2] if known else "vision_transformer"


def _check_name(name: str, record: Recorded, file: WeightsFile) -> None:
    """The user's architecture against the recorded one; tags of pretrained weights do not count.

    Raises:
        InputError: They are different networks.
    """
    own, said = name.partition(".")[0], str(record.name).partition(".")[0]
    if record.transformers or own == said or name.startswith(("torchvision:", "hf-hub:", "hf_hub:")):
        return
    if record.tower and "_clip_" in own and "_clip_" in said:
        if ("quickgelu" in own) == ("quickgelu" in said):
            return
        wanted = own.replace("_quickgelu", "") if "quickgelu" in own else own.replace("_clip_", "_clip_quickgelu_")
        raise InputError(
            f"{file.path} was trained with {'QuickGELU' if 'quickgelu' in said else 'GELU'} ({record.where}), and {own} has "
            f"the other; give {wanted}."
        )
    raise InputError(
        f"{file.path} is of {said} ({record.where}), and MODEL is {own}. Leave MODEL out to take the file's word, or give "
        "the file that belongs to it."
    )


# ---- into the model


def load_checkpoint(
    checkpoint: Checkpoint, typed: ModelRequest, create: Callable[[ModelRequest], nn.Module]
) -> tuple[nn.Module, Checkpoint, str]:
    """Make the model in the shape of its weights and load them.

    Args:
        checkpoint: Completed by what the file records.
        typed: What the user asked for.
        create: Makes the untrained model of a request.

    Returns:
        The model; the checkpoint, whose request is completed by what the tensors show; and what was done, in a line.

    Raises:
        InputError: The weights do not fit, or contradict what was typed.
    """
    file, request = checkpoint.file, checkpoint.request
    model = create(request)
    group, said = choose_group(file, model, key=request.checkpoint_key, ema=request.ema)
    if not checkpoint.record.transformers and has_transformers_names(group.inside):
        checkpoint = _of_transformers(checkpoint)
    changes, settled = _settle(checkpoint, typed, model, group)
    if changes:
        kwargs = {key: value for key, value in request.kwargs.items() if key not in changes}
        request = dataclasses.replace(request, kwargs={**kwargs, **changes}, **_cleared(request, changes))
        model = create(request)
    if checkpoint.record.layer_norm_eps is not None:
        for module in model.modules():
            if isinstance(module, nn.LayerNorm):
                module.eps = checkpoint.record.layer_norm_eps
    fitted = fit(group, model, str(request.name).partition(".")[0], whole_model=_whole(typed))
    if fitted.problems:
        raise explain(fitted, file, file.path)
    model.load_state_dict(fitted.tensors)
    parts = [said, *_parts(checkpoint, group), *settled, *fitted.done]
    resampled = tuple(
        f"{done}: the weights are of another image size than the model was asked for." for done in fitted.done if "→" in done
    )
    done = dataclasses.replace(checkpoint, request=request, notes=(*checkpoint.notes, *resampled))
    return model, done, f"{file.file.name}: {', '.join(parts)}"


def _of_transformers(checkpoint: Checkpoint) -> Checkpoint:
    """A ViT of transformers without the files that describe it: its epsilon is known, its pictures are not."""
    record = dataclasses.replace(checkpoint.record, transformers=True, layer_norm_eps=TRANSFORMERS_EPS)
    note = (
        f"{checkpoint.file.file.name} is a ViT of transformers without its config.json; layer_norm_eps is taken to be "
        f"{TRANSFORMERS_EPS:g}, and its image processor is not known: transformers' own resizes each side to the model's "
        "(`crop_mode=squash`, `crop_pct=1`, `interpolation=bilinear`)."
    )
    return dataclasses.replace(checkpoint, record=record, notes=(*checkpoint.notes, note))


def _whole(typed: ModelRequest) -> bool:
    """Whether the file's own answer is asked for, and not what its classifier reads."""
    headless = typed.head in ("none", "features", "tokens") or create_kwargs(typed).get("num_classes") == 0
    return not (headless or typed.features or typed.class_embeddings or typed.classes)


def _cleared(request: ModelRequest, changes: Mapping[str, Any]) -> dict[str, Any]:
    """Fields that stand for a keyword which the tensors decide."""
    return {key: None for key in OPTIONS if key in changes and getattr(request, key) is not None}


def _parts(checkpoint: Checkpoint, group: Group) -> Iterator[str]:
    if checkpoint.record.where and checkpoint.record.name:
        yield f"{checkpoint.request.name} by {checkpoint.record.where}"
    if taken := "".join(f"{part}." for part in group.wrappers) + group.prefix:
        yield f'prefix "{taken}"'
    if checkpoint.record.epoch is not None:
        yield f"epoch {checkpoint.record.epoch}"
    if rooms := sorted({name.split(".")[0] for name in group.outside}):
        more = f" and {len(rooms) - 3} more" if len(rooms) > 3 else ""
        yield f"outside the prefix: {', '.join(rooms[:3])}{more}"


def _settle(checkpoint: Checkpoint, typed: ModelRequest, model: nn.Module, group: Group) -> tuple[dict[str, Any], list[str]]:
    """What of the model's shape the tensors decide: keyword arguments, and a few words on each.

    Raises:
        InputError: The user typed something else.
    """
    name = str(checkpoint.request.name)
    family = _family(name)
    inside = group.inside
    convert = from_transformers if checkpoint.record.transformers else from_torchvision
    seen = read_shapes(convert(inside) if family == "vision_transformer" else inside, model, family)
    head = read_shapes(group.outside, model, "") if "num_classes" not in seen else {}
    seen |= {key: value for key, value in head.items() if key == "num_classes"}
    own = read_shapes(dict(model.state_dict()), model, family)
    asked = create_kwargs(typed)
    changes: dict[str, Any] = {}
    for key, value in seen.items():
        if _same(own.get(key), value) or not _decides(key, value, own):
            continue
        if key in asked:
            if key != "img_size":
                raise _contradiction(checkpoint, key, value, asked[key])
            continue
        if key in checkpoint.record.kwargs:
            raise InputError(
                f"{checkpoint.file.path} contradicts itself: {checkpoint.record.where} says {key} "
                f"{_said(checkpoint.record.kwargs[key])}, and its tensors have {key} {_said(value)}."
            )
        if key == "num_classes" and typed.head is not None and not asked.get("num_classes", 1):
            continue
        changes[key] = value
    if name.startswith("torchvision:"):
        changes = {key: value for key, value in changes.items() if key in OPTIONS}
    if "embed_dim" in changes and "num_heads" not in {**checkpoint.request.kwargs, **changes}:
        raise InputError(
            f"The tensors in {checkpoint.file.path} are {changes['embed_dim']} wide and {name} is {own.get('embed_dim')}; "
            f"how many heads share that width is not in the tensors. Give `kwargs=num_heads=N`, or the right MODEL."
        )
    if "reg_tokens" in changes and "register_tokens" in inside:
        changes["no_embed_class"] = True
    return changes, [f"{key} {_said(value)}" for key, value in changes.items() if key != "no_embed_class"]


def _decides(key: str, value: Any, own: Mapping[str, Any]) -> bool:
    """Whether the tensors tell `key` at all: a pooling without a norm of its own leaves no trace."""
    return not (key == "global_pool" and (value is None or own.get(key) is None))


def _same(first: Any, second: Any) -> bool:
    if isinstance(first, float) or isinstance(second, float):
        return first is not None and second is not None and abs(float(first) - float(second)) < SAME_RATIO
    return bool(first == second)


def _said(value: Any) -> str:
    return "×".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _contradiction(checkpoint: Checkpoint, key: str, seen: Any, asked: Any) -> InputError:
    given = f"`{key}={_said(asked)}`" if key in OPTIONS else f"`kwargs={key}={_said(asked)}`"
    return InputError(
        f"The tensors in {checkpoint.file.path} do not fit the model: they have {key} {_said(seen)}, and {given} was given. "
        "Leave it out, or give the file that belongs to it."
    )
