"""Input: checks, measurements and stage costs; output: a `Report` with one verdict, as JSON and as Markdown."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, cast

from vitexport import notebook
from vitexport.errors import EXIT_CHECK_FAILED, EXIT_OK

Status = Literal["passed", "failed", "skipped"]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One thing that was asked of the result, and the answer.

    Attributes:
        name: Stable identifier, for example ``export_parity``.
        status: ``skipped`` means that it could not run here; `message` then gives the reason.
        message: One sentence a person can act on, with the figure in it.
        measured: The figure in `unit`, where there is one.
        limit: What `measured` was checked against, in the same unit.
        unit: ``points``, ``percent``, ``dB``, ``ratio``, or empty.
    """

    name: str
    status: Status
    message: str
    measured: float | None = None
    limit: float | None = None
    unit: str = ""

    def __post_init__(self) -> None:
        if self.status not in ("passed", "failed", "skipped"):
            raise ValueError(f"status of check {self.name} is {self.status!r}; expected passed, failed or skipped")


def skipped(name: str, reason: str) -> Check:
    """A check that could not run here, with its reason."""
    return Check(name=name, status="skipped", message=reason)


def at_most(name: str, measured: float, limit: float, message: str, unit: str = "") -> Check:
    """Passed if `measured` <= `limit`; a NaN fails."""
    status: Status = "passed" if measured <= limit else "failed"
    return Check(name=name, status=status, message=message, measured=measured, limit=limit, unit=unit)


def at_least(name: str, measured: float, limit: float, message: str, unit: str = "") -> Check:
    """Passed if `measured` >= `limit`; a NaN fails."""
    status: Status = "passed" if measured >= limit else "failed"
    return Check(name=name, status=status, message=message, measured=measured, limit=limit, unit=unit)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class StageCost:
    """What one stage took: wall-clock `seconds`, and the process's peak resident memory in MiB while it ran."""

    name: str
    seconds: float
    peak_mib: float | None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """Everything that was found out about one bundle on one machine.

    Attributes:
        title: What the report is about, for example ``vit_small_patch16_224 · int8 · NVIDIA L4``.
        checks: In the order in which they ran.
        measurements: Figures by topic (``accuracy``, ``latency``, ``size`` …), JSON values only.
        stages: Cost of each build stage; empty for a report made on a device.
        machine: Where this was measured: processor, threads, clocks, library versions.
        notes: Sentences the reader needs to interpret the figures.
    """

    title: str
    checks: tuple[Check, ...]
    measurements: Mapping[str, Any]
    machine: Mapping[str, Any]
    stages: tuple[StageCost, ...] = ()
    notes: tuple[str, ...] = ()

    def count(self, status: Status) -> int:
        """Number of checks with `status`."""
        return sum(check.status == status for check in self.checks)

    @property
    def verdict(self) -> Literal["passed", "failed"]:
        """``failed`` if any check failed; skipped checks are counted beside it, never as passed."""
        return "failed" if self.count("failed") else "passed"

    @property
    def exit_code(self) -> int:
        """0, or 1 when a check failed."""
        return EXIT_CHECK_FAILED if self.verdict == "failed" else EXIT_OK

    @property
    def summary(self) -> str:
        """For example ``7 passed, 0 failed, 2 skipped``."""
        return ", ".join(f"{self.count(status)} {status}" for status in ("passed", "failed", "skipped"))

    def to_json(self) -> dict[str, Any]:
        """The report as plain JSON values; `from_json` reads it back. NaN and infinity, which JSON lacks, become null."""
        data: dict[str, Any] = _finite({"verdict": self.verdict, **dataclasses.asdict(self)})
        return data

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Report:
        """Read what `to_json` wrote.

        Raises:
            KeyError, TypeError: `data` is not a report.
        """
        return cls(
            title=str(data["title"]),
            checks=tuple(Check(**check) for check in data["checks"]),
            measurements=cast(Mapping[str, Any], data["measurements"]),
            machine=cast(Mapping[str, Any], data["machine"]),
            stages=tuple(StageCost(**stage) for stage in data["stages"]),
            notes=tuple(data["notes"]),
        )

    def _repr_html_(self) -> str:
        """How a notebook shows it: the verdict, the checks and the notes."""
        rows = [(check.name, check.status, check.message, _limit(check)) for check in self.checks]
        checks = notebook.table(("check", "result", "what was found", "limit"), rows)
        verdict = f"{self.title}: {self.verdict}, {self.summary}"
        return notebook.heading(verdict) + checks + notebook.notes(self.notes)

    def to_markdown(self) -> str:
        """The report as a page for people."""
        parts = [
            f"# {self.title}",
            f"**{self.verdict}**: {self.summary}",
            _table(
                ("check", "result", "what was found", "limit"),
                [(check.name, check.status, check.message, _limit(check)) for check in self.checks],
            ),
        ]
        if latency := self.measurements.get("latency"):
            rows = latency_rows(latency, self.measurements.get("others_percent"))
            parts += ["## Latency", _table(LATENCY_COLUMNS, rows)]
        if estimate := self.measurements.get("estimate"):
            rows = estimate_rows(estimate, measured(self.measurements))
            parts += ["## Estimate", _table(ESTIMATE_COLUMNS, rows)]
        if size := self.measurements.get("size"):
            rows = [(name.removesuffix("_bytes"), f"{value / 2**20:.2f} MiB") for name, value in size.items()]
            parts += ["## Size", _table(("file", "size"), rows)]
        if candidates := self.measurements.get("candidates"):
            parts += _against_pytorch(candidates, output_figures(self.measurements))
        if layers := self.measurements.get("layers"):
            cells = [
                (name, f"{row['own_db']:.1f}", _number(row["strength"], "g"), str(row["precision"]))
                for name, row in layers.items()
            ]
            parts += ["## Layers, the most sensitive first", _table(LAYER_COLUMNS, cells)]
        if blocks := self.measurements.get("blocks"):
            parts += ["## What TensorRT made of the blocks", _table(BLOCK_COLUMNS, block_rows(blocks))]
        if self.notes:
            parts += ["## Notes", "\n".join(f"- {note}" for note in self.notes)]
        if self.stages:
            costs = [
                (stage.name, f"{stage.seconds:.1f} s", f"{stage.peak_mib:.0f} MiB" if stage.peak_mib else "not known")
                for stage in self.stages
            ]
            parts += ["## Cost of the build", _table(("stage", "time", "peak memory"), costs)]
        machine = [(key.replace("_", " "), _plain(value)) for key, value in self.machine.items()]
        parts += ["## Machine", _table(("what", "value"), machine)]
        return "\n\n".join(parts) + "\n"


