"""Input: what the library returned; output: what a person reads on a terminal, or one JSON document."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

from rich.console import Console, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from vitexport.artifacts import describe_outputs
from vitexport.bundle import Bundle, Manifest
from vitexport.cli.wording import as_options
from vitexport.preprocess import PreprocessSpec
from vitexport.report import (
    BLOCK_COLUMNS,
    CANDIDATE_COLUMNS,
    ESTIMATE_COLUMNS,
    LATENCY_COLUMNS,
    OUTPUT_COLUMNS,
    VALUE_COLUMNS,
    Report,
    block_rows,
    candidate_rows,
    estimate_rows,
    latency_rows,
    measured,
    output_figures,
    value_rows,
)
from vitexport.roofline import Prediction
from vitexport.runtime import engines
from vitexport.targets import Device, Finding, Target, resolve
from vitexport.validate.bench_table import BENCH_COLUMNS, bench_rows, facts
from vitexport.validate.compare import COMPARE_COLUMNS, Comparison, compare_facts, compare_rows

MARKS = {"passed": "[green]passed[/]", "failed": "[bold red]failed[/]", "skipped": "[yellow]skipped[/]"}
LEVELS = {"error": "[bold red]error[/]", "warning": "[yellow]warning[/]", "note": "[cyan]note[/]"}
# A pipe has no width; wide enough that no line of ours folds in a log.
LOG_WIDTH = 2000
# How many places of one broken rule are named.
PLACES = 3


class Output(Console):
    """Stdout for people. What is not a terminal gets each line whole and without the blanks that pad a table."""

    def __init__(self) -> None:
        super().__init__(width=None if sys.stdout.isatty() else LOG_WIDTH, highlight=False)

    def show(self, renderable: RenderableType) -> None:
        """Print `renderable`, a table, a text or markup."""
        if self.is_terminal:
            self.print(renderable)
            return
        with self.capture() as captured:
            self.print(renderable)
        sys.stdout.write("".join(f"{line.rstrip()}\n" for line in captured.get().splitlines()))


def print_json(data: Mapping[str, Any] | Sequence[Any]) -> None:
    """One JSON document on stdout."""
    sys.stdout.write(json.dumps(data, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def show_report(report: Report, *, verbose: bool) -> None:
    """The report on stdout: checks, latency, notes; costs and machine when `verbose`."""
    out = Output()
    out.show(f"[bold]{escape(report.title)}[/]")
    table = Table(box=None, pad_edge=False, show_header=False)
    for check in report.checks:
        table.add_row(MARKS[check.status], check.name, Text(as_options(check.message)))
    if table.rows:
        out.show(table)
    _show_latency(out, report.measurements)
    for header, rows in _tables(report.measurements):
        out.show(grid(header, rows))
    if size := report.measurements.get("size"):
        sizes = ", ".join(f"{key.removesuffix('_bytes')} {value / 2**20:.2f} MiB" for key, value in size.items())
        out.show(f"size: {sizes}")
    for note in report.notes:
        out.show(Text(f"note: {as_options(note)}"))
    if verbose:
        _show_costs(out, report)
    if report.checks:
        colour = "red" if report.verdict == "failed" else "green"
        out.show(f"[bold {colour}]{report.verdict}[/]: {report.summary}")


def _show_latency(out: Output, measurements: Mapping[str, Any]) -> None:
    """What a build timed; or what ``bench`` timed, on what, and what it did not."""
    if latency := measurements.get("latency"):
        out.show(grid(LATENCY_COLUMNS, latency_rows(latency, measurements.get("others_percent"))))
    if bench := measurements.get("bench"):
        table = Table(box=None, pad_edge=False, show_header=False)
        for name, value in facts(bench).items():
            table.add_row(f"[bold]{name}[/]", Text(value))
        out.show(table)
        out.show(grid(BENCH_COLUMNS, bench_rows(bench)))
        left_out = Table(box=None, pad_edge=False, show_header=False)
        for what, reason in bench["skipped"].items():
            left_out.add_row(MARKS["skipped"], escape(what), Text(reason))
        if left_out.rows:
            out.show(left_out)


def _tables(measurements: Mapping[str, Any]) -> Iterator[tuple[Sequence[str], Sequence[Sequence[str]]]]:
    """Header and rows of what there is a table of beside latency."""
    if estimate := measurements.get("estimate"):
        yield ESTIMATE_COLUMNS, estimate_rows(estimate, measured(measurements))
    if len(candidates := measurements.get("candidates", {})) > 1:
        yield CANDIDATE_COLUMNS, candidate_rows(candidates)
    if len(rows := value_rows(candidates)) > 0:
        yield VALUE_COLUMNS, rows
    if len(rows := output_figures(measurements)) > len(candidates):
        yield OUTPUT_COLUMNS, rows
    if blocks := measurements.get("blocks"):
        yield BLOCK_COLUMNS, block_rows(blocks)


def _show_costs(out: Output, report: Report) -> None:
    if report.stages:
        rows = [
            (stage.name, f"{stage.seconds:.1f}", f"{stage.peak_mib:.0f}" if stage.peak_mib else "not known")
            for stage in report.stages
        ]
        out.show(grid(("stage", "seconds", "peak MiB"), rows))
    for key, value in report.machine.items():
        out.show(Text(f"{key}: {value}"))


def grid(header: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """A table without lines: figures to the right, words to the left, columns that are empty throughout left out."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    kept = [index for index in range(len(header)) if any(row[index] for row in rows)]
    for index in kept:
        cells = [row[index] for row in rows if row[index]]
        figures = all(cell[0] in "+-0123456789" for cell in cells)
        # The first column is what one has to type or look up: it is never cut.
        table.add_column(header[index], justify="right" if figures else "left", no_wrap=index == kept[0])
    for row in rows:
        table.add_row(*(escape(row[index]) for index in kept))
    return table


