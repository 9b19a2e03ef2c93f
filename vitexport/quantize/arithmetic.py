"""Describe the integers that a runtime stack computes with: all that a quantizer has to know of it."""

from __future__ import annotations

import dataclasses
from typing import Literal

from vitexport.targets import CpuArithmetic

# What a stack may quantize beyond the inputs and weights of linear layers: attention products (B), skips of Adds (C).
Base = Literal["A", "B", "C"]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Arithmetic:
    """What quantized layers are computed in.

    Attributes:
        name: As recipes have it, for example ``tensorrt``.
        activation: Type of quantized activations, ``int8`` or ``uint8``.
        weight_bits: Of 8; 7 where two products are added in a saturating int16.
        symmetric: Whether the zero point of an activation is 0.
        convolutions: Whether convolutions are computed in integers, and not linear layers alone.
        bases: Which bases of a placement it has.
        patch: Whether the patch embedding may be quantized.
    """

    name: str
    activation: Literal["int8", "uint8"]
    weight_bits: Literal[7, 8]
    symmetric: bool
    convolutions: bool
    bases: tuple[Base, ...]
    patch: bool

    @classmethod
    def of_cpu(cls, cpu: CpuArithmetic) -> Arithmetic:
        """ONNX Runtime's integer operators on a class of CPUs: linear layers alone, with zero points."""
        return cls(
            name="onnxruntime-cpu",
            activation=cpu.activation,
            weight_bits=cpu.weight_bits,
            symmetric=False,
            convolutions=False,
            bases=("A",),
            patch=False,
        )

    def __str__(self) -> str:
        """For messages, and to tell whether two builds come to the same numbers."""
        if self == TENSORRT:
            return self.name
        return f"{self.name} with {self.weight_bits}-bit weights and {self.activation} activations"


TENSORRT = Arithmetic(
    name="tensorrt",
    activation="int8",
    weight_bits=8,
    symmetric=True,
    convolutions=True,
    bases=("A", "B", "C"),
    patch=True,
)
