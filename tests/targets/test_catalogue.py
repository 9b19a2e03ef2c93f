from __future__ import annotations

import dataclasses
import json
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vitexport.errors import UsageError
from vitexport.targets import OPSET, PRECISIONS, Device, Target, catalogue, nearest_names, resolve
from vitexport.targets.catalogue import nearest
from vitexport.targets.rows import PEAK_PRECISIONS, packaged
from vitexport.targets.target import version_key

JETSONS = {
    "jetson-nano": ["4.6"],
    "jetson-tx2": ["4.6"],
    "jetson-xavier-nx": ["4.6", "5.0.2", "5.1"],
    "jetson-agx-xavier": ["4.6", "5.0.2", "5.1"],
    "jetson-orin-nano-4gb": ["5.1", "6.0", "6.1", "7.2"],
    "jetson-orin-nano-8gb": ["5.1", "6.0", "6.1", "7.2"],
    "jetson-orin-nx-8gb": ["5.1", "6.0", "6.1", "7.2"],
    "jetson-orin-nx-16gb": ["5.1", "6.0", "6.1", "7.2"],
    "jetson-agx-orin-32gb": ["5.0.2", "5.1", "6.0", "6.1", "7.2", "7.2.2"],
    "jetson-agx-orin-64gb": ["5.0.2", "5.1", "6.0", "6.1", "7.2", "7.2.2"],
    "jetson-t4000": ["7.1", "7.2", "7.2.2"],
    "jetson-t5000": ["7.0", "7.2", "7.2.2"],
}
RTX = {
    "t4": "7.5",
    "a2": "8.6",
    "a10": "8.6",
    "a30": "8.0",
    "a100-40gb": "8.0",
    "a100-80gb": "8.0",
    "l4": "8.9",
    "l40s": "8.9",
    "rtx-a2000": "8.6",
    "rtx-a4000": "8.6",
    "rtx-3090": "8.6",
    "rtx-4090": "8.9",
    "rtx-5090": "12.0",
    "rtx-pro-6000-blackwell": "12.0",
    "gb10": "12.1",
}
FULL_TENSORRT = {"h100-pcie": "9.0", "h100-sxm": "9.0", "h200": "9.0", "gh200": "9.0", "b200": "10.0", "b300": "10.3"}
CPUS = {
    "cpu-x86-amx": ("uint8", 8),
    "cpu-x86-avxvnniint8": ("int8", 8),
    "cpu-x86-vnni": ("uint8", 8),
    "cpu-x86-avx512": ("uint8", 7),
    "cpu-x86-avx2": ("uint8", 7),
    "cpu-arm64-i8mm": ("int8", 8),
    "cpu-arm64-dotprod": ("int8", 8),
}
APPS = {"web": ("uint8", 8), "android-arm64": ("int8", 8)}
# TensorRT, opset, typing, LayerNormalization.
STACKS = {
    "4.6": ("8.2.1", 13, "weak", False),
    "5.0.2": ("8.4.1", 17, "weak", False),
    "5.1": ("8.5.2", 17, "weak", False),
    "6.0": ("8.6.2", 17, "weak", True),
    "6.1": ("10.3.0", 20, "strong", True),
    "7.0": ("10.13.3", 20, "strong", True),
    "7.1": ("10.13.3", 20, "strong", True),
    "7.2": ("10.16.2", 20, "strong", True),
    "7.2.2": ("11.4.1", 20, "strong", True),
}
JETSON_RELEASES = [(device_id, release) for device_id, releases in JETSONS.items() for release in releases]

devices = st.sampled_from(sorted(catalogue()))


def test_the_catalogue_holds_every_device() -> None:
    assert sorted(catalogue()) == sorted([*JETSONS, *RTX, *FULL_TENSORRT, *CPUS, *APPS])


def test_the_catalogue_is_read_once_and_read_only() -> None:
    assert catalogue() is catalogue()
    with pytest.raises(TypeError):
        catalogue()["t4"] = catalogue()["l4"]  # type: ignore[index]


def test_every_jetson_lists_its_releases() -> None:
    assert {row.id: list(row.jetpacks) for row in catalogue().values() if row.kind == "jetson"} == JETSONS


@pytest.mark.parametrize(("device_id", "release"), JETSON_RELEASES)
def test_every_jetson_resolves_under_each_of_its_releases(device_id: str, release: str) -> None:
    target = resolve(device_id, jetpack=release)
    assert (target.id, target.kind, target.runtime, target.jetpack) == (device_id, "jetson", "tensorrt", release)
    assert (target.tensorrt, target.opset, target.typing, target.layernorm_op) == STACKS[release]
    assert not target.engine_here
    assert resolve(device_id, jetpack=target.jetpack) == target


