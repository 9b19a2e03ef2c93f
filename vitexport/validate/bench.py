"""Input: a loaded bundle; output: how long it takes on this device, and everything that a quoted latency depends on.

Three times are told apart: ``gpu``, between two CUDA events around one enqueue, inputs on the device; ``run``, from the
preprocessed tensor on the host to the outputs on the host; ``end_to_end``, from pixels on the host to the outputs on the
host, with the normalization between. All are of one call at a time: latency, not throughput. Every variant is timed in
turn in one run, so that a machine that slows down slows all of them.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from vitexport.artifacts import BatchRange, Progress, silent
from vitexport.bundle import Manifest, content_sha256, write_json
from vitexport.errors import ToolchainError, UsageError, VitexportError
from vitexport.machine import describe_machine
from vitexport.preprocess import normalize
from vitexport.report import Report, is_busy
from vitexport.runtime.backends import Backend, GpuTimer
from vitexport.runtime.backends.cuda import pci_bus_id
from vitexport.runtime.model import Model
from vitexport.telemetry import CpuProbe, Monitor, Probe, Telemetry, gpu_probe
from vitexport.validate.bench_table import FIGURES, FORMAT, FORMAT_VERSION, SHIPPED
from vitexport.validate.device import title
from vitexport.validate.latency import processor_seconds, share_of_others

# Warm-up ends when the medians of this many windows in a row lie this close together, and a window is at least this long.
STABLE_WINDOWS = 3
STABLE_PERCENT = 2.0
WINDOW_SECONDS = 0.1
WINDOW_CALLS = 5
MINIMUM_CALLS = 20
# Fewer have no call beyond their 99th percentile.
CALLS_FOR_P99 = 100
# A variant keeps its turn about this long: less, and changing costs more than the calls; more, and drift is not shared.
TURN_SECONDS = 0.05
MOST_CALLS_A_TURN = 50
# A clock that fell by more than this share while it was timed is told.
CLOCK_SHARE = 0.05
CPU_PROVIDER = "CPUExecutionProvider"


@runtime_checkable
class _Provided(Protocol):
    """ONNX Runtime's backend, which says where it computes."""

    provider: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Contender:
    """Something that computes the same model, to be timed beside the bundle.

    Attributes:
        name: Of its rows.
        runtime: Library, precision and device.
        run: One batch, float32 [n, 3, height, width], to outputs on the host.
        gpu_time: As `GpuTimer.gpu_time`; None without a GPU.
    """

    name: str
    runtime: str
    run: Callable[[NDArray[np.float32]], object]
    gpu_time: Callable[[NDArray[np.float32]], float] | None = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Beside:
    """PyTorch's part.

    Attributes:
        contenders: What can be timed here.
        skipped: Why there are none, or fewer than there could be.
    """

    contenders: tuple[Contender, ...] = ()
    skipped: str | None = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class BenchRequest:
    """What is timed, and how long.

    Attributes:
        batch: Images a call; None for what the bundle is tuned for.
        sweep: All of 1, 2, 4 … within what the bundle takes, its optimum and its ends, instead of one `batch`.
        seconds: For each batch; every figure is of at least `MINIMUM_CALLS` calls.
        warm_up: Most seconds for warming up one variant; None for twice `seconds`.
    """

    batch: int | None = None
    sweep: bool = False
    seconds: float = 5.0
    warm_up: float | None = None

    def batches(self, accepted: BatchRange) -> tuple[int, ...]:
        """The batch sizes, rising.

        Raises:
            UsageError: The artifact does not take that batch in one call, or a batch and a sweep are asked for.
        """
        if self.sweep and self.batch is not None:
            raise UsageError("`sweep` and `batch` exclude each other; give one of them.")
        if self.sweep:
            powers = {1 << exponent for exponent in range(accepted.maximum.bit_length())}
            inside = {size for size in powers if accepted.minimum <= size <= accepted.maximum}
            return tuple(sorted(inside | {accepted.minimum, accepted.optimum, accepted.maximum}))
        size = accepted.optimum if self.batch is None else self.batch
        if not accepted.minimum <= size <= accepted.maximum:
            raise UsageError(f"Batch {size} cannot be timed: the bundle takes {accepted}. Build one with `batch`.")
        return (size,)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class WarmUp:
    """How warming up ended.

    Attributes:
        stable: Whether the last windows agreed.
        seconds: How long it took.
        spread_percent: By how much the medians of the last windows differ; None if there were too few.
    """

    stable: bool
    seconds: float
    spread_percent: float | None


