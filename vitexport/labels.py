"""Read class names, in the order of the logits, from the files in which people keep them. Needs the standard library only.

What a file is, its content says: text with one name a line; CSV or TSV; a JSON list; JSON ``id2label`` or ``class_to_idx``;
or the config.json that transformers and timm write. An order that a file states twice must agree; one that it leaves open
is not guessed.
"""

from __future__ import annotations

import csv
import dataclasses
import json
import re
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vitexport.errors import InputError

CONFIG = "config.json"
# A file of 22,000 names has 1 MB. What is larger is something else, a model for one.
LARGEST_BYTES = 32 << 20
FORMS = (
    'one name a line; CSV with a name column and, if need be, an index column; or JSON: ["cat", "dog"], {"0": "cat", '
    '"1": "dog"} or {"cat": 0, "dog": 1}, also under id2label or class_to_idx'
)
_NAME_COLUMNS = (
    "name",
    "class_name",
    "label_name",
    "class",
    "label",
    "category",
    "description",
    "names",
    "classes",
    "labels",
)
_INDEX_COLUMNS = ("index", "idx", "id", "class_id", "label_id", "class_index", "class_idx", "label_idx", "target", "")
# Control characters, separators of lines and paragraphs, and halves of a character that UTF-8 cannot encode.
_UNPRINTABLE = ("Cc", "Zl", "Zp", "Cs")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ClassNames:
    """What a file says of the classes.

    Attributes:
        labels: Names for people, in the order of the logits. Two classes may have one name, as ImageNet's cranes have.
        synsets: Other names, which class folders may have instead (ImageNet's ``n01440764``), in the same order; or None.
    """

    labels: tuple[str, ...]
    synsets: tuple[str, ...] | None = None


def read_labels(path: Path, classes: int | None = None) -> tuple[str, ...]:
    """`read_class_names` without the names of folders."""
    return read_class_names(path, classes).labels


def read_class_names(path: Path, classes: int | None = None) -> ClassNames:
    """Class names in the order of the logits.

    Args:
        path: A file in one of `FORMS`; or a folder with a config.json of transformers or timm.
        classes: Width of the logits; None where it is not known.

    Raises:
        InputError: Missing, not UTF-8, empty, in none of `FORMS`, or another number than `classes`; indices that are not
            exactly 0 to n - 1; a name that is empty or holds control characters.
    """
    if path.is_dir():
        if not (path / CONFIG).is_file():
            raise InputError(f"Labels folder {path} has no {CONFIG}; give a file with {FORMS}.")
        path /= CONFIG
    text = _read_text(path)
    if not text.strip():
        raise InputError(f"Labels file {path} is empty; expected {FORMS}.")
    if text.lstrip()[0] in "{[":
        names = _from_json(path, text)
    elif path.suffix.lower() == ".json":
        raise InputError(f"Labels file {path} is not JSON: it starts with {text.lstrip()[:20]!r}. Expected {FORMS}.")
    else:
        names = ClassNames(labels=_from_lines(path, text, classes))
    _check(path, names, classes)
    return names


