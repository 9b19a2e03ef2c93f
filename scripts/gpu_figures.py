"""Input: a machine with an NVIDIA GPU; output: a table of what the sample and vit_small take there, by runtime.

``scripts/gpu-check`` calls it. Every row is one bundle in one runtime, timed beside PyTorch on the same GPU in one run;
what cannot run here is named with its reason. Exit code 5 where there is no GPU.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime as dt
import re
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vitexport.artifacts import BatchRange, Precision, silent
from vitexport.device import EngineRequest, build_here, open_for_engine
from vitexport.errors import VitexportError
from vitexport.pipeline import BuildRequest, run
from vitexport.runtime import load
from vitexport.runtime.backends.cuda import why_no_driver
from vitexport.runtime.loading import BackendName
from vitexport.source import ModelRequest
from vitexport.targets import Device, resolve
from vitexport.targets.catalogue import nearest
from vitexport.validate.bench import BenchRequest, Beside, bench_bundle
from vitexport.validate.budget import Budget
from vitexport.validate.device import validate_bundle

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "scripts" / "README.md"
SECTION = re.compile(r"(<!-- gpu -->\n).*?(<!-- /gpu -->)", re.DOTALL)
BACKENDS: tuple[BackendName, ...] = ("tensorrt", "onnxruntime-cuda", "onnxruntime-tensorrt")
PRECISIONS: tuple[Precision, ...] = ("fp16", "int8")
HEADER = (
    *("model", "precision", "runtime", "batch", "GPU p50 ms", "with CUDA graph", "end to end p50 ms"),
    *("against PyTorch FP16", "golden SQNR dB"),
)
SECONDS = 2.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """One bundle in one runtime; times are medians in milliseconds."""

    model: str
    precision: str
    runtime: str
    batch: int
    gpu_ms: float | None
    graph_ms: float | None
    end_to_end_ms: float | None
    ratio: float | None
    sqnr_db: float | None


def row(model: str, precision: str, document: Mapping[str, Any], sqnr_db: float | None) -> Row:
    """What `bench_bundle` measured of one batch, and PyTorch in float16 over it where that was timed too."""

    def median(runner: str, what: str, *, graph: bool | None) -> float | None:
        return next(
            (
                float(entry["p50_ms"])
                for entry in document["rows"]
                if (entry["runner"], entry["what"]) == (runner, what) and (graph is None or entry["cuda_graph"] == graph)
            ),
            None,
        )

    plain = median("shipped", "end_to_end", graph=False) or median("shipped", "end_to_end", graph=None)
    beside = median("PyTorch fp16", "end_to_end", graph=None)
    return Row(
        model=model,
        precision=precision,
        runtime=str(document["runtime"]),
        batch=int(document["rows"][0]["batch"]),
        gpu_ms=median("shipped", "gpu", graph=False),
        graph_ms=median("shipped", "gpu", graph=True),
        end_to_end_ms=plain,
        ratio=None if plain is None or beside is None else beside / plain,
        sqnr_db=sqnr_db,
    )


def table(rows: Sequence[Row], skipped: Sequence[str], about: str) -> str:
    """Markdown: where and when, a line for each row, and what could not run."""

    def cell(value: float | None, form: str) -> str:
        return "" if value is None else format(value, form)

    lines = [HEADER, tuple("---" for _ in HEADER)]
    lines += [
        (
            *(entry.model, entry.precision, entry.runtime, str(entry.batch), cell(entry.gpu_ms, ".3f")),
            *(
                cell(entry.graph_ms, ".3f"),
                cell(entry.end_to_end_ms, ".3f"),
                cell(entry.ratio, ".2f") and f"{entry.ratio:.2f} x",
            ),
            cell(entry.sqnr_db, ".1f"),
        )
        for entry in rows
    ]
    text = about + "\n\n" + "\n".join("| " + " | ".join(line) + " |" for line in lines)
    if skipped:
        text += "\n\nSkipped:\n\n" + "\n".join(f"- {reason}" for reason in skipped)
    return text


def requests(device: Device, folder: Path) -> list[tuple[str, BuildRequest]]:
    """The bundles to measure: the trained sample, and an untrained vit_small for its size."""
    calibration, data = ROOT / "calibration" / "digits", ROOT / "calibration" / "digits-val"
    found = []
    for precision in PRECISIONS:
        if precision not in resolve(device.id).precisions:
            continue
        for name, model, images in (
            ("sample", ModelRequest(name=f"local-dir:{ROOT / 'scripts' / 'sample'}"), data),
            ("vit_small_patch16_224", ModelRequest(name="vit_small_patch16_224", pretrained=False), None),
        ):
            wanted = BuildRequest(
                model=model,
                target=device.id,
                precision=precision,
                calibration=calibration if precision == "int8" else None,
                data=images,
                batch=BatchRange.parse("1:8:8"),
                out=folder / f"{name}-{precision}",
            )
            found.append((name, wanted))
    return found


def measure(name: str, request: BuildRequest, pytorch: Any) -> tuple[list[Row], list[str]]:
    """Rows of one bundle in every runtime, and why some of them are missing."""
    bundle, _ = run(request, silent)
    rows, skipped = [], []
    for backend in BACKENDS:
        try:
            if backend == "tensorrt" and bundle.artifact("engine") is None:
                _, report = build_here(open_for_engine(bundle.root), EngineRequest())
                skipped += [check.message for check in report.checks if check.status == "failed"]
            with load(bundle.root, backend=backend) as model:
                report = validate_bundle(model, None, Budget(max_drop=1.0), silent)
                if report.exit_code != 0:
                    failed = "; ".join(check.message for check in report.checks if check.status == "failed")
                    skipped.append(f"{name}, {request.precision}, {backend}: computes wrong, so it was not timed: {failed}")
                    continue
                outputs = report.measurements["golden"].get("outputs", {})
                sqnr = min((figures["sqnr_db"] for figures in outputs.values()), default=None)
                timed = bench_bundle(model, BenchRequest(batch=8, seconds=SECONDS), pytorch=pytorch(bundle.manifest))
        except VitexportError as error:
            skipped.append(f"{name}, {request.precision}, {backend}: {error}")
            continue
        rows.append(row(name, request.precision, timed.measurements["bench"], sqnr))
    return rows, skipped


def beside(manifest: Any) -> Beside:
    """PyTorch's contenders on this GPU."""
    from vitexport.eager import pytorch_beside

    return pytorch_beside(manifest, gpu=True)


