"""nvidia-ml-py's module ``pynvml`` with the part of its API that telemetry asks for, under the names of release 13."""

from __future__ import annotations

import dataclasses
import types
from importlib.machinery import ModuleSpec
from typing import Any


class NVMLError(Exception):
    """What every call raises."""


@dataclasses.dataclass
class FakeNvml:
    """One driver and its GPUs.

    Attributes:
        busses: PCI addresses of the GPUs.
        reasons: Bit masks of what holds the clocks down, one a look; the last one stays.
        clocks: Of SMs and memory in MHz.
        refused: Functions that this GPU does not support.
        absent: Functions that these bindings do not have.
        no_driver: Initialization fails.
        processes: That hold the GPU, this one among them.
        limits: Enforced and default power limit in milliwatts.
    """

    busses: tuple[str, ...] = ("00000000:01:00.0",)
    reasons: list[int] = dataclasses.field(default_factory=lambda: [0])
    clocks: tuple[int, int] = (1980, 2619)
    refused: frozenset[str] = frozenset()
    absent: frozenset[str] = frozenset()
    no_driver: bool = False
    processes: int = 1
    limits: tuple[int, int] = (700_000, 700_000)
    open: int = 0

    def module(self) -> types.ModuleType:
        """To stand in `sys.modules` as ``pynvml``."""
        made: Any = types.ModuleType("pynvml")
        made.__spec__ = ModuleSpec("pynvml", None)
        made.NVMLError = NVMLError
        made.NVML_CLOCK_SM, made.NVML_CLOCK_MEM, made.NVML_TEMPERATURE_GPU = 1, 2, 0
        for name in dir(self):
            if name.startswith("nvml") and name not in self.absent:
                setattr(made, name, self._refuse(name) if name in self.refused else getattr(self, name))
        found: types.ModuleType = made
        return found

    @staticmethod
    def _refuse(_name: str) -> Any:
        def refuse(*_: Any) -> None:
            raise NVMLError("Not Supported")

        return refuse

    def nvmlInit(self) -> None:  # noqa: N802
        if self.no_driver:
            raise NVMLError("Driver Not Loaded")
        self.open += 1

    def nvmlShutdown(self) -> None:  # noqa: N802
        self.open -= 1

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        return len(self.busses)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:  # noqa: N802
        return index

    def nvmlDeviceGetHandleByPciBusId(self, bus: str) -> int:  # noqa: N802
        if bus not in self.busses:
            raise NVMLError("Not Found")
        return self.busses.index(bus)

    def nvmlDeviceGetName(self, handle: int) -> str:  # noqa: N802
        return f"Fake GPU {handle}"

    def nvmlDeviceGetClockInfo(self, handle: int, kind: int) -> int:  # noqa: N802
        return self.clocks[kind - 1]

    def nvmlDeviceGetMaxClockInfo(self, handle: int, kind: int) -> int:  # noqa: N802
        return (1980, 2619)[kind - 1]

    def nvmlDeviceGetTemperature(self, handle: int, sensor: int) -> int:  # noqa: N802
        return 45

    def nvmlDeviceGetEnforcedPowerLimit(self, handle: int) -> int:  # noqa: N802
        return self.limits[0]

    def nvmlDeviceGetPowerManagementDefaultLimit(self, handle: int) -> int:  # noqa: N802
        return self.limits[1]

    def nvmlDeviceGetCurrentClocksEventReasons(self, handle: int) -> int:  # noqa: N802
        return self.reasons.pop(0) if len(self.reasons) > 1 else self.reasons[0]

    def nvmlDeviceGetCurrentClocksThrottleReasons(self, handle: int) -> int:  # noqa: N802
        return self.nvmlDeviceGetCurrentClocksEventReasons(handle)

    def nvmlDeviceGetComputeRunningProcesses(self, handle: int) -> list[int]:  # noqa: N802
        return list(range(self.processes))
