"""Input: what a measurement runs on; output: its clocks, temperature, power mode and throttling, as the system tells them.

Nothing is set, and nothing is guessed: what could not be read is None, and `Reading.unknown` says why. Sources:

- NVML through nvidia-ml-py where it is installed; its constants and their meaning are NVIDIA's NVML API reference
  (NvmlClocksEventReasons), its Python names those of ``pynvml.py`` 13.
- else ``nvidia-smi --query-gpu`` (fields: ``nvidia-smi --help-query-gpu``; drivers before R535 call ``clocks_event_reasons``
  ``clocks_throttle_reasons``).
- Jetson: ``nvpmodel -q``, ``jetson_clocks --show`` (for root only), ``tegrastats``, and sysfs: devfreq, thermal zones, the
  throttle alerts among the cooling devices, and the over-current counters of soctherm (Jetson Linux Developer Guide,
  "Platform Power and Performance"; drivers/hwmon/tegra234-oc-event.c).
- CPU: cpufreq, thermal zones, and x86's throttle counters in sysfs (Documentation/ABI/testing/sysfs-devices-system-cpu).
"""

from __future__ import annotations

import csv
import dataclasses
import importlib
import math
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

ROOT = Path("/")
# Bits of nvmlClocksEventReasons that slow a GPU down against its owner's wish. The others say that it is idle, or that its
# clocks were chosen: GpuIdle 0x1, ApplicationsClocksSetting 0x2, DisplayClockSetting 0x100.
THROTTLE_BITS = {
    0x004: "power cap",
    0x008: "hardware slowdown",
    0x010: "sync boost",
    0x020: "software thermal slowdown",
    0x040: "hardware thermal slowdown",
    0x080: "power brake",
    0x200: "board limit",
    0x400: "reliability limit",
}
# Of Orin and later, in NVIDIA's words.
OVER_CURRENT = {"oc1": "under-voltage", "oc2": "average over-current", "oc3": "instantaneous over-current"}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """One look at a device.

    Attributes:
        device: Its name.
        power_mode: As the system calls it: nvpmodel's name, a power limit, a governor.
        locked: Whether the clocks are held at their maximum (jetson_clocks).
        clock_mhz, clock_max_mhz: Of the SMs, or of the fastest processor.
        memory_mhz, memory_max_mhz: Of the GPU's memory.
        temperature_c: Of the GPU or CPU.
        throttled: What slows it down at this moment, in words; empty for nothing.
        counters: Throttle events since the start of the system, by name.
        others: Other processes that hold the GPU.
        unknown: Why a field is None, by its name.
    """

    device: str | None = None
    power_mode: str | None = None
    locked: bool | None = None
    clock_mhz: int | None = None
    clock_max_mhz: int | None = None
    memory_mhz: int | None = None
    memory_max_mhz: int | None = None
    temperature_c: float | None = None
    throttled: tuple[str, ...] | None = None
    counters: Mapping[str, int] = dataclasses.field(default_factory=dict)
    others: int | None = None
    unknown: Mapping[str, str] = dataclasses.field(default_factory=dict)


class Probe(Protocol):
    """One source of readings.

    Attributes:
        source: For reports.
        pause: Least seconds between two looks during a measurement, which is not to be disturbed.
    """

    source: str
    pause: float

    def read(self, *, full: bool) -> Reading:
        """Everything if `full`; else what may change from one second to the next, and is cheap to ask."""

    def close(self) -> None:
        """Let go of the library."""


class _Fields:
    """Values by field; what fails is None and its reason is kept."""

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}
        self.unknown: dict[str, str] = {}

    def take(self, name: str, read: Callable[[], Any], *errors: type[Exception]) -> None:
        expected: tuple[type[Exception], ...] = (OSError, ValueError, AttributeError, KeyError, *errors)
        try:
            self.values[name] = read()
        except expected as error:
            self.unknown[name] = " ".join(str(error).split()) or type(error).__name__

    def reading(self) -> Reading:
        return Reading(**self.values, unknown=self.unknown)


