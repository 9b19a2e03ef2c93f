"""Strongly typed TensorRT, from release 10 on, and TensorRT-RTX: every type is in the graph."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from vitexport.artifacts import Engine, OnnxModel, Precision
from vitexport.errors import VitexportError
from vitexport.preprocess import PreprocessSpec
from vitexport.quantize.arithmetic import TENSORRT
from vitexport.report import Check
from vitexport.runtime.backends import Backend
from vitexport.runtime.backends.tensorrt_api import is_installed, missing_library
from vitexport.stacks.stack import Emulation, Variant, open_in_onnx_runtime
from vitexport.targets import Target
from vitexport.validate.latency import Timing

if TYPE_CHECKING:
    import onnx_ir as ir

    from vitexport.quantize.decide import Integers

NUMERICS = (
    "Accuracy was judged on the CPU from the graph that ships: Q/DQ is computed exactly, and every tensor that the engine "
    "keeps in float16 is rounded to it, with products accumulated in float32. Kernels that TensorRT fuses on the device "
    "were not part of it."
)


class TensorRtStrong:
    """The stack of a GPU whose engine takes its types from the graph."""

    arithmetic = TENSORRT
    takes_pictures = False
    may_take_pictures = False
    numerics_note: str | None = NUMERICS
    # Times of this machine's CPU are those of another runtime.
    is_timed = False
    is_foreign = False

    def __init__(self, target: Target) -> None:
        self.target = target
        self.delivering: str | None = (
            f"compiling the engine for {target.name}" if target.engine_here else "writing the engine's recipe"
        )

    def missing(self) -> VitexportError | None:
        if self.target.engine_here and not is_installed("tensorrt-rtx"):
            return missing_library("tensorrt-rtx", f"Compiling the engine for {self.target.name}")
        return None

    def steps(self, precisions: Sequence[Precision]) -> tuple[str, ...]:
        baked = ("bake float16 into the graph",) if "fp16" in precisions or "int8" in precisions else ()
        return (*baked, self._delivery())

    def _delivery(self) -> str:
        if self.target.engine_here:
            return f"compile a TensorRT-RTX engine for compute capability {', '.join(self.target.compute_capabilities)}"
        return f"write the recipe for TensorRT {self.target.tensorrt}; the engine is built on the device"

    def stay_float32(self, graph: ir.Model, images: NDArray[np.float32]) -> frozenset[str]:
        from vitexport.rewrites.stay_float32 import float32_nodes

        return float32_nodes(graph, images)

    def variant(
        self, graph: ir.Model, precision: Precision, integers: Integers | None, stay_float32: frozenset[str]
    ) -> Variant:
        from vitexport.rewrites import apply
        from vitexport.rewrites.float16 import Float16

        plain = with_pairs(graph, integers)
        made = plain
        if precision != "fp32":
            made = plain.clone()
            apply(made, Float16(stay_float32))
        return Variant(precision=precision, graph=made, plain=plain, stay_float32=stay_float32)

    def emulated(self, variant: Variant) -> Emulation:
        return Emulation(graph=in_float16(variant, variant.stay_float32), exact=True)

    def open(self, emulation: Emulation) -> Backend:
        return open_in_onnx_runtime(emulation)

    def sampled(self, variant: Variant) -> ir.Model | None:
        return variant.graph

    def speed_checks(self, precision: Precision, timing: Timing | None) -> list[Check]:  # noqa: ARG002 - the engine's are
        return []

    def deliver(self, shipped: OnnxModel, variant: Variant, spec: PreprocessSpec, folder: Path) -> Engine | None:
        from vitexport.stacks.delivery import make_engine

        return make_engine(shipped, spec, self.target, folder, stay_float32=variant.stay_float32)


def with_pairs(graph: ir.Model, integers: Integers | None) -> ir.Model:
    """`graph` itself, or with the Q/DQ pairs of `integers`."""
    if integers is None:
        return graph
    from vitexport.rewrites import apply
    from vitexport.rewrites.insert_qdq import InsertQdq

    made = graph.clone()
    apply(made, InsertQdq(integers.layers, integers.inputs))
    return made


def in_float16(variant: Variant, stay_float32: frozenset[str]) -> ir.Model:
    """A graph that computes on this CPU what the engine computes in float16; see `EmulateFloat16`."""
    if variant.precision == "fp32":
        return variant.graph
    from vitexport.rewrites import apply
    from vitexport.rewrites.emulate_float16 import EmulateFloat16

    judged = variant.plain.clone()
    apply(judged, EmulateFloat16(stay_float32))
    return judged
