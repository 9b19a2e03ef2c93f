"""Callables and one batch enter; latency percentiles, timed in turn in one run, leave."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Runner: TypeAlias = Callable[[NDArray[np.float32]], Any]

WARM_UP_SECONDS = 0.5
MINIMUM_ROUNDS = 20


def measure(runners: Mapping[str, Runner], images: NDArray[np.float32], *, seconds: float) -> dict[str, dict[str, float]]:
    """Time every runner once per round, in turn, so that a machine that slows down slows all of them.

    Args:
        runners: By name; each takes `images`.
        images: One batch, float32 [n, 3, height, width].
        seconds: Budget for the whole measurement; at least `MINIMUM_ROUNDS` rounds are made.

    Returns:
        For each name p50_ms, p90_ms, p99_ms and mean_ms of one call, images_per_second at the median, and rounds.
    """
    for run in runners.values():
        _warm_up(run, images)
    samples: dict[str, list[float]] = {name: [] for name in runners}
    end = time.perf_counter() + seconds
    rounds = 0
    while rounds < MINIMUM_ROUNDS or time.perf_counter() < end:
        for name, run in runners.items():
            start = time.perf_counter()
            run(images)
            samples[name].append(time.perf_counter() - start)
        rounds += 1
    return {name: _summary(np.asarray(times), len(images)) for name, times in samples.items()}


def _warm_up(run: Runner, images: NDArray[np.float32]) -> None:
    end = time.perf_counter() + WARM_UP_SECONDS
    run(images)
    while time.perf_counter() < end:
        run(images)


def _summary(times: NDArray[np.float64], batch: int) -> dict[str, float]:
    p50, p90, p99 = (float(value) for value in np.percentile(times, [50, 90, 99]))
    return {
        "p50_ms": p50 * 1e3,
        "p90_ms": p90 * 1e3,
        "p99_ms": p99 * 1e3,
        "mean_ms": float(times.mean()) * 1e3,
        "images_per_second": batch / p50,
        "batch": float(batch),
        "rounds": float(len(times)),
    }