def gpu_probe(bus_id: str | None = None, *, root: Path = ROOT) -> Probe:
    """The best source that this machine has for its GPU.

    Args:
        bus_id: PCI address of the GPU that is meant, for example ``00000000:01:00.0``; None where there is only one.
        root: Of the file system, for tests.
    """
    if is_jetson(root):
        return JetsonProbe(root)
    try:
        return _nvml_probe(bus_id)
    except _NoSourceError as error:
        no_nvml = str(error)
    try:
        return SmiProbe(bus_id)
    except _NoSourceError as error:
        return NoProbe(f"{no_nvml}; {error}")


class _NoSourceError(Exception):
    """This source does not exist here, or cannot tell which GPU is meant."""


class NoProbe:
    """Where nothing can be asked.

    Args:
        reason: For every field.
    """

    source = "none"
    pause = float("inf")

    def __init__(self, reason: str) -> None:
        self.reason = reason

    def read(self, *, full: bool) -> Reading:
        """Nothing, and why."""
        names = ("device", "power_mode", "clock_mhz", "memory_mhz", "temperature_c", "throttled") if full else ()
        return Reading(unknown=dict.fromkeys(names, self.reason))

    def close(self) -> None:
        """Nothing to let go of."""


# ---- servers and desktops


def _nvml_probe(bus_id: str | None) -> Probe:
    try:
        library = importlib.import_module("pynvml")
    except ImportError:
        raise _NoSourceError("nvidia-ml-py is not installed") from None
    try:
        library.nvmlInit()
    except library.NVMLError as error:
        raise _NoSourceError(f"NVML: {error}") from None
    try:
        return NvmlProbe(library, _nvml_handle(library, bus_id))
    except library.NVMLError as error:
        library.nvmlShutdown()
        raise _NoSourceError(f"NVML: {error}") from None
    except _NoSourceError:
        library.nvmlShutdown()
        raise


def _nvml_handle(library: Any, bus_id: str | None) -> Any:
    if bus_id is not None:
        return library.nvmlDeviceGetHandleByPciBusId(bus_id)
    if (count := library.nvmlDeviceGetCount()) != 1:
        raise _NoSourceError(f"NVML sees {count} GPUs, and which of them is used is not known")
    return library.nvmlDeviceGetHandleByIndex(0)


class NvmlProbe:
    """The driver's own library."""

    pause = 0.5

    def __init__(self, library: ModuleType, handle: Any) -> None:
        self.nvml: Any = library
        self.handle = handle
        self.source = "NVML"

    def read(self, *, full: bool) -> Reading:
        """As the protocol says."""
        nvml, fields = self.nvml, _Fields()

        def take(name: str, call: Callable[[], Any]) -> None:
            fields.take(name, call, nvml.NVMLError)

        take("clock_mhz", lambda: int(nvml.nvmlDeviceGetClockInfo(self.handle, nvml.NVML_CLOCK_SM)))
        take("memory_mhz", lambda: int(nvml.nvmlDeviceGetClockInfo(self.handle, nvml.NVML_CLOCK_MEM)))
        take("temperature_c", lambda: float(nvml.nvmlDeviceGetTemperature(self.handle, nvml.NVML_TEMPERATURE_GPU)))
        take("throttled", lambda: throttle_words(self._reasons()))
        if full:
            take("device", lambda: _text(nvml.nvmlDeviceGetName(self.handle)))
            take("clock_max_mhz", lambda: int(nvml.nvmlDeviceGetMaxClockInfo(self.handle, nvml.NVML_CLOCK_SM)))
            take("memory_max_mhz", lambda: int(nvml.nvmlDeviceGetMaxClockInfo(self.handle, nvml.NVML_CLOCK_MEM)))
            take("power_mode", self._power_limit)
            take("others", self._others)
        return fields.reading()

    def close(self) -> None:
        """Let go of the library."""
        self.nvml.nvmlShutdown()

    def _reasons(self) -> int:
        """The bit mask, under its name of today or that of drivers before R535."""
        ask = getattr(self.nvml, "nvmlDeviceGetCurrentClocksEventReasons", None)
        if ask is not None:
            try:
                return int(ask(self.handle))
            except self.nvml.NVMLError:
                pass  # a driver older than the bindings
        return int(self.nvml.nvmlDeviceGetCurrentClocksThrottleReasons(self.handle))

    def _power_limit(self) -> str:
        limit = self.nvml.nvmlDeviceGetEnforcedPowerLimit(self.handle) / 1000
        return power_limit_words(limit, self.nvml.nvmlDeviceGetPowerManagementDefaultLimit(self.handle) / 1000)

    def _others(self) -> int:
        """All but this process, which holds the GPU too; the ids of processes differ inside of containers."""
        count = len(self.nvml.nvmlDeviceGetComputeRunningProcesses(self.handle))
        if not count:
            raise ValueError("NVML does not see the processes of this container")
        return count - 1


