"""Input: the recorded figures of a run; output: Markdown tables of them, with what they were taken on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

MODEL_HEADER = (
    *("quantizer", "TensorRT", "top-1 %", "agreement %", "SQNR dB"),
    *("degraded: top-1 %", "agreement %", "SQNR dB", "quantize s", "process s", "peak MiB", "file MiB"),
)
COST_HEADER = ("what", "images", "process s", "× bare passes", "peak MiB", "file MiB")
BARE = "bare float passes"
# Images of the cost run that every quantizer takes part in.
FEW = 64
COST_COLUMNS = (f"vit_small, {FEW} images: s", "peak MiB")


def summary(result: Mapping[str, Any]) -> str:
    """The README's section: one table of SQNR on every model and of cost, and what TensorRT refuses."""
    return "\n\n".join([_where(result), summary_table(result), *_refusals(result["models"])])


def details(result: Mapping[str, Any]) -> str:
    """Everything of a run: the summary, a table for each model, and one of cost."""
    parts = [summary(result)]
    for name, model in result["models"].items():
        parts += [f"**{name}**: {model['about']}", model_table(model)]
    if result["cost"]:
        parts += [result["cost"]["about"], cost_table(result["cost"]["rows"])]
    return "\n\n".join(parts)


def summary_table(result: Mapping[str, Any]) -> str:
    """A row for each quantizer: SQNR in dB on clean and on degraded images by model, seconds and memory of the cost run."""
    models = result["models"]
    cost = {row["name"]: row for row in (result["cost"] or {"rows": ()})["rows"] if row["images"] == FEW}
    quantizers = dict.fromkeys(row["name"] for model in models.values() for row in model["rows"])
    quantizers |= dict.fromkeys(name for name in cost if name != BARE)
    rows = []
    for quantizer in quantizers:
        of_models = [_sqnr(model["rows"], quantizer) for model in models.values()]
        own = cost.get(quantizer)
        of_cost = (f"{own['seconds']:.1f}", f"{own['peak_mib']:.0f}") if own and own["failure"] is None else ("", "")
        rows.append((quantizer, *of_models, *(of_cost if cost else ())))
    return _markdown(("SQNR dB, clean / degraded", *models, *(COST_COLUMNS if cost else ())), rows)


def _sqnr(rows: Sequence[Mapping[str, Any]], quantizer: str) -> str:
    row = next((row for row in rows if row["name"] == quantizer), None)
    if row is None:
        return ""
    if row["failure"] is not None:
        return "failed"
    figures = f"{row['clean']['sqnr_db']:.1f} / {row['degraded']['sqnr_db']:.1f}"
    return figures if row["tensorrt"]["accepted"] else f"{figures} (refused)"


def model_table(model: Mapping[str, Any]) -> str:
    """The float model's row, then one for each quantizer."""
    clean, degraded = model["float"]["clean"], model["float"]["degraded"]
    first = ("float", "", f"{clean['top1']:.2f}", "", "", f"{degraded['top1']:.2f}", "", "", "", "", "")
    return _markdown(MODEL_HEADER, [(*first, _mib(model["float"]["bytes"])), *(model_row(row) for row in model["rows"])])


def model_row(row: Mapping[str, Any]) -> tuple[str, ...]:
    """Cells of one quantizer, in the order of `MODEL_HEADER`; what failed has only its cost."""
    cost = (f"{row['process_s']:.1f}", f"{row['peak_mib']:.0f}")
    if row["failure"] is not None:
        return (row["name"], "failed", *("",) * 7, *cost, "")
    return (
        row["name"],
        "accepts" if row["tensorrt"]["accepted"] else "refuses",
        *(cell for judged in (row["clean"], row["degraded"]) for cell in _figures(judged)),
        f"{row['quantize_s']:.1f}",
        *cost,
        _mib(row["bytes"]),
    )


def cost_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Each quantizer's cost beside the bare passes over as many images."""
    bare = {row["images"]: row["seconds"] for row in rows if row["name"] == BARE}
    cells = []
    for row in rows:
        ratio = f"{row['seconds'] / bare[row['images']]:.2f}" if row["images"] in bare else ""
        failed = row["failure"] is not None
        size = "failed" if failed else _mib(row["bytes"]) if row["bytes"] is not None else ""
        cells.append((row["name"], str(row["images"]), f"{row['seconds']:.1f}", ratio, f"{row['peak_mib']:.0f}", size))
    return _markdown(COST_HEADER, cells)


def _where(result: Mapping[str, Any]) -> str:
    machine = result["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    return (
        f"Measured by `scripts/benchmark_quantizers` on {machine['cpu']} ({', '.join(machine['cpu_flags'])}), "
        f"{machine['threads']} threads: {versions}. Logits are compared with those of the float ONNX, both computed node by "
        "node in float. *linear*: held to the layers that vitexport quantizes; other rows have their tool's own placement. "
        "*vitexport minmax* does only what ONNX Runtime's MinMax does (no degraded copies, no equalization, rounding to "
        "nearest), to compare what the same work costs. Refused: TensorRT-RTX does not compile the graph for compute "
        "capability 8.9."
    )


def _refusals(models: Mapping[str, Any]) -> list[str]:
    """A line for each reason for which a quantizer failed or TensorRT refuses its graph, with the models concerned."""
    concerned: dict[str, list[str]] = {}
    for name, model in models.items():
        for row in model["rows"]:
            if row["failure"] is not None:
                concerned.setdefault(f"{row['name']} failed: {row['failure']}", []).append(name)
            elif not row["tensorrt"]["accepted"]:
                concerned.setdefault(f"{row['name']}: {row['tensorrt']['reason']}", []).append(name)
    lines = [f"- {line} ({', '.join(names)})" for line, names in concerned.items()]
    return ["\n".join(lines)] if lines else []


def _figures(judged: Mapping[str, float]) -> tuple[str, str, str]:
    return f"{judged['top1']:.2f}", f"{judged['agreement']:.2f}", f"{judged['sqnr_db']:.1f}"


def _mib(size: int) -> str:
    return f"{size / 2**20:.2f}"


def _markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, tuple("---" for _ in header), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)
