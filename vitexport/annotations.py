"""Read validation data that class folders cannot hold: a CSV file that gives each picture its labels or its target values.

The first line names the columns. ``image`` is the picture's path, relative to the file. Beside it stand

- multi-label: one column for each label with 0 or 1; or one column ``labels`` with names separated by ``;`` or ``|``, empty
  for none;
- regression: one column of numbers for each output.

Columns may come in any order where the names of labels or values are known. Where they are not, the columns name them, in
the order of the model's outputs.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import math
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from vitexport.artifacts import Task
from vitexport.datasets import ClassOrder, ImageSet, open_images, open_labelled
from vitexport.errors import InputError

IMAGE, LABELS = "image", "labels"
FORMS: Mapping[Task, str] = {
    "multi-label": "a CSV file with a column image (path relative to the file) and one column of 0 or 1 for each label, or "
    "one column labels with names separated by ';' or '|'",
    "regression": "a CSV file with a column image (path relative to the file) and one column of numbers for each output",
}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Row:
    """One line of the file: where it ends, and its cells by column."""

    line: int
    cells: Mapping[str, str]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Truth:
    """What labelled pictures have to fit.

    Attributes:
        task: What the model is for.
        names: Of its classes, labels or values, in the order of the output; None where they are not known.
        synsets: Other names that class folders may have, in the same order.
        count: How many classes, labels or values there are.
        order: How class folders without `names` are sorted; None where both orders are the same.
        channels: Of the model's input.
    """

    task: Task
    names: Sequence[str] | None
    synsets: Sequence[str] | None
    count: int
    order: ClassOrder | None = None
    channels: int = 3


def open_validation(path: Path, truth: Truth) -> ImageSet:
    """Labelled pictures as the task needs them: class folders for classification, else a CSV file.

    Args:
        path: The folder or the file.
        truth: What they have to fit.

    Raises:
        InputError: It is not of this form, or does not fit the model.
    """
    if truth.task == "classification":
        if path.is_file():
            raise InputError(f"`data` {path} is a file; a classifier is judged on a folder with one sub-folder per class.")
        return open_labelled(
            path,
            labels=truth.names,
            synsets=truth.synsets,
            classes=truth.count,
            order=truth.order,
            channels=truth.channels,
        )
    return open_annotated(path, truth)


def open_annotated(path: Path, truth: Truth) -> ImageSet:
    """The pictures that a CSV file names, with `ImageSet.targets` float32 [n, count] and their names.

    Args:
        path: The file.
        truth: What it has to fit; for ``multi-label`` or ``regression``.

    Raises:
        InputError: The file cannot be read or is not of the task's form, its columns do not fit the model, a cell does not
            fit its column, or a picture is missing or given twice; or as `open_images`.
    """
    task, names, count = truth.task, truth.names, truth.count
    if path.is_dir():
        raise InputError(f"`data` {path} is a folder, and a {task} model is judged on {FORMS[task]}.")
    columns, rows = _read(path, task)
    pictures = _pictures(path, rows)
    if task == "multi-label" and columns == [LABELS]:
        if names is None:
            raise InputError(f"{path} names labels in one column, which gives them no order; give `labels` with theirs.")
        names = tuple(names)
        targets = [_named(path, row, names) for row in rows]
    else:
        names = _names(path, columns, names, count, task)
        targets = [[_number(path, row, name, task) for name in names] for row in rows]
    root = Path(os.path.commonpath([path.absolute().parent, *(picture.parent for picture in pictures)]))
    found = open_images(root, among=pictures, channels=truth.channels)
    # What cannot be read has been left out.
    by_path = dict(zip(pictures, targets, strict=True))
    kept = np.asarray([by_path[file.path] for file in found.files], dtype=np.float32)
    return dataclasses.replace(found, name=path.name, targets=kept, target_names=tuple(names))


def _read(path: Path, task: Task) -> tuple[list[str], list[_Row]]:
    """The columns but ``image``, and the lines that are not empty."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise InputError(f"Data file {path} cannot be read: {error.strerror}. Expected {FORMS[task]}.") from None
    except UnicodeDecodeError:
        raise InputError(f"Data file {path} is not UTF-8 text; expected {FORMS[task]}.") from None
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    rows: list[_Row] = []
    try:
        header = [name.strip() for name in next(reader, [])]
        _check_header(path, header, task)
        for cells in reader:
            if not any(cell.strip() for cell in cells):
                continue
            if len(cells) != len(header):
                raise InputError(
                    f"{path}, line {reader.line_num}: {len(cells)} cells; expected {len(header)}, as in line 1."
                )
            named = dict(zip(header, (cell.strip() for cell in cells), strict=True))
            rows.append(_Row(line=reader.line_num, cells=named))
    except csv.Error as error:
        raise InputError(f"{path}, line {reader.line_num}: {error}; expected comma-separated values.") from None
    if not rows:
        raise InputError(f"Data file {path} names no images; expected {FORMS[task]}.")
    return [name for name in header if name != IMAGE], rows