SMI_FIELDS = {
    "device": "name",
    "clock_mhz": "clocks.sm",
    "clock_max_mhz": "clocks.max.sm",
    "memory_mhz": "clocks.mem",
    "memory_max_mhz": "clocks.max.mem",
    "temperature_c": "temperature.gpu",
    "limit": "enforced.power.limit",
    "default": "power.default_limit",
    "reasons": "clocks_event_reasons.active",
}
SMI_OLD_REASONS = "clocks_throttle_reasons.active"


class SmiProbe:
    """The driver's command line tool.

    Args:
        bus_id: As for `gpu_probe`.
    """

    source = "nvidia-smi"
    pause = 2.0

    def __init__(self, bus_id: str | None) -> None:
        program = shutil.which("nvidia-smi")
        if program is None:
            raise _NoSourceError("nvidia-smi is not on the PATH")
        self.command = [program, *([f"--id={bus_id}"] if bus_id else []), "--format=csv,noheader,nounits"]
        self.fields = dict(SMI_FIELDS)
        try:
            self._ask()
        except ValueError:
            self.fields["reasons"] = SMI_OLD_REASONS
            try:
                self._ask()
            except ValueError as error:
                raise _NoSourceError(str(error)) from None

    def read(self, *, full: bool) -> Reading:
        """As the protocol says."""
        fields = _Fields()
        try:
            row = self._ask()
        except ValueError as error:
            return Reading(unknown={"clock_mhz": str(error), "temperature_c": str(error), "throttled": str(error)})
        changing: tuple[str, ...] = ("clock_mhz", "memory_mhz")
        if full:
            changing = (*changing, "clock_max_mhz", "memory_max_mhz")
            fields.take("device", lambda: _known(row["device"]))
            fields.take("power_mode", lambda: power_limit_words(float(_known(row["limit"])), float(_known(row["default"]))))
            fields.unknown["others"] = "nvidia-smi is not asked for it; install nvidia-ml-py"
        for name in changing:
            fields.take(name, lambda name=name: int(_known(row[name])))  # type: ignore[misc]
        fields.take("temperature_c", lambda: float(_known(row["temperature_c"])))
        fields.take("throttled", lambda: throttle_words(int(_known(row["reasons"]), 16)))
        return fields.reading()

    def close(self) -> None:
        """Nothing to let go of."""

    def _ask(self) -> dict[str, str]:
        """One line of the table, by our names."""
        query = f"--query-gpu={','.join(self.fields.values())}"
        output = _output([*self.command, query])
        rows = list(csv.reader(output.splitlines(), skipinitialspace=True))
        if len(rows) != 1 or len(rows[0]) != len(self.fields):
            raise ValueError(f"nvidia-smi names {len(rows)} GPUs where one was expected: {output[:200]}")
        return dict(zip(self.fields, (cell.strip() for cell in rows[0]), strict=True))


def _known(cell: str) -> str:
    """A cell of nvidia-smi; ``[N/A]``, ``[Not Supported]`` and their like are none."""
    if not cell or cell == "N/A" or cell.startswith("["):
        raise ValueError(f"nvidia-smi says {cell or 'nothing'}")
    return cell


def throttle_words(mask: int) -> tuple[str, ...]:
    """What slows the GPU down, of a bit mask of NVML's clocks event reasons."""
    return tuple(word for bit, word in THROTTLE_BITS.items() if mask & bit)


def power_limit_words(limit: float, default: float) -> str:
    """For example ``power limit 250 W of 350 W``; a server's GPU has no other power mode."""
    return f"power limit {limit:.0f} W" + ("" if abs(limit - default) < 1 else f" of {default:.0f} W")


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value


