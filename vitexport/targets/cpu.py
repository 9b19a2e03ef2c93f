"""Input: the text of /proc/cpuinfo; output: the machine's CPU, its class in the catalogue and what it cannot compute."""

from __future__ import annotations

import dataclasses
import platform
from pathlib import Path

from vitexport.errors import DeviceError
from vitexport.targets.rows import packaged
from vitexport.targets.target import CpuArithmetic, Device, Target

_CPUINFO = Path("/proc/cpuinfo")
_ARCHITECTURES = {"amd64": "x86_64", "x64": "x86_64", "arm64": "aarch64"}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class MachineCpu:
    """The CPU of one machine.

    Attributes:
        arch: Instruction set, ``x86_64`` or ``aarch64`` among others.
        flags: Linux's names of the extensions that every core has; empty if they could not be read.
        model_name: For messages.
    """

    arch: str
    flags: frozenset[str]
    model_name: str

    def __str__(self) -> str:
        return f"{self.model_name} ({self.arch})"


def machine_cpu(cpuinfo: Path = _CPUINFO) -> MachineCpu:
    """The CPU of this machine; without Linux's `cpuinfo` its flags are unknown, that is empty."""
    try:
        text = cpuinfo.read_text(encoding="utf-8", errors="replace")
    except OSError:  # not Linux, or /proc is not mounted
        text = ""
    return parse_cpuinfo(text, platform.machine())


def parse_cpuinfo(text: str, machine: str) -> MachineCpu:
    """Read Linux's ``/proc/cpuinfo``.

    Args:
        text: Its content; x86 lists ``flags``, Arm ``Features``, once per core.
        machine: What `platform.machine` calls the instruction set, for example ``AMD64``.
    """
    cores: list[frozenset[str]] = []
    named: dict[str, str] = {}
    for line in text.splitlines():
        key, colon, value = line.partition(":")
        if not colon:
            continue
        named.setdefault(key.strip(), value.strip())
        if key.strip() in ("flags", "Features"):
            cores.append(frozenset(value.split()))
    # A thread may run on any core, so an extension counts only where every core has it.
    flags = frozenset.intersection(*cores) if cores else frozenset()
    return MachineCpu(arch=normal_arch(machine), flags=flags, model_name=_model_name(named))


def normal_arch(machine: str) -> str:
    """The catalogue's name of an instruction set: Windows says ``AMD64``, macOS ``arm64``."""
    return _ARCHITECTURES.get(machine.lower(), machine.lower())


def classify(cpu: MachineCpu) -> str:
    """The id of the best CPU class that `cpu` belongs to.

    A CPU of a known architecture without any class's flags, or with unknown flags, gets the last class of that
    architecture: on x86-64 the 7-bit one, which is right everywhere (its products fit the saturating int16 of
    VPMADDUBSW, and the SSE2 kernels that MLAS runs without AVX2 widen to 16 bits first: qgemm_kernel_sse.cpp). On
    AArch64 `misfit` then refuses int8.

    Raises:
        DeviceError: No class has this architecture.
    """
    classes = _classes(cpu.arch)
    if not classes:
        known = sorted({device.arch for device in _all_classes()})
        raise DeviceError(
            f"This machine is {cpu}; the CPU targets are for {' and '.join(known)}. "
            "Name the target of the machine that will run the model: vitexport targets lists them."
        )
    flags = _usable(cpu.flags)
    return next((device.id for device in classes if flags.intersection(device.detect)), classes[-1].id)


def misfit(target: Target, cpu: MachineCpu, *, precision: str) -> str | None:
    """Why `cpu` cannot compute the `precision` variant for `target` correctly, as sentences; None if it can.

    An fp32 variant fits every CPU of its architecture. An int8 variant with 8-bit weights needs one of the flags of
    its class: elsewhere VPMADDUBSW saturates (cosine to float 0.88 to 0.89 on a vit_small) or there is no kernel.
    What is made for applications is plain ONNX, and its numbers can be looked at on any CPU that has its arithmetic.
    A target that is not a CPU is not judged here.
    """
    if target.cpu is None:
        return None
    made_for = f"The {precision} variant is made for {target.id} ({target.name})"
    if target.app:
        if precision != "int8" or _computes(cpu, target.cpu):
            return None
        return (
            f"{made_for}, and this machine, {cpu}, is of no class that multiplies its {target.cpu.activation} activations "
            f"with {target.cpu.weight_bits}-bit weights exactly. Run it where it is made for (vitexport app writes a "
            "project), or build an fp16 variant to look at it here."
        )
    if cpu.arch != target.cpu.arch:
        return f"{made_for}; this machine is {cpu}. Build one with {_cure(cpu)}."
    reason = lacking(target, cpu) if precision == "int8" else None
    if reason is None:
        return None
    safe = any(device.cpu and not device.cpu.required_flags for device in _classes(cpu.arch))
    cure = f"Build an int8 variant with {_cure(cpu)}" if safe else "Build an fp32 variant"
    return f"{made_for}: {reason}. {cure}."


def lacking(target: Target, cpu: MachineCpu) -> str | None:
    """What `cpu` lacks for the int8 variant of `target`, as a clause; None if nothing, or if `target` is not a CPU."""
    required = target.cpu.required_flags if target.cpu else ()
    if not required or _usable(cpu.flags).intersection(required):
        return None
    lacks = "has none of them" if cpu.flags else "does not tell which extensions it has"
    return (
        f"its int8 arithmetic needs a CPU with {' or '.join(required)}, and this machine, {cpu}, {lacks}; "
        "it could compute wrong results"
    )


def _computes(cpu: MachineCpu, arithmetic: CpuArithmetic) -> bool:
    """Whether `cpu` belongs to a class whose int8 variants multiply in `arithmetic`."""
    return any(
        device.cpu is not None
        and (device.cpu.activation, device.cpu.weight_bits) == (arithmetic.activation, arithmetic.weight_bits)
        and _usable(cpu.flags).intersection(device.cpu.required_flags)
        for device in _classes(cpu.arch)
    )


def _classes(arch: str) -> list[Device]:
    return [device for device in _all_classes() if device.arch == arch]


def _all_classes() -> list[Device]:
    return [device for device in packaged().devices.values() if device.kind == "cpu" and not device.app]


def _cure(cpu: MachineCpu) -> str:
    return f"`target={classify(cpu)}`" if _classes(cpu.arch) else "`target=cpu` on that machine"


def _usable(flags: frozenset[str]) -> frozenset[str]:
    # ONNX Runtime prefers its AVX-512 kernel to the AVX-VNNI one, and without AVX512_VNNI that kernel saturates again
    # (MLAS, platform.cpp: GemmU8S8Kernel). A virtual machine can show such a mix.
    hides_vnni = "avx512bw" in flags and "avx512_vnni" not in flags
    return flags - {"avx_vnni"} if hides_vnni else flags


def _model_name(named: dict[str, str]) -> str:
    if named.get("model name"):
        return named["model name"]
    if "CPU part" in named:  # most Arm kernels print numbers instead of a name
        return f"Arm CPU implementer {named.get('CPU implementer', 'unknown')} part {named['CPU part']}"
    return platform.processor() or "unnamed CPU"
