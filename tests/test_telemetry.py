"""Telemetry from fakes of every source: NVML, nvidia-smi, Jetson's commands and sysfs, and Linux's view of a CPU."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import pytest
from fakes.fake_nvml import FakeNvml

from vitexport.telemetry import CpuProbe, JetsonProbe, Monitor, NoProbe, gpu_probe, power_limit_words, throttle_words

Commands: TypeAlias = Callable[..., None]

# As an H100 answers; clocks, limits and temperature without units.
H100 = "NVIDIA H100 80GB HBM3, 1980, 1980, 2619, 2619, 45, 700.00, 700.00, 0x0000000000000004"
# jetson_clocks --show of an AGX Orin with JetPack 6 in 30 W, shortened to two of its processors.
JETSON_CLOCKS = """SOC family:tegra234  Machine:NVIDIA Jetson AGX Orin Developer Kit
Online CPUs: 0-7
cpu0:  Online=1 Governor=schedutil MinFreq=729600 MaxFreq=1728000 CurrentFreq=1420800 IdleStates: WFI=1 c7=1
cpu11: Online=0 Governor=schedutil MinFreq=729600 MaxFreq=2201600 CurrentFreq=729600 IdleStates: WFI=1 c7=1
GPU MinFreq=306000000 MaxFreq=612000000 CurrentFreq=306000000
Active GPU TPCs: 4
EMC MinFreq=204000000 MaxFreq=3199000000 CurrentFreq=2133000000 FreqOverride=0
FAN Dynamic Speed Control=nvfancontrol hwmon0_pwm1=48
NV Power Mode: MODE_30W
"""
TEGRASTATS = (
    "09-04-2026 19:40:46 RAM 1803/7486MB (lfb 8x4MB) CPU [66%@1510,2%@1510] EMC_FREQ 1%@2133 GR3D_FREQ 4%@[305] NVDEC0 off "
    "cpu@48C/48C gpu@48.125C/48.125C VDD_IN 4832mW/4832mW/4832mW"
)


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Commands:
    """A PATH that holds the fake commands which a test makes, and nothing else; no NVML."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.setitem(sys.modules, "pynvml", None)

    def make(name: str, script: str) -> None:
        path = folder / name
        path.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
        path.chmod(0o755)

    return make


def says(text: str) -> str:
    return f"/bin/cat <<'END'\n{text}\nEND"


def tree(root: Path, **files: str) -> None:
    """Files by path."""
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


def orin(root: Path, **changes: str) -> Path:
    thermal, devfreq = "sys/class/thermal", "sys/class/devfreq"
    files = {
        "etc/nv_tegra_release": "# R36 (release), REVISION: 4.3",
        "proc/device-tree/model": "NVIDIA Jetson Orin Nano Developer Kit\0",
        f"{devfreq}/15340000.vic/cur_freq": "115200000",
        f"{devfreq}/17000000.gpu/cur_freq": "624750000\n",
        f"{devfreq}/17000000.gpu/min_freq": "306000000\n",
        f"{devfreq}/17000000.gpu/max_freq": "624750000\n",
        f"{thermal}/thermal_zone0/type": "cpu-thermal\n",
        f"{thermal}/thermal_zone0/temp": "47000\n",
        f"{thermal}/thermal_zone1/type": "gpu-thermal\n",
        f"{thermal}/thermal_zone1/temp": "48125\n",
        f"{thermal}/cooling_device0/type": "pwm-fan\n",
        f"{thermal}/cooling_device0/cur_state": "3\n",
        f"{thermal}/cooling_device8/type": "cpu-throttle-alert\n",
        f"{thermal}/cooling_device8/cur_state": "0\n",
        f"{thermal}/cooling_device9/type": "gpu-throttle-alert\n",
        f"{thermal}/cooling_device9/cur_state": "0\n",
        "sys/class/hwmon/hwmon3/oc1_event_cnt": "0\n",
        "sys/class/hwmon/hwmon3/oc3_event_cnt": "27\n",
    }
    tree(root, **(files | changes))
    return root


# ---- NVML and nvidia-smi


@pytest.fixture
def nvml(monkeypatch: pytest.MonkeyPatch, commands: Commands) -> Callable[..., FakeNvml]:
    def make(**words: Any) -> FakeNvml:
        fake = FakeNvml(**words)
        monkeypatch.setitem(sys.modules, "pynvml", fake.module())
        return fake

    return make


