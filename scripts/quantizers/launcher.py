"""Input: a log file and a command; output: its exit code, seconds and peak memory, as JSON on one line.

A process of its own, because Linux starts the peak memory of a child at that of the process which started it: a large parent
would hide what a small child takes.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path


def main(log: str, *command: str) -> None:
    """Run `command` with its output in `log`."""
    start = time.perf_counter()
    with Path(log).open("wb") as stream, subprocess.Popen(command, stdout=stream, stderr=subprocess.STDOUT) as process:
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    figures = {
        "exit_code": process.returncode,
        "seconds": time.perf_counter() - start,
        "processor_seconds": usage.ru_utime + usage.ru_stime,
        "peak_mib": usage.ru_maxrss / 1024,  # Linux counts in KiB
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main(*sys.argv[1:])