@pytest.mark.parametrize(
    ("device_id", "release"),
    [
        ("jetson-nano", "4.6"),
        ("jetson-xavier-nx", "5.1"),
        ("jetson-orin-nano-8gb", "7.2"),
        ("jetson-agx-orin-64gb", "7.2"),
        ("jetson-t4000", "7.2"),
        ("jetson-t5000", "7.2"),
    ],
)
def test_the_default_is_the_newest_release_that_is_no_optional_upgrade(device_id: str, release: str) -> None:
    assert resolve(device_id).jetpack == release


@pytest.mark.parametrize(
    ("device_id", "asked", "release"),
    [
        ("jetson-nano", "4.6.1", "4.6"),
        ("jetson-xavier-nx", "4.6.5", "4.6"),
        ("jetson-xavier-nx", "5.1.3", "5.1"),
        ("jetson-orin-nano-8gb", "6.1", "6.1"),
        ("jetson-orin-nano-8gb", "6.2", "6.1"),
        ("jetson-orin-nano-8gb", "6.2.1", "6.1"),
        ("jetson-t5000", "7.1", "7.0"),
        ("jetson-t4000", "7.1", "7.1"),
        ("jetson-agx-orin-32gb", "7.2.2", "7.2.2"),
    ],
)
def test_a_release_maps_to_the_row_with_its_stack(device_id: str, asked: str, release: str) -> None:
    asked_for, listed = resolve(device_id, jetpack=asked), resolve(device_id, jetpack=release)
    assert asked_for.jetpack == asked  # what the user wrote is what reports show
    assert dataclasses.replace(asked_for, jetpack=release) == listed


@pytest.mark.parametrize(
    ("device_id", "asked", "valid"),
    [
        ("jetson-nano", "5.1", "4.6 (also 4.6.x)"),  # never got it
        ("jetson-xavier-nx", "6.1", "4.6 (also 4.6.x), 5.0.2, 5.1 (also 5.1.x)"),
        ("jetson-orin-nano-8gb", "5.0.2", "5.1 (also 5.1.x), 6.0, 6.1 (also 6.2, 6.2.x), 7.2"),
        ("jetson-orin-nano-8gb", "7.2.2", "5.1 (also 5.1.x), 6.0, 6.1 (also 6.2, 6.2.x), 7.2"),
        ("jetson-orin-nano-8gb", "6.9", "6.1 (also 6.2, 6.2.x)"),  # does not exist
        ("jetson-orin-nano-8gb", "6", "6.1 (also 6.2, 6.2.x)"),
        ("jetson-orin-nano-8gb", "6.2.x", "6.1 (also 6.2, 6.2.x)"),
        ("jetson-orin-nano-8gb", "", "6.1 (also 6.2, 6.2.x)"),
        ("jetson-orin-nano-8gb", "6.2.1.1", "6.1 (also 6.2, 6.2.x)"),
        ("jetson-orin-nano-8gb", "r36.4", "6.1 (also 6.2, 6.2.x)"),
        ("jetson-t5000", "6.2", "7.0 (also 7.1), 7.2, 7.2.2"),
        ("jetson-t4000", "7.0", "Valid for `jetpack`: 7.1, 7.2, 7.2.2."),  # its first release is 7.1
    ],
)
def test_a_release_that_the_device_does_not_run_is_refused(device_id: str, asked: str, valid: str) -> None:
    with pytest.raises(UsageError) as caught:
        resolve(device_id, jetpack=asked)
    message = str(caught.value)
    assert f"JetPack {asked} does not run on {device_id}" in message
    assert valid in message


@pytest.mark.parametrize("name", ["l4", "h200", "cpu-x86-vnni", "cpu"])
def test_only_a_jetson_takes_a_jetpack(name: str) -> None:
    with pytest.raises(UsageError, match=r"not a Jetson.*Leave `jetpack` out"):
        resolve(name, jetpack="6.2", cpu_flags=frozenset(), cpu_arch="x86_64")


@pytest.mark.parametrize(("device_id", "capability"), RTX.items())
def test_a_gpu_that_rtx_knows_is_compiled_for_anywhere(device_id: str, capability: str) -> None:
    target = resolve(device_id)
    assert (target.runtime, target.tensorrt, target.compute_capability) == ("tensorrt-rtx", "1.7.1", capability)
    assert (target.opset, target.typing, target.layernorm_op, target.engine_here) == (20, "strong", True, True)
    assert target.cpu is None


@pytest.mark.parametrize(("device_id", "capability"), FULL_TENSORRT.items())
def test_a_gpu_that_rtx_does_not_know_gets_full_tensorrt(device_id: str, capability: str) -> None:
    target = resolve(device_id)
    assert (target.runtime, target.compute_capability, target.jetpack) == ("tensorrt", capability, None)
    assert (target.opset, target.typing, target.layernorm_op, target.engine_here) == (20, "strong", True, False)
    assert target.precisions == ("fp32", "fp16", "int8")