def test_nvml_tells_everything(nvml: Callable[..., FakeNvml], tmp_path: Path) -> None:
    fake = nvml(limits=(350_000, 700_000), processes=3)
    probe = gpu_probe(root=tmp_path)
    seen = probe.read(full=True)
    probe.close()
    assert (seen.device, seen.power_mode, seen.others) == ("Fake GPU 0", "power limit 350 W of 700 W", 2)
    assert (seen.clock_mhz, seen.clock_max_mhz, seen.memory_mhz, seen.memory_max_mhz) == (1980, 1980, 2619, 2619)
    assert (seen.temperature_c, seen.throttled, seen.unknown) == (45.0, (), {})
    assert fake.open == 0


def test_nvml_is_asked_for_the_gpu_that_cuda_uses(nvml: Callable[..., FakeNvml], tmp_path: Path) -> None:
    fake = nvml(busses=("00000000:01:00.0", "00000000:81:00.0"))
    assert gpu_probe("00000000:81:00.0", root=tmp_path).read(full=True).device == "Fake GPU 1"
    # Without an address it would be a guess.
    probe = gpu_probe(root=tmp_path)
    assert isinstance(probe, NoProbe)
    assert "NVML sees 2 GPUs, and which of them is used is not known; nvidia-smi is not on the PATH" in probe.reason
    assert fake.open == 1


def test_what_a_gpu_does_not_support_is_not_known_with_nvmls_reason(nvml: Callable[..., FakeNvml], tmp_path: Path) -> None:
    nvml(refused=frozenset({"nvmlDeviceGetEnforcedPowerLimit", "nvmlDeviceGetTemperature"}), processes=0)
    seen = gpu_probe(root=tmp_path).read(full=True)
    assert (seen.power_mode, seen.temperature_c, seen.others) == (None, None, None)
    assert seen.unknown["power_mode"] == seen.unknown["temperature_c"] == "Not Supported"
    assert "container" in seen.unknown["others"]


@pytest.mark.parametrize("how", ["absent", "refused"])
def test_older_drivers_and_bindings_call_the_reasons_throttle_reasons(
    how: str, nvml: Callable[..., FakeNvml], tmp_path: Path
) -> None:
    nvml(reasons=[0x24], **{how: frozenset({"nvmlDeviceGetCurrentClocksEventReasons"})})
    assert gpu_probe(root=tmp_path).read(full=False).throttled == ("power cap", "software thermal slowdown")


def test_without_a_driver_nvidia_smi_is_asked_then_nothing(
    nvml: Callable[..., FakeNvml], commands: Commands, tmp_path: Path
) -> None:
    nvml(no_driver=True)
    probe = gpu_probe(root=tmp_path)
    assert probe.read(full=True).unknown["clock_mhz"] == "NVML: Driver Not Loaded; nvidia-smi is not on the PATH"
    commands("nvidia-smi", says(H100))
    assert gpu_probe(root=tmp_path).source == "nvidia-smi"


def test_idle_and_chosen_clocks_are_no_throttling() -> None:
    assert throttle_words(0x1 | 0x2 | 0x100) == ()
    assert throttle_words(0x8 | 0x40 | 0x80) == ("hardware slowdown", "hardware thermal slowdown", "power brake")
    assert (power_limit_words(72.0, 72.0), power_limit_words(60.0, 72.0)) == ("power limit 72 W", "power limit 60 W of 72 W")


def test_nvidia_smi_tells_what_nvml_would(commands: Commands, tmp_path: Path) -> None:
    commands("nvidia-smi", f'echo "$@" >"{tmp_path}/asked"\n{says(H100)}')
    seen = gpu_probe("00000000:01:00.0", root=tmp_path).read(full=True)
    assert (seen.device, seen.power_mode) == ("NVIDIA H100 80GB HBM3", "power limit 700 W")
    assert (seen.clock_mhz, seen.memory_max_mhz, seen.temperature_c, seen.throttled) == (1980, 2619, 45.0, ("power cap",))
    assert list(seen.unknown) == ["others"]
    asked = (tmp_path / "asked").read_text()
    assert asked.startswith("--id=00000000:01:00.0 --format=csv,noheader,nounits --query-gpu=name,clocks.sm,")