def _read_text(path: Path) -> str:
    try:
        if path.stat().st_size > LARGEST_BYTES:
            raise InputError(f"Labels file {path} has {path.stat().st_size / 1e6:.0f} MB; expected {FORMS}.")
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise InputError(f"Labels file {path} cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError as error:
        raise InputError(f"Labels file {path} is not UTF-8 text: {error}.") from None


def _check(path: Path, names: ClassNames, classes: int | None) -> None:
    if not names.labels:
        raise InputError(f"Labels file {path} holds no names; expected {FORMS}.")
    for index, name in enumerate((*names.labels, *(names.synsets or ()))):
        where = f"Labels file {path}: the name of class {index % len(names.labels)}"
        if not name:
            raise InputError(f"{where} is empty; give every class a name.")
        bad = next((character for character in name if unicodedata.category(character) in _UNPRINTABLE), None)
        if bad is not None:
            raise InputError(f"{where}, {name!r}, holds the control character U+{ord(bad):04X}; remove it.")
    if classes is not None and len(names.labels) != classes:
        raise InputError(f"Labels file {path} has {len(names.labels)} names, but the model has {classes} classes.")


def _from_lines(path: Path, text: str, classes: int | None) -> tuple[str, ...]:
    """Names of a text, CSV or TSV file."""
    # Not splitlines(), which also breaks at control characters.
    lines = [line for line in re.split(r"\r\n|\n|\r", text) if line.strip()]
    suffix = path.suffix.lower()
    if suffix in (".csv", ".tsv"):
        return _from_table(path, _rows(lines, _delimiter(lines, suffix)), classes)
    for delimiter in ("\t", ",", ";"):
        # A name may hold a comma, as ImageNet's do; where an index precedes each, it is a table under another name.
        heads = [line.partition(delimiter) for line in lines]
        body = heads[1:] if heads[0][0].strip().lower() in _INDEX_COLUMNS else heads
        if body and all(separator and _integer(head) is not None for head, separator, _ in body):
            return _from_table(path, _rows(lines, delimiter), classes)
    if (numbered := _numbered(lines)) is not None:
        return numbered
    names = tuple(line.strip() for line in lines)
    if all(name.startswith("- ") for name in names):
        raise InputError(f"Labels file {path} is a YAML list ({names[0]!r}); write the names alone, or a JSON list.")
    _check_not_shuffled(path, names)
    return names


def _numbered(lines: Sequence[str]) -> tuple[str, ...] | None:
    """Names of ``0: cat`` or ``cat,0``, where the numbers are 0 to n - 1; None for anything else."""
    for pattern, number, name in ((r"\s*(\d{1,9})\s*:\s+(.+)", 1, 2), (r"(.+?)\s*[,;\t]\s*(\d{1,9})\s*", 2, 1)):
        found = [re.fullmatch(pattern, line) for line in lines]
        names = {int(match[number]): match[name].strip() for match in found if match is not None}
        if sorted(names) == list(range(len(lines))):
            return tuple(names[index] for index in range(len(lines)))
    return None


def _check_not_shuffled(path: Path, names: Sequence[str]) -> None:
    """Refuse ``1 dog``, ``0 cat`` and ``dog 1``, ``cat 0``: indices that state another order than the lines."""
    tails = [re.search(r"[\s,;:=](\d{1,9})$", name) for name in names]
    behind = [int(tail[1]) for tail in tails if tail is not None]
    # "class 0", "class 1" … are names.
    if sorted(behind) == list(range(len(names))) and behind != sorted(behind):
        raise InputError(
            f"Labels file {path} has an index behind each name ({names[0]}), and not in rising order; write it as CSV with "
            "the columns name and index."
        )
    heads = [re.match(r"(\d{1,9})[\s:.)]", name) for name in names]
    numbers = [int(head[1]) for head in heads if head is not None]
    if len(numbers) == len(names) and numbers != sorted(numbers) and sorted(numbers) == list(range(len(names))):
        raise InputError(
            f"Labels file {path} has an index in front of each name, and not in rising order; write it as CSV: index,name."
        )


def _delimiter(lines: Sequence[str], suffix: str) -> str:
    if suffix == ".tsv" or all("\t" in line for line in lines):
        return "\t"
    # Spreadsheets of half of Europe separate by semicolons.
    return ";" if "," not in lines[0] and ";" in lines[0] else ","


def _rows(lines: Sequence[str], delimiter: str) -> list[list[str]]:
    rows = csv.reader(lines, delimiter=delimiter, skipinitialspace=True)
    return [[cell.strip() for cell in row] for row in rows]


def _from_table(path: Path, rows: Sequence[Sequence[str]], classes: int | None) -> tuple[str, ...]:
    width = len(rows[0])
    for number, row in enumerate(rows, 1):
        if len(row) != width:
            raise InputError(
                f"Labels file {path}: row {number} has {len(row)} columns and the first has {width}; "
                "put names that hold the separator into quotes."
            )
    header = [cell.lower() for cell in rows[0]]
    if width == 1:
        # A class may be called label: it is a header only where one row too many is there, or nobody knows.
        is_header = header[0] in _NAME_COLUMNS and len(rows) > 1 and classes != len(rows)
        return tuple(row[0] for row in rows[is_header:])
    index, name, has_header = _columns(path, rows, header)
    body = rows[has_header:]
    if index is None:
        return tuple(row[name] for row in body)
    return _in_order(path, [(row[index], row[name]) for row in body])


def _columns(path: Path, rows: Sequence[Sequence[str]], header: Sequence[str]) -> tuple[int | None, int, bool]:
    """Which column holds the index, if any, which the name, and whether the first row is a header."""
    columns = range(len(header))
    integers = [column for column in columns if all(_integer(row[column]) is not None for row in rows[1:])]
    # Of two columns that may be the name, the one that is not a number.
    named = sorted((header.index(known) for known in _NAME_COLUMNS if known in header), key=integers.__contains__)
    numbered = [header.index(known) for known in _INDEX_COLUMNS if known in header]
    if (named or (numbered and len(header) == 2)) and all(_integer(cell) is None for cell in header):
        name = named[0] if named else 1 - numbered[0]
        index = [column for column in (*numbered, *integers) if column != name]
        if len(header) > 2 and not numbered:
            index = [column for column in index if _is_numbering(rows[1:], column)]
        return index[0] if index else None, name, True
    whole = [column for column in integers if _integer(rows[0][column]) is not None]
    if len(whole) == 2:
        whole = [column for column in whole if _is_numbering(rows, column)]
    if len(header) == 2 and len(whole) == 1:
        return whole[0], 1 - whole[0], False
    raise InputError(
        f"Labels file {path} has {len(header)} columns, and which of them are index and name is not clear; "
        "give them the header index,name."
    )


def _is_numbering(rows: Sequence[Sequence[str]], column: int) -> bool:
    numbers = [_integer(row[column]) for row in rows]
    return None not in numbers and sorted(number for number in numbers if number is not None) == list(range(len(rows)))


def _from_json(path: Path, text: str) -> ClassNames:
    doubled: list[str] = []

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        doubled.extend(key for key, count in Counter(key for key, _ in items).items() if count > 1)
        return dict(items)

    try:
        data = json.loads(text, object_pairs_hook=pairs)
    except (ValueError, RecursionError) as error:
        first = text.lstrip()[0]
        raise InputError(
            f"Labels file {path} starts with {first} as JSON does, and is not valid JSON: {error}. Expected {FORMS}."
        ) from None
    if doubled:
        raise InputError(f"Labels file {path} has the key {doubled[0]!r} more than once.")
    if isinstance(data, list):
        return ClassNames(labels=_from_list(path, data))
    return _from_object(path, data)


def _from_list(path: Path, data: Sequence[Any]) -> tuple[str, ...]:
    if not data:
        raise InputError(f"Labels file {path} holds an empty list; expected {FORMS}.")
    return tuple(_name(path, value, index) for index, value in enumerate(data))


def _name(path: Path, value: Any, index: int) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str):
        raise InputError(f"Labels file {path}: the name of class {index} is {json.dumps(value)[:60]}, not a text.")
    return value.strip()


