from __future__ import annotations

import platform
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vitexport.errors import DeviceError
from vitexport.targets import MachineCpu, catalogue, classify, machine_cpu, misfit, resolve
from vitexport.targets.cpu import parse_cpuinfo

# Shortened to the lines that matter and to part of the flags; names and order as Linux prints them.
ZEN2 = """\
processor\t: 0
vendor_id\t: AuthenticAMD
cpu family\t: 23
model name\t: AMD EPYC 7R32
flags\t\t: fpu vme de pse tsc msr sse sse2 ht syscall nx ssse3 fma cx16 sse4_1 sse4_2 popcnt aes avx f16c bmi1 avx2
bugs\t\t: sysret_ss_attrs spectre_v1
power management:

processor\t: 1
vendor_id\t: AuthenticAMD
model name\t: AMD EPYC 7R32
flags\t\t: fpu vme de pse tsc msr sse sse2 ht syscall nx ssse3 fma cx16 sse4_1 sse4_2 popcnt aes avx f16c bmi1 avx2
"""
ZEN4 = """\
processor\t: 0
model name\t: AMD EPYC 9R14
flags\t\t: fpu sse2 ssse3 fma avx avx2 avx512f avx512dq avx512bw avx512vl avx512_bf16 avx512_vnni avx512_bitalg
"""
SKYLAKE = """\
processor\t: 0
model name\t: Intel(R) Xeon(R) Platinum 8175M CPU @ 2.50GHz
flags\t\t: fpu sse2 ssse3 fma avx avx2 avx512f avx512dq avx512cd avx512bw avx512vl
"""
ALDER_LAKE = """\
processor\t: 0
model name\t: 12th Gen Intel(R) Core(TM) i7-12700
flags\t\t: fpu sse2 ssse3 fma avx avx2 avx_vnni
"""
LUNAR_LAKE = """\
processor\t: 0
model name\t: Intel(R) Core(TM) Ultra 7 258V
flags\t\t: fpu sse2 ssse3 fma avx avx2 avx_vnni avx_vnni_int8 avx_ne_convert
"""
SAPPHIRE_RAPIDS = """\
processor\t: 0
model name\t: Intel(R) Xeon(R) Platinum 8488C
flags\t\t: fpu sse2 ssse3 fma avx avx2 avx512f avx512dq avx512bw avx512vl avx_vnni avx512_vnni amx_tile amx_int8
"""
WESTMERE = """\
processor\t: 0
model name\t: Intel(R) Xeon(R) CPU X5650 @ 2.67GHz
flags\t\t: fpu sse sse2 ssse3 cx16 sse4_1 sse4_2 popcnt aes
"""
GRAVITON3 = """\
processor\t: 0
BogoMIPS\t: 2100.00
Features\t: fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp asimddp sve i8mm bf16
CPU implementer\t: 0x41
CPU architecture: 8
CPU variant\t: 0x1
CPU part\t: 0xd40
"""
ORIN = """\
processor\t: 0
model name\t: ARMv8 Processor rev 1 (v8l)
BogoMIPS\t: 62.50
Features\t: fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp uscat
CPU implementer\t: 0x41
CPU part\t: 0xd42
"""
RASPBERRY_PI_4 = """\
processor\t: 0
BogoMIPS\t: 108.00
Features\t: fp asimd evtstrm crc32 cpuid
CPU implementer\t: 0x41
CPU part\t: 0xd08

Model\t\t: Raspberry Pi 4 Model B Rev 1.4
"""
MACHINES = {
    "zen2": (ZEN2, "x86_64", "cpu-x86-avx2"),
    "zen4": (ZEN4, "x86_64", "cpu-x86-vnni"),
    "skylake": (SKYLAKE, "x86_64", "cpu-x86-avx512"),
    "alder-lake": (ALDER_LAKE, "x86_64", "cpu-x86-vnni"),
    "lunar-lake": (LUNAR_LAKE, "x86_64", "cpu-x86-avxvnniint8"),
    "sapphire-rapids": (SAPPHIRE_RAPIDS, "x86_64", "cpu-x86-amx"),
    "westmere": (WESTMERE, "x86_64", "cpu-x86-avx2"),
    "graviton3": (GRAVITON3, "aarch64", "cpu-arm64-i8mm"),
    "orin": (ORIN, "aarch64", "cpu-arm64-dotprod"),
    "windows": ("", "AMD64", "cpu-x86-avx2"),
    "macos": ("", "arm64", "cpu-arm64-dotprod"),
}
CPU_CLASSES = sorted(row.id for row in catalogue().values() if row.kind == "cpu" and not row.app)
FLAGS = sorted({flag for row in catalogue().values() for flag in row.detect} | {"sse2", "fp"})


