"""What a runtime stack has to say of itself: its arithmetic, its graphs, and what is delivered for it.

A stack is one file beside this one, and one line of `vitexport.stacks.STACKS`. What it says before a model is loaded needs
neither PyTorch nor ONNX; the methods that work on graphs import what they need.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from vitexport.artifacts import Engine, OnnxModel, Precision
from vitexport.errors import VitexportError
from vitexport.preprocess import PreprocessSpec
from vitexport.quantize.arithmetic import Arithmetic
from vitexport.report import Check
from vitexport.runtime.backends import Backend
from vitexport.targets import Target
from vitexport.validate.latency import Timing

if TYPE_CHECKING:
    import onnx_ir as ir

    from vitexport.quantize.decide import Integers


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Variant:
    """One precision of a model, as a graph.

    Attributes:
        precision: Which.
        graph: What ships.
        plain: The same numbers before the stack's own form: the float graph, or the one with Q/DQ. `graph` where nobody
            looks at them.
        stay_float32: Nodes that are not computed in float16.
    """

    precision: Precision
    graph: ir.Model
    plain: ir.Model
    stay_float32: frozenset[str]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Emulation:
    """What this machine computes to judge a variant.

    Attributes:
        graph: The variant's own where this machine computes as the target does.
        exact: Whether it is computed node by node, without the fusions of ONNX Runtime.
        remark: What the report says of it behind the images that it was judged on; empty where there is nothing to say.
    """

    graph: ir.Model
    exact: bool
    remark: str = ""


class Stack(Protocol):
    """The runtime stack of one target.

    Attributes:
        target: What is built for.
        arithmetic: What quantized layers are computed in.
        takes_pictures: Whether the bundle gets a model that takes the picture itself, unless the user says otherwise.
        may_take_pictures: Whether it can get one.
        is_timed: Whether candidates are timed on this machine.
        is_foreign: Whether times on this machine say nothing of the target, which could run here otherwise.
        delivering: The stage that `deliver` is, for the user; None where there is nothing to deliver beside the graph.
        numerics_note: What the report says of how accuracy was judged; None where the graph itself was run.
    """

    target: Target
    arithmetic: Arithmetic
    takes_pictures: bool
    may_take_pictures: bool
    delivering: str | None
    numerics_note: str | None

    @property
    def is_timed(self) -> bool: ...

    @property
    def is_foreign(self) -> bool: ...

    def missing(self) -> VitexportError | None:
        """What is not installed here and the build cannot do without."""
        ...

    def steps(self, precisions: Sequence[Precision]) -> tuple[str, ...]:
        """What the build does between quantization and validation, for a plan."""
        ...

    def stay_float32(self, graph: ir.Model, images: NDArray[np.float32]) -> frozenset[str]:
        """Nodes of the float `graph` that float16 cannot compute safely, found on `images`; none without float16."""
        ...

    def variant(
        self, graph: ir.Model, precision: Precision, integers: Integers | None, stay_float32: frozenset[str]
    ) -> Variant:
        """`graph` in the stack's own form of `precision`.

        Args:
            graph: The float graph, or the one that the integers belong to; it is not changed.
            precision: One that the target has.
            integers: Of INT8.
            stay_float32: Of `stay_float32`.

        Raises:
            ToolchainError: A rewrite failed.
        """
        ...

    def emulated(self, variant: Variant) -> Emulation:
        """What this machine computes to judge `variant`."""
        ...

    def open(self, emulation: Emulation) -> Backend:
        """What computes a graph on this machine.

        Raises:
            ToolchainError: It refuses the graph.
        """
        ...

    def sampled(self, variant: Variant) -> ir.Model | None:
        """The graph whose tensors a device's engine is compared with, to find the first module that departs; or None."""
        ...

    def speed_checks(self, precision: Precision, timing: Timing | None) -> list[Check]:
        """What the times of this machine, if any, say of the chosen precision."""
        ...

    def deliver(self, shipped: OnnxModel, variant: Variant, spec: PreprocessSpec, folder: Path) -> Engine | None:
        """Make what the runtime loads, or say how the device makes it; None where it loads the graph.

        Args:
            shipped: The file of `variant`.
            variant: What ships.
            spec: Gives the input size.
            folder: The bundle's.

        Raises:
            MissingDependencyError: A library is not installed.
            ToolchainError: It refuses the graph.
        """
        ...


def open_in_onnx_runtime(emulation: Emulation) -> Backend:
    """A session of ONNX Runtime on the CPU.

    Raises:
        ToolchainError: It refuses the graph.
    """
    from vitexport.rewrites import session

    return session(emulation.graph, exact=emulation.exact)
