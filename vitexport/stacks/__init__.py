"""What each runtime stack demands of a graph, and what is delivered for it; one file a stack.

`of` finds the stack of a target. The pipeline asks the stack, and never what kind of device the target is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from vitexport.stacks.application import Application
from vitexport.stacks.onnxruntime_cpu import OnnxRuntimeCpu
from vitexport.stacks.stack import Emulation, Stack, Variant
from vitexport.stacks.tensorrt_strong import TensorRtStrong
from vitexport.stacks.tensorrt_weak import TensorRtWeak
from vitexport.targets import Target

__all__ = ["STACKS", "Emulation", "Stack", "Variant", "of"]

# Runtime, typing of the network, and whether it runs inside an application.
Key: TypeAlias = tuple[str, str | None, bool]

STACKS: dict[Key, Callable[[Target], Stack]] = {
    ("onnxruntime", None, False): OnnxRuntimeCpu,
    ("onnxruntime", None, True): Application,
    ("tensorrt", "weak", False): TensorRtWeak,
    ("tensorrt", "strong", False): TensorRtStrong,
    ("tensorrt-rtx", "strong", False): TensorRtStrong,
}


def of(target: Target) -> Stack:
    """The stack that `target` runs."""
    return STACKS[target.runtime, target.typing, target.app](target)