def _from_object(path: Path, data: Mapping[str, Any]) -> ClassNames:
    """Names of a JSON object: a mapping itself, or a configuration that holds one."""
    holders = [data]
    if isinstance(nested := data.get("pretrained_cfg"), dict):
        holders.append(nested)
    found: dict[str, ClassNames] = {}
    for holder in holders:
        for key, read in _KEYS.items():
            if holder.get(key):
                found.setdefault(key, read(path, holder, key))
    if not found:
        known = [*_KEYS, "pretrained_cfg"]
        if any(key in data for key in known) or any(isinstance(value, dict) for value in data.values()):
            raise InputError(f"{path} names no classes: none of {', '.join(_KEYS)} is in it. Give a file with {FORMS}.")
        return ClassNames(labels=_from_mapping(path, data))
    return _agreed(path, found)


def _agreed(path: Path, found: Mapping[str, ClassNames]) -> ClassNames:
    """The one order that all of `found` state."""
    first, *others = found
    order = found[first].synsets or found[first].labels
    for other in others:
        if (found[other].synsets or found[other].labels) != order:
            raise InputError(
                f"{path}: {first} and {other} name the classes in different orders; give a file with one of them."
            )
    return next((names for names in found.values() if names.synsets), found[first])


def _mapped(path: Path, holder: Mapping[str, Any], key: str) -> ClassNames:
    value = holder[key]
    if isinstance(value, list):
        return ClassNames(labels=_from_list(path, value))
    if not isinstance(value, dict):
        raise InputError(f"{path}: {key} is {json.dumps(value)[:60]}; expected a list or an object.")
    return ClassNames(labels=_from_mapping(path, value))