def machine(name: str) -> MachineCpu:
    text, arch, _ = MACHINES[name]
    return parse_cpuinfo(text, arch)


@pytest.mark.parametrize("name", MACHINES)
def test_a_machine_belongs_to_its_best_class(name: str) -> None:
    assert classify(machine(name)) == MACHINES[name][2]


@pytest.mark.parametrize(
    ("name", "arch", "model_name", "flag"),
    [
        ("zen2", "x86_64", "AMD EPYC 7R32", "avx2"),
        ("sapphire-rapids", "x86_64", "Intel(R) Xeon(R) Platinum 8488C", "amx_int8"),
        ("orin", "aarch64", "ARMv8 Processor rev 1 (v8l)", "asimddp"),
        ("graviton3", "aarch64", "Arm CPU implementer 0x41 part 0xd40", "i8mm"),
    ],
)
def test_cpuinfo_is_read(name: str, arch: str, model_name: str, flag: str) -> None:
    cpu = machine(name)
    assert (cpu.arch, cpu.model_name) == (arch, model_name)
    assert flag in cpu.flags
    assert str(cpu) == f"{model_name} ({arch})"


def test_a_flag_counts_only_if_every_core_has_it() -> None:
    cpu = parse_cpuinfo("flags : sse2 avx2 avx_vnni\n\nflags : sse2 avx2\n", "x86_64")
    assert cpu.flags == {"sse2", "avx2"}


@pytest.mark.parametrize("text", ["", "nonsense\n", "flags\n", ":\n", "flags :\n"])
def test_an_unreadable_cpuinfo_leaves_no_flags(text: str) -> None:
    cpu = parse_cpuinfo(text, "x86_64")
    assert cpu.flags == frozenset()
    assert cpu.model_name


@pytest.mark.parametrize(("said", "arch"), [("AMD64", "x86_64"), ("arm64", "aarch64"), ("riscv64", "riscv64")])
def test_other_systems_name_the_architecture_differently(said: str, arch: str) -> None:
    assert parse_cpuinfo("", said).arch == arch


def test_this_machine_is_read_from_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    path = tmp_path / "cpuinfo"
    path.write_text(ZEN4, encoding="utf-8")
    assert machine_cpu(path) == machine("zen4")
    absent = machine_cpu(tmp_path / "absent")
    assert (absent.arch, absent.flags) == ("x86_64", frozenset())


@pytest.mark.parametrize("arch", ["riscv64", "armv7l", ""])
def test_an_architecture_without_classes_is_refused(arch: str) -> None:
    cpu = MachineCpu(arch=arch, flags=frozenset({"avx2"}), model_name="odd CPU")
    with pytest.raises(DeviceError, match=r"odd CPU.*aarch64 and x86_64.*vitexport targets lists them"):
        classify(cpu)


def test_a_virtual_machine_that_shows_avx_vnni_beside_plain_avx512_gets_7_bits() -> None:
    cpu = MachineCpu(arch="x86_64", flags=frozenset({"avx2", "avx_vnni", "avx512bw"}), model_name="masked")
    assert classify(cpu) == "cpu-x86-avx512"
    assert misfit(resolve("cpu-x86-vnni"), cpu, precision="int8") is not None


