"""Input: the name of a device and a JetPack release; output: the `Target` with its stack resolved."""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Mapping

from vitexport.errors import UsageError
from vitexport.targets.cpu import MachineCpu, classify, lacking, machine_cpu, normal_arch
from vitexport.targets.rows import JetPack, Rows, RtxStack, packaged
from vitexport.targets.target import PRECISIONS, Device, NetworkTyping, Runtime, Target, version_key
from vitexport.targets.trtexec import reads

# Newest opset that a graph is written with; older stacks get what they can read.
OPSET = 20
_RELEASE = re.compile(r"[0-9]+(\.[0-9]+)+")
_SUGGESTIONS = 6


def catalogue() -> Mapping[str, Device]:
    """Every device that vitexport knows, by id, in the order of the catalogue; read once, read-only.

    Raises:
        InputError: The installed catalogue is damaged.
    """
    return packaged().devices


def resolve(
    name: str,
    *,
    jetpack: str | None = None,
    cpu_flags: frozenset[str] | None = None,
    cpu_arch: str | None = None,
) -> Target:
    """Resolve a device's name to a target.

    Args:
        name: Id in the catalogue, or ``cpu`` for the class of this machine.
        jetpack: Release on a Jetson, for example ``6.2``; None takes the newest that is not an optional upgrade.
        cpu_flags: Extensions of the CPU that ``cpu`` stands for, in Linux's names; None reads those of this machine.
            Other names ignore it.
        cpu_arch: Its instruction set; None means that of this machine. An architecture without flags has none.

    Raises:
        UsageError: Unknown name, or a JetPack that the device does not take; the message lists what is valid.
        DeviceError: `name` is ``cpu`` and no class has this machine's architecture.
    """
    rows = packaged()
    if name == "cpu":
        return _this_cpu(_described_cpu(cpu_flags, cpu_arch), jetpack)
    device = rows.devices.get(name)
    if device is None:
        raise UsageError(_unknown(name))
    if device.kind == "jetson":
        return _jetson_target(device, *_release(device, jetpack, rows))
    _refuse_jetpack(device, jetpack)
    return _cpu_target(device) if device.kind == "cpu" else _gpu_target(device, rows.rtx)


def nearest(name: str, compute_capability: str) -> Device | None:
    """The device that a driver calls `name`: the longest of the catalogue's names that it shares, else one like it.

    Args:
        name: For example ``NVIDIA L4``.
        compute_capability: For example ``8.9``.

    Returns:
        None where no device of the catalogue has this compute capability.
    """
    alike = [device for device in packaged().devices.values() if device.compute_capability == compute_capability]
    return max(alike, key=lambda device: len(set(name.split()) & set(device.name.split())), default=None)


def nearest_names(name: str) -> tuple[str, ...]:
    """Ids that somebody who wrote `name` may have meant, the likeliest first; empty if nothing is near.

    First the ids that hold every part of it (``orin-nano``, ``4090``, ``agx orin``), then those whose id and name do
    (``dgx spark``), then those that are spelled alike.
    """
    parts = re.findall(r"[a-z0-9]+", name.lower())
    if not parts:
        return ()
    written = "-".join(parts)
    begins = [device_id for device_id in catalogue() if device_id.startswith(written)]
    holds = [device_id for device_id in catalogue() if all(part in device_id for part in parts)]
    named = [row.id for row in catalogue().values() if all(part in f"{row.id} {row.name.lower()}" for part in parts)]
    close = difflib.get_close_matches(written, [*catalogue(), "cpu"], n=_SUGGESTIONS)
    return tuple(dict.fromkeys([*begins, *holds, *named, *close]))[:_SUGGESTIONS]


def _unknown(name: str) -> str:
    near = nearest_names(name)
    suggestion = f"Near it: {', '.join(near)}. " if near else ""
    return f"Target {name!r} is not in the catalogue. {suggestion}vitexport targets lists them all."


def _described_cpu(flags: frozenset[str] | None, arch: str | None) -> MachineCpu:
    here = machine_cpu()
    if flags is None and (arch is None or normal_arch(arch) == here.arch):
        return here
    return MachineCpu(arch=normal_arch(arch or here.arch), flags=flags or frozenset(), model_name="CPU as described")


def _this_cpu(cpu: MachineCpu, jetpack: str | None) -> Target:
    device = catalogue()[classify(cpu)]
    _refuse_jetpack(device, jetpack)
    target = _cpu_target(device)
    reason = lacking(target, cpu)
    if reason is None:
        return target
    return dataclasses.replace(
        target,
        precisions=tuple(precision for precision in target.precisions if precision != "int8"),
        unavailable={**target.unavailable, "int8": reason},
    )