def this_gpu() -> tuple[Device, str]:
    """The catalogue's row for this machine's GPU, and its name.

    Raises:
        VitexportError: There is none, or PyTorch does not see it.
    """
    if (reason := why_no_driver()) is not None:
        raise VitexportError(f"GPU tests need an NVIDIA GPU, and {reason}.")
    import torch

    if not torch.cuda.is_available():
        raise VitexportError(f"PyTorch {torch.__version__} finds no CUDA GPU that it was built for.")
    name = torch.cuda.get_device_name()
    capability = ".".join(map(str, torch.cuda.get_device_capability()))
    device = nearest(name, capability)
    if device is None:
        raise VitexportError(f"The catalogue has no device of compute capability {capability}, which {name} has.")
    return device, name


def main() -> None:
    """Measure and print, or say why not."""
    parser = argparse.ArgumentParser(description="Measure bundles on this machine's GPU.")
    parser.add_argument("--only-look", action="store_true", help="only say whether there is a GPU")
    parser.add_argument("--write", action="store_true", help="put the table into the README")
    chosen = parser.parse_args()
    try:
        device, name = this_gpu()
    except VitexportError as error:
        print(f"Error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    if chosen.only_look:
        print(f"{name}: compute capability {device.compute_capability}, {resolve(device.id).runtime}")
        return
    rows: list[Row] = []
    skipped: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        for model, request in requests(device, Path(folder)):
            print(f"measuring {model} in {request.precision}", file=sys.stderr)
            found, left = measure(model, request, beside)
            rows += found
            skipped += left
    today = dt.datetime.now(dt.timezone.utc).date().isoformat()
    text = table(rows, skipped, f"Measured by `scripts/gpu-check` on {name} on {today}.")
    print(text)
    if chosen.write:
        page = README.read_text(encoding="utf-8")
        README.write_text(SECTION.sub(lambda match: f"{match[1]}{text}\n{match[2]}", page), encoding="utf-8")


if __name__ == "__main__":
    main()
