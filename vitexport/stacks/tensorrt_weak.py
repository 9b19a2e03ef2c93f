"""Weakly typed TensorRT, before release 10: a float32 graph, flags that allow precisions, single layers held in FP32."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from vitexport.artifacts import Precision
from vitexport.stacks.stack import Emulation, Variant
from vitexport.stacks.tensorrt_strong import TensorRtStrong, in_float16, with_pairs

if TYPE_CHECKING:
    import onnx_ir as ir

    from vitexport.quantize.decide import Integers


class TensorRtWeak(TensorRtStrong):
    """The stack of JetPack 5 and older."""

    def steps(self, precisions: Sequence[Precision]) -> tuple[str, ...]:  # noqa: ARG002 - nothing is baked
        return (self._delivery(),)

    def variant(
        self, graph: ir.Model, precision: Precision, integers: Integers | None, stay_float32: frozenset[str]
    ) -> Variant:
        plain = with_pairs(graph, integers)
        return Variant(precision=precision, graph=plain, plain=plain, stay_float32=stay_float32)

    def emulated(self, variant: Variant) -> Emulation:
        return Emulation(graph=self._in_float16(variant), exact=True)

    def sampled(self, variant: Variant) -> ir.Model | None:
        # The graph says nothing of the float16 that such an engine computes in.
        return self._in_float16(variant)

    def _in_float16(self, variant: Variant) -> ir.Model:
        from vitexport.stacks.delivery import lowered_layernorm

        wide = set(variant.stay_float32)
        if not self.target.layernorm_op:
            wide |= set(lowered_layernorm(variant.plain))
        return in_float16(variant, frozenset(wide))