def test_full_tensorrt_is_new_enough_for_the_architecture() -> None:
    assert [resolve(name).tensorrt for name in ("h100-sxm", "b200", "b300")] == ["10.3.0", "10.8.0", "10.14.1"]


@pytest.mark.parametrize(("device_id", "arithmetic"), CPUS.items())
def test_a_cpu_class_states_its_arithmetic(device_id: str, arithmetic: tuple[str, int]) -> None:
    target = resolve(device_id)
    assert target.cpu is not None
    assert (target.cpu.activation, target.cpu.weight_bits) == arithmetic
    assert target.cpu.arch == ("aarch64" if "arm64" in device_id else "x86_64")
    assert (target.runtime, target.tensorrt, target.typing, target.memory_gb) == ("onnxruntime", None, None, None)
    assert (target.precisions, target.opset, target.engine_here) == (("fp32", "int8"), 20, False)


def test_int8_is_left_out_where_the_hardware_or_rtx_refuses_it() -> None:
    without = {name for name in catalogue() if "int8" not in resolve(name).precisions}
    assert without == {"jetson-nano", "jetson-tx2"}
    assert "5.3 has no INT8 tensor cores" in resolve("jetson-nano").unavailable["int8"]
    # JetPack 4's trtexec has no way to keep a written-out LayerNormalization in FP32 beside FP16.
    for name in ("jetson-nano", "jetson-xavier-nx"):
        old = resolve(name, jetpack="4.6")
        assert old.precisions == ("fp32",)
        assert "8.2.1 cannot hold single layers in FP32" in old.unavailable["fp16"]
    assert resolve("jetson-xavier-nx", jetpack="5.0.2").precisions == ("fp32", "fp16", "int8")
    assert resolve("t4").precisions == ("fp16", "int8")
    assert "no float32" in resolve("t4").unavailable["fp32"]


@pytest.mark.parametrize(
    ("device_id", "peaks", "bandwidth"),
    [
        ("jetson-orin-nano-8gb", {"fp16": 10.2, "int8": 20.5}, 68),
        ("l4", {"fp16": 121, "int8": 242, "fp8": 242}, 300),
        ("b300", {"fp16": 2250, "int8": 153.5, "fp8": 4500, "fp4": 14000}, 7750),
        ("rtx-4090", {"fp16": 165.2, "int8": 660.6, "fp8": 330.3}, 1008),
        ("gb10", {}, None),
    ],
)
def test_peaks_are_dense(device_id: str, peaks: dict[str, float], bandwidth: float | None) -> None:
    target = resolve(device_id)
    assert target.peaks == peaks
    assert target.memory_bandwidth_gbps == bandwidth


def test_the_smallest_memory_counts() -> None:
    assert [resolve(name).memory_gb for name in ("jetson-tx2", "rtx-a2000", "gh200", "l4")] == [4, 6, 96, 24]


@given(devices)
def test_what_holds_for_every_device(name: str) -> None:
    device, target = catalogue()[name], resolve(name)
    assert (target.id, target.kind, target.compute_capability) == (name, device.kind, device.compute_capability)
    assert name.startswith("jetson-") == (device.kind == "jetson")  # what the message about JetPack says
    assert {"fp32", "fp16"} & set(target.precisions)  # a float form to fall back on
    assert set(target.precisions) | set(target.unavailable) == set(PRECISIONS)
    assert not set(target.precisions) & set(target.unavailable)
    assert (target.cpu is not None) == (device.kind == "cpu") == (target.compute_capability is None)
    assert (target.typing is None) == (target.runtime == "onnxruntime") == (target.tensorrt is None)
    assert 13 <= target.opset <= OPSET
    assert set(target.peaks) <= PEAK_PRECISIONS
    assert (device.basis is not None) == bool(device.peaks)
    assert device.sources
    if "int8" in target.precisions and device.kind != "cpu":
        assert device.int8_tensor_cores


@given(devices)
def test_a_target_does_not_share_its_mappings_with_the_catalogue(name: str) -> None:
    resolve(name).peaks["fp16"] = -1.0  # type: ignore[index]
    assert resolve(name).peaks.get("fp16") != -1.0


