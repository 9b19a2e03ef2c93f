"""The library in one call: every option of the command line is a keyword, under its field's name."""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args, get_origin, get_type_hints

from vitexport import pipeline
from vitexport.artifacts import BatchRange, Progress, silent
from vitexport.bundle import Bundle
from vitexport.errors import UsageError
from vitexport.pipeline import BuildRequest, Plan
from vitexport.preprocess import PreprocessSpec
from vitexport.quantize.settings import Observer, Placement, QuantSettings
from vitexport.report import Report
from vitexport.source.request import ModelRequest
from vitexport.validate.budget import Budget

# Fields that `build` fills itself, from the options of the parts or from its own arguments.
_FILLED = frozenset({"model", "module", "target", "more_targets", "quantization", "budget"})
_PARTS = (ModelRequest, BuildRequest, QuantSettings, Budget)
# What reads a value that is given as text.
_READERS = {BatchRange: BatchRange.parse, Placement: Placement.parse, Observer: Observer.parse}


class BuildResult(NamedTuple):
    """What a build leaves; unpacks as ``bundle, report``.

    Attributes:
        bundle: The bundle, open.
        report: Every check and figure. ``report.verdict`` is ``failed`` where a check failed: the bundle is written all the
            same.
    """

    bundle: Bundle
    report: Report

    def _repr_html_(self) -> str:
        # Named by Jupyter. The bundle shows the report, too.
        return self.bundle._repr_html_()


def build(
    model: Any = None,
    preprocess: PreprocessSpec | None = None,
    *,
    target: str | Sequence[str],
    progress: Progress = silent,
    **options: Any,
) -> BuildResult:
    """Build, validate and write a bundle.

    Args:
        model: A timm name (or ``hf-hub:…``, ``local-dir:…``, ``torchvision:…``), or a `torch.nn.Module`, which is copied
            and stays as it is. None with ``model_from="FILE.py:FUNCTION"``.
        preprocess: How pictures become the input of a module; or give ``mean``, ``std``, ``crop_pct``, ``interpolation`` and
            ``img_size``.
        target: A device of the catalogue (`vitexport.targets`), ``cpu`` for this machine, or several GPUs.
        progress: Called with what the build is doing, how much of it is done and of how much.
        options: Any field of `ModelRequest`, `BuildRequest`, `QuantSettings` or `Budget`, as text or as a value of the
            field's type: ``calibration="photos"``, ``batch="1:4:8"``, ``placement="B"``, ``max_drop=0.5``, ``name="mine"``.

    Raises:
        UsageError: An option is unknown, has a value that it cannot have, or contradicts another.
        VitexportError: As `vitexport.run`. A check that fails is no error.
    """
    return BuildResult(*pipeline.run(_request(model, preprocess, target, options), progress))


def plan(
    model: Any = None, preprocess: PreprocessSpec | None = None, *, target: str | Sequence[str] = (), **options: Any
) -> Plan:
    """Say every problem and every step of a build with the same arguments, or of a `BuildRequest`; build nothing.

    Raises:
        UsageError: An option is unknown or has a value that it cannot have. What else is wrong is in `Plan.findings`.
    """
    if isinstance(model, BuildRequest):
        if preprocess is not None or target or options:
            raise UsageError("A BuildRequest holds everything; give no further arguments with it.")
        return pipeline.plan(model)
    return pipeline.plan(_request(model, preprocess, target, options))