def _check_header(path: Path, header: Sequence[str], task: Task) -> None:
    if not any(header):
        raise InputError(f"Data file {path} is empty; expected {FORMS[task]}.")
    twice = [name for name in header if header.count(name) > 1]
    if twice:
        raise InputError(f"{path} has two columns {twice[0]!r}; each needs a name of its own.")
    if IMAGE not in header or len(header) < 2:
        hint = " Separate columns by commas." if len(header) == 1 and re.search(r"[;\t]", header[0]) else ""
        raise InputError(f"{path} has the columns {', '.join(header)}; expected {FORMS[task]}.{hint}")


def _pictures(path: Path, rows: Sequence[_Row]) -> list[Path]:
    """Where each line's picture is, absolute."""
    folder = path.absolute().parent
    lines: dict[Path, int] = {}
    for row in rows:
        picture = Path(os.path.normpath(folder / row.cells[IMAGE]))
        if not row.cells[IMAGE] or not picture.is_file():
            raise InputError(
                f"{path}, line {row.line}: image {row.cells[IMAGE]!r} does not exist; paths are relative to {folder}."
            )
        if picture in lines:
            raise InputError(
                f"{path}, line {row.line}: image {row.cells[IMAGE]} was given in line {lines[picture]} already."
            )
        lines[picture] = row.line
    return list(lines)


def _names(path: Path, columns: Sequence[str], names: Sequence[str] | None, count: int, task: Task) -> tuple[str, ...]:
    """The columns in the order of the model's outputs."""
    what = "labels" if task == "multi-label" else "values"
    if names is None:
        if len(columns) != count:
            raise InputError(
                f"{path} has {len(columns)} columns beside image ({', '.join(columns[:3])}, …), but the model has {count} "
                f"{what}; expected {FORMS[task]}."
            )
        return tuple(columns)
    if unknown := [name for name in columns if name not in names]:
        raise InputError(f"{path}: column {unknown[0]!r} is none of the model's {what} ({', '.join(names[:5])}, …).")
    if lacking := [name for name in names if name not in columns]:
        raise InputError(f"{path} lacks a column {lacking[0]!r}; the model's {what} are {', '.join(names[:5])}, ….")
    if len(set(names)) != len(names):
        raise InputError(
            f"Two of the model's {what} have one name, so columns cannot tell them apart; rename one in `labels`."
        )
    return tuple(names)


def _number(path: Path, row: _Row, name: str, task: Task) -> float:
    """The cell of one label or value."""
    cell = row.cells[name]
    try:
        value = float(cell)
    except ValueError:
        value = math.nan
    if task == "multi-label" and value not in (0, 1):
        raise InputError(f"{path}, line {row.line}: {cell!r} in column {name!r} is neither 0 nor 1.")
    if not math.isfinite(value):
        raise InputError(f"{path}, line {row.line}: {cell!r} in column {name!r} is not a number.")
    return value


def _named(path: Path, row: _Row, names: Sequence[str]) -> list[float]:
    """0 or 1 for each of `names`, from a cell that names some of them."""
    found = [part.strip() for part in re.split(r"[;|]", row.cells[LABELS]) if part.strip()]
    if unknown := [name for name in found if name not in names]:
        raise InputError(
            f"{path}, line {row.line}: {unknown[0]!r} is none of the model's labels ({', '.join(names[:5])}, …); separate "
            "names by ';' or '|'."
        )
    return [float(name in found) for name in names]
