"""ONNX Runtime inside an application, a browser or a phone: the model takes the picture, and float16 halves the file."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vitexport.artifacts import Precision
from vitexport.stacks.onnxruntime_cpu import OnnxRuntimeCpu
from vitexport.stacks.stack import Variant

if TYPE_CHECKING:
    import onnx_ir as ir

    from vitexport.quantize.decide import Integers


class Application(OnnxRuntimeCpu):
    """As on a CPU; no machine that builds is one."""

    takes_pictures = True

    @property
    def is_foreign(self) -> bool:
        return True

    def variant(
        self, graph: ir.Model, precision: Precision, integers: Integers | None, stay_float32: frozenset[str]
    ) -> Variant:
        from vitexport.rewrites import apply
        from vitexport.rewrites.float16_weights import Float16Weights

        made = super().variant(graph, precision, integers, stay_float32)
        if precision == "fp16":
            # Half the file, computed in float32.
            apply(made.graph, Float16Weights())
        return made

    def _why_not_timed(self) -> str:
        return f"{self.target.name} is not this machine; what vitexport app writes shows it there"