def test_an_older_nvidia_smi_is_asked_by_the_older_name(commands: Commands, tmp_path: Path) -> None:
    refusal = 'echo "Field \\"clocks_event_reasons.active\\" is not a valid field to query."; exit 2'
    commands("nvidia-smi", f'case "$*" in *clocks_event_reasons*) {refusal};; esac\n{says(H100)}')
    assert gpu_probe(root=tmp_path).read(full=False).throttled == ("power cap",)


def test_cells_that_nvidia_smi_does_not_fill_are_not_known(commands: Commands, tmp_path: Path) -> None:
    commands("nvidia-smi", says("NVIDIA Thor, [N/A], [N/A], [Not Supported], [N/A], 41, [N/A], [N/A], [N/A]"))
    seen = gpu_probe(root=tmp_path).read(full=True)
    assert (seen.device, seen.temperature_c) == ("NVIDIA Thor", 41.0)
    assert (seen.clock_mhz, seen.memory_mhz, seen.power_mode, seen.throttled) == (None,) * 4
    assert seen.unknown["memory_mhz"] == "nvidia-smi says [Not Supported]"


@pytest.mark.parametrize(
    ("script", "fragment"),
    [
        (says(f"{H100}\n{H100}"), "names 2 GPUs where one was expected"),
        ("echo 'NVIDIA-SMI has failed because it could not communicate with the NVIDIA driver.'; exit 9", "could not comm"),
        ("exit 0", "names 0 GPUs"),
        ("kill -9 $$", "nvidia-smi failed"),
    ],
)
def test_an_nvidia_smi_that_cannot_tell_is_not_believed(
    script: str, fragment: str, commands: Commands, tmp_path: Path
) -> None:
    commands("nvidia-smi", script)
    seen = gpu_probe(root=tmp_path).read(full=True)
    assert (seen.device, seen.clock_mhz) == (None, None)
    assert fragment in seen.unknown["clock_mhz"]


# ---- Jetson


def test_a_jetson_tells_its_power_mode_and_its_clocks(commands: Commands, tmp_path: Path) -> None:
    commands("nvpmodel", says("NVPM WARN: fan mode is not set!\nNV Power Mode: MODE_30W\n2"))
    commands("jetson_clocks", says(JETSON_CLOCKS))
    probe = gpu_probe(root=orin(tmp_path))
    seen = probe.read(full=True)
    assert isinstance(probe, JetsonProbe)
    assert (seen.device, seen.power_mode) == ("NVIDIA Jetson Orin Nano Developer Kit", "MODE_30W")
    assert (seen.clock_mhz, seen.clock_max_mhz, seen.locked) == (625, 625, False)
    assert (seen.memory_mhz, seen.memory_max_mhz, seen.temperature_c) == (2133, 3199, 48.125)
    assert seen.throttled == ()
    assert seen.counters == {"under-voltage": 0, "instantaneous over-current": 27}
    assert list(seen.unknown) == ["others"]


def test_jetson_clocks_locks_the_gpu_at_its_maximum(commands: Commands, tmp_path: Path) -> None:
    orin(tmp_path, **{"sys/class/devfreq/17000000.gpu/min_freq": "624750000\n"})
    assert gpu_probe(root=tmp_path).read(full=True).locked is True


def test_without_root_the_memory_clock_is_tegrastats(commands: Commands, tmp_path: Path) -> None:
    commands("jetson_clocks", "echo 'Error: Run this script($0) as a root user' >&2; exit 1")
    commands("tegrastats", f"{says(TEGRASTATS)}\nexec /bin/sleep 60")
    seen = gpu_probe(root=orin(tmp_path)).read(full=True)
    assert (seen.memory_mhz, seen.memory_max_mhz) == (2133, None)


