"""Input: two measurements of a model; output: a table side by side, and what makes their figures not comparable.

A measurement is the document of ``vitexport bench -o``, any report that holds one (``vitexport bench --json``, an engine's
``report.json``), or a bundle, whose build timed what it could.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from vitexport.bundle import MANIFEST, REPORT, open_bundle
from vitexport.errors import InputError
from vitexport.report import Report
from vitexport.validate.bench import subject
from vitexport.validate.bench_table import (
    FIGURES,
    FORMAT,
    FORMAT_VERSION,
    NOT_KNOWN,
    PYTORCH,
    SHIPPED,
    WHATS,
    facts,
    graph_words,
    milliseconds,
)

# Larger files are none of ours, and are not read.
MOST_BYTES = 64 << 20


@dataclasses.dataclass(frozen=True, slots=True, order=True)
class Cell:
    """What one row of figures is of.

    Attributes:
        runner: ``shipped``, or what was timed beside it.
        batch: Images a call.
        what: ``gpu``, ``run`` or ``end_to_end``.
        graph: Whether a CUDA graph was replayed; a CPU has none, and is checked against a GPU without one.
    """

    runner: str
    batch: int
    what: str
    graph: bool


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One measurement.

    Attributes:
        path: Where it was read.
        model: What was measured, as `bench.subject` describes it.
        facts: What else tells it from another, by name, in words: device, runtime, clocks, accuracy …
        rows: p50, p90 and p99 in milliseconds.
        cautions: Sentences that speak against quoting it, from its own run.
    """

    path: Path
    model: Mapping[str, Any]
    facts: Mapping[str, str]
    rows: Mapping[Cell, Mapping[str, float]]
    cautions: tuple[str, ...]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Two measurements side by side.

    Attributes:
        first, second: A and B.
        obstacles: Why their figures are not comparable, as sentences; empty if nothing speaks against it.
    """

    first: Measured
    second: Measured
    obstacles: tuple[str, ...]

    @property
    def cells(self) -> tuple[Cell, ...]:
        """Every row of either side: what ships first, then by batch, and in the order of `WHATS`."""
        order = list(WHATS)
        return tuple(
            sorted(
                {*self.first.rows, *self.second.rows},
                key=lambda cell: (cell.runner != SHIPPED, cell.runner, cell.batch, order.index(cell.what), cell.graph),
            )
        )

    @property
    def unknown(self) -> tuple[str, ...]:
        """What neither side knows of itself."""
        names = dict.fromkeys((*self.first.facts, *self.second.facts))
        return tuple(
            name for name in names if {side.facts.get(name, NOT_KNOWN) for side in (self.first, self.second)} == {NOT_KNOWN}
        )

    def ratio(self, cell: Cell, figure: str) -> float | None:
        """B / A of one figure: less than 1 where B is faster; None where one side has none."""
        sides = [side.rows.get(cell) for side in (self.first, self.second)]
        return None if None in sides else sides[1][figure] / sides[0][figure]  # type: ignore[index]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "comparable": not self.obstacles,
            "obstacles": list(self.obstacles),
            "unknown": list(self.unknown),
            **{
                name: {"path": str(side.path), "model": dict(side.model), "facts": dict(side.facts)}
                for name, side in (("a", self.first), ("b", self.second))
            },
            "rows": [
                {
                    **dataclasses.asdict(cell),
                    "a": dict(self.first.rows[cell]) if cell in self.first.rows else None,
                    "b": dict(self.second.rows[cell]) if cell in self.second.rows else None,
                    "b_over_a": {figure: self.ratio(cell, figure) for figure in FIGURES},
                }
                for cell in self.cells
            ],
        }


def compare(first: Path, second: Path) -> Comparison:
    """Read two measurements and hold them side by side.

    Raises:
        InputError: One of them cannot be read or is none.
    """
    one, two = read_measured(first), read_measured(second)
    return Comparison(first=one, second=two, obstacles=tuple(_obstacles(one, two)))


COMPARE_COLUMNS = (
    *("what", "time", "batch", "CUDA graph", "A p50 ms", "p90", "p99", "B p50 ms", "p90", "p99", "B / A p50", "p99"),
)


def compare_rows(comparison: Comparison) -> list[tuple[str, ...]]:
    """Rows of `COMPARE_COLUMNS`; a side that was not timed so has empty cells, and the row no ratio."""
    rows = []
    graphs = any(cell.graph for cell in comparison.cells)
    for cell in comparison.cells:
        sides = [side.rows.get(cell) for side in (comparison.first, comparison.second)]
        times = ["" if side is None else milliseconds(side[figure]) for side in sides for figure in FIGURES]
        ratios = [comparison.ratio(cell, figure) for figure in ("p50_ms", "p99_ms")]
        shown = ["" if ratio is None else f"{ratio:.2f} x" for ratio in ratios]
        rows.append(
            (cell.runner, WHATS[cell.what], str(cell.batch), graph_words(cell.graph if graphs else None), *times, *shown)
        )
    return rows


def compare_facts(comparison: Comparison) -> list[tuple[str, str, str]]:
    """What the two are, by name; where they agree both sides say so."""
    one, two = comparison.first, comparison.second
    models = [" · ".join(dict.fromkeys((side.model["name"], side.model["weights"]))) for side in (one, two)]
    weights, inputs = ([_short(side.model[key]) for side in (one, two)] for key in ("weights_sha256", "input"))
    names = [name for name in dict.fromkeys((*one.facts, *two.facts)) if name not in comparison.unknown]
    return [
        ("file", str(one.path), str(two.path)),
        ("model", models[0], models[1]),
        ("weights sha256", weights[0], weights[1]),
        ("input", inputs[0], inputs[1]),
        *((name, one.facts.get(name, NOT_KNOWN), two.facts.get(name, NOT_KNOWN)) for name in names),
    ]


def _obstacles(one: Measured, two: Measured) -> Iterator[str]:
    for key, what in (("name", "models"), ("weights_sha256", "weights"), ("input", "input sizes"), ("outputs", "outputs")):
        sides = [_short(side.model[key]) for side in (one, two)]
        if one.model[key] != two.model[key]:
            yield f"The {what} differ: A has {sides[0]}, B has {sides[1]}."
    for side, name in ((one, "A"), (two, "B")):
        if not side.rows:
            yield f"{name} holds no latency; measure it with vitexport bench -o FILE.json."
        yield from (f"{name}: {caution}" for caution in side.cautions)
    if one.rows and two.rows:
        for runner in sorted({cell.runner for cell in one.rows} & {cell.runner for cell in two.rows}, reverse=True):
            batches = [sorted({cell.batch for cell in side.rows if cell.runner == runner}) for side in (one, two)]
            if batches[0] != batches[1]:
                sizes = [", ".join(map(str, sorted(batch))) for batch in batches]
                yield f"The batches of {runner} differ: A was timed at {sizes[0]}, B at {sizes[1]}."
        if not one.rows.keys() & two.rows.keys():
            yield "No row of A has its like in B: nothing was timed in the same way on both."


def _short(value: Any) -> str:
    """A sha256 by its beginning; shapes by their sizes."""
    if isinstance(value, Mapping):
        return ", ".join(f"{name} [{', '.join(map(str, shape))}]" for name, shape in value.items())
    if isinstance(value, Sequence) and not isinstance(value, str):
        return " x ".join(map(str, value))
    return f"{value[:16]}…" if len(value) == 64 else str(value)


# ---- reading


def read_measured(path: Path) -> Measured:
    """Read a document of ``vitexport bench``, a report that holds one, or a bundle or an engine's folder.

    Raises:
        InputError: It cannot be read, or is none of these; the message says what it is.
    """
    try:
        if path.is_dir() and (path / MANIFEST).is_file():
            return _of_bundle(path)
        file = path / REPORT if path.is_dir() else path
        if path.is_dir() and not file.is_file():
            raise InputError(
                f"{path} is a folder, but neither a bundle nor an engine in one: it has no {MANIFEST} or {REPORT}."
            )
        if file.name == REPORT and (file.parent / MANIFEST).is_file():
            return _of_bundle(file.parent)
        data = _json(file)
        if data.get("format") == FORMAT:
            return _of_document(path, data, {})
        if isinstance(data.get("measurements"), dict) and "checks" in data:
            return _of_report(path, data)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise InputError(
            f"{path} is damaged: it is not what vitexport bench writes ({type(error).__name__}: {error})."
        ) from None
    raise InputError(
        f"{path} is no measurement; give a file of vitexport bench -o, a bundle, or the report.json of an engine in one."
    )


def _json(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > MOST_BYTES:
            raise InputError(f"{path} has {path.stat().st_size >> 20} MiB; a measurement of vitexport is far smaller.")
        data = json.loads(path.read_bytes().decode("utf-8"))
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}.") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not a JSON document: {str(error)[:200]}.") from None
    if not isinstance(data, dict):
        raise InputError(f"{path} is JSON, but no measurement of vitexport.")
    return data


def _of_document(path: Path, data: Mapping[str, Any], measured: Mapping[str, Any]) -> Measured:
    """Of a bench document; accuracy as `measured` on the device, else as built."""
    version = data["format_version"]
    if version != FORMAT_VERSION:
        raise InputError(
            f"{path} has format {str(version)[:20]}; this vitexport reads {FORMAT_VERSION}. "
            "Measure again with this one, or upgrade it."
        )
    found: dict[str, str | None] = {
        "runtime": _words(data["runtime"]),
        "precision": _words(data["model"]["precision"]),
        **{name: _words(value) for name, value in facts(data, reasons=False).items()},
        **_quality(measured or dict(data["built"]), "" if measured else " at build"),
        "measured": _words(data["date"]),
    }
    return Measured(
        path=path,
        model=_model(data["model"]),
        facts={name: text for name, text in found.items() if text},
        rows=dict(_row(row) for row in data["rows"]),
        cautions=tuple(_words(caution["message"]) for caution in data["cautions"]),
    )


def _of_report(path: Path, data: Mapping[str, Any]) -> Measured:
    measured = data["measurements"]
    if "bench" in measured:
        return _of_document(
            path, measured["bench"], {key: measured[key] for key in ("accuracy", "golden") if measured.get(key)}
        )
    bundle = next((parent for parent in path.absolute().parents if (parent / MANIFEST).is_file()), None)
    if bundle is None:
        raise InputError(f"{path} holds no latency, and no bundle is around it; give a file of vitexport bench -o.")
    model = subject(open_bundle(bundle).manifest)
    return _of_plain(path, model, Report.from_json({key: value for key, value in data.items() if key != "verdict"}))


def _of_bundle(path: Path) -> Measured:
    bundle = open_bundle(path)
    return _of_plain(path, subject(bundle.manifest), bundle.report())


def _of_plain(path: Path, model: Mapping[str, Any], report: Report) -> Measured:
    """Of a build's report: latencies that were taken in turn in one run, or none."""
    latency = report.measurements.get("latency", {})
    rows, runtime = {}, None
    for name, figures in latency.items():
        runner = {"pytorch": PYTORCH, model["precision"]: SHIPPED}.get(name, name)
        cell, values = _row({"runner": runner, "what": "run", "cuda_graph": None, **figures})
        rows[cell] = values
        if runner == SHIPPED:
            runtime = figures.get("runtime")
    machine = report.machine
    clocks = [int(value) for value in machine.get("clock_mhz", [])]
    found: dict[str, str | None] = {
        "device": _words(machine.get("gpu") or machine.get("cpu")),
        "runtime": _words(runtime or report.measurements.get("runtime")),
        "precision": _words(model["precision"]),
        "power mode": f"governor {machine['governor']}" if machine.get("governor") else None,
        "clock": f"{max(clocks)} MHz" if clocks else None,
        **_quality(report.measurements, ""),
    }
    busy = [note for note in report.notes if "busy machine" in note]
    return Measured(
        path=path,
        model=_model(model),
        facts={name: text for name, text in found.items() if text},
        rows=rows,
        cautions=tuple(busy),
    )