# What other processes take above this share distorts ratios: PyTorch's OpenMP threads wait by spinning.
BUSY_PERCENT = 15.0
# The row of a bench that holds the GPU's own time.
GPU_TIME = ("shipped", "gpu")
LATENCY_COLUMNS = ("what", "p50 ms", "p90 ms", "p99 ms", "images/s", "against PyTorch", "runtime")
BLOCK_COLUMNS = ("block", "attention", "linear layers", "reformats")
ESTIMATE_COLUMNS = (
    *("estimate", "at least, ms", "measured p50, ms", "batch", "bound by arithmetic", "GFLOP", "of it INT8"),
    "weights MiB",
)
LAYER_COLUMNS = ("layer", "SQNR of its own output, dB", "equalization strength", "ships in")
OUTPUT_COLUMNS = ("precision", "output", "cosine", "SQNR dB")
# Header and figure of a candidate's row, with how it is written; each task has some of them.
_CANDIDATE_FIGURES = (
    ("top-1 %", "candidate_top1", ".2f"),
    ("accuracy %", "candidate_accuracy", ".2f"),
    ("drop, points", "drop", "+.2f"),
    ("agreement %", "agreement_percent", ".2f"),
    ("same sign %", "sign_agreement_percent", ".2f"),
    ("mAP %", "candidate_map", ".2f"),
    ("drop of mAP, points", "map_drop", "+.2f"),
    ("micro F1 %", "candidate_f1_micro", ".2f"),
    ("macro F1 %", "candidate_f1_macro", ".2f"),
    ("same labels %", "label_agreement_percent", ".2f"),
    ("growth of mean error, %", "error_increase_percent", "+.2f"),
    ("deviation, % of spread", "deviation_percent", ".2f"),
    ("SQNR dB", "sqnr_db", ".1f"),
    ("cosine", "cosine", ".6f"),
)
CANDIDATE_COLUMNS = ("precision", *(header for header, _, _ in _CANDIDATE_FIGURES), "images")
VALUE_COLUMNS = (
    "precision",
    "value",
    *(f"{name}{of}" for name in ("mean error", "largest error", "R²") for of in ("", ", PyTorch")),
)


def latency_rows(latency: Mapping[str, Mapping[str, Any]], others_percent: float | None = None) -> list[tuple[str, ...]]:
    """Rows of `LATENCY_COLUMNS`, PyTorch first; the ratio is that of the medians, and marked if the machine was busy."""
    mark = " x (busy)" if is_busy(others_percent) else " x"
    base = latency.get("pytorch", {}).get("p50_ms")
    return [
        (
            name,
            f"{row['p50_ms']:.2f}",
            f"{row['p90_ms']:.2f}",
            f"{row['p99_ms']:.2f}",
            f"{row['images_per_second']:.1f}",
            f"{base / row['p50_ms']:.2f}{mark}" if base else "",
            str(row.get("runtime", "")),
        )
        for name, row in latency.items()
    ]


