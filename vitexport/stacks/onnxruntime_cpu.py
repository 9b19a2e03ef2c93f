"""ONNX Runtime on a class of CPUs: fused float operators, and integer operators of its own in the place of Q/DQ."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from vitexport.artifacts import Engine, OnnxModel, Precision
from vitexport.errors import VitexportError
from vitexport.preprocess import PreprocessSpec
from vitexport.quantize.arithmetic import Arithmetic
from vitexport.report import Check, at_least, skipped
from vitexport.runtime.backends import Backend
from vitexport.stacks.stack import Emulation, Variant, open_in_onnx_runtime
from vitexport.targets import Target, machine_cpu, misfit
from vitexport.validate.latency import Timing

if TYPE_CHECKING:
    import onnx_ir as ir

    from vitexport.quantize.decide import Integers

FOREIGN_INTEGERS = "; computed as Q/DQ in float, since this CPU cannot run the target's integer operators"


class OnnxRuntimeCpu:
    """The stack of a server, a desktop or a board without an NVIDIA GPU."""

    takes_pictures = False
    may_take_pictures = True
    delivering: str | None = None
    numerics_note: str | None = None

    def __init__(self, target: Target) -> None:
        if target.cpu is None:
            raise ValueError(f"{target.id} has no CPU")
        self.target = target
        self.arithmetic = Arithmetic.of_cpu(target.cpu)

    @property
    def lacks_integers(self) -> bool:
        """Whether this machine cannot run the target's integer operators."""
        return misfit(self.target, machine_cpu(), precision="int8") is not None

    @property
    def is_foreign(self) -> bool:
        return self.lacks_integers

    @property
    def is_timed(self) -> bool:
        return not self.is_foreign

    def missing(self) -> VitexportError | None:
        return None

    def steps(self, precisions: Sequence[Precision]) -> tuple[str, ...]:  # noqa: ARG002 - the same for all
        return ()

    def stay_float32(self, graph: ir.Model, images: NDArray[np.float32]) -> frozenset[str]:  # noqa: ARG002 - no float16
        return frozenset()

    def variant(
        self, graph: ir.Model, precision: Precision, integers: Integers | None, stay_float32: frozenset[str]
    ) -> Variant:
        from vitexport.rewrites import apply
        from vitexport.rewrites.cpu_fusions import cpu_fusions
        from vitexport.rewrites.cpu_integer import CpuInteger
        from vitexport.rewrites.insert_qdq import InsertQdq

        made = plain = graph.clone()
        apply(made, *([CpuInteger(integers.layers)] if integers is not None else []), *cpu_fusions())
        if integers is not None and self.lacks_integers:
            plain = graph.clone()
            apply(plain, InsertQdq(integers.layers, symmetric=False))
        return Variant(precision=precision, graph=made, plain=plain, stay_float32=stay_float32)

    def emulated(self, variant: Variant) -> Emulation:
        if variant.precision == "int8" and self.lacks_integers:
            return Emulation(graph=variant.plain, exact=True, remark=FOREIGN_INTEGERS)
        return Emulation(graph=variant.graph, exact=False)

    def open(self, emulation: Emulation) -> Backend:
        return open_in_onnx_runtime(emulation)

    def sampled(self, variant: Variant) -> ir.Model | None:  # noqa: ARG002 - nothing is compiled that could depart
        return None

    def speed_checks(self, precision: Precision, timing: Timing | None) -> list[Check]:
        """INT8 that is not faster than float on its own CPU has failed at what it is for."""
        if timing is None:
            return [skipped("latency", self._why_not_timed())]
        if precision != "int8":
            return []
        fast, slow = timing.figures["int8"]["p50_ms"], timing.figures["fp32"]["p50_ms"]
        ratio = slow / fast
        message = (
            f"INT8 is {ratio:.2f} x as fast as the float ONNX in the same runtime ({fast:.2f} ms against {slow:.2f} ms)"
        )
        return [at_least("faster_than_float", ratio, 1.0, message, "ratio")]

    def _why_not_timed(self) -> str:
        return f"this machine cannot run the variant for {self.target.name}; time it there with vitexport bench"

    def deliver(
        self,
        shipped: OnnxModel,  # noqa: ARG002 - the graph is what the runtime loads
        variant: Variant,  # noqa: ARG002
        spec: PreprocessSpec,  # noqa: ARG002
        folder: Path,  # noqa: ARG002
    ) -> Engine | None:
        return None