def _described(path: Path, holder: Mapping[str, Any], key: str) -> ClassNames:
    """Names as timm keeps them: label_names for folders, and label_descriptions for people."""
    names = _mapped(path, holder, key).labels
    descriptions = holder.get("label_descriptions")
    if not descriptions:
        return ClassNames(labels=names)
    if isinstance(descriptions, list) and len(descriptions) == len(names):
        return ClassNames(labels=_from_list(path, descriptions), synsets=names)
    if not isinstance(descriptions, dict):
        raise InputError(f"{path}: label_descriptions is neither an object nor a list of {len(names)} names.")
    labels = tuple(_name(path, descriptions.get(name, name), index) for index, name in enumerate(names))
    return ClassNames(labels=labels, synsets=names)


_KEYS = {
    "id2label": _mapped,
    "idx_to_class": _mapped,
    "class_to_idx": _mapped,
    "label2id": _mapped,
    "label_names": _described,
    "labels": _mapped,
    "classes": _mapped,
    "names": _mapped,
}


def _from_mapping(path: Path, data: Mapping[str, Any]) -> tuple[str, ...]:
    """Names of {index: name} or {name: index}: numbers are indices, texts are names."""
    if not data:
        raise InputError(f"Labels file {path} holds an empty object; expected {FORMS}.")
    if all(isinstance(value, (int, float)) for value in data.values()):
        return _in_order(path, [(value, key) for key, value in data.items()])
    # Keras's imagenet_class_index.json has [synset, name] for a name.
    values = {key: value[1] if isinstance(value, list) and len(value) == 2 else value for key, value in data.items()}
    return _in_order(path, list(values.items()))


def _in_order(path: Path, pairs: Sequence[tuple[Any, Any]]) -> tuple[str, ...]:
    """Names by index; the indices must be exactly 0 to n - 1."""
    names: dict[int, str] = {}
    for key, value in pairs:
        index = _integer(key)
        if index is None:
            raise InputError(f"Labels file {path}: {key!r} is not the index of a class. Expected {FORMS}.")
        if index in names:
            raise InputError(f"Labels file {path}: index {index} is there twice, for {names[index]!r} and {value!r}.")
        names[index] = _name(path, value, index)
    missing = [index for index in range(len(names)) if index not in names]
    if missing:
        start = "they start at 1 and must start at 0" if min(names) == 1 else f"index {missing[0]} is missing"
        raise InputError(
            f"Labels file {path} has {len(names)} indices, {min(names)} to {max(names)}, and must have 0 to "
            f"{len(names) - 1}: {start}."
        )
    return tuple(names[index] for index in range(len(names)))


def _integer(value: Any) -> int | None:
    """A whole number of 0 or more, as JSON or text writes it; None for anything else."""
    if isinstance(value, bool):
        return None
    if isinstance(value, int):
        return value if value >= 0 else None
    text = value.strip() if isinstance(value, str) else ""
    return int(text) if text.isascii() and text.isdigit() and len(text) < 10 else None
