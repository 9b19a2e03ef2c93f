"""Output: what this machine is, and how much memory a stage took. For reports: it decides nothing."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vitexport.report import StageCost
from vitexport.targets import machine_cpu

TEGRA_RELEASE = Path("/etc/nv_tegra_release")
# Distribution names whose versions explain a result.
LIBRARIES = (
    *("numpy", "pillow", "torch", "timm", "onnx", "onnx-ir", "onnxscript", "onnxruntime", "onnxruntime-gpu"),
    *("tensorrt", "tensorrt-rtx-cu13-libs", "cuda-bindings"),
)


def library_versions() -> dict[str, str]:
    """Versions of vitexport, Python and whichever of `LIBRARIES` are installed."""
    versions = {"python": platform.python_version()}
    for name in ("vitexport", *LIBRARIES):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return versions


def describe_machine() -> dict[str, Any]:
    """Processor, clocks, memory, GPU and versions, as JSON values; what cannot be read is absent."""
    cpu = machine_cpu()
    threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    facts: dict[str, Any] = {
        "system": platform.platform(),
        "cpu": cpu.model_name or cpu.arch,
        "cpu_flags": [flag for flag in _NOTABLE_FLAGS if flag in cpu.flags],
        "threads": threads,
        "clock_mhz": _clocks(),
        "governor": _first_line(Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")),
        "memory_gib": _memory_gib(),
        "gpu": _gpu(),
        "l4t": l4t_release(),
        "versions": library_versions(),
    }
    return {key: value for key, value in facts.items() if value is not None}


_NOTABLE_FLAGS = (
    *("avx2", "avx512bw", "avx512_vnni", "avx_vnni", "avx_vnni_int8", "amx_int8"),
    *("asimd", "asimddp", "i8mm", "sve"),
)


def _clocks() -> list[int] | None:
    """Current clock of each processor in MHz."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    values = [line.partition(":")[2] for line in lines if line.startswith("cpu MHz")]
    return [round(float(value)) for value in values] or None


def _first_line(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError:
        return None


def memory_bytes() -> int | None:
    """Memory of this machine; None where the system does not tell."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return None


def _memory_gib() -> float | None:
    memory = memory_bytes()
    return None if memory is None else round(memory / 2**30, 1)


def l4t_release() -> str | None:
    """Release of Jetson Linux, which JetPack names by numbers of its own, for example ``36.4.3``; None elsewhere."""
    line = (_first_line(TEGRA_RELEASE) or "").split("\n")[0]
    # "# R36 (release), REVISION: 4.3, GCID: …" (NVIDIA Jetson Linux Developer Guide)
    found = re.match(r"# R(\d+) \(release\), REVISION: ([\d.]+)", line)
    return f"{found[1]}.{found[2]}" if found else None


def _gpu() -> str | None:
    """Name, driver and clocks as nvidia-smi gives them; None without one."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    query = "--query-gpu=name,driver_version,clocks.sm,clocks.mem,temperature.gpu"
    try:
        done = subprocess.run(  # noqa: S603 - a fixed command found on the PATH
            [program, query, "--format=csv,noheader"], capture_output=True, text=True, timeout=10, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip().splitlines()[0] if done.returncode == 0 and done.stdout.strip() else None


class Stopwatch:
    """Collects the cost of named stages."""

    def __init__(self) -> None:
        self.costs: list[StageCost] = []

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time the block and note the peak memory of the process while it ran."""
        separate = _reset_peak()
        start = time.perf_counter()
        yield
        seconds = time.perf_counter() - start
        peak = _peak_mib() if separate else None
        self.costs.append(StageCost(name=name, seconds=round(seconds, 3), peak_mib=peak))


def _reset_peak() -> bool:
    """Let Linux count the peak from here on; False where it cannot."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return False
    return True


def _peak_mib() -> float | None:
    try:
        status = Path("/proc/self/status").read_text(encoding="utf-8")
    except OSError:
        return None
    for line in status.splitlines():
        if line.startswith("VmHWM:"):
            return round(int(line.split()[1]) / 1024, 1)
    return None
