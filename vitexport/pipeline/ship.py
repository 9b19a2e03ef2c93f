"""Write what ships, once: the graphs, golden arrays, the report and, last, the manifest that hashes them all."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from vitexport import bundle as bundles
from vitexport.artifacts import ONNX_APP, Engine, OnnxModel
from vitexport.bundle import Manifest
from vitexport.machine import library_versions
from vitexport.pipeline.candidates import Candidate
from vitexport.pipeline.embed import Embedded
from vitexport.pipeline.prepare import Prepared
from vitexport.pipeline.reference import Reference, raw_count, repeated
from vitexport.pipeline.requires import requirements
from vitexport.report import Report
from vitexport.rewrites import save
from vitexport.stacks.delivery import RAW_INPUT, raw_output, write_check
from vitexport.validate.numerics import GOLDEN_CEILING_DB, GOLDEN_SLACK_DB
from vitexport.validate.preprocessing import preprocessed

MODEL, FLOAT_MODEL = "model.onnx", "model.float.onnx"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Shipped:
    """The files of the graphs, and what is made of them.

    Attributes:
        onnx: Of the chosen graph.
        exported: The float graph.
        onnx_float: Of the float graph; the same file where that ships.
        checkpoints: Role and path of each file with samples of the modules.
        engine: None where the runtime loads the graph.
        embedded: None where the bundle gets no model that takes the picture.
    """

    onnx: OnnxModel
    exported: ir.Model
    onnx_float: OnnxModel
    checkpoints: Mapping[str, str] = dataclasses.field(default_factory=dict)
    engine: Engine | None = None
    embedded: Embedded | None = None


def write_graphs(chosen: Candidate, exported: ir.Model, prepared: Prepared, folder: Path) -> Shipped:
    """Write the chosen graph and the float export.

    Raises:
        ToolchainError: ONNX's checker refuses one of them.
    """
    onnx = _written(chosen.variant.graph, folder / MODEL, prepared, chosen)
    same = chosen.variant.graph is exported
    return Shipped(
        onnx=onnx,
        exported=exported,
        onnx_float=onnx if same else _written(exported, folder / FLOAT_MODEL, prepared, None),
    )


def _written(graph: ir.Model, path: Path, prepared: Prepared, chosen: Candidate | None) -> OnnxModel:
    save(graph, path)
    precision = chosen.precision if chosen is not None else "fp32"
    return OnnxModel.of(path, opset=prepared.target.opset, batch=prepared.batch, precision=precision)


def write_bundle(prepared: Prepared, shipped: Shipped, chosen: Candidate, reference: Reference, report: Report) -> None:
    """Write golden arrays, reports and, last, the manifest that hashes them all."""
    folder, source, engine, embedded = shipped.onnx.path.parent, prepared.source, shipped.engine, shipped.embedded
    (folder / "golden").mkdir(exist_ok=True)
    np.save(folder / bundles.GOLDEN_PIXELS, reference.golden_pixels)
    np.save(folder / bundles.PREPROCESSED, preprocessed(source.preprocess))
    golden_files = {f"golden_{name}": f"golden/{name}.npy" for name in reference.golden_outputs}
    for name, values in reference.golden_outputs.items():
        np.save(folder / golden_files[f"golden_{name}"], values)
    bundles.write_json(folder / bundles.REPORT, report.to_json())
    (folder / bundles.REPORT_PAGE).write_text(report.to_markdown(), encoding="utf-8")
    artifacts = {
        "onnx": shipped.onnx.path.name,
        "onnx_float": shipped.onnx_float.path.name,
        "golden_pixels": bundles.GOLDEN_PIXELS,
        "golden_preprocessed": bundles.PREPROCESSED,
        **golden_files,
        **shipped.checkpoints,
    }
    graphs = {"onnx": chosen.variant.graph, "onnx_float": shipped.exported}
    if engine is not None and engine.path is None:
        artifacts |= _write_raw(prepared, folder, chosen, reference)
    if engine is not None and engine.path is not None:
        artifacts["engine"] = engine.path.name
    if embedded is not None and embedded.onnx is not None and embedded.graph is not None:
        artifacts[ONNX_APP] = embedded.onnx.path.name
        graphs[ONNX_APP] = embedded.graph
    bundles.write_manifest(
        folder,
        Manifest(
            versions=library_versions(),
            model=source.to_json(),
            target=prepared.target,
            precision=shipped.onnx.precision,
            batch=prepared.batch,
            preprocess=source.preprocess,
            task=source.task,
            threshold=prepared.threshold,
            labels=prepared.labels,
            synsets=prepared.synsets,
            outputs=source.outputs,
            artifacts=artifacts,
            engine=_engine_json(engine),
            recipe=dataclasses.asdict(chosen.recipe) if chosen.recipe is not None else None,
            requires=requirements(graphs, prepared.target, engine),
            files=bundles.hash_files(folder),
        ),
    )


def _write_raw(prepared: Prepared, folder: Path, chosen: Candidate, reference: Reference) -> dict[str, str]:
    """One call's golden inputs and PyTorch's outputs as trtexec reads them, and the script that compares both on the device.

    Returns:
        Role to path in the bundle.
    """
    count = raw_count(prepared.batch)
    images = reference.golden_batch(count)
    images.astype("<f4").tofile(folder / RAW_INPUT)
    roles = {"raw_image": RAW_INPUT}
    for name, values in reference.golden_outputs.items():
        roles[f"raw_{name}"] = raw_output(name)
        repeated(values, count).astype("<f4").tofile(folder / raw_output(name))
    limits = {name: min(value - GOLDEN_SLACK_DB, GOLDEN_CEILING_DB) for name, value in chosen.raw_db.items()}
    if all(map(math.isfinite, limits.values())):
        classes = {
            spec.name: spec.shape[0] if spec.names_classes or spec.is_binary else 0 for spec in prepared.source.outputs
        }
        write_check(folder, prepared.target, images.shape, limits, classes)
    return roles


def _engine_json(engine: Engine | None) -> dict[str, Any] | None:
    if engine is None:
        return None
    data = dataclasses.asdict(engine)
    del data["path"]
    return data
