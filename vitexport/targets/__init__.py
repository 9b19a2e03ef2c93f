"""Input: a target's name; output: what the device can do, with what speaks against a build for it.

``from vitexport.targets import catalogue`` gives the function; it stands before the module of the same name.
"""

from __future__ import annotations

from vitexport.targets.catalogue import OPSET, catalogue, nearest_names, resolve
from vitexport.targets.cpu import MachineCpu, classify, machine_cpu, misfit
from vitexport.targets.opsets import with_opset
from vitexport.targets.preflight import Finding, ModelFacts, findings
from vitexport.targets.several import resolve_all
from vitexport.targets.target import PRECISIONS, CpuArithmetic, Device, Target

__all__ = [
    "OPSET",
    "PRECISIONS",
    "CpuArithmetic",
    "Device",
    "Finding",
    "MachineCpu",
    "ModelFacts",
    "Target",
    "catalogue",
    "classify",
    "findings",
    "machine_cpu",
    "misfit",
    "nearest_names",
    "resolve",
    "resolve_all",
    "with_opset",
]
