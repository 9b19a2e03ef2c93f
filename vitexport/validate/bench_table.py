"""Input: the document of ``vitexport bench``; output: the words and rows that people read of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

FORMAT = "vitexport bench"
FORMAT_VERSION = 1
SHIPPED = "shipped"
PYTORCH = "PyTorch fp32"
NOT_KNOWN = "not known"
FIGURES = ("p50_ms", "p90_ms", "p99_ms")
# What is timed, in the order of the tables, and how people call it.
WHATS = {"gpu": "GPU", "run": "run", "end_to_end": "end to end"}
BENCH_COLUMNS = (
    *("what", "time", "batch", "CUDA graph", "p50 ms", "p90 ms", "p99 ms", "images/s", "against PyTorch", "runtime"),
)


def bench_rows(document: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Rows of `BENCH_COLUMNS`; the ratio is that of the medians, against float32 at the same batch and of the same time."""
    rows = document["rows"]
    base = {(row["batch"], row["what"]): row["p50_ms"] for row in rows if row["runner"] == PYTORCH}
    shown, said = [], set()
    for row in rows:
        reference = base.get((row["batch"], row["what"]))
        shown.append(
            (
                row["runner"],
                WHATS[row["what"]],
                str(row["batch"]),
                graph_words(row["cuda_graph"]),
                *(milliseconds(row[figure]) for figure in FIGURES),
                f"{row['images_per_second']:.1f}",
                f"{reference / row['p50_ms']:.2f} x" if reference else "",
                "" if row["runtime"] in said else row["runtime"],
            )
        )
        said.add(row["runtime"])
    return shown


def graph_words(graph: bool | None) -> str:  # noqa: FBT001 - a cell of a table
    """Of the column ``CUDA graph``."""
    return "" if graph is None else ("on" if graph else "off")


def facts(document: Mapping[str, Any], *, reasons: bool = True) -> dict[str, str]:
    """What a quoted latency depends on, by name, in words; what is not known says so and, with `reasons`, why."""
    telemetry, machine = document["telemetry"], document["machine"]

    def not_known(name: str) -> str:
        return f"{NOT_KNOWN} ({telemetry['unknown'][name]})" if reasons and name in telemetry["unknown"] else NOT_KNOWN

    mode = telemetry["power_mode"] or not_known("power_mode")
    if telemetry["locked"] is not None:
        mode += ", clocks locked at their maximum" if telemetry["locked"] else ", clocks not locked"
    throttled, others = telemetry["throttled"], document["others_percent"]
    return {
        "device": str(telemetry["device"] or machine.get("cpu") or NOT_KNOWN),
        "power mode": mode,
        "clock": course(telemetry["clock_mhz"], "MHz") or not_known("clock_mhz"),
        "memory clock": course(telemetry["memory_mhz"], "MHz") or not_known("memory_mhz"),
        "temperature": course(telemetry["temperature_c"], "°C") or not_known("temperature_c"),
        "held back": not_known("throttled") if throttled is None else ", ".join(throttled) or "no",
        "other processes": NOT_KNOWN if others is None else f"{others:.0f} % of the processors",
    }


def milliseconds(value: float) -> str:
    """With as many digits behind the point as leave a column narrow: 0.282, 37.03, 757.4."""
    return f"{value:.{3 if value < 10 else 2 if value < 100 else 1}f}"


def course(values: Mapping[str, Any], unit: str) -> str | None:
    """For example ``1980 MHz at work (345 before, 1755 after), limit 1980``; None if it was never seen."""
    known = {name: f"{float(value):g}" for name, value in values.items() if value is not None}
    around = ", ".join(f"{known[name]} {name}" for name in ("before", "after") if name in known)
    limit = f", limit {known['limit']}" if "limit" in known else ""
    if "least" not in known or "most" not in known:
        return f"{around}, in {unit}, not seen at work{limit}" if around else None
    span = known["least"] if known["least"] == known["most"] else f"{known['least']} to {known['most']}"
    return f"{span} {unit} at work{f' ({around})' if around else ''}{limit}"
