"""`vitexport engine` on machines that are fakes: builds, acceptance, refusals, and kills at any moment."""

from __future__ import annotations

import dataclasses
import errno
import json
import multiprocessing
import os
import random
import re
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import VALIDATION, Built
from devices import MACHINES, Device
from fakes import installed
from fakes.fake_cuda import FakeCuda, Status
from fakes.fake_tensorrt import GENERATIONS, Conduct
from PIL import Image

from vitexport.bundle import Bundle, open_bundle
from vitexport.cli.commands import cli
from vitexport.device import EngineRequest, build_here, open_for_engine
from vitexport.errors import BundleError, DeviceError, InputError, ToolchainError, UsageError
from vitexport.machine import l4t_release
from vitexport.preprocess import RESAMPLING
from vitexport.runtime import engines, load

PLAIN = EngineRequest()
KILLS = 50


def snapshot(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("generation", MACHINES)
def test_each_generation_builds_and_runs_a_bundle(generation: str, make_device: Callable[[str], Device]) -> None:
    device = make_device(generation)
    before = snapshot(device.root)
    folder, report = build_here(device.bundle, PLAIN)
    assert folder is not None
    assert [(check.name, check.status) for check in report.checks[:5]] == [
        ("engine", "passed"),
        ("golden", "passed"),
        ("preprocessing", "passed"),
        ("decoding", "passed"),
        ("accuracy", "skipped"),
    ]
    assert report.count("failed") == 0
    version = GENERATIONS[generation].version
    assert f"by TensorRT{'-RTX' if generation.startswith('RTX') else ''} {version} in" in report.checks[0].message
    # What was there is untouched, and the bundle still verifies.
    assert {name: data for name, data in snapshot(device.root).items() if not name.startswith("engines/")} == before
    open_bundle(device.root)
    with load(device.root) as model:
        pixels, logits = model.bundle.golden()
        seen = model.predict([np.asarray(picture) for picture in pixels[:2]])
        assert model.backend.description.endswith(f"{version}, Fake GPU")
    assert seen.logits.shape == logits["logits"][:2].shape


@pytest.mark.parametrize("generation", MACHINES)
def test_the_build_has_half_of_the_free_memory_and_the_measurements_of_the_last(
    generation: str, make_device: Callable[[str], Device]
) -> None:
    device = make_device(generation)
    first, _ = build_here(device.bundle, PLAIN)
    second, report = build_here(device.bundle, EngineRequest(workspace_mib=7))
    assert first == second
    one, two = device.conduct.built
    assert one["pools"] == {"WORKSPACE": device.cuda.memory // 2}
    assert two["pools"] == {"WORKSPACE": 7 << 20}
    # TensorRT-RTX measures nothing when it compiles.
    timings = None if generation.startswith("RTX") else f"{GENERATIONS[generation].version}: timings"
    assert (one["cache"], two["cache"]) == (None if timings is None else "", timings)
    assert ("what the build before had measured" in report.checks[0].message) == (timings is not None)


def test_an_optimization_level_is_passed_on_where_there_is_one(make_device: Callable[[str], Device]) -> None:
    device = make_device("8.6")
    build_here(device.bundle, EngineRequest(optimization_level=5))
    assert device.conduct.built[0]["level"] == 5


def test_an_optimization_level_that_the_library_lacks_is_refused(make_device: Callable[[str], Device]) -> None:
    device = make_device("8.5")
    before = snapshot(device.root)
    with pytest.raises(ToolchainError, match=r"TensorRT 8\.5\.2\.2 has no builder optimization level"):
        build_here(device.bundle, EngineRequest(optimization_level=5))
    assert snapshot(device.root) == before
    assert not (device.root / "engines").exists()


def test_progress_is_told_in_the_librarys_own_phases(orin: Device) -> None:
    told: list[tuple[str, int, int]] = []
    build_here(orin.bundle, PLAIN, progress=lambda what, done=0, total=0: told.append((what, done, total)))
    phases = [entry for entry in told if entry[0].startswith("TensorRT: ")]
    assert phases == [("TensorRT: Building Engine", done, 2) for done in range(3)]


def test_an_interruption_within_the_build_ends_it_and_leaves_nothing(orin: Device) -> None:
    def interrupted(what: str, done: int = 0, total: int = 0) -> None:
        if what.startswith("TensorRT: ") and done:
            raise KeyboardInterrupt

    before = snapshot(orin.root)
    with pytest.raises(KeyboardInterrupt):
        build_here(orin.bundle, PLAIN, progress=interrupted)
    assert snapshot(orin.root) == before
    assert not (orin.root / "engines").exists()


# ---- what the builder is asked for


@pytest.mark.parametrize("generation", ["8.6", "10.3", "11.4"])
def test_a_version_compatible_engine_brings_its_runtime_and_is_loaded_with_it(
    generation: str, make_device: Callable[[str], Device]
) -> None:
    device = make_device(generation)
    folder, _ = build_here(device.bundle, EngineRequest(version_compatible=True))
    assert folder is not None
    assert json.loads((folder / engines.ENGINE).read_bytes())["brings_runtime"] is True
    load(device.root, backend="tensorrt").close()


def test_a_version_compatible_engine_serves_a_later_version_and_no_older_one(orin: Device) -> None:
    build_here(orin.bundle, EngineRequest(version_compatible=True))
    for later in ("10.16", "11.4"):
        orin.install(later)
        with load(orin.root, backend="tensorrt") as model:
            assert GENERATIONS[later].version in model.backend.description
    orin.install("8.6")
    with pytest.raises(DeviceError, match=r"holds no engine for this machine \(tensorrt-8\.6\.2.*only tensorrt-10\.3\.0"):
        load(orin.root, backend="tensorrt")


def test_a_plain_engine_serves_no_other_version(orin: Device) -> None:
    build_here(orin.bundle, PLAIN)
    orin.install("10.16")
    with pytest.raises(DeviceError, match="holds no engine for this machine"):
        load(orin.root, backend="tensorrt")


def test_a_plain_engine_serves_no_other_model_of_the_same_compute_capability(orin: Device) -> None:
    folder, _ = build_here(orin.bundle, PLAIN)
    assert folder is not None
    assert "-fake-gpu-8-" in folder.name
    orin.cuda.multiprocessors = 16
    with pytest.raises(DeviceError, match=r"holds no engine for this machine \(.*fake-gpu-16.*only .*fake-gpu-8"):
        load(orin.root, backend="tensorrt")
    build_here(orin.bundle, PLAIN)
    assert len(list((orin.root / "engines").iterdir())) == 2


def test_what_was_measured_on_another_model_is_not_taken_for_this_ones(make_device: Callable[[str], Device]) -> None:
    device = make_device("11.4")
    build_here(device.bundle, EngineRequest(hardware_compatible=True))
    device.cuda.multiprocessors = 16
    load(device.root, backend="tensorrt").close()  # it runs here,
    build_here(device.bundle, PLAIN)
    assert [build["cache"] for build in device.conduct.built] == ["", ""]  # and its timings are not used


def test_an_engine_of_tensorrt_rtx_serves_every_model_of_its_compute_capability(
    make_device: Callable[[str], Device],
) -> None:
    device = make_device("RTX 1.7")
    build_here(device.bundle, PLAIN)
    device.cuda.multiprocessors = 16
    assert len(engines.names(device.bundle)) == 1
    load(device.root, backend="tensorrt").close()


def test_a_hardware_compatible_engine_serves_other_gpus_from_ampere_on(make_device: Callable[[str], Device]) -> None:
    device = make_device("11.4")
    build_here(device.bundle, EngineRequest(hardware_compatible=True))
    assert device.conduct.built[0]["hardware"] == "AMPERE_PLUS"
    device.cuda.capability, device.cuda.multiprocessors = (8, 0), 108
    load(device.root, backend="tensorrt").close()
    device.cuda.capability = (7, 5)
    with pytest.raises(DeviceError, match="holds no engine for this machine"):
        load(device.root, backend="tensorrt")


@pytest.mark.parametrize("generation", ["10.3", "10.16", "11.4", "RTX 1.7"])
def test_stripped_weights_come_back_from_the_onnx(generation: str, make_device: Callable[[str], Device]) -> None:
    device = make_device(generation)
    folder, report = build_here(device.bundle, EngineRequest(strip_weights=True))
    assert folder is not None
    assert json.loads((folder / engines.ENGINE).read_bytes())["stripped"] is True
    assert report.exit_code == 0
    load(device.root, backend="tensorrt").close()
    device.conduct.fails = "refit"
    with pytest.raises(ToolchainError, match=r"cannot put the weights of model\.onnx into the engine"):
        load(device.root, backend="tensorrt")


@pytest.mark.parametrize(
    ("generation", "request_", "named"),
    [
        ("8.5", EngineRequest(version_compatible=True), "`version_compatible`"),
        ("8.5", EngineRequest(strip_weights=True), "`strip_weights`"),
        ("8.6", EngineRequest(strip_weights=True), "`strip_weights`"),
    ],
)
def test_what_a_library_lacks_is_refused_by_the_options_name(
    generation: str, request_: EngineRequest, named: str, make_device: Callable[[str], Device]
) -> None:
    device = make_device(generation)
    before = snapshot(device.root)
    with pytest.raises(ToolchainError, match=rf"TensorRT {generation}.* has nothing for {named}"):
        build_here(device.bundle, request_)
    assert snapshot(device.root) == before


def test_a_dla_core_is_used_where_there_is_one(orin: Device) -> None:
    orin.conduct.dla_cores = 2
    build_here(orin.bundle, EngineRequest(dla_core=1))
    assert orin.conduct.built[0]["dla"] == 1
    # The fake refuses an engine that is loaded for another core than its own.
    load(orin.root, backend="tensorrt").close()
    with pytest.raises(ToolchainError, match=r"`dla=2`: .* finds only cores 0 to 1 on this device"):
        build_here(orin.bundle, EngineRequest(dla_core=2))
    orin.conduct.dla_cores = 0
    with pytest.raises(ToolchainError, match=r"`dla=0`: .* finds no Deep Learning Accelerator"):
        build_here(orin.bundle, EngineRequest(dla_core=0))


@pytest.mark.parametrize(
    ("generation", "request_", "words"),
    [
        ("10.3", EngineRequest(hardware_compatible=True), "--hardware-compatible is not for Jetson Orin Nano"),
        ("RTX 1.7", EngineRequest(version_compatible=True), "are for full TensorRT"),
        ("RTX 1.7", EngineRequest(hardware_compatible=True), "are for full TensorRT"),
        ("11.4", EngineRequest(dla_core=0), "--dla is for Jetsons"),
    ],
)
def test_options_that_contradict_the_target_are_refused_before_a_gpu_is_looked_for(
    generation: str, request_: EngineRequest, words: str, make_device: Callable[[str], Device]
) -> None:
    device = make_device(generation)
    device.cuda.status, device.cuda.count = Status.cudaErrorNoDevice, 0
    with pytest.raises(UsageError, match=words):
        build_here(device.bundle, request_)


def test_kernels_of_tensorrt_rtx_are_compiled_once_and_kept(make_device: Callable[[str], Device]) -> None:
    device = make_device("RTX 1.7")
    build_here(device.bundle, PLAIN)
    assert not (device.root / "cache").exists()  # judging an engine keeps nothing
    device.conduct.compiled.clear()
    # Kernels for any shape would be kept, and recorded, in place of those for the shape.
    assert {strategy.name for strategy in device.conduct.specialized} == {"EAGER"}
    for command in ("predict", "validate"):
        words = [str(VALIDATION / "7" / "digit_0081.png")] if command == "predict" else []
        assert cli.main([command, str(device.root), *words, "--backend", "tensorrt"], standalone_mode=False) == 0
    load(device.root, backend="tensorrt").close()
    assert len(device.conduct.compiled) == 1
    [kept] = (device.root / "cache").rglob("*.cache")
    kept.write_bytes(b"altered")
    load(device.root, backend="tensorrt").close()
    assert len(device.conduct.compiled) == 2
    open_bundle(device.root)
    # What lies behind a link is neither read nor written.
    (device.root / "cache").rename(device.root / "elsewhere")
    (device.root / "cache").symlink_to(device.root / "elsewhere")
    load(device.root, backend="tensorrt").close()
    assert len(device.conduct.compiled) == 3


def test_nodes_that_no_layer_answers_for_are_told(make_device: Callable[[str], Device]) -> None:
    device = make_device("8.5")
    device.conduct.nameless = True
    _, report = build_here(device.bundle, PLAIN)
    assert any("TensorRT made no layer for" in note for note in report.notes)


# ---- acceptance


@pytest.mark.parametrize("noise", [0.3, float("nan")])
def test_an_engine_that_computes_wrong_is_told_and_not_kept(orin: Device, noise: float) -> None:
    orin.conduct.noise = noise
    before = snapshot(orin.root)
    folder, report = build_here(orin.bundle, PLAIN)
    assert folder is None
    assert [check.name for check in report.checks if check.status == "failed"] == ["golden", "localize"]
    assert report.exit_code == 1
    assert any("was not kept" in note for note in report.notes)
    assert snapshot(orin.root) == before


def test_a_wrong_engine_does_not_replace_a_right_one(orin: Device) -> None:
    folder, _ = build_here(orin.bundle, PLAIN)
    before = snapshot(orin.root)
    orin.conduct.noise = 0.3
    assert build_here(orin.bundle, PLAIN)[0] is None
    assert snapshot(orin.root) == before
    assert folder is not None
    assert sorted(path.name for path in folder.parent.iterdir()) == [folder.name]


def test_a_device_that_prepares_pictures_otherwise_keeps_no_engine(orin: Device) -> None:
    orin.monkeypatch.setitem(RESAMPLING, orin.bundle.manifest.preprocess.interpolation, Image.Resampling.NEAREST)
    folder, report = build_here(orin.bundle, PLAIN)
    assert folder is None
    assert [check.name for check in report.checks if check.status == "failed"] == ["preprocessing", "decoding"]


def test_labelled_images_are_judged_too(orin: Device, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["engine", str(orin.root), "--data", str(VALIDATION)], standalone_mode=False) == 0
    shown = capsys.readouterr().out
    assert "passed  accuracy" in shown
    assert "engine: " in shown
    report = json.loads(next((orin.root / "engines").glob("*/report.json")).read_text(encoding="utf-8"))
    assert [check["name"] for check in report["checks"]][:5] == ["engine", "golden", "preprocessing", "decoding", "accuracy"]


def test_an_engine_of_a_model_that_cannot_be_right_is_not_kept(
    orin: Device, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for digit in range(10):
        shutil.copytree(VALIDATION / str(digit), tmp_path / "shifted" / str((digit + 1) % 10))
    words = ["engine", str(orin.root), "--data", str(tmp_path / "shifted"), "--max-drop", "100", "--bench-seconds", "0"]
    assert cli.main(words, standalone_mode=False) == 1
    shown = capsys.readouterr().out
    assert re.search(r"failed +plausibility", shown)
    assert "it computes what PyTorch computed, and the model itself, or the labels of the images, cannot be right" in shown
    assert not list((orin.root / "engines").glob("*/report.json"))


def test_what_is_accepted_is_timed_beside_its_estimate(orin: Device, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["engine", str(orin.root), "--bench-seconds", "0.1"]
    assert cli.main(words, standalone_mode=False) == 0
    shown = capsys.readouterr().out
    report = json.loads(next((orin.root / "engines").glob("*/report.json")).read_text(encoding="utf-8"))
    rows = report["measurements"]["bench"]["rows"]
    timed = {(row["what"], row["cuda_graph"]) for row in rows}
    assert timed == {(what, graph) for what in ("gpu", "run", "end_to_end") for graph in (False, True)}
    # A quarter of a millisecond is what the fake device takes.
    assert {row["p50_ms"] for row in rows if row["what"] == "gpu"} == {0.25}
    assert report["measurements"]["estimate"]["int8"]["batch"] == 1
    assert re.search(r"int8 .* 0\.25 ", shown)
    assert "at least, ms" in shown
    assert "PyTorch" in report["measurements"]["bench"]["skipped"]["pytorch"]


def test_what_is_not_accepted_is_not_timed(orin: Device) -> None:
    orin.conduct.noise = 0.3
    _, report = build_here(orin.bundle, EngineRequest(bench_seconds=0.1))
    assert "bench" not in report.measurements


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (ToolchainError("no kernel image is available"), "no kernel image is available"),
        (AttributeError("module 'torch' has no attribute 'x'"), "AttributeError: module 'torch' has no attribute 'x'"),
    ],
)
def test_an_engine_that_cannot_be_timed_is_kept(orin: Device, error: Exception, told: str) -> None:
    def no_device(_: Any) -> Any:
        # An error of CUDA in PyTorch is one for the whole process, closing the engine included.
        orin.cuda.is_broken = True
        raise error

    folder, report = build_here(orin.bundle, EngineRequest(bench_seconds=0.1), pytorch=no_device)
    assert folder is not None
    assert [check.message for check in report.checks if check.name == "latency"] == [told]


def test_an_engine_that_cannot_be_inspected_is_kept(orin: Device) -> None:
    orin.conduct.fails = "inspector"
    folder, report = build_here(orin.bundle, PLAIN)
    assert folder is not None
    checks = {check.name: check for check in report.checks}
    assert (checks["golden"].status, checks["fused_attention"].status) == ("passed", "skipped")
    assert "cannot be inspected" in checks["fused_attention"].message


def test_an_engine_that_is_slower_than_it_should_be_is_kept_and_timed(orin: Device) -> None:
    orin.conduct.unfused = ("blocks.1.attn",)
    folder, report = build_here(orin.bundle, EngineRequest(bench_seconds=0.05))
    assert folder is not None
    assert [check.name for check in report.checks if check.status == "failed"] == ["fused_attention"]
    assert "bench" in report.measurements


def test_a_search_that_finds_something_in_another_engine_leaves_this_one(orin: Device) -> None:
    def later() -> None:
        if len(orin.conduct.built) > 1:
            orin.conduct.wrong_from = "blocks.1.mlp.fc1/Add"

    orin.conduct.during_build = later
    folder, report = build_here(orin.bundle, EngineRequest(localize=True))
    assert folder is not None
    assert [check.name for check in report.checks if check.status == "failed"] == ["localize"]


def test_a_full_disk_while_searching_leaves_the_verdict_as_it_is(orin: Device) -> None:
    write = Path.write_bytes

    def full(self: Path, data: bytes) -> int:
        if self.name == "marked.engine":
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(self, data)

    orin.monkeypatch.setattr(Path, "write_bytes", full)
    folder, report = build_here(orin.bundle, EngineRequest(localize=True))
    assert folder is not None
    assert [check.status for check in report.checks if check.name == "localize"] == ["skipped"]


def test_a_search_that_fails_leaves_the_verdict_as_it_is(orin: Device) -> None:
    def second_fails() -> None:
        if len(orin.conduct.built) > 1:
            orin.conduct.fails = "deserialize"

    orin.conduct.during_build = second_fails
    folder, report = build_here(orin.bundle, EngineRequest(localize=True))
    assert folder is not None
    checks = {check.name: check for check in report.checks}
    assert (checks["golden"].status, checks["localize"].status) == ("passed", "skipped")
    assert "cannot be had: " in checks["localize"].message


def test_an_engine_that_nobody_can_judge_is_not_kept(orin: Device) -> None:
    measurements = dict(orin.bundle.report().measurements)
    measurements["golden"] = {}
    report = dataclasses.replace(orin.bundle.report(), measurements=measurements)
    orin.monkeypatch.setattr(Bundle, "report", lambda _: report)
    folder, found = build_here(orin.bundle, PLAIN)
    assert folder is None
    assert {check.name: check.status for check in found.checks}["golden"] == "skipped"
    orin.conduct.noise = float("nan")
    _, found = build_here(orin.bundle, PLAIN)
    assert {check.name: check.status for check in found.checks}["golden"] == "failed"


# ---- what does not fit


def test_without_a_gpu_it_is_one_sentence_and_its_exit_code(orin: Device) -> None:
    orin.cuda.status, orin.cuda.count = Status.cudaErrorNoDevice, 0
    with pytest.raises(DeviceError, match=r"no CUDA GPU \(cudaErrorNoDevice\)\. Copy the bundle to the device") as caught:
        build_here(orin.bundle, PLAIN)
    assert caught.value.exit_code == 5
    assert "\n" not in str(caught.value)


def test_another_gpu_is_refused_with_both(orin: Device) -> None:
    orin.cuda.capability = (8, 9)
    with pytest.raises(DeviceError, match=r"Orin Nano.*\(compute capability 8\.7\).* Fake GPU \(compute capability 8\.9\)"):
        build_here(orin.bundle, PLAIN)


def test_an_older_library_than_the_bundles_is_refused(orin: Device) -> None:
    orin.install("8.6")
    with pytest.raises(DeviceError, match=r"written for TensorRT 10\.3\.0, but this machine has 8\.6\.2.*--jetpack"):
        build_here(orin.bundle, PLAIN)


def test_a_jetson_names_its_jetpack(orin: Device, tmp_path: Path) -> None:
    release = tmp_path / "nv_tegra_release"
    release.write_text("# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64\nmore\n")
    orin.monkeypatch.setattr("vitexport.machine.TEGRA_RELEASE", release)
    _, report = build_here(orin.bundle, PLAIN)
    assert "built on Fake GPU (Jetson Linux 36.4.3 of JetPack 6.1) by TensorRT 10.3.0" in report.checks[0].message
    assert report.machine["l4t"] == "36.4.3"
    release.write_text("# R36 (release), REVISION: 3.0, GCID: 36923193, BOARD: generic\n")
    orin.install("8.6")
    with pytest.raises(DeviceError, match=r"has 8\.6\.2 \(Jetson Linux 36\.3\.0 of JetPack 6\.0\)"):
        build_here(orin.bundle, PLAIN)
    release.write_text("something else\n")
    assert l4t_release() is None


def test_more_workspace_than_is_free_is_refused(orin: Device) -> None:
    with pytest.raises(DeviceError, match=r"--workspace 300 asks for more than the 256 MiB that are free on Fake GPU"):
        build_here(orin.bundle, EngineRequest(workspace_mib=300))


def test_a_cpu_bundle_needs_no_engine(cpu_bundle: Built) -> None:
    with pytest.raises(UsageError, match="runs ONNX Runtime; it needs no engine"):
        open_for_engine(cpu_bundle.root)


@pytest.mark.parametrize("part", ["parser", "build", "deserialize", "context"])
def test_a_library_that_fails_leaves_the_bundle_as_it_was(orin: Device, part: str) -> None:
    orin.conduct.fails = part
    before = snapshot(orin.root)
    with pytest.raises(ToolchainError):
        build_here(orin.bundle, PLAIN)
    assert snapshot(orin.root) == before
    assert not (orin.root / "engines").exists()


# ---- which engine is loaded


def test_an_engine_of_another_fingerprint_is_refused_with_both(orin: Device) -> None:
    folder, _ = build_here(orin.bundle, PLAIN)
    assert folder is not None
    orin.cuda.driver = 12090
    with pytest.raises(DeviceError) as caught:
        load(orin.root, backend="tensorrt")
    assert folder.name in str(caught.value)
    assert "TensorRT 10.3.0, compute capability 8.7" in str(caught.value)
    assert "CUDA driver 12.9" in str(caught.value)
    # Where nothing insists on the engine, the ONNX runs instead and says the same.
    with load(orin.root) as instead:
        assert instead.fallback == str(caught.value)
    # Both stay, each under its own name.
    other, _ = build_here(orin.bundle, PLAIN)
    assert other is not None
    assert {other.name, folder.name} == set(engines.names(orin.bundle))
    load(orin.root).close()
    orin.cuda.driver = 12060
    load(orin.root, backend="tensorrt").close()


def test_an_engine_under_another_machines_name_is_refused_with_both(orin: Device) -> None:
    folder, _ = build_here(orin.bundle, PLAIN)
    assert folder is not None
    folder.rename(folder.with_name(folder.name.replace("cuda12.6", "cuda12.9")))
    orin.cuda.driver = 12090
    with pytest.raises(BundleError, match=r"was built for .*CUDA driver 12\.6; this machine is .*CUDA driver 12\.9"):
        load(orin.root)


def test_an_engine_of_another_bundle_is_refused(orin: Device, orin_7_2: Built, tmp_path: Path) -> None:
    folder, _ = build_here(orin.bundle, PLAIN)
    assert folder is not None
    other = tmp_path / "other"
    shutil.copytree(orin_7_2.root, other)
    shutil.copytree(folder.parent, other / "engines")
    with pytest.raises(BundleError, match="built from another bundle"):
        load(other)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def flipped(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def linked(path: Path) -> None:
    aside = path.with_name("aside")
    path.rename(aside)
    path.symlink_to(aside)


@pytest.mark.parametrize("file", [engines.ENGINE, engines.FACTS, "report.json", engines.TIMING_CACHE])
@pytest.mark.parametrize("damage", [cut, flipped, linked, Path.unlink])
def test_a_damaged_engine_never_reaches_tensorrt(orin: Device, file: str, damage: Callable[[Path], None]) -> None:
    folder, _ = build_here(orin.bundle, PLAIN)
    assert folder is not None
    damage(folder / file)
    loaded: list[bytes] = []
    orin.monkeypatch.setattr("fakes.fake_tensorrt.Runtime.deserialize_cuda_engine", lambda _, plan: loaded.append(plan))
    with pytest.raises(BundleError, match=r"Remove .*, or build it again with vitexport engine"):
        load(orin.root)
    assert loaded == []


def test_a_damaged_engine_is_built_again_without_its_measurements(orin: Device) -> None:
    folder, _ = build_here(orin.bundle, PLAIN)
    assert folder is not None
    flipped(folder / engines.TIMING_CACHE)
    build_here(orin.bundle, PLAIN)
    assert [build["cache"] for build in orin.conduct.built] == ["", ""]
    load(orin.root).close()


# ---- places that cannot be written, and others at work


def test_two_builds_in_one_bundle_are_refused(orin: Device) -> None:
    def second() -> None:
        with pytest.raises(InputError, match="Another vitexport engine is already running on"):
            build_here(orin.bundle, PLAIN)

    orin.conduct.during_build = second
    folder, _ = build_here(orin.bundle, PLAIN)
    assert folder is not None


def test_a_full_disk_leaves_the_bundle_as_it_was(orin: Device) -> None:
    before = snapshot(orin.root)

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    orin.monkeypatch.setattr("vitexport.device.build.write_json", full)
    with pytest.raises(InputError, match=r"No space left on device\. The bundle is as it was"):
        build_here(orin.bundle, PLAIN)
    assert snapshot(orin.root) == before
    assert not (orin.root / "engines").exists()


@pytest.mark.parametrize("there", ["a file", "a link"])
def test_something_else_in_the_engines_place_is_not_touched(orin: Device, tmp_path: Path, there: str) -> None:
    place = orin.root / "engines"
    if there == "a file":
        place.write_bytes(b"")
    else:
        (tmp_path / "elsewhere").mkdir()
        place.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InputError, match="is not a plain folder"):
        build_here(orin.bundle, PLAIN)
    assert load(orin.root, backend="onnxruntime").backend is not None


@pytest.mark.parametrize("number", [errno.EBADF, errno.ENOLCK])
def test_a_folder_that_cannot_be_locked_is_told_as_such(orin: Device, number: int) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(number, os.strerror(number))

    orin.monkeypatch.setattr("fcntl.flock", refuse)
    with pytest.raises(InputError, match=r"cannot be locked .*, as on a network file system"):
        build_here(orin.bundle, PLAIN)


@pytest.mark.parametrize("at_once", [True, False])
def test_a_new_engine_takes_the_place_of_the_old_one(orin: Device, *, at_once: bool) -> None:
    folder, _ = build_here(orin.bundle, PLAIN)
    assert folder is not None
    before = (folder / engines.FACTS).read_bytes()
    if not at_once:
        orin.monkeypatch.setattr("vitexport.runtime.engines._swap", lambda *_: False)
    build_here(orin.bundle, EngineRequest(workspace_mib=7))
    assert (folder / engines.FACTS).read_bytes() != before
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_two_folders_change_names_at_once(tmp_path: Path) -> None:
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    if not engines._swap(tmp_path / "one", tmp_path / "other"):
        pytest.skip("this system cannot exchange names")
    assert [path.name for path in (tmp_path / "one").iterdir()] == ["other"]
    assert [path.name for path in (tmp_path / "other").iterdir()] == ["one"]


def test_an_exchange_that_fails_twice_keeps_the_old_engine_aside(orin: Device) -> None:
    folder, _ = build_here(orin.bundle, PLAIN)
    assert folder is not None
    before = snapshot(orin.root)
    orin.monkeypatch.setattr("vitexport.runtime.engines._swap", lambda *_: False)
    rename, final = Path.rename, folder

    def fails(self: Path, target: Path) -> Path:
        if target == final:
            raise OSError(errno.EIO, "Input/output error")
        return rename(self, target)

    with orin.monkeypatch.context() as patch:
        patch.setattr(Path, "rename", fails)
        with pytest.raises(InputError, match="Input/output error"):
            build_here(orin.bundle, EngineRequest(workspace_mib=7))
    orin.conduct.noise = 0.3
    build_here(orin.bundle, PLAIN)
    assert snapshot(orin.root) == before


@pytest.mark.parametrize("kind", ["dangling", "live", "file"])
def test_a_link_in_the_place_of_an_engine_is_refused(orin: Device, tmp_path: Path, kind: str) -> None:
    folder, _ = build_here(orin.bundle, PLAIN)
    assert folder is not None
    elsewhere = folder.rename(tmp_path / "elsewhere")
    if kind == "file":
        folder.touch()
    else:
        folder.symlink_to(elsewhere if kind == "live" else tmp_path / "nowhere")
    with pytest.raises(InputError, match="is not a plain folder"):
        build_here(orin.bundle, PLAIN)
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_what_was_named_is_flushed_to_the_disk(orin: Device) -> None:
    flushed: list[Path] = []
    orin.monkeypatch.setattr("vitexport.runtime.engines._flush", flushed.append)
    folder, _ = build_here(orin.bundle, PLAIN)
    assert folder is not None
    assert [path.parent for path in flushed] == [folder.parent, orin.root]


def test_an_engine_that_a_kill_left_aside_gets_its_name_back(orin: Device) -> None:
    folder, _ = build_here(orin.bundle, PLAIN)
    assert folder is not None
    before = snapshot(orin.root)
    aside = folder.parent / f".{folder.name}.abcdefgh.old"
    aside.mkdir()
    folder.rename(aside / "engine")
    # Even a build that ends with nothing to keep brings it back.
    orin.conduct.noise = 0.3
    assert build_here(orin.bundle, PLAIN)[0] is None
    assert snapshot(orin.root) == before


# ---- kills


def build_in_a_process(root: Path, ready: Any) -> None:
    """A whole build on the fake Orin, in a process of its own."""
    installed.install("10.3", Conduct(computes_onnx=True), FakeCuda(capability=(8, 7), memory=1 << 28))
    ready.set()
    build_here(open_for_engine(root), PLAIN)


def test_a_kill_at_any_moment_leaves_a_bundle_that_verifies(orin: Device) -> None:
    # Python 3.11's fork server looks for what it is to load beforehand on the path of a new interpreter alone; without
    # that each of the fifty processes would import PyTorch anew.
    orin.monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    before = snapshot(orin.root)

    def started() -> Any:
        ready = context.Event()
        process = context.Process(target=build_in_a_process, args=(orin.root, ready))
        process.start()
        assert ready.wait(60)
        return process

    # How long a build takes depends on what else the machine does: the shortest one seen sets the moments, to just past it.
    chance, whole, killed, builds = random.Random(6), 60.0, 0, 0  # noqa: S311 - moments of a test
    while killed < KILLS:
        if builds % 2:
            shutil.rmtree(orin.root / "engines")  # every other time there is no older engine
        process, start = started(), time.monotonic()
        process.join(chance.uniform(0, 1.2 * whole) if builds else 60)
        if process.is_alive():
            process.kill()
            process.join(60)
        if process.exitcode == 0:
            whole = min(whole, time.monotonic() - start)
        else:
            assert process.exitcode == -signal.SIGKILL
            killed += 1
        builds += 1
        assert builds < 10 * KILLS
        bundle = open_bundle(orin.root)
        assert {name: data for name, data in snapshot(orin.root).items() if not name.startswith("engines/")} == before
        here = sys.modules["cuda.bindings.runtime"]
        assert here is not None
        for name in engines.names(bundle):
            load(orin.root).close()
            assert name.startswith("tensorrt-10.3.0-sm8.7-")
        (orin.root / "engines").mkdir(exist_ok=True)
    folder, _ = build_here(orin.bundle, PLAIN)
    assert folder is not None
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]