def _request(
    model: Any, preprocess: PreprocessSpec | None, target: str | Sequence[str], options: Mapping[str, Any]
) -> BuildRequest:
    """The plain data that the keywords stand for."""
    hints = {part: get_type_hints(part) for part in _PARTS}
    known = {name for part in _PARTS for name in hints[part]} - _FILLED
    for name in options:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=3)
            raise UsageError(f"Unknown option {name}; {'did you mean ' + ' or '.join(near) if near else 'see ' + _WHERE}.")
    values = {
        part: {name: _value(name, hints[part][name], given) for name, given in options.items() if name in hints[part]}
        for part in _PARTS
    }
    first, *more = (target,) if isinstance(target, str) else tuple(target) or (None,)
    if first is None:
        raise UsageError("No target was given; give a device of the catalogue, or 'cpu' for this machine.")
    return BuildRequest(
        model=_model_request(model, preprocess, values[ModelRequest]),
        target=first,
        more_targets=tuple(more),
        quantization=QuantSettings(**values[QuantSettings]),
        budget=Budget(**values[Budget]),
        **values[BuildRequest],
    )


_WHERE = "the fields of ModelRequest, BuildRequest, QuantSettings and Budget"


def _model_request(model: Any, preprocess: PreprocessSpec | None, values: dict[str, Any]) -> ModelRequest:
    if preprocess is not None:
        values["preprocess"] = preprocess
    if isinstance(model, ModelRequest):
        if values:
            raise UsageError(f"A ModelRequest holds everything of the model; give {', '.join(values)} in it.")
        return model
    if isinstance(model, str):
        if "name" in values:
            raise UsageError("name is for a module of one's own; a model that is asked for by name has that name.")
        values["name"] = model
    elif model is not None:
        values["module"] = model
        values.setdefault("name", type(model).__name__)
    elif values.get("model_from"):
        values.setdefault("name", str(values["model_from"]).rpartition(":")[2])
    # As on the command line: weights that are given are the weights.
    values.setdefault("pretrained", values.get("checkpoint") is None)
    return ModelRequest(**values)


def _value(name: str, hint: Any, given: Any) -> Any:
    """`given` as the type of the field: text is read as the command line reads it, and the rest has to fit.

    Raises:
        UsageError: It does not.
    """
    kinds = get_args(hint) if get_origin(hint) not in (None, tuple, Literal, Mapping) else (hint,)
    kinds = kinds or (hint,)
    for kind in kinds:
        fits, value = _as(kind, given)
        if fits:
            return value
    expected = " or ".join(dict.fromkeys(_named(kind) for kind in kinds))
    raise UsageError(f"{name} is {given!r}; expected {expected}.")


def _as(kind: Any, given: Any) -> tuple[bool, Any]:  # noqa: PLR0911 - one line a kind
    """Whether `given` is, or stands for, a value of `kind`; and that value."""
    origin = get_origin(kind)
    if kind is Any:
        return True, given
    if origin is Literal:
        return given in get_args(kind), given
    if origin is tuple:
        entries = (given,) if isinstance(given, (str, int, float)) else given
        inner = {entry for entry in get_args(kind) if entry is not Ellipsis}
        fits = isinstance(entries, (tuple, list)) and all(any(_as(one, entry)[0] for one in inner) for entry in entries)
        fixed = Ellipsis not in get_args(kind) and fits and len(entries) != len(get_args(kind))
        return fits and not fixed, tuple(entries) if fits else given
    if kind in _READERS and (isinstance(given, str) or (type(given) is int)):
        return True, _READERS[kind](str(given))
    if kind is Path and isinstance(given, (str, os.PathLike)):
        return True, Path(given)
    if kind is float and type(given) is int:
        return True, float(given)
    if kind is int or kind is float:
        return type(given) is kind, given
    return isinstance(given, origin or kind), dict(given) if isinstance(given, Mapping) else given


def _named(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return " or ".join(map(repr, get_args(kind)))
    names = {
        Path: "a path",
        type(None): "None",
        bool: "True or False",
        int: "a whole number",
        float: "a number",
        str: "text",
    }
    if get_origin(kind) is tuple:
        return "a tuple of " + " or ".join(dict.fromkeys(_named(each) for each in get_args(kind) if each is not Ellipsis))
    return names.get(kind, "None" if kind is type(None) else getattr(kind, "__name__", str(kind)))
