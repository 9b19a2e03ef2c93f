"""Input: what a model says of pictures; output: a file of it, in the format that its name asks for."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np

from vitexport.artifacts import Outputs

SUFFIXES = (".npz", ".csv", ".jsonl")
FORMATS = "outputs are written as NumPy arrays (.npz), predictions as a table (.csv) or one JSON object a line (.jsonl)"


def write_predictions(path: Path, rows: Sequence[Mapping[str, Any]], outputs: Outputs) -> None:
    """Write whole or not at all: an older file stays until the new one is complete.

    Args:
        path: Ends in one of `SUFFIXES`.
        rows: As ``--json`` prints them; for ``.csv`` and ``.jsonl``.
        outputs: Arrays by name; for ``.npz``.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        if path.suffix == ".npz":
            arrays: dict[str, Any] = dict(outputs)
            with partial.open("wb") as stream:
                np.savez(stream, **arrays)
        else:
            with partial.open("w", encoding="utf-8", newline="") as text:
                (_write_csv if path.suffix == ".csv" else _write_lines)(text, rows)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _write_lines(stream: IO[str], rows: Sequence[Mapping[str, Any]]) -> None:
    for row in rows:
        stream.write(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n")


def _write_csv(stream: IO[str], rows: Sequence[Mapping[str, Any]]) -> None:
    """One line an object; what is nested gets columns of its own: ``label_1``, ``probability_1``, and so on."""
    flat = [dict(_cells(row)) for row in rows]
    columns = dict.fromkeys(column for row in flat for column in row)
    writer = csv.DictWriter(stream, list(columns), restval="")
    writer.writeheader()
    writer.writerows(flat)


def _cells(row: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for key, value in row.items():
        if isinstance(value, Mapping):
            yield from value.items()
        elif isinstance(value, list) and value and all(isinstance(entry, Mapping) for entry in value):
            for number, entry in enumerate(value, 1):
                yield from ((f"{name}_{number}", cell) for name, cell in entry.items())
        elif isinstance(value, list):
            # A shape, or an empty list of labels.
            yield key, " x ".join(map(str, value))
        else:
            yield key, value