FITS_INT8 = {
    "zen2": {"cpu-x86-avx2", "cpu-x86-avx512"},
    "westmere": {"cpu-x86-avx2", "cpu-x86-avx512"},
    "windows": {"cpu-x86-avx2", "cpu-x86-avx512"},
    "skylake": {"cpu-x86-avx2", "cpu-x86-avx512"},
    "zen4": {"cpu-x86-avx2", "cpu-x86-avx512", "cpu-x86-vnni", "cpu-x86-amx"},
    "alder-lake": {"cpu-x86-avx2", "cpu-x86-avx512", "cpu-x86-vnni", "cpu-x86-amx"},
    "lunar-lake": {"cpu-x86-avx2", "cpu-x86-avx512", "cpu-x86-vnni", "cpu-x86-amx", "cpu-x86-avxvnniint8"},
    "sapphire-rapids": {"cpu-x86-avx2", "cpu-x86-avx512", "cpu-x86-vnni", "cpu-x86-amx"},
    "graviton3": {"cpu-arm64-i8mm", "cpu-arm64-dotprod"},
    "orin": {"cpu-arm64-i8mm", "cpu-arm64-dotprod"},
    "macos": set[str](),
}


@pytest.mark.parametrize("name", MACHINES)
def test_which_int8_variants_a_machine_computes_correctly(name: str) -> None:
    fits = {row for row in CPU_CLASSES if misfit(resolve(row), machine(name), precision="int8") is None}
    assert fits == FITS_INT8[name]


@pytest.mark.parametrize("name", MACHINES)
def test_fp32_fits_every_machine_of_the_architecture(name: str) -> None:
    cpu = machine(name)
    fits = {row for row in CPU_CLASSES if misfit(resolve(row), cpu, precision="fp32") is None}
    assert fits == {row for row in CPU_CLASSES if catalogue()[row].arch == cpu.arch}


def test_a_misfit_names_both_sides_and_the_cure() -> None:
    message = misfit(resolve("cpu-x86-vnni"), machine("zen2"), precision="int8")
    assert message == (
        "The int8 variant is made for cpu-x86-vnni (x86-64 with AVX-VNNI or AVX-512 VNNI): its int8 arithmetic needs a "
        "CPU with amx_int8 or avx512_vnni or avx_vnni, and this machine, AMD EPYC 7R32 (x86_64), has none of them; it "
        "could compute wrong results. Build an int8 variant with `target=cpu-x86-avx2`."
    )


def test_a_misfit_says_that_the_flags_are_unknown() -> None:
    message = misfit(resolve("cpu-x86-vnni"), machine("windows"), precision="int8")
    assert message is not None
    assert "does not tell which extensions it has" in message
    assert message.endswith("`target=cpu-x86-avx2`.")


def test_where_no_int8_class_is_safe_the_cure_is_fp32() -> None:
    pi = parse_cpuinfo(RASPBERRY_PI_4, "aarch64")
    message = misfit(resolve("cpu-arm64-dotprod"), pi, precision="int8")
    assert message is not None
    assert "0xd08" in message
    assert message.endswith("Build an fp32 variant.")


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_another_architecture_never_fits(precision: str) -> None:
    message = misfit(resolve("cpu-x86-avx2"), machine("orin"), precision=precision)
    assert message is not None
    assert "cpu-x86-avx2" in message
    assert "ARMv8 Processor rev 1 (v8l) (aarch64)" in message
    assert message.endswith("`target=cpu-arm64-dotprod`.")
    odd = MachineCpu(arch="riscv64", flags=frozenset(), model_name="odd")
    assert str(misfit(resolve("cpu-x86-avx2"), odd, precision=precision)).endswith("`target=cpu` on that machine.")


APP_INT8 = {
    "web": {"zen4", "alder-lake", "lunar-lake", "sapphire-rapids"},
    "android-arm64": {"lunar-lake", "graviton3", "orin"},
}