def warm_up(call: Callable[[], object], most_seconds: float, clock: Callable[[], float] = time.perf_counter) -> WarmUp:
    """Call until the medians of `STABLE_WINDOWS` windows in a row lie within `STABLE_PERCENT`, or time is up.

    Args:
        call: One call of what is going to be timed.
        most_seconds: When to give up; at least one window is made.
        clock: In seconds.
    """
    begin = clock()
    medians: deque[float] = deque(maxlen=STABLE_WINDOWS)
    while True:
        times: list[float] = []
        opened = clock()
        while len(times) < WINDOW_CALLS or clock() - opened < WINDOW_SECONDS:
            start = clock()
            call()
            times.append(clock() - start)
            if clock() - begin > most_seconds and medians:
                break
        medians.append(float(np.median(times)))
        spread = (max(medians) / max(min(medians), 1e-12) - 1) * 100 if len(medians) == STABLE_WINDOWS else None
        stable = spread is not None and spread <= STABLE_PERCENT
        if stable or clock() - begin >= most_seconds:
            return WarmUp(stable=stable, seconds=clock() - begin, spread_percent=spread)


@dataclasses.dataclass(slots=True, kw_only=True)
class _Variant:
    """One way to compute one batch; `cells` gives the seconds of one call by what is timed."""

    name: str
    runtime: str
    graph: bool | None
    prepare: Callable[[], None]
    cells: Mapping[str, Callable[[], float]]
    refusal: Callable[[], str | None] = lambda: None
    samples: dict[str, list[float]] = dataclasses.field(default_factory=dict)
    warm: WarmUp | None = None

    def label(self) -> str:
        graph = "" if self.graph is None else f", CUDA graph {'on' if self.graph else 'off'}"
        return f"{self.name}{graph}"


def bench_bundle(
    model: Model,
    request: BenchRequest,
    *,
    pytorch: Beside | None = None,
    progress: Progress = silent,
    probe: Probe | None = None,
) -> Report:
    """Time the shipped artifact on this machine, on golden inputs.

    Args:
        model: A loaded bundle.
        request: What, and how long.
        pytorch: What to time beside it; None leaves PyTorch out.
        progress: Told before each batch.
        probe: Watches the device; None for this machine's own.

    Returns:
        A report without checks (nothing is judged), whose measurement ``bench`` is the document that ``vitexport compare``
        reads.

    Raises:
        UsageError: The artifact does not take that batch in one call.
        ToolchainError: The runtime fails.
    """
    sizes = request.batches(model.manifest.batch)
    manifest = model.manifest
    timed = isinstance(model.backend, GpuTimer)
    skipped = {} if timed else {"gpu": f"no GPU timer: {model.backend.description}"}
    beside = pytorch or Beside(skipped="not asked for")
    if beside.skipped:
        skipped["pytorch"] = beside.skipped
    pixels, _ = model.bundle.golden()
    rows: list[dict[str, Any]] = []
    unsteady: list[str] = []
    begin, before = time.perf_counter(), processor_seconds()
    with Monitor(probe or _probe(model)) as monitor, _graph_as_before(model):
        for size in sizes:
            progress(f"timing batch {size}")
            variants = _variants(model, np.resize(pixels, (size, *pixels.shape[1:])), beside.contenders)
            rows += _time_batch(variants, size, request, monitor, skipped, unsteady)
        telemetry = monitor.finish()
    others = share_of_others(before, processor_seconds(), time.perf_counter() - begin)
    cautions = _cautions(unsteady, telemetry, others)
    if model.fallback is not None:
        instead = "" if manifest.engine is None else " instead of the engine"
        message = f"{model.backend.description} ran{instead}: {model.fallback}"
        cautions.insert(0, {"kind": "fallback", "message": message})
    machine = describe_machine()
    document = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "date": dt.datetime.now(dt.timezone.utc).isoformat(timespec="seconds"),
        "model": subject(manifest),
        "runtime": model.backend.description,
        "telemetry": telemetry.to_json(),
        "others_percent": others,
        "rows": rows,
        "skipped": skipped,
        "cautions": cautions,
        "method": _method(request),
        "machine": machine,
        "built": _built(model),
    }
    return Report(
        title=title(model),
        checks=(),
        measurements={"bench": document},
        machine=machine,
        notes=(*(caution["message"] for caution in cautions), *few_calls(rows)),
    )