# ---- Jetson


def is_jetson(root: Path = ROOT) -> bool:
    """Whether this is NVIDIA's Jetson Linux, by the file that names its release."""
    return (root / "etc/nv_tegra_release").is_file()


class JetsonProbe:
    """Jetson Linux: commands that only show, and sysfs.

    Args:
        root: Of the file system.
    """

    pause = 0.5

    def __init__(self, root: Path = ROOT) -> None:
        self.root = root
        self.source = "Jetson Linux"

    def read(self, *, full: bool) -> Reading:
        """As the protocol says."""
        fields = _Fields()
        fields.take("clock_mhz", lambda: self._gpu_clock("cur_freq"))
        fields.take("temperature_c", self._temperature)
        fields.take("throttled", self._alerts)
        if full:
            fields.take("device", lambda: (self.root / "proc/device-tree/model").read_text("utf-8").strip("\0\n "))
            fields.take("power_mode", self._power_mode)
            fields.take("clock_max_mhz", lambda: self._gpu_clock("max_freq"))
            fields.take("locked", lambda: self._gpu_clock("min_freq") == self._gpu_clock("max_freq"))
            self._memory_clock(fields)
            fields.values["counters"] = self._counters()
            fields.unknown["others"] = "Jetson Linux does not list the processes on its GPU"
        return fields.reading()

    def close(self) -> None:
        """Nothing to let go of."""

    def _gpu_clock(self, name: str) -> int:
        """In MHz. The GPU is 17000000.gpu, 17000000.ga10b, 17000000.gv11b, 57000000.gpu or, from Thor on, gpu-gpc-0."""
        found = [
            path
            for path in sorted((self.root / "sys/class/devfreq").glob("*"))
            if re.fullmatch(r"[0-9a-f]+\.(gpu|ga10b|gv11b|gp10b|gm20b)|gpu-gpc-0", path.name)
        ]
        if not found:
            raise ValueError("sys/class/devfreq holds no GPU")
        return round(int((found[0] / name).read_text("ascii")) / 1e6)

    def _temperature(self) -> float:
        """Of the thermal zone gpu-thermal (Orin), GPU-therm (before), in degrees; it cannot be read while the GPU is off."""
        for zone in sorted((self.root / "sys/class/thermal").glob("thermal_zone*")):
            if (zone / "type").read_text("ascii").strip().lower() in ("gpu-thermal", "gpu-therm"):
                return int((zone / "temp").read_text("ascii")) / 1000
        raise ValueError("sys/class/thermal holds no zone of the GPU")

    def _alerts(self) -> tuple[str, ...]:
        """Cooling devices that do nothing but tell that clocks are held down."""
        found, alerts = False, []
        for device in sorted((self.root / "sys/class/thermal").glob("cooling_device*")):
            kind = (device / "type").read_text("ascii").strip()
            if kind.endswith("-throttle-alert"):
                found = True
                if int((device / "cur_state").read_text("ascii")) > 0:
                    alerts.append(kind)
        if not found:
            raise ValueError("sys/class/thermal holds no throttle alert")
        return tuple(alerts)

    def _counters(self) -> dict[str, int]:
        """Over-current events since the start; empty before Orin, which does not count them."""
        counts = {}
        for path in sorted((self.root / "sys/class/hwmon").glob("hwmon*/oc*_event_cnt")):
            name = path.name.partition("_")[0]
            fields = _Fields()
            fields.take(name, lambda path=path: int(path.read_text("ascii")))  # type: ignore[misc]
            counts.update({OVER_CURRENT.get(key, key): value for key, value in fields.values.items()})
        return counts

    def _power_mode(self) -> str:
        """What follows ``NV Power Mode:``; the line after it is the mode's number, those before are warnings."""
        output = _output([_program("nvpmodel"), "-q"])
        found = re.search(r"^(?:NVPM VERB: Current mode: )?NV Power Mode: *(\S.*?) *$", output, re.MULTILINE)
        if found is None:
            raise ValueError(f"nvpmodel -q says {output[:80]!r}")
        return found[1]

    def _memory_clock(self, fields: _Fields) -> None:
        """Of the external memory controller (EMC), which only root may see in most places."""
        found = _Fields()
        for name, read in (
            ("jetson_clocks", self._emc_of_jetson_clocks),
            ("debugfs", self._emc_of_debugfs),
            ("tegrastats", self._emc_of_tegrastats),
        ):
            found.take(name, read)
            if name in found.values:
                fields.values.update(found.values[name])
                return
        fields.unknown["memory_mhz"] = "; ".join(found.unknown.values())

    @staticmethod
    def _emc_of_jetson_clocks() -> dict[str, int]:
        output = _output([_program("jetson_clocks"), "--show"])
        found = re.search(r"^EMC MinFreq=\d+ MaxFreq=(\d+) CurrentFreq=(\d+)", output, re.MULTILINE)
        if found is None:
            raise ValueError(f"jetson_clocks --show says nothing of EMC: {output[:80]!r}")
        return {"memory_mhz": round(int(found[2]) / 1e6), "memory_max_mhz": round(int(found[1]) / 1e6)}

    def _emc_of_debugfs(self) -> dict[str, int]:
        rate = (self.root / "sys/kernel/debug/bpmp/debug/clk/emc/rate").read_text("ascii")
        return {"memory_mhz": round(int(rate) / 1e6)}

    @staticmethod
    def _emc_of_tegrastats() -> dict[str, int]:
        output = _output([_program("tegrastats"), "--interval", "100"], seconds=1.0, endless=True)
        found = re.search(r"EMC_FREQ \d+%@(\d+)", output)
        if found is None:
            raise ValueError("tegrastats shows no EMC clock to this user")
        return {"memory_mhz": int(found[1])}


