"""Input: words of a user or of a recipe; output: how a model is to be quantized, as plain data."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any, Literal

from vitexport.errors import UsageError
from vitexport.quantize.arithmetic import Arithmetic, Base

Rounding = Literal["gptq", "nearest"]
EXTRAS = ("patch", "head")
OBSERVERS = ("minmax", "percentile", "mse", "entropy", "output")
DEFAULT_PERCENTILE = 99.999


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """Which tensors carry Q/DQ.

    Attributes:
        base: ``A``: the linear layers of the blocks. ``B``: also q, k, v and the softmax output, where TensorRT's fused INT8
            attention is documented. ``C``: as A, and the skip operand of residual Adds where its range allows.
        patch: Also the patch embedding.
        head: Also the classifier.
    """

    base: Base = "A"
    patch: bool = False
    head: bool = False

    def __str__(self) -> str:
        return self.base + "".join(f"+{name}" for name in EXTRAS if getattr(self, name))

    @classmethod
    def parse(cls, text: str) -> Placement:
        """Read ``A``, ``B`` or ``C``, with ``+patch`` and ``+head`` behind.

        Raises:
            UsageError: Anything else.
        """
        base, *extras = text.split("+")
        if base not in ("A", "B", "C") or any(extra not in EXTRAS for extra in extras) or len(set(extras)) != len(extras):
            raise UsageError(f"Placement {text!r} is not valid; give A, B or C, with +patch and +head behind: A+head.")
        return cls(base=base, patch="patch" in extras, head="head" in extras)  # type: ignore[arg-type]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Observer:
    """How the range of an activation is chosen from what was seen.

    Attributes:
        kind: ``minmax``; ``percentile``; ``mse`` and ``entropy`` of the activation itself; ``output``, the mean square
            error of the linear layers that read it (of the activation itself, where none does).
        percentile: Percent of the values that stay within the range; for ``percentile`` only.
    """

    kind: str = "percentile"
    percentile: float = DEFAULT_PERCENTILE

    def __str__(self) -> str:
        return f"percentile:{self.percentile!r}" if self.kind == "percentile" else self.kind

    @classmethod
    def parse(cls, text: str) -> Observer:
        """Read ``minmax``, ``percentile``, ``percentile:99.99``, ``mse``, ``entropy`` or ``output``.

        Raises:
            UsageError: Anything else.
        """
        kind, colon, number = text.partition(":")
        try:
            percentile = float(number) if colon else DEFAULT_PERCENTILE
        except ValueError:
            percentile = 0.0
        if kind not in OBSERVERS or (colon and kind != "percentile") or not 50 < percentile <= 100:
            raise UsageError(
                f"Observer {text!r} is not valid; give one of {', '.join(OBSERVERS)}, "
                "or percentile:99.99 (above 50, up to 100)."
            )
        return cls(kind=kind, percentile=percentile)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class QuantSettings:
    """Everything about quantization that a user may choose; with the same images and weights it gives the same bytes.

    Attributes:
        placement: Which tensors carry Q/DQ.
        observer: How activation ranges are chosen.
        degraded: Whether degraded copies of half of the images are looked at too.
        equalize: Whether channels are scaled and shifted, exactly, before anything is rounded.
        rounding: ``gptq`` compensates the error of each weight in those that follow; ``nearest`` does not.
        include: Regular expressions; a layer's timm module must match one of them, if there are any.
        exclude: Regular expressions; a layer whose timm module matches one stays float.
    """

    placement: Placement = dataclasses.field(default_factory=Placement)
    observer: Observer = dataclasses.field(default_factory=Observer)
    degraded: bool = True
    equalize: bool = True
    rounding: Rounding = "gptq"
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Check the expressions against what `re` takes.

        Raises:
            UsageError: One is not a valid regular expression.
        """
        for pattern in (*self.include, *self.exclude):
            _check_expression(pattern)

    def wants(self, module: str) -> bool:
        """Whether the expressions let the layer `module` be quantized."""
        included = not self.include or any(re.search(pattern, module) for pattern in self.include)
        return included and not any(re.search(pattern, module) for pattern in self.exclude)

    def to_json(self) -> dict[str, Any]:
        """Plain values, as a recipe holds them."""
        return {
            "placement": str(self.placement),
            "observer": str(self.observer),
            "degraded": self.degraded,
            "equalize": self.equalize,
            "rounding": self.rounding,
            "include": list(self.include),
            "exclude": list(self.exclude),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> QuantSettings:
        """Read what `to_json` wrote.

        Raises:
            UsageError: A key is missing or unknown, or a value is not one that it may have.
        """
        names = {field.name for field in dataclasses.fields(cls)}
        if set(data) != names:
            odd = ", ".join(sorted(set(data) ^ names))
            raise UsageError(f"The recipe's settings do not have exactly {', '.join(sorted(names))}: {odd}.")
        lists = all(
            isinstance(data[key], list) and all(isinstance(item, str) for item in data[key])
            for key in ("include", "exclude")
        )
        switches = all(isinstance(data[key], bool) for key in ("degraded", "equalize"))
        if not lists or not switches or data["rounding"] not in ("gptq", "nearest"):
            raise UsageError(
                "The recipe's settings hold a value of the wrong type; expected what a bundle's manifest holds."
            )
        return cls(
            placement=Placement.parse(str(data["placement"])),
            observer=Observer.parse(str(data["observer"])),
            degraded=data["degraded"],
            equalize=data["equalize"],
            rounding=data["rounding"],
            include=tuple(data["include"]),
            exclude=tuple(data["exclude"]),
        )


def _check_expression(pattern: str) -> None:
    try:
        re.compile(pattern)
    except re.error as error:
        message = f"{pattern!r} is not a valid regular expression ({error}); give one such as blocks\\.0\\..*fc2."
        raise UsageError(message) from error


def check_placement(placement: Placement, arithmetic: Arithmetic) -> None:
    """Refuse a placement that the stack's arithmetic does not have.

    Raises:
        UsageError: It quantizes more than linear layers.
    """
    if placement.base not in arithmetic.bases or (placement.patch and not arithmetic.patch):
        raise UsageError(
            f"Placement {placement} is TensorRT's; a CPU computes the linear layers in integers: "
            "give `placement=A` or A+head."
        )
