"""Machines that are fakes, one for each generation of TensorRT, with a copy of a bundle on each."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import pytest
from fakes import installed
from fakes.fake_cuda import FakeCuda
from fakes.fake_tensorrt import Conduct

from vitexport.bundle import Bundle
from vitexport.device import EngineRequest, build_here, open_for_engine
from vitexport.report import Check, Report

# A bundle, the library of its device, and that device's GPU.
MACHINES = {
    "8.5": ("weak_bundle", (7, 2)),
    "8.6": ("orin_6_0", (8, 7)),
    "10.3": ("jetson_bundle", (8, 7)),
    "10.16": ("orin_7_2", (8, 7)),
    "11.4": ("hopper", (9, 0)),
    "RTX 1.7": ("l4_bundle", (8, 9)),
}


@dataclasses.dataclass
class Device:
    """A bundle's copy on a machine."""

    monkeypatch: pytest.MonkeyPatch
    root: Path
    conduct: Conduct
    cuda: FakeCuda

    def install(self, generation: str) -> None:
        for name, module in installed.modules(generation, self.conduct, self.cuda).items():
            self.monkeypatch.setitem(sys.modules, name, module)

    @property
    def bundle(self) -> Bundle:
        return open_for_engine(self.root)

    def build(self, *, search: bool = False) -> tuple[Path | None, Report]:
        return build_here(self.bundle, EngineRequest(localize=search))

    def located(self, *, search: bool = False) -> Check:
        _, report = self.build(search=search)
        [check] = [check for check in report.checks if check.name == "localize"]
        return check
