"""What `vitexport bench` measures: which batches and variants, when warm-up ends, and what the document says of the run."""

from __future__ import annotations

import dataclasses
import itertools
import json
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Built
from fakes import installed
from fakes.fake_cuda import FakeCuda
from fakes.fake_nvml import FakeNvml
from fakes.fake_tensorrt import Conduct
from graphs import LOGITS
from numpy.typing import NDArray

from vitexport.artifacts import BatchRange, Outputs
from vitexport.cli.commands import cli
from vitexport.device import EngineRequest, build_here, open_for_engine
from vitexport.errors import ToolchainError, UsageError
from vitexport.report import Report
from vitexport.runtime import Model, load
from vitexport.runtime.backends import GpuTimer
from vitexport.telemetry import NoProbe, Reading
from vitexport.validate.bench import (
    MINIMUM_CALLS,
    BenchRequest,
    Beside,
    Contender,
    bench_bundle,
    few_calls,
    on_gpu,
    warm_up,
    with_bench,
    write_bench,
)
from vitexport.validate.bench_table import BENCH_COLUMNS, bench_rows, course, facts, milliseconds

QUICK = BenchRequest(seconds=0, warm_up=0)


class Plain:
    """A backend that costs nothing, without a GPU timer."""

    description = "fake"

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def run(self, images: NDArray[np.float32]) -> Outputs:
        self.sizes.append(len(images))
        return {LOGITS: np.zeros((len(images), 10), np.float32)}

    def close(self) -> None:
        pass


class OnGpu(Plain):
    """One with a timer: 0.25 ms an image, and 0.05 ms less with a CUDA graph."""

    def __init__(self, *, captures: bool = True) -> None:
        super().__init__()
        self.use_cuda_graph = False
        self.graph_refusal: str | None = None
        self.captures = captures

    def run(self, images: NDArray[np.float32]) -> Outputs:
        if self.use_cuda_graph and not self.captures:
            self.graph_refusal = "the engine cannot be recorded"
        return super().run(images)

    def gpu_time(self, images: NDArray[np.float32]) -> float:
        return len(images) * 0.25 - (0.05 if self.use_cuda_graph else 0)


class Scripted:
    """A probe that gives readings in turn; the last one stays."""

    source, pause = "script", 0.0

    def __init__(self, *readings: Reading) -> None:
        self.readings = list(readings)
        self.closed = False

    def read(self, *, full: bool) -> Reading:
        return self.readings.pop(0) if len(self.readings) > 1 else self.readings[0]

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def l4(l4_bundle: Built) -> Iterator[Model]:
    with load(l4_bundle.root, backend="onnxruntime") as model:
        yield model


def document(report: Report) -> dict[str, Any]:
    found: dict[str, Any] = report.measurements["bench"]
    return found


def benched(model: Model, backend: Plain, request: BenchRequest = QUICK, **words: Any) -> dict[str, Any]:
    return document(bench_bundle(Model(model.bundle, backend), request, **{"probe": NoProbe("no device"), **words}))


@pytest.mark.parametrize(("asked", "size"), [(None, 4), (1, 1), (8, 8)])
def test_a_benchmark_runs_the_batch_that_was_asked_for(asked: int | None, size: int, l4: Model) -> None:
    backend = Plain()
    rows = benched(l4, backend, dataclasses.replace(QUICK, batch=asked))["rows"]
    assert [(row["runner"], row["what"], row["batch"], row["cuda_graph"]) for row in rows] == [
        ("shipped", "run", size, None),
        ("shipped", "end_to_end", size, None),
    ]
    for row in rows:
        assert row["calls"] >= MINIMUM_CALLS
        assert row["p50_ms"] <= row["p90_ms"] <= row["p99_ms"]
        assert row["images_per_second"] == pytest.approx(size / row["p50_ms"] * 1e3)
    # End to end includes the normalization.
    assert rows[1]["p50_ms"] > rows[0]["p50_ms"]
    # Never filled up or cut in pieces: the time is that of one call.
    assert set(backend.sizes) == {size}


def test_nothing_is_judged(l4: Model) -> None:
    report = bench_bundle(Model(l4.bundle, Plain()), QUICK, probe=NoProbe("no device"))
    assert (report.checks, report.exit_code) == ((), 0)


@pytest.mark.parametrize("asked", [9, 40, -1, 0])
def test_a_batch_that_the_artifact_does_not_take_is_not_timed(asked: int, l4: Model) -> None:
    with pytest.raises(UsageError, match=rf"Batch {asked} cannot be timed: the bundle takes 1:4:8\."):
        bench_bundle(l4, BenchRequest(batch=asked))