def show_prediction(prediction: Prediction | None) -> None:
    """What the device takes at least, a line a precision, and what that rests on; or why nothing can be said."""
    if prediction is None:
        return
    out = Output()
    if prediction.skipped is not None:
        out.show(Text(f"estimate: skipped: {prediction.skipped}"))
        return
    for estimate in prediction.estimates:
        out.show(Text(f"estimate: {estimate}"))
    out.show(Text(f"estimate: {prediction.about}"))


def show_findings(findings: Sequence[Finding]) -> None:
    """One line each, on stdout."""
    out = Output()
    for finding in findings:
        out.show(f"{LEVELS[finding.level]}: {escape(as_options(finding.message))}")


class Broken(Protocol):
    """A `vitexport.legality.Violation`; its room imports onnx-ir, which a device that runs bundles does not have."""

    @property
    def rule(self) -> str: ...
    @property
    def demand(self) -> str: ...
    @property
    def level(self) -> str: ...
    @property
    def node(self) -> str: ...
    @property
    def message(self) -> str: ...


def show_violations(found: Sequence[Broken], census: Mapping[str, int] | None, target: Target, *, verbose: bool) -> None:
    """What was seen (unless `census` is None), then each broken rule with its places; the first only, unless `verbose`."""
    out = Output()
    if census is not None:
        seen = ", ".join(f"{count} {kind}" for kind, count in census.items())
        out.show(Text(f"for {target.name}, {target.stack}: {seen or 'no products'}"))
    for rule in dict.fromkeys(violation.rule for violation in found):
        places = [violation for violation in found if violation.rule == rule]
        named = places if verbose else places[:PLACES]
        out.show(f"{LEVELS[places[0].level]} [bold]{escape(rule)}[/]: {escape(places[0].demand)}")
        for violation in named:
            out.show(Text(f"  {violation.node} {violation.message}"))
        if len(named) < len(places):
            out.show(Text(f"  … and {len(places) - len(named)} more (--verbose lists them)"))
    counts = Counter(violation.level for violation in found)
    words = [
        f"{counts[level]} {level}{'s' if counts[level] != 1 else ''}" for level in ("error", "warning") if counts[level]
    ]
    out.show(", ".join(words) or "no problems found")


