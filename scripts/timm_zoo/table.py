"""Input: records of models; output: the support table, and what is said of it in the README."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

PARITY_LIMIT = 1e-4
FP16_LIMIT = 1e-2
INT8_LIMIT_DB = 35.0
TARGETS = {"a10": "8.6", "l4": "8.9", "rtx-5090": "12.0"}
HEADER = (
    *("model", "family", "parameters, M", "input", "outputs", "export s", "folding s", "parity", "static parity", "FP16 dB"),
    *("variation", "FP32 nodes", "INT8 layers", "of", "INT8 dB", "all layers dB", "engines"),
    *("total s", "peak MiB", "verdict"),
)


def problems(record: Mapping[str, Any]) -> list[str]:
    """What a model lacks, in the order of the stages; none if it is green."""
    stages = record["stages"]
    found = [f"{name}: {stage['error']}" for name, stage in stages.items() if "error" in stage]
    for name, key, limit, unit in (
        ("parity dynamic", "value", PARITY_LIMIT, ""),
        ("parity static", "value", PARITY_LIMIT, ""),
        ("fp16", "largest", FP16_LIMIT, ""),
    ):
        value = stages.get(name, {}).get(key)
        # Written so that a NaN is a problem.
        if value is not None and not value <= limit:
            found.append(f"{name}: {value:.1e}{unit}, at most {limit:.0e} is asked")
    decibels = stages.get("int8", {}).get("sqnr_db")
    if decibels is not None and not decibels >= INT8_LIMIT_DB:
        found.append(f"int8: {decibels:.1f} dB, {INT8_LIMIT_DB:.0f} are asked")
    wanted = ("load", "export dynamic", "parity dynamic", "export static", "parity static", "fp16", "int8")
    lacking = [name for name in (*wanted, *(f"engine {target}" for target in TARGETS)) if name not in stages]
    if lacking and not found:
        found.append(f"not run: {', '.join(lacking)}")
    return found


def row(record: Mapping[str, Any]) -> list[str]:
    """One line of the table."""
    stages: Mapping[str, Mapping[str, Any]] = record["stages"]
    loaded, quantized = stages.get("load", {}), stages.get("int8", {})

    def figure(stage: str, key: str, form: str) -> str:
        value = stages.get(stage, {}).get(key)
        return "" if value is None else format(value, form)

    outputs = [f"{name} {' × '.join(map(str, shape))}" for name, shape in loaded.get("outputs", {}).items()]
    engines = [capability for target, capability in TARGETS.items() if "bytes" in stages.get(f"engine {target}", {})]
    return [
        record["name"],
        loaded.get("family", ""),
        f"{loaded['parameters'] / 1e6:.1f}" if "parameters" in loaded else "",
        " × ".join(map(str, loaded.get("size", []))),
        ", ".join(outputs),
        figure("export dynamic", "seconds", ".0f"),
        figure("export dynamic", "folding", ".1f"),
        figure("parity dynamic", "value", ".0e"),
        figure("parity static", "value", ".0e"),
        figure("fp16", "sqnr_db", ".1f"),
        f"{record['variation']:.2g}" if "variation" in record else "",
        figure("float32 nodes", "count", "d"),
        figure("int8", "layers", "d"),
        str(sum(quantized[key] for key in ("layers", "floating", "beyond"))) if "floating" in quantized else "",
        figure("int8", "sqnr_db", ".1f"),
        figure("int8", "all_db", ".1f"),
        ", ".join(engines),
        f"{record['seconds']:.0f}",
        f"{record['peak_mib']:.0f}",
        "**red**" if problems(record) else "green",
    ]


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """A table; a bar in a cell would end it."""
    lines = [HEADER, ["---"] * len(HEADER), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines)


def page(records: Sequence[Mapping[str, Any]], missing: Sequence[str], explained: Mapping[str, str], about: str) -> str:
    """The file that the README links."""
    red = [record for record in records if problems(record)]
    parts = [
        "# timm models that vitexport was run on",
        about,
        summary(records, missing),
        markdown([row(record) for record in records]),
    ]
    if red:
        parts += ["## Red"]
        parts += [
            "\n".join(
                [
                    f"**{record['name']}**",
                    *(f"- {' '.join(problem.split())}" for problem in problems(record)),
                    *([f"- Why: {explained[record['name']]}"] if record["name"] in explained else []),
                ]
            )
            for record in red
        ]
    if missing:
        parts += ["## Not run", ", ".join(missing)]
    return "\n\n".join(parts) + "\n"


def summary(records: Sequence[Mapping[str, Any]], missing: Sequence[str]) -> str:
    """How many are green, in one sentence."""
    green = sum(not problems(record) for record in records)
    families = Counter(record["stages"].get("load", {}).get("family") for record in records)
    share = 100 * green / max(len(records) + len(missing), 1)
    text = f"{green} of {len(records) + len(missing)} models of {len(families)} families are green ({share:.1f} %)"
    return f"{text}; {len(missing)} were not run." if missing else f"{text}."