@pytest.mark.parametrize(
    ("accepted", "sizes"),
    [("1:4:8", (1, 2, 4, 8)), ("3:5:12", (3, 4, 5, 8, 12)), ("6", (6,)), ("1:1:1000", (*(1 << n for n in range(10)), 1000))],
)
def test_a_sweep_is_the_powers_of_two_the_optimum_and_the_ends(accepted: str, sizes: tuple[int, ...]) -> None:
    assert BenchRequest(sweep=True).batches(BatchRange.parse(accepted)) == sizes


def test_a_sweep_and_a_batch_contradict_each_other() -> None:
    with pytest.raises(UsageError, match="exclude each other"):
        BenchRequest(sweep=True, batch=2).batches(BatchRange.parse("1:2:4"))


# ---- a GPU


def test_the_protocol_tells_a_gpu_timer(l4: Model) -> None:
    assert isinstance(OnGpu(), GpuTimer)
    assert not isinstance(Plain(), GpuTimer)
    assert not isinstance(l4.backend, GpuTimer)


def test_gpu_time_is_told_apart_with_and_without_a_cuda_graph(l4: Model) -> None:
    backend = OnGpu()
    rows = benched(l4, backend, dataclasses.replace(QUICK, sweep=True))["rows"]
    gpu = {(row["batch"], row["cuda_graph"]): row["p50_ms"] for row in rows if row["what"] == "gpu"}
    assert set(gpu) == {(size, graph) for size in (1, 2, 4, 8) for graph in (False, True)}
    for (size, graph), median in gpu.items():
        assert median == pytest.approx(size * 0.25 - (0.05 if graph else 0))
    assert len(rows) == 4 * 2 * 3
    assert backend.use_cuda_graph is False


def test_a_cuda_graph_that_cannot_be_captured_is_skipped_with_its_reason(l4: Model) -> None:
    found = benched(l4, OnGpu(captures=False))
    assert found["skipped"]["shipped, CUDA graph on, batch 4"] == "the engine cannot be recorded"
    assert {row["cuda_graph"] for row in found["rows"]} == {False}


def test_a_backend_that_fails_is_an_error_and_is_left_as_it_was(l4: Model) -> None:
    class Broken(OnGpu):
        def gpu_time(self, images: NDArray[np.float32]) -> float:
            raise ToolchainError("the device is lost")

    backend, probe = Broken(), Scripted(Reading())
    backend.use_cuda_graph = True
    with pytest.raises(ToolchainError, match="the device is lost"):
        benched(l4, backend, probe=probe)
    assert (backend.use_cuda_graph, probe.closed) == (True, True)


