"""Input: a work folder, names of models and contenders; output: every figure of the comparison, as JSON values."""

from __future__ import annotations

import dataclasses
import gc
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import train_sample

from quantizers import judge, models, pictures, processes
from quantizers.contenders import LEAST, OURS, Contender
from quantizers.table import BARE, FEW
from vitexport.artifacts import ModelSource, OnnxModel
from vitexport.datasets import open_images, open_labelled
from vitexport.export import export_graph
from vitexport.machine import describe_machine
from vitexport.preprocess import PreprocessSpec
from vitexport.quantize import Observer, QuantSettings
from vitexport.rewrites import save
from vitexport.source import ModelRequest, load

OPSET = 20
LABELS = [str(digit) for digit in range(train_sample.CLASSES)]
LAYOUT = train_sample.Layout(train_sample.REPOSITORY)
COST_MODEL = "vit_small_patch16_224"
MANY = 1024
COST_ABOUT = (
    f"Cost on {COST_MODEL} (untrained: it shows time and memory, not accuracy), batch 1, with crops of the package's "
    "photographs. "
    "vitexport's seconds include reading and preprocessing the images; the others are handed arrays."
)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One float model with its calibration images.

    Attributes:
        folder: Where results go.
        onnx: The float model, static, batch 1.
        source: Its description.
        images: Folder of the calibration images.
        inputs: The same, preprocessed, as .npy.
    """

    folder: Path
    onnx: OnnxModel
    source: ModelSource
    images: Path
    inputs: Path

    @staticmethod
    def settings(contender: Contender) -> dict[str, Any]:
        """Those of vitexport's quantizer."""
        if contender.option == LEAST:
            least = QuantSettings(observer=Observer.parse("minmax"), degraded=False, equalize=False, rounding="nearest")
            return least.to_json()
        return QuantSettings().to_json()

    def words(self, contender: Contender, result: Path) -> list[str]:
        """What the contender's runner is called with."""
        if contender.environment is not None:
            return [str(self.onnx.path), str(self.inputs), str(result), contender.option]
        about = {"preprocess": self.source.preprocess.to_json(), "settings": self.settings(contender)}
        return [str(self.onnx.path), str(self.images), str(result), json.dumps(about)]


def run(work: Path, names: Sequence[str], contenders: Sequence[Contender], *, cost: bool) -> dict[str, Any]:
    """Compare `contenders` on the models `names`, and on the cost of vit_small.

    Raises:
        SystemExit: A model cannot be trained, or an environment cannot be made. A contender that fails is a row.
    """
    # First of all models: they take longest, and are kept.
    folders = {name: models.make(name, work) for name in names}
    pythons = {contender: processes.environment_python(contender.environment, work) for contender in contenders}
    for python in {*pythons.values(), Path(sys.executable)}:
        processes.compile_packages(python)
    return {
        "machine": describe_machine(),
        "versions": {c.package: processes.package_version(python, c.package) for c, python in pythons.items()},
        "models": {name: _compare(name, folder, work, pythons) for name, folder in folders.items()},
        "cost": _cost(work, pythons) if cost else None,
    }


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _export(request: ModelRequest, folder: Path) -> tuple[OnnxModel, ModelSource]:
    folder.mkdir(parents=True, exist_ok=True)
    model, source = load(request)
    path = folder / "model.float.onnx"
    save(export_graph(model, source, opset=OPSET, layernorm_op=True, batch=judge.ONE), path)
    del model
    gc.collect()
    return OnnxModel.of(path, opset=OPSET, batch=judge.ONE, precision="fp32"), source


def _compare(name: str, folder: Path, work: Path, pythons: dict[Contender, Path]) -> dict[str, Any]:
    """All contenders on one trained model."""
    onnx, source = _export(ModelRequest(name=f"local-dir:{folder}"), work / "results" / name)
    case = Case(
        folder=onnx.path.parent,
        onnx=onnx,
        source=source,
        images=LAYOUT.calibration,
        inputs=onnx.path.parent / "calibration.npy",
    )
    spec = source.preprocess
    pictures.write_array(open_images(case.images), spec, case.inputs)
    sets = _judged_sets(work, spec, onnx.path)
    rows = [_row(case, contender, python, sets) for contender, python in pythons.items()]
    return {
        "about": f"{source.architecture}, {source.parameters / 1e6:.2f} million parameters",
        "float": {**judge.figures(onnx.path, sets), "bytes": onnx.size},
        "rows": rows,
    }