def violations_json(found: Sequence[Broken], census: Mapping[str, int], target: Target) -> dict[str, Any]:
    """The same as plain JSON values, every place named."""
    return {
        "target": target.id,
        "errors": sum(violation.level == "error" for violation in found),
        "warnings": sum(violation.level == "warning" for violation in found),
        "products": dict(census),
        "violations": [
            {"level": violation.level, "rule": violation.rule, "node": violation.node, "message": violation.message}
            for violation in found
        ],
        "rules": {violation.rule: violation.demand for violation in found},
    }


def show_devices(devices: Sequence[Device]) -> None:
    """The catalogue, one line a device."""
    rows = []
    for device in devices:
        target = resolve(device.id)
        rows.append(
            (
                device.id,
                device.name,
                device.compute_capability or device.arch,
                target.stack,
                ", ".join(target.precisions),
                "" if target.memory_gb is None else f"{target.memory_gb:g} GB",
                target.engine_place,
            )
        )
    Output().show(grid(("target", "device", "capability", "runtime", "precisions", "memory", "engine is built"), rows))


def show_target(target: Target, device: Device) -> None:
    """What one target can do, and why not more."""
    rows = [
        ("target", target.id),
        ("device", target.name),
        ("runtime", target.stack),
        ("ONNX opset", str(target.opset)),
    ]
    if target.compute_capability:
        rows.append(("compute capability", target.compute_capability))
    if device.jetpacks:
        rows.append(("JetPack releases", ", ".join(device.jetpacks)))
    rows.append(("precisions", ", ".join(target.precisions)))
    rows += [(f"no {name}", reason) for name, reason in target.unavailable.items()]
    if target.memory_gb is not None:
        rows.append(("memory", f"{target.memory_gb:g} GB"))
    rows += [(f"dense peak {name}", f"{value:g} T(FL)OPS ({device.basis})") for name, value in target.peaks.items()]
    if target.memory_bandwidth_gbps is not None:
        rows.append(("memory bandwidth", f"{target.memory_bandwidth_gbps:g} GB/s"))
    if (arithmetic := target.int8_arithmetic) is not None:
        rows.append(("INT8 arithmetic", arithmetic))
    rows.append(("sources", "; ".join(device.sources)))
    table = Table(box=None, pad_edge=False, show_header=False)
    for name, value in rows:
        table.add_row(f"[bold]{escape(name)}[/]", Text(value))
    Output().show(table)


_RUNTIMES = {"onnxruntime": "ONNX Runtime", "tensorrt": "TensorRT", "tensorrt-rtx": "TensorRT-RTX"}


def _requires(manifest: Manifest) -> str:
    """The least release that runs each file, with what decides it of an ONNX file."""
    parts = []
    for role, needs in manifest.requires.items():
        least = ", ".join(f"{_RUNTIMES[name]} {value}" for name, value in needs.items() if name in _RUNTIMES)
        detail = f" (opset {needs['opset']}, IR version {needs['ir_version']})" if "opset" in needs else ""
        parts.append(f"{manifest.artifacts.get(role, role)}: {least}{detail}")
    return "; ".join(parts)


def _input(spec: PreprocessSpec) -> str:
    colours = {1: "grey", 3: "RGB"}.get(spec.channels, f"{spec.channels} channels")
    crop = f"{spec.interpolation}, crop {spec.crop_pct:g} ({spec.crop_mode})"
    return f"{spec.height} x {spec.width} {colours}, {crop}"