def test_an_engine_on_its_device_is_timed_with_the_drivers_telemetry(
    jetson_bundle: Built, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """From the command line, through the TensorRT backend: each piece of work takes the fake GPU 0.25 ms."""
    root = tmp_path / "bundle"
    shutil.copytree(jetson_bundle.root, root)
    cuda = FakeCuda(capability=(8, 7), memory=1 << 28)
    for name, module in installed.modules("10.3", Conduct(computes_onnx=True), cuda).items():
        monkeypatch.setitem(sys.modules, name, module)
    driver = FakeNvml(busses=("00000000:07:00.0", "00000000:01:00.0"), reasons=[0, 0x40])
    monkeypatch.setitem(sys.modules, "pynvml", driver.module())
    build_here(open_for_engine(root), EngineRequest())
    words = ["bench", str(root), "--seconds", "0.1", "--no-pytorch", "-o", str(tmp_path / "run.json")]
    assert cli.main(words, standalone_mode=False) == 0
    data = json.loads((tmp_path / "run.json").read_text(encoding="utf-8"))
    gpu = {row["cuda_graph"]: row["p50_ms"] for row in data["rows"] if row["what"] == "gpu"}
    assert gpu == {False: 0.25, True: 0.25}
    # The GPU that CUDA uses, of the two that the driver has.
    assert data["telemetry"]["device"] == "Fake GPU 1"
    assert data["telemetry"]["throttled"] == ["hardware thermal slowdown"]
    assert driver.open == 0
    shown = capsys.readouterr().out
    assert "note: The device was held back while it was timed: hardware thermal slowdown." in shown
    assert re.search(r"shipped  GPU +1  off +0\.250", shown)


@pytest.mark.parametrize(("provider", "gpu"), [("CPUExecutionProvider", False), ("CUDAExecutionProvider", True)])
def test_onnx_runtimes_provider_tells_where_it_computes(provider: str, *, gpu: bool) -> None:
    class OfOnnxRuntime(Plain):
        def __init__(self) -> None:
            super().__init__()
            self.provider = provider

    assert on_gpu(OfOnnxRuntime()) is gpu
    assert on_gpu(OnGpu())
    assert not on_gpu(Plain())


def test_what_ran_instead_of_the_engine_is_a_caution(l4: Model) -> None:
    report = bench_bundle(Model(l4.bundle, Plain(), fallback="no GPU"), QUICK, probe=NoProbe("no device"))
    assert report.notes[0] == "fake ran instead of the engine: no GPU"


# ---- beside it


def test_pytorch_is_timed_beside_it_or_skipped_with_its_reason(l4: Model) -> None:
    def fails(_: NDArray[np.float32]) -> None:
        raise ToolchainError("no memory")

    beside = Beside(
        contenders=(
            Contender(name="PyTorch fp32", runtime="one", run=lambda images: images.sum(), gpu_time=lambda images: 2.0),
            Contender(name="PyTorch fp16", runtime="two", run=fails),
        )
    )
    found = benched(l4, OnGpu(), pytorch=beside)
    assert [row["what"] for row in found["rows"] if row["runner"] == "PyTorch fp32"] == ["gpu", "run", "end_to_end"]
    assert found["skipped"] == {"PyTorch fp16, batch 4": "no memory"}
    shown = [dict(zip(BENCH_COLUMNS, row, strict=True)) for row in bench_rows(found)]
    # 2 ms against 4 x 0.25 ms.
    assert shown[0]["against PyTorch"] == "2.00 x"
    assert shown[-1]["against PyTorch"] == "1.00 x"
    assert benched(l4, Plain(), pytorch=Beside(skipped="torch is not installed here"))["skipped"] == {
        "gpu": "no GPU timer: fake",
        "pytorch": "torch is not installed here",
    }


# ---- warm-up


class Clock:
    """Time that passes only in calls: `seconds` for each in turn, the last one for ever."""

    def __init__(self, *seconds: float) -> None:
        self.now = 0.0
        self.durations = itertools.chain(seconds[:-1], itertools.repeat(seconds[-1]))
        self.calls = 0

    def call(self) -> None:
        self.calls += 1
        self.now += next(self.durations)

    def __call__(self) -> float:
        return self.now


def test_warm_up_ends_when_three_windows_agree() -> None:
    clock = Clock(0.05)
    found = warm_up(clock.call, 100, clock)
    assert found.stable
    assert found.spread_percent == pytest.approx(0)
    # Three windows of five calls, 0.25 s each.
    assert clock.calls == 15
    assert found.seconds == pytest.approx(0.75)


def test_warm_up_waits_for_what_gets_faster() -> None:
    clock = Clock(*np.linspace(0.10, 0.05, 40).tolist())
    found = warm_up(clock.call, 100, clock)
    assert found.stable
    assert clock.calls >= 40


def test_warm_up_gives_up_in_time_and_says_so() -> None:
    clock = Clock(*(0.02 * 1.1**index for index in range(40)), 1.0)
    found = warm_up(clock.call, 3.0, clock)
    assert not found.stable
    assert found.spread_percent is not None
    assert found.spread_percent > 2
    assert 3.0 <= found.seconds < 4.0


def test_one_window_tells_nothing_of_stability() -> None:
    found = warm_up(lambda: None, 0.0)
    assert (found.stable, found.spread_percent) == (False, None)


# ---- what the reader has to know


def test_an_unsteady_warm_up_is_a_caution(l4: Model) -> None:
    report = bench_bundle(Model(l4.bundle, Plain()), QUICK, probe=NoProbe("no device"))
    [caution] = [caution for caution in document(report)["cautions"] if caution["kind"] == "unstable"]
    assert caution["message"] == "Warm-up did not settle within 2 %: shipped, batch 4."
    assert caution["message"] in report.notes


def looking(**changes: Any) -> Reading:
    values: dict[str, Any] = {"device": "Fake", "clock_mhz": 1980, "clock_max_mhz": 1980, "throttled": (), "others": 0}
    return Reading(**(values | changes))


@pytest.mark.parametrize(
    ("readings", "kind", "fragment"),
    [
        ((looking(), looking(throttled=("power cap",)), looking()), "throttled", "held back while it was timed: power cap."),
        ((looking(), looking(clock_mhz=1005), looking()), "clock", "between 1005 and 1980 MHz"),
        ((looking(others=2), looking()), "busy", "2 other processes held the GPU"),
    ],
)
def test_what_was_seen_at_work_is_a_caution(readings: tuple[Reading, ...], kind: str, fragment: str, l4: Model) -> None:
    found = benched(l4, Plain(), probe=Scripted(*readings))
    messages = {caution["kind"]: caution["message"] for caution in found["cautions"]}
    assert fragment in messages[kind]


def test_a_busy_machine_is_a_caution(l4: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vitexport.validate.bench.share_of_others", lambda *_: 40.0)
    found = benched(l4, Plain())
    assert {
        "kind": "busy",
        "message": "Other processes took 40 % of the processors: these are the latencies of a busy machine.",
    } in (found["cautions"])
    assert facts(found)["other processes"] == "40 % of the processors"


def test_a_quiet_device_has_no_caution(l4: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vitexport.validate.bench.share_of_others", lambda *_: 1.0)
    monkeypatch.setattr("vitexport.validate.bench.STABLE_PERCENT", float("inf"))
    probe = Scripted(looking())
    found = benched(l4, Plain(), BenchRequest(seconds=0, warm_up=1.0), probe=probe)
    assert found["cautions"] == []
    assert probe.closed
    assert facts(found)["held back"] == "no"


@pytest.mark.parametrize(("calls", "told"), [((100, 300), False), ((300, 99), True)])
def test_a_99th_percentile_offew_calls_is_told(calls: tuple[int, ...], *, told: bool) -> None:
    notes = few_calls([{"calls": count} for count in calls])
    assert [f"(here {min(calls)})" in note for note in notes] == ([True] if told else [])


def test_words_for_what_is_known_and_for_what_is_not() -> None:
    values = {"before": 345, "least": 1905, "most": 1980, "after": None, "limit": 1980}
    assert course(values, "MHz") == "1905 to 1980 MHz at work (345 before), limit 1980"
    unseen = {"before": 2133, "least": None, "most": None, "after": 2133}
    assert course(unseen, "MHz") == "2133 before, 2133 after, in MHz, not seen at work"
    assert course(dict.fromkeys(unseen), "MHz") is None
    assert [milliseconds(value) for value in (0.2824, 37.031, 757.38)] == ["0.282", "37.03", "757.4"]


# ---- the document


def test_the_document_says_what_was_measured_and_is_written_whole(
    l4: Model, l4_bundle: Built, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = bench_bundle(Model(l4.bundle, Plain()), QUICK, probe=NoProbe("no device"))
    path = tmp_path / "run.json"
    write_bench(path, report)
    data = json.loads(path.read_text(encoding="utf-8"))
    manifest = l4_bundle.bundle.manifest
    assert (data["format"], data["format_version"]) == ("vitexport bench", 1)
    assert data["model"]["weights_sha256"] == manifest.model["weights_sha256"]
    assert (data["model"]["input"], data["model"]["precision"]) == ([3, 32, 32], "int8")
    assert data["built"]["accuracy"]["images"] == 400
    assert data["telemetry"]["unknown"]["clock_mhz"] == "no device"
    assert data["rows"] == document(report)["rows"]

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("vitexport.validate.bench.write_json", full)
    before = path.read_bytes()
    with pytest.raises(OSError, match="No space"):
        write_bench(path, report)
    assert [entry.name for entry in tmp_path.iterdir()] == ["run.json"]
    assert path.read_bytes() == before


def test_an_engines_report_takes_it_in(l4: Model) -> None:
    timed = bench_bundle(Model(l4.bundle, Plain()), QUICK, probe=NoProbe("no device"))
    accepted = Report(title="engine", checks=(), measurements={"golden": {"images": 32}}, machine={}, notes=("one",))
    joined = with_bench(accepted, timed)
    assert set(joined.measurements) == {"golden", "bench"}
    assert joined.notes[0] == "one"
    assert len(joined.notes) == 1 + len(timed.notes)
    assert Report.from_json({**joined.to_json()}).measurements == joined.to_json()["measurements"]


def test_the_shipped_runtime_is_timed_for_real(cpu_bundle: Built) -> None:
    with load(cpu_bundle.root) as model:
        found = document(bench_bundle(model, BenchRequest(seconds=0.1)))
    assert {row["runtime"] for row in found["rows"]} == {model.backend.description}
    assert all(0 < row["p50_ms"] < 10_000 for row in found["rows"])
    assert found["skipped"]["gpu"].startswith("no GPU timer: ONNX Runtime")
    assert found["skipped"]["pytorch"] == "not asked for"
