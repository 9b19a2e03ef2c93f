"""Input: callables and one batch; output: latency percentiles, timed in turn in one run."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from vitexport.report import is_busy

Runner: TypeAlias = Callable[[NDArray[np.float32]], Any]

WARM_UP_SECONDS = 0.5
MINIMUM_ROUNDS = 20


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """Latency of several runners in one run.

    Attributes:
        figures: For each runner p50_ms, p90_ms, p99_ms and mean_ms of one call, images_per_second at the median, batch and
            rounds.
        others_percent: Share of this machine's processors that other processes took meanwhile; None where the system does
            not tell.
    """

    figures: dict[str, dict[str, Any]]
    others_percent: float | None

    @property
    def caution(self) -> str | None:
        """A sentence for the report if the machine was too busy for the ratios to hold."""
        if not is_busy(self.others_percent):
            return None
        return (
            f"Other processes took {self.others_percent:.0f} % of the processors during the timing: "
            "the latencies are those of a busy machine, and their ratios do not carry over to an idle one."
        )


def measure(runners: Mapping[str, Runner], images: NDArray[np.float32], *, seconds: float) -> Timing:
    """Time every runner once per round, in turn, so that a machine that slows down slows all of them.

    Args:
        runners: By name; each takes `images`.
        images: One batch, float32 [n, 3, height, width].
        seconds: Budget for the whole measurement; at least `MINIMUM_ROUNDS` rounds are made.
    """
    for run in runners.values():
        _warm_up(run, images)
    samples: dict[str, list[float]] = {name: [] for name in runners}
    before = processor_seconds()
    begin = time.perf_counter()
    rounds = 0
    while rounds < MINIMUM_ROUNDS or time.perf_counter() < begin + seconds:
        for name, run in runners.items():
            start = time.perf_counter()
            run(images)
            samples[name].append(time.perf_counter() - start)
        rounds += 1
    wall = time.perf_counter() - begin
    return Timing(
        figures={name: _summary(np.asarray(times), len(images)) for name, times in samples.items()},
        others_percent=share_of_others(before, processor_seconds(), wall),
    )


def processor_seconds() -> tuple[float, float] | None:
    """Seconds of processor time that the whole machine and this process have used; None where Linux does not tell."""
    try:
        fields = Path("/proc/stat").read_text(encoding="utf-8").split("\n", 1)[0].split()[1:9]
    except OSError:
        return None
    user, nice, system, _idle, _waiting, irq, softirq, steal = (int(field) for field in fields)
    own = os.times()
    busy = user + nice + system + irq + softirq + steal
    spent = own.user + own.system + own.children_user + own.children_system
    return busy / os.sysconf("SC_CLK_TCK"), spent


def share_of_others(before: tuple[float, float] | None, after: tuple[float, float] | None, wall: float) -> float | None:
    """Percent of this machine's processors that other processes took in `wall` seconds between two `processor_seconds`."""
    if before is None or after is None:
        return None
    others = (after[0] - before[0]) - (after[1] - before[1])
    return max(0.0, min(100.0, others / (wall * (os.cpu_count() or 1)) * 100))


def _warm_up(run: Runner, images: NDArray[np.float32]) -> None:
    end = time.perf_counter() + WARM_UP_SECONDS
    run(images)
    while time.perf_counter() < end:
        run(images)


def _summary(times: NDArray[np.float64], batch: int) -> dict[str, Any]:
    p50, p90, p99 = (float(value) for value in np.percentile(times, [50, 90, 99]))
    return {
        "p50_ms": p50 * 1e3,
        "p90_ms": p90 * 1e3,
        "p99_ms": p99 * 1e3,
        "mean_ms": float(times.mean()) * 1e3,
        "images_per_second": batch / p50,
        "batch": batch,
        "rounds": len(times),
    }
