"""Two measurements side by side: from every kind of file, what forbids to compare them, and what a person reads."""

from __future__ import annotations

import contextlib
import copy
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ROOT, Built
from hypothesis import given, settings
from hypothesis import strategies as st

from vitexport.cli import show
from vitexport.cli.commands import cli
from vitexport.errors import BundleError, InputError
from vitexport.report import Report
from vitexport.runtime import load
from vitexport.validate.bench import BenchRequest, bench_bundle, with_bench
from vitexport.validate.compare import Cell, compare, compare_facts, read_measured

GOLDEN = ROOT / "tests" / "golden" / "compare.txt"


def row(what: str, batch: int, *, graph: bool | None, p50: float, runner: str = "shipped") -> dict[str, Any]:
    return {
        "runner": runner,
        "runtime": "TensorRT",
        "what": what,
        "batch": batch,
        "cuda_graph": graph,
        "p50_ms": p50,
        "p90_ms": p50 * 1.1,
        "p99_ms": p50 * 1.5,
        "mean_ms": p50 * 1.05,
        "images_per_second": batch / p50 * 1e3,
        "calls": 400,
        "warm_up": {"stable": True, "seconds": 1.0, "spread_percent": 0.7},
    }


def course(before: float | None, least: float | None, most: float | None, after: float | None) -> dict[str, Any]:
    return {"before": before, "least": least, "most": most, "after": after}


# Figures for the test's sake: nothing here was measured.
JETSON: dict[str, Any] = {
    "format": "vitexport bench",
    "format_version": 1,
    "date": "2026-11-20T10:00:00+00:00",
    "model": {
        "name": "vit_small_patch16_224",
        "weights": "pretrained:augreg_in21k_ft_in1k",
        "weights_sha256": "ab" * 32,
        "input": [3, 224, 224],
        "outputs": {"logits": [1000]},
        "precision": "int8",
        "target": "jetson-orin-nano-8gb",
        "manifest_sha256": "01" * 32,
    },
    "runtime": "TensorRT 10.3.0, Orin",
    "telemetry": {
        "source": "Jetson Linux",
        "device": "NVIDIA Jetson Orin Nano Developer Kit",
        "power_mode": "15W",
        "locked": True,
        "clock_mhz": {**course(625, 625, 625, 625), "limit": 625},
        "memory_mhz": {**course(2133, None, None, 2133), "limit": 2133},
        "temperature_c": course(48.1, 50.0, 52.5, 51.2),
        "throttled": [],
        "others": None,
        "samples": 9,
        "unknown": {"others": "Jetson Linux does not list the processes on its GPU"},
    },
    "others_percent": 2.0,
    "rows": [
        row(what, batch, graph=graph, p50=batch * (factor - 0.4 * graph))
        for batch in (1, 8)
        for graph in (False, True)
        for what, factor in (("gpu", 5.0), ("run", 5.6), ("end_to_end", 7.25))
    ],
    "skipped": {"pytorch": "torch is not installed here"},
    "cautions": [],
    "method": {"warm_up": "", "seconds": 5.0},
    "machine": {"cpu": "Cortex-A78AE", "versions": {}},
    "built": {
        "accuracy": {"candidate_top1": 81.2, "reference_top1": 81.4, "images": 5000},
        "golden": {"images": 32, "agreement_percent": 100.0, "outputs": {"logits": {"sqnr_db": 36.4, "cosine": 0.9999}}},
    },
}


def server() -> dict[str, Any]:
    """The same model on another device: three times as fast, and float16."""
    data = copy.deepcopy(JETSON)
    data["date"] = "2026-11-21T10:00:00+00:00"
    data["runtime"] = "TensorRT-RTX 1.7.1, NVIDIA L4"
    data["model"] |= {"precision": "fp16", "target": "l4"}
    telemetry = {"source": "NVML", "device": "NVIDIA L4", "power_mode": "power limit 72 W", "locked": None, "others": 0}
    data["telemetry"] |= telemetry | {
        "clock_mhz": {**course(210, 2010, 2040, 2040), "limit": 2040},
        "memory_mhz": {**course(405, 6251, 6251, 6251), "limit": 6251},
        "temperature_c": course(41, 48, 55, 54),
    }
    data["built"]["accuracy"]["candidate_top1"] = 81.4
    for entry in data["rows"]:
        for figure in ("p50_ms", "p90_ms", "p99_ms"):
            entry[figure] /= 3
    return data


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str, Any], Path]:
    def make(name: str, data: Any) -> Path:
        path = tmp_path / name
        path.write_text(data if isinstance(data, str) else json.dumps(data), encoding="utf-8")
        return path

    return make


