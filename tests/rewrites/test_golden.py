"""The structure of the tiny model's graphs, held against tests/golden/*.json: every operator, name, type and shape.

After a wanted change, write them anew and read the difference before it is committed::

    VITEXPORT_WRITE_GOLDEN=1 python -m pytest tests/rewrites/test_golden.py
"""

from __future__ import annotations

import importlib.metadata
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx_ir as ir
import pytest
from exports import exported
from graphs import operators, read

from vitexport.quantize.place import linear_sites
from vitexport.quantize.round import asymmetric, quantize_weight, symmetric_int8
from vitexport.rewrites import apply
from vitexport.rewrites.cpu_integer import CpuInteger
from vitexport.rewrites.float16 import Float16
from vitexport.rewrites.insert_qdq import InsertQdq, QuantizedLinear

GOLDEN = Path(__file__).resolve().parent.parent / "golden"
# The exporter's own operators may differ in other releases: such a graph says nothing about the rewrites.
EXPORTERS = ("torch", "onnxscript")


def with_numbers(model: ir.Model, *, cpu: bool) -> list[QuantizedLinear]:
    """The layers of placement A, with made-up ranges."""
    layers = []
    for site in linear_sites(model.graph):
        weight, weight_scale = quantize_weight(site.weight, 7 if cpu else 8)
        scale, zero = asymmetric(-3.0, 5.0, "uint8") if cpu else symmetric_int8(-3.0, 5.0)
        layers.append(
            QuantizedLinear(
                node=site.node,
                activation=site.activation,
                activation_scale=scale,
                activation_zero_point=zero,
                weight=weight,
                weight_scale=weight_scale,
            )
        )
    return layers


def tensorrt_int8() -> ir.Model:
    model = read(exported("2"))
    apply(model, InsertQdq(with_numbers(model, cpu=False)), Float16())
    return model


def cpu_int8() -> ir.Model:
    model = read(exported("2"))
    apply(model, CpuInteger(with_numbers(model, cpu=True)))
    return model


GRAPHS: dict[str, Callable[[], ir.Model]] = {
    "tiny-dynamic": lambda: read(exported()),
    "tiny-static": lambda: read(exported("2")),
    "tiny-dynamic-opset-13": lambda: read(exported("1:4:8", 13, layernorm_op=False)),
    "tiny-static-int8-tensorrt": tensorrt_int8,
    "tiny-static-int8-cpu": cpu_int8,
}


def structure(model: ir.Model) -> dict[str, Any]:
    """What must not change by accident; the numbers themselves are left out."""
    return {
        "operators": dict(sorted(operators(model).items())),
        "nodes": [
            f"{node.name} ← {', '.join(str(value.name) if value else '-' for value in node.inputs)}" for node in model.graph
        ],
        "constants": {
            name: f"{value.dtype.name if value.dtype else '?'} {list(value.shape or ())}"
            for name, value in sorted(model.graph.initializers.items())
        },
        "interface": [f"{value.name} {value.dtype} {value.shape}" for value in (*model.graph.inputs, *model.graph.outputs)],
    }


@pytest.mark.parametrize("name", GRAPHS)
def test_the_structure_is_the_recorded_one(name: str) -> None:
    path = GOLDEN / f"{name}.json"
    made_by = {package: importlib.metadata.version(package).partition("+")[0] for package in EXPORTERS}
    if os.environ.get("VITEXPORT_WRITE_GOLDEN"):
        record = {"made_by": made_by, **structure(GRAPHS[name]())}
        path.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    golden = json.loads(path.read_text(encoding="utf-8"))
    if (recorded := golden.pop("made_by")) != made_by:
        pytest.skip(f"recorded with {recorded}, and this is {made_by}: the exporter may write other operators")
    assert structure(GRAPHS[name]()) == golden