def _refuse_jetpack(device: Device, jetpack: str | None) -> None:
    if jetpack is not None:
        raise UsageError(
            f"JetPack {jetpack} was given for {device.id} ({device.name}), which is not a Jetson; "
            "only targets whose name begins with jetson- take one. Leave `jetpack` out."
        )


def _release(device: Device, asked: str | None, rows: Rows) -> tuple[str, JetPack]:
    """The release that was `asked` for, as it was written, and the stack that it carries."""
    stacks = {release: stack for release in device.jetpacks if (stack := rows.stack_of(release)) is not None}
    if asked is None:
        standard = [release for release, stack in stacks.items() if not stack.optional]
        newest = max(standard, key=version_key)
        return newest, stacks[newest]
    if _RELEASE.fullmatch(asked):
        for release, stack in stacks.items():
            if stack.carries(asked) and version_key(asked) >= version_key(release):
                return asked, stack
    valid = ", ".join(_spelled(release, stack) for release, stack in stacks.items())
    raise UsageError(f"JetPack {asked} does not run on {device.id} ({device.name}). Valid for `jetpack`: {valid}.")


def _spelled(release: str, stack: JetPack) -> str:
    def first(pattern: str) -> tuple[int, ...]:
        return version_key(pattern.replace("x", "0"))

    also = [pattern for pattern in stack.accepts if pattern != release and first(pattern) > first(release)]
    return f"{release} (also {', '.join(also)})" if also else release


def _jetson_target(device: Device, release: str, stack: JetPack) -> Target:
    unavailable = {} if device.int8_tensor_cores else {"int8": _no_int8(device)}
    if not reads("layerPrecisions", stack.tensorrt):
        reason = (
            f"trtexec of TensorRT {stack.tensorrt} cannot hold single layers in FP32 (8.4 is the first that can), and a "
            "written-out LayerNormalization overflows FP16"
        )
        unavailable = {"fp16": reason, "int8": reason} | unavailable
    return _target(device, "tensorrt", stack.tensorrt, unavailable, jetpack=release, opset_max=stack.opset_max)


def _gpu_target(device: Device, rtx: RtxStack) -> Target:
    unavailable = {} if device.int8_tensor_cores else {"int8": _no_int8(device)}
    if device.compute_capability not in rtx.compute_capabilities:
        # Every TensorRT from 10.0 on reads opset 20, and the catalogue lists none below that here.
        return _target(device, "tensorrt", device.tensorrt, unavailable)
    if device.compute_capability in rtx.fp32_refused:
        unavailable |= {"fp32": rtx.fp32_refused[device.compute_capability]}
    return _target(device, "tensorrt-rtx", rtx.version, unavailable, opset_max=rtx.opset_max)


def _cpu_target(device: Device) -> Target:
    # An application loads its model over a network: float16 weights are half of it, and no slower once they are loaded.
    unavailable = {} if device.app else {"fp16": "vitexport writes fp32 and int8 variants for CPUs"}
    return _target(device, "onnxruntime", None, unavailable)


def _no_int8(device: Device) -> str:
    # NVIDIA/TensorRT#3157
    return f"compute capability {device.compute_capability} has no INT8 tensor cores, without which TensorRT refuses INT8"


def _target(  # noqa: PLR0913  the stack's own values, from three kinds of devices
    device: Device,
    runtime: Runtime,
    tensorrt: str | None,
    unavailable: Mapping[str, str],
    *,
    jetpack: str | None = None,
    opset_max: int = OPSET,
) -> Target:
    # TensorRT-RTX counts its own versions; what 8.x lacks, every one of them has.
    version = version_key(tensorrt) if runtime == "tensorrt" and tensorrt else None
    # STRONGLY_TYPED is generally available from TensorRT 10.0, and all there is in 11 and in RTX.
    typing: NetworkTyping | None = "weak" if version and version < (10,) else "strong"
    return Target(
        id=device.id,
        name=device.name,
        kind=device.kind,
        compute_capability=device.compute_capability,
        runtime=runtime,
        jetpack=jetpack,
        tensorrt=tensorrt,
        opset=min(opset_max, OPSET),
        typing=None if runtime == "onnxruntime" else typing,
        layernorm_op=version is None or version >= (8, 6),
        precisions=tuple(precision for precision in PRECISIONS if precision not in unavailable),
        unavailable=dict(unavailable),
        memory_gb=min(device.memory_gb, default=None),
        peaks=dict(device.peaks),
        memory_bandwidth_gbps=device.memory_bandwidth_gbps,
        cpu=device.cpu,
        app=device.app,
    )