def _model(data: Mapping[str, Any]) -> dict[str, Any]:
    """What two runs must agree in, and of its type."""
    texts = {key: data[key] for key in ("name", "weights", "weights_sha256", "precision", "target")}
    if not all(isinstance(value, str) for value in texts.values()):
        raise TypeError("a text of the model is none")
    outputs = {str(name): [int(size) for size in shape] for name, shape in data["outputs"].items()}
    return {**texts, "input": [int(size) for size in data["input"]], "outputs": outputs}


def _row(row: Mapping[str, Any]) -> tuple[Cell, dict[str, float]]:
    graph, what, batch = row["cuda_graph"], row["what"], row["batch"]
    if what not in WHATS or graph not in (None, True, False) or type(batch) is not int or batch < 1:
        raise ValueError(f"a row is of {what!r} at batch {batch!r}")
    values = {figure: float(row[figure]) for figure in FIGURES}
    if not all(math.isfinite(value) and value > 0 for value in values.values()):
        raise ValueError(f"a latency is {values}")
    return Cell(str(row["runner"]), batch, what, graph is True), values


def _words(value: Any) -> str:
    return " ".join(str(value or "").split())[:400]


def _quality(measured: Mapping[str, Any], when: str) -> dict[str, str | None]:
    """Accuracy and golden figures, where there are any."""
    accuracy, golden = measured.get("accuracy") or {}, measured.get("golden") or {}
    top1 = accuracy.get("top1", accuracy.get("candidate_top1"))
    images = accuracy.get("images")
    outputs = golden.get("outputs") or {}
    figures = [f"{name} {float(row['sqnr_db']):.1f} dB" for name, row in outputs.items() if row.get("sqnr_db") is not None]
    agreement = golden.get("agreement_percent")
    return {
        "top-1": None if top1 is None else f"{float(top1):.2f} %{when}" + (f" on {int(images)} images" if images else ""),
        "golden SQNR": f"{', '.join(figures)}{when}" if figures else None,
        "golden top-1 as PyTorch": None if agreement is None else f"{float(agreement):.2f} %{when}",
        **_answers(accuracy, golden, when),
    }


def _answers(accuracy: Mapping[str, Any], golden: Mapping[str, Any], when: str) -> dict[str, str | None]:
    """The same of the tasks that have no top-1."""
    found = {
        "accuracy": accuracy.get("accuracy", accuracy.get("candidate_accuracy")),
        "mAP": accuracy.get("map", accuracy.get("candidate_map")),
        "golden sign as PyTorch": golden.get("sign_agreement_percent"),
        "golden labels as PyTorch": golden.get("label_agreement_percent"),
        "golden deviation from PyTorch": golden.get("deviation_percent"),
    }
    return {name: f"{float(value):.2f} %{when}" for name, value in found.items() if value is not None}