@pytest.mark.parametrize("app", APP_INT8)
def test_what_is_for_applications_can_be_looked_at_where_its_integers_are_exact(app: str) -> None:
    target = resolve(app)
    assert {name for name in MACHINES if misfit(target, machine(name), precision="int8") is None} == APP_INT8[app]
    for precision in ("fp32", "fp16"):
        assert all(misfit(target, machine(name), precision=precision) is None for name in MACHINES)
    message = str(misfit(target, machine("zen2"), precision="int8"))
    assert message.startswith(f"The int8 variant is made for {app} (")
    assert "AMD EPYC 7R32 (x86_64), is of no class that multiplies" in message
    assert message.endswith("or build an fp16 variant to look at it here.")


def test_a_gpu_target_is_not_judged_by_the_cpu() -> None:
    assert misfit(resolve("l4"), machine("westmere"), precision="int8") is None


machines = st.builds(
    MachineCpu,
    arch=st.sampled_from(["x86_64", "aarch64"]),
    flags=st.frozensets(st.sampled_from(FLAGS)),
    model_name=st.just("any CPU"),
)


@given(machines)
def test_what_cpu_resolves_to_can_run_on_that_machine(cpu: MachineCpu) -> None:
    target = resolve("cpu", cpu_flags=cpu.flags, cpu_arch=cpu.arch)
    assert target.id == classify(cpu)
    for precision in target.precisions:
        assert misfit(target, cpu, precision=precision) is None


@given(machines)
def test_eight_bits_never_meet_a_saturating_machine(cpu: MachineCpu) -> None:
    exact = {"avx512_vnni", "avx_vnni", "avx_vnni_int8", "amx_int8", "asimddp", "i8mm"}
    for name in CPU_CLASSES:
        arithmetic = resolve(name).cpu
        assert arithmetic is not None
        if misfit(resolve(name), cpu, precision="int8") is None and arithmetic.weight_bits == 8:
            assert cpu.flags & exact


@given(machines)
def test_an_x86_machine_always_has_an_int8_variant(cpu: MachineCpu) -> None:
    target = resolve("cpu", cpu_flags=cpu.flags, cpu_arch="x86_64")
    assert "int8" in target.precisions


def test_seven_bits_fit_the_saturating_sum() -> None:
    for name in CPU_CLASSES:
        arithmetic = resolve(name).cpu
        assert arithmetic is not None
        if not arithmetic.required_flags:
            largest = 255 if arithmetic.activation == "uint8" else 128
            assert 2 * largest * 2 ** (arithmetic.weight_bits - 1) <= 2**15 - 1


def test_cpu_without_an_int8_class_still_has_fp32() -> None:
    pi = parse_cpuinfo(RASPBERRY_PI_4, "aarch64")
    target = resolve("cpu", cpu_flags=pi.flags, cpu_arch="aarch64")
    assert (target.id, target.precisions) == ("cpu-arm64-dotprod", ("fp32",))
    assert "i8mm or asimddp" in target.unavailable["int8"]
    assert "fp16" in target.unavailable


def test_cpu_is_this_machine_when_nothing_else_is_said() -> None:
    here = machine_cpu()
    assert resolve("cpu").id == classify(here)
    assert resolve("cpu", cpu_arch=here.arch).id == classify(here)


def test_an_architecture_that_is_not_this_one_has_no_flags_of_its_own() -> None:
    other = "aarch64" if machine_cpu().arch == "x86_64" else "x86_64"
    expected = {"aarch64": "cpu-arm64-dotprod", "x86_64": "cpu-x86-avx2"}[other]
    assert resolve("cpu", cpu_arch=other).id == expected


def test_classes_are_tried_from_the_best_to_the_plainest() -> None:
    order = {"x86_64": ["amx", "avxvnniint8", "vnni", "avx512", "avx2"], "aarch64": ["i8mm", "dotprod"]}
    for arch, names in order.items():
        rows = [row.id for row in catalogue().values() if row.kind == "cpu" and row.arch == arch and not row.app]
        assert [row.rsplit("-", 1)[1] for row in rows] == names