def show_bundle(bundle: Bundle, *, verbose: bool) -> None:
    """What a bundle is, what is in it, and what was found when it was built."""
    manifest = bundle.manifest
    model, spec = manifest.model, manifest.preprocess
    labels = manifest.labels
    rows = [
        (
            "model",
            f"{model['name']} ({model['parameters'] / 1e6:.1f} million parameters, {describe_outputs(manifest.outputs)})",
        ),
        ("weights", f"{model['weights']}, sha256 {str(model['weights_sha256'])[:16]}…"),
        *_zero_shot(model.get("zero_shot")),
        ("target", f"{manifest.target.name} ({manifest.target.id}), {manifest.target.stack}"),
        ("precision", manifest.precision),
        ("batch", str(manifest.batch)),
        ("input", _input(spec)),
        ("normalization", f"mean {spec.mean}, std {spec.std}"),
        ("task", _task(manifest)),
        ("labels", f"{', '.join(labels[:5])}{' …' if len(labels) > 5 else ''}" if labels else "none"),
        *([("requires", _requires(manifest))] if manifest.requires else []),
        ("made by", ", ".join(f"{name} {version}" for name, version in manifest.versions.items())),
    ]
    if manifest.recipe is not None:
        recipe = manifest.recipe
        settings = recipe["settings"]
        summary = (
            f"placement {settings['placement']}, {len(recipe['layers'])} layers, {settings['observer']}, "
            f"{len(recipe['images'])} calibration images"
        )
        rows.append(("INT8 recipe", summary))
    if manifest.engine is not None and manifest.engine["skipped"]:
        rows.append(("engine", f"skipped: {manifest.engine['skipped']}"))
    rows += [("engine built on", name) for name in engines.names(bundle)]
    table = Table(box=None, pad_edge=False, show_header=False)
    for name, value in rows:
        table.add_row(f"[bold]{name}[/]", Text(value))
    out = Output()
    out.show(table)
    roles = {path: role for role, path in manifest.artifacts.items()}
    files = [
        (path, roles.get(path, ""), f"{(bundle.root / path).stat().st_size / 2**20:.2f} MiB", f"{digest[:16]}…")
        for path, digest in manifest.files.items()
    ]
    out.show(grid(("file", "role", "size", "sha256, verified"), files))
    show_report(bundle.report(), verbose=verbose)


def _task(manifest: Manifest) -> str:
    threshold = f", a label is true from {manifest.threshold:g} on" if manifest.task == "multi-label" else ""
    return f"{manifest.task}{threshold}"


def _zero_shot(texts: Mapping[str, Any] | None) -> list[tuple[str, str]]:
    """The row that says how class texts became the classifier; none of a model that has its own."""
    if texts is None:
        return []
    sentences = "".join(f", {template!r}" for template in texts["templates"])
    bias = "" if texts["logit_bias"] is None else f", bias {texts['logit_bias']:g}"
    return [("zero-shot", f"class embeddings of {texts['origin']}{sentences}, scale {texts['logit_scale']:g}{bias}")]


def comparison_table(comparison: Comparison) -> Table:
    """The figures alone; on a narrow terminal words fold, and no figure is cut."""
    table = grid(COMPARE_COLUMNS, compare_rows(comparison))
    for column in table.columns:
        column.no_wrap = column.justify == "right"
        column.overflow = "fold"
    return table


def show_comparison(comparison: Comparison) -> None:
    """Two measurements side by side, and what makes them not comparable."""
    out = Output()
    out.show(grid(("", "A", "B"), compare_facts(comparison)))
    if comparison.cells:
        out.show(comparison_table(comparison))
    if comparison.unknown:
        out.show(Text(f"not known of either: {', '.join(comparison.unknown)}"))
    for obstacle in comparison.obstacles:
        out.show(f"[yellow]not comparable[/]: {escape(obstacle)}")
    if not comparison.obstacles:
        out.show("[green]comparable[/]")