def _method(request: BenchRequest) -> dict[str, Any]:
    """How the figures came about."""
    return {
        "warm_up": f"until the medians of {STABLE_WINDOWS} windows of at least {WINDOW_SECONDS:g} s and {WINDOW_CALLS} "
        f"calls lie within {STABLE_PERCENT:g} %, at most {_most(request):g} s",
        "seconds": request.seconds,
    }


def few_calls(rows: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """What is to be said of a 99th percentile of too few calls; nothing where there were enough."""
    fewest = min((int(row["calls"]) for row in rows), default=CALLS_FOR_P99)
    if fewest >= CALLS_FOR_P99:
        return ()
    return (f"p99 of fewer than {CALLS_FOR_P99} calls (here {fewest}) is next to the slowest one; `seconds` times longer.",)


def with_bench(report: Report, timed: Report) -> Report:
    """`report`, of an engine's acceptance for one, with what `bench_bundle` measured in it."""
    return dataclasses.replace(
        report,
        measurements={**report.measurements, "bench": timed.measurements["bench"]},
        notes=(*report.notes, *timed.notes),
    )


def subject(manifest: Manifest) -> dict[str, Any]:
    """What was timed: two runs can be compared if these agree but for precision, target and manifest."""
    spec = manifest.preprocess
    return {
        "name": manifest.model["name"],
        "weights": manifest.model["weights"],
        "weights_sha256": manifest.model["weights_sha256"],
        "input": [spec.channels, spec.height, spec.width],
        "outputs": {output.name: list(output.shape) for output in manifest.outputs},
        "precision": manifest.precision,
        "target": manifest.target.id,
        "manifest_sha256": content_sha256(manifest.to_json()),
    }


def write_bench(path: Path, report: Report) -> None:
    """Write the document of `bench_bundle` whole or not at all."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        write_json(partial, report.to_json()["measurements"]["bench"])
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _built(model: Model) -> dict[str, Any]:
    """What the build found of accuracy, to stand beside speed."""
    measured = model.bundle.report().measurements
    return {key: measured[key] for key in ("accuracy", "golden") if measured.get(key)}


def _most(request: BenchRequest) -> float:
    return 2 * request.seconds if request.warm_up is None else request.warm_up


def _probe(model: Model) -> Probe:
    if not on_gpu(model.backend):
        return CpuProbe(str(describe_machine()["cpu"]))
    try:
        return gpu_probe(pci_bus_id())
    except VitexportError:  # ONNX Runtime needs no bindings of CUDA
        return gpu_probe()


def on_gpu(backend: Backend) -> bool:
    """Whether it computes on a CUDA GPU."""
    return isinstance(backend, GpuTimer) or (isinstance(backend, _Provided) and backend.provider != CPU_PROVIDER)


@contextmanager
def _graph_as_before(model: Model) -> Iterator[None]:
    """Leave the backend as it was found."""
    backend = model.backend
    if not isinstance(backend, GpuTimer):
        yield
        return
    before = backend.use_cuda_graph
    try:
        yield
    finally:
        backend.use_cuda_graph = before


def _variants(model: Model, pixels: NDArray[np.uint8], contenders: Sequence[Contender]) -> list[_Variant]:
    """The bundle, with and without a CUDA graph where it can have one, and what is timed beside it."""
    backend, spec = model.backend, model.manifest.preprocess
    images = normalize(pixels, spec)

    def cells(
        run: Callable[[NDArray[np.float32]], object], gpu_time: Callable[[NDArray[np.float32]], float] | None
    ) -> dict[str, Callable[[], float]]:
        found: dict[str, Callable[[], float]] = {}
        if gpu_time is not None:
            found["gpu"] = lambda: gpu_time(images) / 1e3
        found["run"] = lambda: _seconds(lambda: run(images))
        found["end_to_end"] = lambda: _seconds(lambda: run(normalize(pixels, spec)))
        return found

    if isinstance(backend, GpuTimer):
        timed = backend

        def graph(on: bool) -> Callable[[], None]:  # noqa: FBT001 - as the attribute
            return lambda: setattr(timed, "use_cuda_graph", on)

        shipped = [
            _Variant(
                name=SHIPPED,
                runtime=backend.description,
                graph=on,
                prepare=graph(on),
                cells=cells(backend.run, timed.gpu_time),
                refusal=lambda on=on: timed.graph_refusal if on else None,  # type: ignore[misc]
            )
            for on in (False, True)
        ]
    else:
        shipped = [
            _Variant(
                name=SHIPPED, runtime=backend.description, graph=None, prepare=lambda: None, cells=cells(backend.run, None)
            )
        ]
    others = [
        _Variant(name=one.name, runtime=one.runtime, graph=None, prepare=lambda: None, cells=cells(one.run, one.gpu_time))
        for one in contenders
    ]
    return shipped + others


def _seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def _time_batch(  # noqa: PLR0913, PLR0917 - one batch, and where its findings go
    variants: list[_Variant],
    size: int,
    request: BenchRequest,
    monitor: Monitor,
    skipped: dict[str, str],
    unsteady: list[str],
) -> list[dict[str, Any]]:
    """Rows of one batch. A variant beside the plain one that fails is left out, with its reason in `skipped`."""
    ready = []
    for variant in variants:
        variant.prepare()
        try:
            variant.warm = warm_up(variant.cells["run"], _most(request))
        except ToolchainError as error:
            if variant.name == SHIPPED and not variant.graph:
                raise
            skipped[f"{variant.label()}, batch {size}"] = str(error)
            continue
        if (refusal := variant.refusal()) is not None:
            skipped[f"{variant.label()}, batch {size}"] = refusal
            continue
        if not variant.warm.stable:
            unsteady.append(_unsteady(variant, size))
        ready.append(variant)
    end = time.perf_counter() + request.seconds
    rounds = 0
    while not all(_enough(variant) for variant in ready) or time.perf_counter() < end:
        for variant in ready:
            variant.prepare()
            if len(ready) > 1:
                variant.cells["run"]()  # caches, threads and a captured graph are its own again
            for what, cell in variant.cells.items():
                samples = variant.samples.setdefault(what, [])
                samples += [cell() for _ in range(_calls_a_turn(samples))]
            monitor.sample(due=not rounds)
        rounds += 1
    return [_row(variant, what, size) for variant in ready for what in variant.cells]


def _enough(variant: _Variant) -> bool:
    return all(len(variant.samples.get(what, ())) >= MINIMUM_CALLS for what in variant.cells)


def _calls_a_turn(samples: Sequence[float]) -> int:
    """As many as fill a turn, by the last call; one to begin with."""
    return max(1, min(MOST_CALLS_A_TURN, math.floor(TURN_SECONDS / max(samples[-1], 1e-6)))) if samples else 1


def _unsteady(variant: _Variant, size: int) -> str:
    warm = variant.warm
    spread = (
        "" if warm is None or warm.spread_percent is None else f" (the last medians differ by {warm.spread_percent:.0f} %)"
    )
    return f"{variant.label()}, batch {size}{spread}"


def _row(variant: _Variant, what: str, size: int) -> dict[str, Any]:
    times = np.asarray(variant.samples[what])
    figures = dict(zip(FIGURES, (np.percentile(times, [50, 90, 99]) * 1e3).tolist(), strict=True))
    return {
        "runner": variant.name,
        "runtime": variant.runtime,
        "what": what,
        "batch": size,
        "cuda_graph": variant.graph,
        **figures,
        "mean_ms": float(times.mean()) * 1e3,
        "images_per_second": size / figures["p50_ms"] * 1e3,
        "calls": len(times),
        "warm_up": None if variant.warm is None else dataclasses.asdict(variant.warm),
    }


def _cautions(unsteady: Sequence[str], telemetry: Telemetry, others: float | None) -> list[dict[str, str]]:
    """What a reader of the figures has to know, and what `compare` calls not comparable."""
    found = []
    if unsteady:
        message = f"Warm-up did not settle within {STABLE_PERCENT:g} %: {'; '.join(unsteady)}."
        found.append({"kind": "unstable", "message": message})
    if telemetry.throttled:
        message = f"The device was held back while it was timed: {', '.join(telemetry.throttled)}."
        found.append({"kind": "throttled", "message": message})
    if others is not None and is_busy(others):
        message = f"Other processes took {others:.0f} % of the processors: these are the latencies of a busy machine."
        found.append({"kind": "busy", "message": message})
    if telemetry.before.others:
        message = f"{telemetry.before.others} other processes held the GPU when timing began."
        found.append({"kind": "busy", "message": message})
    clock = telemetry.to_json()["clock_mhz"]
    if clock["least"] is not None and clock["least"] < clock["most"] * (1 - CLOCK_SHARE):
        message = f"The clock moved between {clock['least']} and {clock['most']} MHz while it was timed."
        found.append({"kind": "clock", "message": message})
    return found
