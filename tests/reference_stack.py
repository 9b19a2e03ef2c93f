"""A throw-away runtime stack, ONNX's reference evaluator: all of it but its line in `STACKS`, with its backend."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator

from vitexport.artifacts import INPUT_NAME, Outputs, Precision
from vitexport.quantize.arithmetic import TENSORRT
from vitexport.report import Check
from vitexport.runtime import backends
from vitexport.stacks.onnxruntime_cpu import OnnxRuntimeCpu
from vitexport.stacks.stack import Emulation, Variant
from vitexport.stacks.tensorrt_strong import with_pairs
from vitexport.targets import Target, resolve
from vitexport.targets import target as target_module
from vitexport.validate.latency import Timing

if TYPE_CHECKING:
    from vitexport.quantize import Integers

RUNTIME: Any = "onnx-reference"
# What would be a row of the catalogue.
TARGET = dataclasses.replace(
    resolve("cpu-x86-avx2"), id="reference", name="ONNX's reference evaluator", runtime=RUNTIME, precisions=("fp32", "int8")
)


class ReferenceBackend:
    """A graph in ONNX's reference evaluator."""

    description = "ONNX reference evaluator"

    def __init__(self, model: onnx.ModelProto) -> None:
        self._evaluator = ReferenceEvaluator(model)
        self._names = [output.name for output in model.graph.output]

    def run(self, images: NDArray[np.float32]) -> Outputs:
        values: Any = self._evaluator.run(None, {INPUT_NAME: images})
        return dict(zip(self._names, values, strict=True))

    def close(self) -> None:
        """Nothing is held."""


class ReferenceStack(OnnxRuntimeCpu):
    """Float and Q/DQ graphs as they are exported, run where they are built."""

    lacks_integers = False

    def __init__(self, target: Target) -> None:
        super().__init__(target)
        self.arithmetic = TENSORRT

    @property
    def is_timed(self) -> bool:
        return False

    def variant(
        self, graph: ir.Model, precision: Precision, integers: Integers | None, stay_float32: frozenset[str]
    ) -> Variant:
        made = with_pairs(graph, integers)
        return Variant(precision=precision, graph=made, plain=made, stay_float32=stay_float32)

    def open(self, emulation: Emulation) -> ReferenceBackend:
        return ReferenceBackend(ir.to_proto(emulation.graph))

    def speed_checks(self, precision: Precision, timing: Timing | None) -> list[Check]:
        return []


def open_reference(path: Path, threads: int | None) -> ReferenceBackend:
    """The graph of a bundle; `threads` is NumPy's business."""
    del threads
    return ReferenceBackend(onnx.load(path))


def known() -> Iterator[None]:
    """For a test: the runtime has a name, a row and a loader."""
    with (
        mock.patch.object(target_module, "RUNTIMES", (*target_module.RUNTIMES, RUNTIME)),
        mock.patch.dict(backends.GRAPH_RUNTIMES, {RUNTIME: open_reference}),
        mock.patch("vitexport.pipeline.prepare.resolve_all", return_value=TARGET),
    ):
        yield
