"""One machine with a GPU, a TensorRT and CUDA's bindings, all of them fakes, put in the place of what is installed."""

from __future__ import annotations

import sys
from typing import Any

from fakes.fake_cuda import FakeCuda
from fakes.fake_tensorrt import GENERATIONS, Conduct, make_module

TENSORRT_MODULES = ("tensorrt", "tensorrt_rtx", "tensorrt_rtx_bindings")
BINDINGS = ("cuda", "cuda.bindings", "cuda.bindings.runtime")
OLD_BINDINGS = ("cuda", "cuda.cudart")


def modules(generation: str, conduct: Conduct, cuda: FakeCuda) -> dict[str, Any]:
    """Entries for `sys.modules`; None is how Python marks an absent module."""
    module = make_module(GENERATIONS[generation], conduct, cuda)
    absent = dict.fromkeys((*TENSORRT_MODULES, *BINDINGS, *OLD_BINDINGS))
    return {**absent, **cuda.modules(BINDINGS), module.__name__: module}


def install(generation: str, conduct: Conduct, cuda: FakeCuda) -> None:
    """For a process of its own."""
    sys.modules.update(modules(generation, conduct, cuda))