def test_a_stack_is_carried_by_one_row_only() -> None:
    for patterns in (row.accepts for row in packaged().jetpacks.values()):
        for release in (pattern.replace("x", "3") for pattern in patterns):
            assert sum(row.carries(release) for row in packaged().jetpacks.values()) == 1


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("orin-nano", {"jetson-orin-nano-4gb", "jetson-orin-nano-8gb"}),
        ("jetson-orin-nano", {"jetson-orin-nano-4gb", "jetson-orin-nano-8gb"}),
        ("agx orin", {"jetson-agx-orin-32gb", "jetson-agx-orin-64gb"}),
        ("thor", {"jetson-t4000", "jetson-t5000"}),
        ("a100", {"a100-40gb", "a100-80gb"}),
        ("h100", {"h100-pcie", "h100-sxm"}),
    ],
)
def test_a_part_of_a_name_finds_its_devices_first(written: str, expected: set[str]) -> None:
    assert set(nearest_names(written)[: len(expected)]) == expected


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("4090", "rtx-4090"),
        ("RTX_4090", "rtx-4090"),
        ("rtx4090", "rtx-4090"),
        ("L4", "l4"),
        ("dgx spark", "gb10"),
        ("jetson-nanno", "jetson-nano"),
        ("cpu-x86-avx-512", "cpu-x86-avx512"),
    ],
)
def test_a_misspelt_name_finds_its_device(written: str, expected: str) -> None:
    assert nearest_names(written)[0] == expected
    with pytest.raises(UsageError, match=rf"Near it: {expected}\b.*vitexport targets lists them"):
        resolve(written)


@pytest.mark.parametrize("written", ["", "  ", "-", "xyzzy", "../../etc"])
def test_a_name_near_nothing_suggests_nothing(written: str) -> None:
    assert nearest_names(written) == ()
    with pytest.raises(UsageError) as caught:
        resolve(written)
    assert str(caught.value) == f"Target {written!r} is not in the catalogue. vitexport targets lists them all."


@given(st.text(max_size=40))
def test_any_other_name_is_a_usage_error(name: str) -> None:
    if name in catalogue() or name == "cpu":
        return
    with pytest.raises(UsageError, match="vitexport targets lists them"):
        resolve(name)


@given(devices)
def test_every_id_is_its_own_nearest_name(name: str) -> None:
    assert name in nearest_names(name)


@given(device=st.sampled_from(sorted(JETSONS)), release=st.from_regex(r"[0-9]\.[0-9](\.[0-9])?", fullmatch=True))
def test_a_jetpack_resolves_to_its_own_stack_or_is_refused(device: str, release: str) -> None:
    stack = packaged().stack_of(release)
    try:
        target = resolve(device, jetpack=release)
    except UsageError:
        firsts = [first for first in JETSONS[device] if packaged().stack_of(first) is stack]
        assert stack is None or not firsts or version_key(release) < version_key(firsts[0])
    else:
        assert stack is not None
        assert target.tensorrt == stack.tensorrt


def test_a_device_is_frozen_and_hashable() -> None:
    device: Device = catalogue()["l4"]
    with pytest.raises(AttributeError):
        device.id = "l5"  # type: ignore[misc]
    assert len({catalogue()["l4"], catalogue()["a2"], catalogue()["l4"]}) == 2


def test_importing_the_room_imports_nothing_heavy_and_reads_nothing() -> None:
    program = (
        "import sys, json, vitexport.targets as t; from vitexport.targets.rows import packaged;"
        "print(json.dumps([sorted({name.split('.')[0] for name in sys.modules}), packaged.cache_info().misses]))"
    )
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    modules, reads = json.loads(done.stdout)
    assert "vitexport" in modules
    assert not {"numpy", "PIL", "torch", "timm", "onnx", "onnxruntime", "click", "rich"} & set(modules)
    assert reads == 0


@pytest.mark.parametrize(
    ("name", "capability", "expected"),
    [
        ("NVIDIA L4", "8.9", "l4"),
        ("NVIDIA H100 PCIe", "9.0", "h100-pcie"),
        ("NVIDIA GeForce RTX 4090", "8.9", "rtx-4090"),
        ("Quadro P4000", "6.1", None),
    ],
)
def test_a_gpu_is_found_by_what_its_driver_calls_it(name: str, capability: str, expected: str | None) -> None:
    found = nearest(name, capability)
    assert (found.id if found else None) == expected


@pytest.mark.parametrize(("target_id", "arithmetic"), APPS.items())
def test_an_application_gets_float16_weights_and_is_no_machine_s_class(target_id: str, arithmetic: tuple[str, int]) -> None:
    target = resolve(target_id)
    assert target.app
    assert (target.kind, target.runtime, target.typing) == ("cpu", "onnxruntime", None)
    assert target.precisions == PRECISIONS
    assert target.cpu is not None
    assert (target.cpu.activation, target.cpu.weight_bits) == arithmetic
    assert catalogue()[target_id].detect == ()
    assert Target.from_json(target.to_json()) == target


def test_a_manifest_from_before_applications_means_none() -> None:
    data = resolve("cpu-x86-avx2").to_json()
    del data["app"]
    assert not Target.from_json(data).app