def is_busy(others_percent: float | None) -> bool:
    """Whether other processes took so much of the processors that latencies and their ratios are not to be quoted."""
    return others_percent is not None and others_percent > BUSY_PERCENT


def measured(measurements: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """What was timed, by precision, with ``p50_ms`` and ``batch``: by the build, or on the device by ``bench``."""
    found: dict[str, Mapping[str, Any]] = dict(measurements.get("latency") or {})
    bench = measurements.get("bench")
    if bench:
        # The GPU's own time is what a roofline speaks of; with a CUDA graph it holds the fewest gaps.
        timed = [row for row in bench["rows"] if (row["runner"], row["what"]) == GPU_TIME]
        if timed:
            found[str(bench["model"]["precision"])] = min(timed, key=lambda row: float(row["p50_ms"]))
    return found


def estimate_rows(estimate: Mapping[str, Any], latency: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """Rows of `ESTIMATE_COLUMNS`, with what was measured of the same precision and batch beside it."""
    rows: list[tuple[str, ...]] = []
    for name, row in estimate.items():
        if not isinstance(row, Mapping):
            continue
        seen = latency.get(name, {})
        measured = seen.get("p50_ms") if seen.get("batch") == row["batch"] else None
        rows.append(
            (
                name,
                f"{row['seconds'] * 1e3:.3g}",
                _number(measured, ".3g"),
                str(row["batch"]),
                f"{row['bound_by_arithmetic'] * 100:.0f} %",
                f"{row['flops'] / 1e9:.3g}",
                f"{row['int8_share'] * 100:.0f} %",
                f"{row['weight_bytes'] / 2**20:.1f}",
            )
        )
    return rows


def candidate_rows(candidates: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """Rows of `CANDIDATE_COLUMNS`; empty cells where there were no labels, and where the task has another figure."""
    return [
        (name, *(_number(row.get(figure), form) for _, figure, form in _CANDIDATE_FIGURES), str(row["images"]))
        for name, row in candidates.items()
    ]


def value_rows(candidates: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """Rows of `VALUE_COLUMNS`: errors of each value of a regression with targets, in the target's unit."""
    figures = ("mean_error", "largest_error", "r2")
    return [
        (
            precision,
            name,
            *(_number(value[f"{whose}_{figure}"], ".4g") for figure in figures for whose in ("candidate", "reference")),
        )
        for precision, row in candidates.items()
        for name, value in row.get("values", {}).items()
    ]


def _against_pytorch(candidates: Mapping[str, Mapping[str, Any]], outputs: list[tuple[str, ...]]) -> list[str]:
    """Tables of the report's page."""
    parts = ["## Against PyTorch", _table(*filled(CANDIDATE_COLUMNS, candidate_rows(candidates)))]
    if values := value_rows(candidates):
        parts += ["## Errors in the unit of the target", _table(VALUE_COLUMNS, values)]
    if len(outputs) > len(candidates):
        parts += ["## Each output against PyTorch", _table(OUTPUT_COLUMNS, outputs)]
    return parts


def filled(header: Sequence[str], rows: Sequence[tuple[str, ...]]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Header and rows without the columns that are empty throughout."""
    kept = [index for index in range(len(header)) if any(row[index] for row in rows)]
    return tuple(header[index] for index in kept), [tuple(row[index] for index in kept) for row in rows]


def output_figures(measurements: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Rows of `OUTPUT_COLUMNS`: each output of each candidate."""
    return [
        (precision, name, _number(figures.get("cosine"), ".6f"), _number(figures.get("sqnr_db"), ".1f"))
        for precision, row in measurements.get("candidates", {}).items()
        for name, figures in row.get("outputs", {}).items()
    ]


def block_rows(blocks: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """Rows of `BLOCK_COLUMNS`; neighbours of which the same is to be said share one."""
    rows: list[tuple[str, str, tuple[str, ...]]] = []
    for name, block in blocks.items():
        linear = "; ".join(f"{precision} {', '.join(modules)}" for precision, modules in block["linear"].items())
        cells = (str(block["attention"]), linear, str(block["reformats"]))
        if rows and name and rows[-1][2] == cells:
            rows[-1] = (rows[-1][0], name, cells)
        else:
            rows.append((name or "elsewhere", "", cells))
    return [(f"{first} … {last}" if last else first, *cells) for first, last, cells in rows]


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return value


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def _limit(check: Check) -> str:
    return "" if check.limit is None else f"{check.limit:g} {check.unit}".strip()


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {item}" for key, item in value.items())
    return ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def _table(header: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    """A Markdown table; a bar in a cell would end the cell, and a line break the row."""
    lines = [header, tuple("---" for _ in header), *rows]
    return "\n".join("| " + " | ".join(" ".join(cell.split()).replace("|", "\\|") for cell in line) + " |" for line in lines)