def _judged_sets(work: Path, spec: PreprocessSpec, float_model: Path) -> tuple[judge.Judged, ...]:
    """The held-out images and their degraded copies."""
    clean = open_labelled(LAYOUT.validation, labels=LABELS, synsets=None, classes=len(LABELS))
    folder = work / "degraded"
    pictures.write_degraded(clean, spec, folder)
    degraded = open_labelled(folder, labels=LABELS, synsets=None, classes=len(LABELS))
    named = (("clean", clean), ("degraded", degraded))
    return tuple(judge.judged(images, spec, float_model, name) for name, images in named)


def _quantize(case: Case, contender: Contender, python: Path) -> tuple[Path, processes.Ran]:
    """Run one contender; returns where its graph is, if it did not fail, and what it took."""
    stem = contender.name.replace(" ", "-")
    result = case.folder / f"{stem}.onnx"
    result.unlink(missing_ok=True)
    _say(f"{case.folder.name}: {contender.name}")
    return result, processes.run(python, contender.runner, case.words(contender, result), case.folder / f"{stem}.log")


def _row(case: Case, contender: Contender, python: Path, sets: tuple[judge.Judged, ...]) -> dict[str, Any]:
    """One contender on one model, quantized and judged."""
    result, ran = _quantize(case, contender, python)
    row = {
        "name": contender.name,
        "failure": ran.failure,
        "process_s": ran.seconds,
        "processor_s": ran.processor_seconds,
        "peak_mib": ran.peak_mib,
    }
    if ran.said is None:
        return row
    return {
        **row,
        "quantize_s": ran.said["seconds"],
        "bytes": result.stat().st_size,
        "tensorrt": judge.tensorrt(result),
        **judge.figures(result, sets),
    }


def _cost(work: Path, pythons: dict[Contender, Path]) -> dict[str, Any]:
    """Seconds and memory on a model of real size, beside bare float passes over the same images in the same run."""
    request = ModelRequest(name=COST_MODEL, pretrained=False)
    onnx, source = _export(request, work / "results" / COST_MODEL)
    rows = []
    for count in (FEW, MANY):
        case = Case(
            folder=onnx.path.parent,
            onnx=onnx,
            source=source,
            images=work / "crops" / str(count),
            inputs=onnx.path.parent / f"crops-{count}.npy",
        )
        pictures.write_crops(case.images, count)
        pictures.write_array(open_images(case.images), source.preprocess, case.inputs)
        rows += _cost_rows(case, count, pythons)
    return {"about": COST_ABOUT, "rows": rows}


def _cost_rows(case: Case, count: int, pythons: dict[Contender, Path]) -> list[dict[str, Any]]:
    """The bare passes and every contender; only vitexport where the images are many."""
    _say(f"{case.folder.name}: {BARE}, {count} images")
    words = [str(case.onnx.path), str(case.inputs)]
    bare = processes.run(Path(sys.executable), "run_float", words, case.folder / "float.log")
    if bare.said is None:
        raise SystemExit(f"The float model does not run: {bare.failure}")
    rows = [_cost_row(BARE, count, bare, seconds=bare.said["seconds"])]
    for contender, python in pythons.items():
        if count == FEW or contender.name == OURS:
            result, ran = _quantize(case, contender, python)
            size = result.stat().st_size if ran.said is not None else None
            rows.append(_cost_row(contender.name, count, ran, seconds=ran.seconds, size=size))
    return rows


def _cost_row(name: str, count: int, ran: processes.Ran, *, seconds: float, size: int | None = None) -> dict[str, Any]:
    return {
        "name": name,
        "images": count,
        "seconds": seconds,
        "processor_s": ran.processor_seconds,
        "peak_mib": ran.peak_mib,
        "bytes": size,
        "failure": ran.failure,
    }
