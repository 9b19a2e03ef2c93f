"""Input: names of models; output: the record of each, made in a process of its own with a limit on time and memory."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from typing import Any

HERE = Path(__file__).resolve().parent
POLL_SECONDS = 0.5
# What runs one model; the words behind it are its name and the file of its record.
COMMAND = [sys.executable, "-m", "timm_zoo.worker"]


def record_path(folder: Path, name: str) -> Path:
    """Where the record of a model is."""
    return folder / f"{name.replace(':', '-')}.json"


def read(folder: Path, name: str) -> dict[str, Any] | None:
    """The record of a model that ended, well or not; None if it has none."""
    path = record_path(folder, name)
    data = _parsed(path)
    return data if data.get("finished") else None


def _parsed(path: Path) -> dict[str, Any]:
    """A record as it is on disk; an empty one where there is none, or a power cut left half of one."""
    try:
        data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return data


def run_all(  # noqa: PLR0913 - the limits
    names: Sequence[str],
    folder: Path,
    *,
    state: dict[str, str],
    jobs: int,
    seconds: float,
    memory_mib: int,
    report: Callable[[dict[str, Any]], None],
) -> None:
    """Run each of `names`, `jobs` at a time, each on processors of its own; `report` is told of each record."""
    processors = sorted(os.sched_getaffinity(0))
    shares: SimpleQueue[list[int]] = SimpleQueue()
    for job in range(jobs):
        shares.put(processors[job::jobs] or processors)

    def one(name: str) -> None:
        share = shares.get()
        try:
            report(run_one(name, folder, share, state=state, seconds=seconds, memory_mib=memory_mib))
        finally:
            shares.put(share)

    with ThreadPoolExecutor(jobs) as pool:
        for _ in pool.map(one, names):
            pass


def run_one(  # noqa: PLR0913 - the limits
    name: str, folder: Path, processors: Sequence[int], *, state: dict[str, str], seconds: float, memory_mib: int
) -> dict[str, Any]:
    """Run one model and wait; what killed it, if something did, is in its record."""
    path = record_path(folder, name)
    path.unlink(missing_ok=True)
    log = path.with_suffix(".log")
    # A process that is killed removes nothing; all that it writes is below this folder.
    scratch = path.with_suffix(".tmp")
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": str(len(processors)),
        "PYTHONPATH": str(HERE.parent),
        "TMPDIR": str(scratch),
    }
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    command = [*COMMAND, name, str(path)]
    start, peak, killed = time.monotonic(), 0.0, None
    with log.open("wb") as stream:
        process = subprocess.Popen(
            command,
            stdout=stream,
            stderr=subprocess.STDOUT,
            env=environment,
            preexec_fn=lambda: os.sched_setaffinity(0, processors),  # noqa: PLW1509 - one call into the kernel
        )
        while process.poll() is None:
            peak = max(peak, resident_mib(process.pid))
            if time.monotonic() - start > seconds:
                killed = f"took longer than {seconds:.0f} s"
            elif peak > memory_mib:
                killed = f"needed more than {memory_mib} MiB"
            if killed is not None:
                process.kill()
                process.wait()
                break
            time.sleep(POLL_SECONDS)
    shutil.rmtree(scratch, ignore_errors=True)
    data = _parsed(path) or {"name": name, "stages": {}}
    if not data.get("finished"):
        words = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
        last = words[-1].strip()[:300] if words else "it said nothing"
        where = data.pop("running", "start")
        data["stages"][where] = {"error": killed or f"the process ended with {process.returncode}: {last}"}
    data |= {"finished": True, "peak_mib": peak, "seconds": time.monotonic() - start, "state": state}
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    partial.rename(path)
    return data


def resident_mib(pid: int) -> float:
    """Memory of a process, from the kernel; 0 where it has just ended."""
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace")
    except OSError:
        return 0.0
    lines = [line for line in status.splitlines() if line.startswith("VmRSS:")]
    return int(lines[0].split()[1]) / 1024 if lines else 0.0