def _program(name: str) -> str:
    path = shutil.which(name)
    if path is None:
        raise ValueError(f"{name} is not on the PATH")
    return path


def _output(command: list[str], *, seconds: float = 10.0, endless: bool = False) -> str:
    """What a command that only shows prints; of one that never ends, what it printed until then.

    Raises:
        ValueError: It failed; the message holds its own words.
    """
    name = Path(command[0]).name
    try:
        done = subprocess.run(  # noqa: S603 - programs found on the PATH, with fixed arguments
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=seconds, check=False
        )
    except subprocess.TimeoutExpired as error:
        if endless:
            return (error.stdout or b"").decode("utf-8", "replace")
        raise ValueError(f"{name} did not answer within {seconds:.0f} s") from None
    except OSError as error:
        raise ValueError(f"{name}: {error.strerror}") from None
    output, said = (stream.decode("utf-8", "replace").strip() for stream in (done.stdout, done.stderr))
    if done.returncode != 0:
        raise ValueError(f"{name} failed: {' '.join((said or output).split())[:200]}")
    return output


# ---- CPU


class CpuProbe:
    """Linux's own view of the processors that this process may use.

    Args:
        name: As reports call it.
        root: Of the file system.
    """

    pause = 0.5

    def __init__(self, name: str, root: Path = ROOT) -> None:
        self.name = name
        self.root = root
        self.source = "Linux"

    def read(self, *, full: bool) -> Reading:
        """As the protocol says. Throttling is what the counters tell, not a state."""
        fields = _Fields()
        fields.take("clock_mhz", self._clock)
        fields.take("temperature_c", self._temperature)
        if full:
            fields.values["device"] = self.name
            fields.take("power_mode", self._governor)
            fields.take("clock_max_mhz", lambda: self._cpufreq("cpuinfo_max_freq"))
            fields.unknown["memory_mhz"] = "Linux does not tell the clock of a CPU's memory"
            fields.unknown["others"] = "see the share of the processors that others took"
            counters = self._counters()
            fields.values["counters"] = counters
            if not counters:
                fields.unknown["throttled"] = "sysfs holds no throttle counters"
        return fields.reading()

    def close(self) -> None:
        """Nothing to let go of."""

    def _clock(self) -> int:
        lines = (self.root / "proc/cpuinfo").read_text("utf-8").splitlines()
        clocks = [float(line.partition(":")[2]) for line in lines if line.startswith("cpu MHz")]
        return round(max(clocks)) if clocks else self._cpufreq("scaling_cur_freq")

    def _cpufreq(self, name: str) -> int:
        """In MHz, of the fastest processor; sysfs counts in kHz."""
        found = sorted((self.root / "sys/devices/system/cpu").glob(f"cpu[0-9]*/cpufreq/{name}"))
        if not found:
            raise ValueError("there is no cpufreq in sysfs, as in most virtual machines")
        return round(max(int(path.read_text("ascii")) for path in found) / 1e3)

    def _governor(self) -> str:
        path = self.root / "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"
        if not path.is_file():
            raise ValueError("there is no cpufreq in sysfs, as in most virtual machines")
        return f"governor {path.read_text('ascii').strip()}"

    def _temperature(self) -> float:
        for zone in sorted((self.root / "sys/class/thermal").glob("thermal_zone*")):
            if (zone / "type").read_text("ascii").strip().lower() in ("x86_pkg_temp", "cpu-thermal", "cpu-therm"):
                return int((zone / "temp").read_text("ascii")) / 1000
        raise ValueError("sys/class/thermal holds no zone of the processor")

    def _counters(self) -> dict[str, int]:
        pattern = "cpu[0-9]*/thermal_throttle/core_throttle_count"
        counts = [int(path.read_text("ascii")) for path in (self.root / "sys/devices/system/cpu").glob(pattern)]
        return {"thermal throttling of a core": sum(counts)} if counts else {}