Write = Callable[[str, Any], Path]


# ---- what a person reads


def test_the_table_is_the_golden_one(
    write: Write, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    other = server()
    other["rows"].append(row("gpu", 8, graph=None, p50=3.0, runner="PyTorch fp16"))
    other["cautions"] = [{"kind": "throttled", "message": "The device was held back while it was timed: power cap."}]
    other["telemetry"]["throttled"] = ["power cap"]
    write("orin.json", JETSON)
    write("l4.json", other)
    monkeypatch.chdir(tmp_path)
    show.show_comparison(compare(Path("orin.json"), Path("l4.json")))
    assert capsys.readouterr().out == GOLDEN.read_text(encoding="utf-8")


def test_a_narrow_terminal_cuts_no_figure(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    comparison = compare(write("a.json", JETSON), write("b.json", server()))
    rendered = show.Output()
    rendered.width = 100
    with rendered.capture() as captured:
        rendered.print(show.comparison_table(comparison))
    assert "…" not in captured.get()
    assert "58.00" in captured.get()


# ---- figures


def test_ratios_are_b_over_a(write: Write) -> None:
    comparison = compare(write("a.json", JETSON), write("b.json", server()))
    assert comparison.obstacles == ()
    assert len(comparison.cells) == 12
    for cell in comparison.cells:
        assert comparison.ratio(cell, "p50_ms") == pytest.approx(1 / 3)
    data = comparison.to_json()
    assert data["comparable"] is True
    assert data["rows"][0]["a"]["p50_ms"] == 5.0
    assert data["rows"][0]["b_over_a"]["p99_ms"] == pytest.approx(1 / 3)
    json.dumps(data, allow_nan=False)
    known = {name: (one, two) for name, one, two in compare_facts(comparison)}
    assert known["precision"] == ("int8", "fp16")
    assert known["power mode"] == ("15W, clocks locked at their maximum", "power limit 72 W")
    assert known["clock"][1] == "2010 to 2040 MHz at work (210 before, 2040 after), limit 2040"
    assert known["top-1"] == ("81.20 % at build on 5000 images", "81.40 % at build on 5000 images")
    assert known["golden SQNR"][0] == "logits 36.4 dB at build"


def test_a_row_of_one_side_has_no_ratio(write: Write) -> None:
    other = server()
    other["rows"].append(row("run", 8, graph=None, p50=9.0, runner="PyTorch fp16"))
    comparison = compare(write("a.json", JETSON), write("b.json", other))
    cell = Cell("PyTorch fp16", 8, "run", graph=False)
    assert comparison.cells[-1] == cell
    assert comparison.ratio(cell, "p50_ms") is None
    assert comparison.to_json()["rows"][-1]["a"] is None
    # What only one side could time besides is no obstacle.
    assert comparison.obstacles == ()


def test_a_cpu_is_held_against_a_gpu_without_a_graph(write: Write) -> None:
    cpu = server()
    cpu["rows"] = [row(what, batch, graph=None, p50=10.0) for batch in (1, 8) for what in ("run", "end_to_end")]
    comparison = compare(write("a.json", JETSON), write("b.json", cpu))
    assert comparison.obstacles == ()
    assert comparison.ratio(Cell("shipped", 1, "run", graph=False), "p50_ms") == pytest.approx(10 / 5.6)
    assert comparison.ratio(Cell("shipped", 1, "run", graph=True), "p50_ms") is None


# ---- what makes two not comparable


def without_batch_1(data: dict[str, Any]) -> None:
    data["rows"] = [entry for entry in data["rows"] if entry["batch"] != 1]


def only_graphs_of_pytorch(data: dict[str, Any]) -> None:
    data["rows"] = [{**entry, "runner": "PyTorch fp32"} for entry in data["rows"]]


@pytest.mark.parametrize(
    ("change", "fragments"),
    [
        (
            lambda data: data["model"].update(name="vit_base_patch16_224"),
            ("The models differ: A has vit_small", "B has vit_base"),
        ),
        (
            lambda data: data["model"].update(weights_sha256="cd" * 32),
            ("The weights differ: A has abababababababab…, B has cdcdcdcdcdcdcdcd….",),
        ),
        (
            lambda data: data["model"].update(input=[3, 384, 384]),
            ("input sizes differ: A has 3 x 224 x 224, B has 3 x 384 x 384",),
        ),
        (lambda data: data["model"].update(outputs={"embedding": [384]}), ("A has logits [1000], B has embedding [384]",)),
        (without_batch_1, ("The batches of shipped differ: A was timed at 1, 8, B at 8.",)),
        (only_graphs_of_pytorch, ("No row of A has its like in B",)),
        (lambda data: data.update(rows=[]), ("B holds no latency",)),
        (
            lambda data: data.update(cautions=[{"kind": "busy", "message": "Other processes took 60 %."}]),
            ("B: Other processes took 60 %.",),
        ),
    ],
)
def test_what_makes_two_not_comparable_is_said(
    change: Callable[[dict[str, Any]], None], fragments: tuple[str, ...], write: Write
) -> None:
    other = server()
    change(other)
    comparison = compare(write("a.json", JETSON), write("b.json", other))
    for fragment in fragments:
        assert any(fragment in obstacle for obstacle in comparison.obstacles), comparison.obstacles
    assert comparison.to_json()["comparable"] is False


def test_what_neither_knows_is_named(write: Write) -> None:
    sides = []
    for name in ("a.json", "b.json"):
        data = copy.deepcopy(JETSON)
        data["telemetry"] |= {"power_mode": None, "locked": None, "throttled": None}
        sides.append(write(name, data))
    comparison = compare(*sides)
    assert comparison.unknown == ("power mode", "held back")
    assert "power mode" not in {name for name, _, _ in compare_facts(comparison)}


# ---- where a measurement can be read from


def test_a_bundle_brings_what_its_build_timed(cpu_bundle: Built) -> None:
    seen = read_measured(cpu_bundle.root)
    assert Cell("shipped", 1, "run", graph=False) in seen.rows
    assert Cell("PyTorch fp32", 1, "run", graph=False) in seen.rows
    assert seen.facts["top-1"].endswith("on 400 images")
    assert seen.model["weights_sha256"] == cpu_bundle.bundle.manifest.model["weights_sha256"]
    assert read_measured(cpu_bundle.root / "report.json").rows == seen.rows


def test_a_bundle_without_latency_says_so(jetson_bundle: Built, cpu_bundle: Built) -> None:
    comparison = compare(cpu_bundle.root, jetson_bundle.root)
    assert "B holds no latency; measure it with vitexport bench -o FILE.json." in comparison.obstacles
    # The same weights, prepared for two devices.
    assert not any("weights differ" in obstacle for obstacle in comparison.obstacles)


def test_an_engines_report_brings_its_own_figures(l4_bundle: Built, tmp_path: Path) -> None:
    with load(l4_bundle.root, backend="onnxruntime") as model:
        timed = bench_bundle(model, BenchRequest(seconds=0, warm_up=0))
    measured = {"golden": {"agreement_percent": 96.875, "outputs": {"logits": {"sqnr_db": 30.0}}}}
    accepted = with_bench(Report(title="engine", checks=(), measurements=measured, machine={}), timed)
    folder = tmp_path / "engine"
    folder.mkdir()
    (folder / "report.json").write_text(json.dumps(accepted.to_json()), encoding="utf-8")
    seen = read_measured(folder)
    assert seen.rows == read_measured(folder / "report.json").rows
    assert {cell.what for cell in seen.rows} == {"run", "end_to_end"}
    assert seen.facts["golden SQNR"] == "logits 30.0 dB"
    assert seen.facts["golden top-1 as PyTorch"] == "96.88 %"


def test_an_engines_report_without_latency_finds_its_bundle(l4_bundle: Built, tmp_path: Path) -> None:
    engine = l4_bundle.root / "engines" / "one"
    report = Report(title="engine", checks=(), measurements={"runtime": "TensorRT"}, machine={"gpu": "Some GPU"}).to_json()
    engine.mkdir(parents=True)
    try:
        (engine / "report.json").write_text(json.dumps(report), encoding="utf-8")
        seen = read_measured(engine)
    finally:
        (engine / "report.json").unlink()
        engine.rmdir()
        engine.parent.rmdir()
    assert seen.rows == {}
    assert (seen.facts["device"], seen.facts["runtime"]) == ("Some GPU", "TensorRT")
    assert seen.model["target"] == "l4"
    alone = tmp_path / "report.json"
    alone.write_text(json.dumps(report), encoding="utf-8")
    with pytest.raises(InputError, match="holds no latency, and no bundle is around it"):
        read_measured(alone)


def test_the_command_line_has_it_as_json_too(write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    words = [str(write("a.json", JETSON)), str(write("b.json", server()))]
    assert cli.main(["compare", *words, "--json"], standalone_mode=False) == 0
    assert json.loads(capsys.readouterr().out)["comparable"] is True


# ---- files that are none


@pytest.mark.parametrize(
    ("content", "fragment"),
    [
        ("", "is not a JSON document"),
        ("{", "is not a JSON document"),
        ("[" * 100_000, "is not a JSON document"),
        ("[1]", "is JSON, but no measurement"),
        ("{}", "is no measurement; give a file of vitexport bench -o"),
        ({**JETSON, "format_version": 2}, "has format 2; this vitexport reads 1"),
        ({**JETSON, "rows": [{}]}, "is not what vitexport bench writes"),
        ({**JETSON, "telemetry": None}, "is not what vitexport bench writes"),
        ({**JETSON, "rows": [row("gpu", 1, graph=None, p50=-1.0)]}, "a latency is"),
        ({**JETSON, "rows": [row("gpu", 1, graph=None, p50=float("nan"))]}, "a latency is"),
        ({**JETSON, "rows": [row("fpga", 1, graph=None, p50=1.0)]}, "a row is of 'fpga'"),
    ],
)
def test_a_bad_file_is_one_sentence(content: Any, fragment: str, write: Write) -> None:
    with pytest.raises(InputError, match=re.escape(fragment)) as caught:
        read_measured(write("bad.json", content))
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 3


def test_what_is_not_there_or_no_text_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.json cannot be read: No such file"):
        read_measured(tmp_path / "none.json")
    with pytest.raises(InputError, match="is a folder, but neither a bundle nor an engine"):
        read_measured(tmp_path)
    binary = tmp_path / "binary.json"
    binary.write_bytes(np.arange(100, dtype=np.uint8).tobytes() + b"\xff\xfe")
    with pytest.raises(InputError, match="is not a JSON document"):
        read_measured(binary)


def test_a_damaged_bundle_is_not_read(cpu_bundle: Built, tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text("{}", encoding="utf-8")
    with pytest.raises(BundleError, match="is not a manifest"):
        read_measured(tmp_path)


def places(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every path into a JSON document."""
    if isinstance(value, dict):
        inner = [path for key, item in value.items() for path in places(item, (*at, key))]
    elif isinstance(value, list):
        inner = [path for index, item in enumerate(value[:2]) for path in places(item, (*at, index))]
    else:
        inner = []
    return [at, *inner]


PLACES = [path for path in places(JETSON) if path]


@settings(max_examples=60, deadline=None)
@given(place=st.sampled_from(PLACES), value=st.sampled_from([None, "", "x", -1, 1e400, [], {}, [None], True]))
def test_a_document_with_anything_in_it_is_read_or_refused(
    place: tuple[Any, ...], value: Any, tmp_path_factory: pytest.TempPathFactory
) -> None:
    data = copy.deepcopy(JETSON)
    at: Any = data
    for key in place[:-1]:
        at = at[key]
    at[place[-1]] = value
    path = tmp_path_factory.getbasetemp() / "changed.json"
    path.write_text(json.dumps(data), encoding="utf-8")
    good = tmp_path_factory.getbasetemp() / "good.json"
    good.write_text(json.dumps(JETSON), encoding="utf-8")
    # Any other error than ours fails the test.
    with contextlib.suppress(InputError):
        show.show_comparison(compare(path, good))