def test_what_a_jetson_does_not_tell_has_a_reason(commands: Commands, tmp_path: Path) -> None:
    tree(tmp_path, **{"etc/nv_tegra_release": "# R32"})
    commands("nvpmodel", "echo 'NVPM ERROR: failed to read PARAM' >&2; exit 255")
    commands("jetson_clocks", "echo 'Error: Run this script as a root user'; exit 1")
    seen = gpu_probe(root=tmp_path).read(full=True)
    assert (seen.power_mode, seen.locked, seen.clock_mhz, seen.memory_mhz, seen.throttled) == (None,) * 5
    assert seen.unknown["power_mode"] == "nvpmodel failed: NVPM ERROR: failed to read PARAM"
    assert "Run this script as a root user" in seen.unknown["memory_mhz"]
    assert "tegrastats is not on the PATH" in seen.unknown["memory_mhz"]
    assert seen.unknown["clock_mhz"] == "sys/class/devfreq holds no GPU"


@pytest.mark.parametrize("name", ["17000000.ga10b", "17000000.gv11b", "57000000.gpu", "gpu-gpc-0"])
def test_the_gpu_of_every_generation_is_found(name: str, tmp_path: Path) -> None:
    tree(
        tmp_path, **{f"sys/class/devfreq/{name}/cur_freq": "918000000", "sys/class/devfreq/gpu-nvd-0/cur_freq": "115200000"}
    )
    assert JetsonProbe(tmp_path).read(full=False).clock_mhz == 918


def test_a_throttle_alert_while_at_work_and_over_current_events_are_told(commands: Commands, tmp_path: Path) -> None:
    orin(tmp_path)
    monitor = Monitor(JetsonProbe(tmp_path))
    alert, events = "sys/class/thermal/cooling_device9/cur_state", "sys/class/hwmon/hwmon3/oc3_event_cnt"
    tree(tmp_path, **{alert: "1", "sys/class/devfreq/17000000.gpu/cur_freq": "306000000"})
    monitor.sample(due=True)
    tree(tmp_path, **{alert: "0", events: "30"})
    seen = monitor.finish()
    assert seen.throttled == ("3 x instantaneous over-current", "gpu-throttle-alert")
    data = seen.to_json()
    assert data["clock_mhz"] == {"before": 625, "least": 306, "most": 306, "after": 306, "limit": 625}
    assert data["samples"] == 1


# ---- CPU


def test_a_cpu_tells_its_governor_clock_and_throttle_counts(tmp_path: Path) -> None:
    cpu = "sys/devices/system/cpu/cpu0"
    files = {
        "proc/cpuinfo": "processor : 0\ncpu MHz\t\t: 2445.404\nprocessor : 1\ncpu MHz\t\t: 3100.1\n",
        f"{cpu}/cpufreq/scaling_governor": "powersave\n",
        f"{cpu}/cpufreq/cpuinfo_max_freq": "3600000\n",
        f"{cpu}/thermal_throttle/core_throttle_count": "5\n",
        "sys/class/thermal/thermal_zone0/type": "x86_pkg_temp\n",
        "sys/class/thermal/thermal_zone0/temp": "61000\n",
    }
    tree(tmp_path, **files)
    monitor = Monitor(CpuProbe("Some CPU", tmp_path))
    assert monitor.finish().throttled == ()
    tree(tmp_path, **{f"{cpu}/thermal_throttle/core_throttle_count": "9\n"})
    seen = monitor.finish()
    assert (seen.before.device, seen.before.power_mode) == ("Some CPU", "governor powersave")
    assert (seen.before.clock_mhz, seen.before.clock_max_mhz, seen.before.temperature_c) == (3100, 3600, 61.0)
    assert seen.throttled == ("4 x thermal throttling of a core",)


def test_a_virtual_machine_tells_little_and_says_so(tmp_path: Path) -> None:
    seen = Monitor(CpuProbe("Some CPU", tmp_path)).finish()
    assert seen.throttled is None
    data = seen.to_json()
    assert (data["power_mode"], data["throttled"]) == (None, None)
    assert data["unknown"]["power_mode"] == "there is no cpufreq in sysfs, as in most virtual machines"
    assert data["unknown"]["throttled"] == "sysfs holds no throttle counters"


def test_looks_keep_their_distance(tmp_path: Path) -> None:
    monitor = Monitor(CpuProbe("Some CPU", tmp_path))
    monitor.sample()
    assert monitor.samples == []
    monitor.last -= 1
    monitor.sample()
    monitor.sample()
    assert len(monitor.samples) == 1
    # Where nothing can be asked, nothing counts as a look.
    blind = Monitor(NoProbe("no driver"))
    blind.sample(due=True)
    assert blind.finish().to_json()["samples"] == 0