# ---- before, during and after a measurement


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Telemetry:
    """A device before, during and after a measurement.

    Attributes:
        source: Who told it.
        before, after: Full readings.
        samples: Looks while it was at work.
    """

    source: str
    before: Reading
    after: Reading
    samples: tuple[Reading, ...]

    @property
    def throttled(self) -> tuple[str, ...] | None:
        """What slowed the device down meanwhile, in words; empty for nothing; None if nobody told."""
        looks = [look.throttled for look in (*self.samples, self.after) if look.throttled is not None]
        counted = {
            f"{count - self.before.counters[name]} x {name}"
            for name, count in self.after.counters.items()
            if count > self.before.counters.get(name, count)
        }
        if not looks and not self.after.counters:
            return None
        return tuple(sorted({word for look in looks for word in look} | counted))

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; what is not known is null, and ``unknown`` says why."""
        throttled = self.throttled
        return {
            "source": self.source,
            "device": self.before.device,
            "power_mode": self.before.power_mode,
            "locked": self.before.locked,
            "clock_mhz": self._course("clock_mhz"),
            "memory_mhz": self._course("memory_mhz"),
            "temperature_c": self._course("temperature_c"),
            "throttled": None if throttled is None else list(throttled),
            "others": self.before.others,
            "samples": len(self.samples),
            "unknown": dict(self.before.unknown),
        }

    def _course(self, name: str) -> dict[str, Any]:
        """A figure before, least and most while at work, and after; and its limit."""
        seen = [value for look in self.samples if (value := getattr(look, name)) is not None]
        limit = name.replace("_mhz", "_max_mhz")
        return {
            "before": getattr(self.before, name),
            "least": min(seen, default=None),
            "most": max(seen, default=None),
            "after": getattr(self.after, name),
            **({"limit": getattr(self.before, limit)} if limit != name else {}),
        }


class Monitor:
    """Watches one device from its making to `finish`.

    Args:
        probe: Closed by `finish`, or when the block of a ``with`` is left.
    """

    def __init__(self, probe: Probe) -> None:
        self.probe = probe
        self.before = probe.read(full=True)
        self.samples: list[Reading] = []
        self.last = time.monotonic()

    def sample(self, *, due: bool = False) -> None:
        """Look at the device while it is at work, unless it was looked at just now; `due` looks in any case."""
        pause = self.probe.pause
        if math.isfinite(pause) and (due or time.monotonic() - self.last >= pause):
            self.samples.append(self.probe.read(full=False))
            self.last = time.monotonic()

    def finish(self) -> Telemetry:
        """What was seen."""
        return Telemetry(
            source=self.probe.source, before=self.before, after=self.probe.read(full=True), samples=tuple(self.samples)
        )

    def __enter__(self) -> Monitor:  # noqa: PYI034 - typing.Self is newer than Python 3.10
        return self

    def __exit__(self, *_: object) -> None:
        self.probe.close()
