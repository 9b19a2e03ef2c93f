"""Input: the text of catalogue.toml; output: its validated rows, or one error that names the row and the key.

The rules between the keys are here too: a Jetson has JetPack releases, a GPU that TensorRT-RTX does not know has a
version of full TensorRT, a CPU class with 8-bit weights names the CPU flags that make them safe.
"""

from __future__ import annotations

import dataclasses
import functools
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TypeVar

from vitexport.errors import InputError
from vitexport.targets.fields import Fields
from vitexport.targets.target import (
    ACTIVATIONS,
    BASES,
    KINDS,
    WEIGHT_BITS,
    CpuArithmetic,
    Device,
    version_key,
)

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PEAK_PRECISIONS = frozenset({"fp16", "int8", "fp8", "fp4"})
_PATH = Path(__file__).with_name("catalogue.toml")
_ID = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")
_VERSION = re.compile(r"\d+(\.\d+)+")
_Row = TypeVar("_Row")
_RELEASE = re.compile(r"\d+\.\d+(\.(\d+|x))?")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class JetPack:
    """One software stack of the Jetsons.

    Attributes:
        release: The release that names the row.
        accepts: Releases that carry this stack; a last part ``x`` stands for any number.
        l4t: Releases of Jetson Linux that it is made of, as major and minor number.
        tensorrt: Version of TensorRT.
        opset_max: Newest ONNX opset that its parser reads.
        compute_capabilities: Of the modules that got it.
        optional: An upgrade that must be installed separately; never the default.
        note: What somebody who targets it has to know, or empty.
        sources: Where the row comes from, short.
    """

    release: str
    accepts: tuple[str, ...]
    l4t: tuple[str, ...]
    tensorrt: str
    opset_max: int
    compute_capabilities: tuple[str, ...]
    optional: bool
    note: str
    sources: tuple[str, ...]

    def carries(self, release: str) -> bool:
        """Whether `release`, for example ``6.2.1``, has this stack."""
        return any(_matches(pattern, release) for pattern in self.accepts)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RtxStack:
    """The release of TensorRT-RTX that vitexport compiles with.

    Attributes:
        version: For example ``1.7.1``.
        compute_capabilities: All that it can compile for.
        opset_max: Newest ONNX opset that its parser reads.
        fp32_refused: Compute capability to the reason why no fp32 variant is offered there, as a clause.
    """

    version: str
    compute_capabilities: tuple[str, ...]
    opset_max: int
    fp32_refused: Mapping[str, str] = dataclasses.field(hash=False)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """The whole catalogue: devices by id (CPU classes best first), JetPack stacks by release, and TensorRT-RTX."""

    devices: Mapping[str, Device] = dataclasses.field(hash=False)
    jetpacks: Mapping[str, JetPack] = dataclasses.field(hash=False)
    rtx: RtxStack

    def stack_of(self, release: str) -> JetPack | None:
        """The stack that JetPack `release` carries, or None if the catalogue does not know it."""
        return next((jetpack for jetpack in self.jetpacks.values() if jetpack.carries(release)), None)

    def jetpack_of(self, l4t: str) -> str | None:
        """The JetPack release that Jetson Linux `l4t`, for example ``36.4.3``, belongs to; None if it is not known."""
        number = ".".join(l4t.split(".")[:2])
        return next((jetpack.release for jetpack in self.jetpacks.values() if number in jetpack.l4t), None)


@functools.lru_cache(maxsize=1)
def packaged() -> Rows:
    """The catalogue that comes with vitexport, read once.

    Raises:
        InputError: The installed file is missing, unreadable or wrong.
    """
    try:
        text = _PATH.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"{_PATH}: {error.strerror}. Reinstall vitexport.") from error
    return read_rows(text, str(_PATH))


def read_rows(text: str, where: str) -> Rows:
    """Parse and validate a catalogue.

    Args:
        text: TOML.
        where: Name of the file, for messages.

    Raises:
        InputError: It is not TOML, or a row is wrong; the message names the row, the key, what was seen and expected.
    """
    try:
        fields = Fields(tomllib.loads(text), "catalogue")
        rtx = _rtx(Fields(fields.table("rtx"), "rtx"))
        jetpacks = _unique([_jetpack(row) for row in fields.tables("jetpack")], lambda row: row.release)
        devices = _unique([_device(row) for row in fields.tables("device")], lambda row: row.id)
        fields.finish()
        rows = Rows(devices=devices, jetpacks=jetpacks, rtx=rtx)
        for device in devices.values():
            _check_stack(device, rows)
    except ValueError as error:  # tomllib's TOMLDecodeError is one too
        raise InputError(f"{where}: {error} Correct the catalogue, or reinstall vitexport.") from error
    return rows


def _matches(pattern: str, release: str) -> bool:
    wanted, seen = pattern.split("."), release.split(".")
    if len(wanted) != len(seen):
        return False
    return all(w == s or (w == "x" and s.isascii() and s.isdigit()) for w, s in zip(wanted, seen, strict=True))


def _unique(rows: list[_Row], key: Callable[[_Row], str]) -> Mapping[str, _Row]:
    by_name: dict[str, _Row] = {}
    for row in rows:
        if key(row) in by_name:
            raise ValueError(f"{key(row)} is listed twice; expected one row.")
        by_name[key(row)] = row
    return MappingProxyType(by_name)


def _version(fields: Fields, key: str) -> str:
    value = fields.text(key)
    if not _VERSION.fullmatch(value):
        raise fields.wrong(key, "a version such as '10.3.0'")
    return value


def _capabilities(fields: Fields, key: str) -> tuple[str, ...]:
    values = fields.texts(key)
    if not values or not all(_VERSION.fullmatch(value) for value in values):
        raise fields.wrong(key, "compute capabilities such as ['8.7']")
    return values


def _sources(fields: Fields) -> tuple[str, ...]:
    sources = fields.texts("source")
    if not sources:
        raise fields.wrong("source", "at least one source")
    return sources


def _rtx(fields: Fields) -> RtxStack:
    stack = RtxStack(
        version=_version(fields, "version"),
        compute_capabilities=_capabilities(fields, "compute_capabilities"),
        opset_max=fields.integer("opset_max"),
        fp32_refused=MappingProxyType(fields.named_texts("fp32_refused")),
    )
    _sources(fields)
    fields.finish()
    return stack


def _jetpack(row: object) -> JetPack:
    fields = Fields(row, "jetpack")
    fields.where = f"jetpack {fields.text('release')}"
    accepts = fields.texts("accepts")
    if not accepts or not all(_RELEASE.fullmatch(pattern) for pattern in accepts):
        raise fields.wrong("accepts", "releases such as ['6.2', '6.2.x']")
    jetpack = JetPack(
        release=fields.text("release"),
        accepts=accepts,
        l4t=fields.texts("l4t") if fields.has("l4t") else (),
        tensorrt=_version(fields, "tensorrt"),
        opset_max=fields.integer("opset_max"),
        compute_capabilities=_capabilities(fields, "compute_capabilities"),
        optional=fields.flag("optional") if fields.has("optional") else False,
        note=fields.optional_text("note") or "",
        sources=_sources(fields),
    )
    if not jetpack.carries(jetpack.release):
        raise fields.wrong("accepts", f"{jetpack.release} among them")
    fields.finish()
    return jetpack


def _device(row: object) -> Device:
    fields = Fields(row, "device")
    fields.where = f"device {fields.text('id')}"
    if not _ID.fullmatch(fields.text("id")) or fields.text("id") == "cpu":
        raise fields.wrong("id", "lower-case words joined by '-', and not 'cpu', which stands for this machine")
    kind = fields.choice("kind", KINDS)
    is_cpu = kind == "cpu"
    app = fields.flag("app") if is_cpu and fields.has("app") else False
    peaks = fields.named_numbers("peaks") if fields.has("peaks") else {}
    if not PEAK_PRECISIONS.issuperset(peaks):
        raise fields.wrong("peaks", f"figures for {', '.join(sorted(PEAK_PRECISIONS))}")
    if fields.has("basis") != bool(peaks):
        raise fields.wrong("basis", "a basis exactly where there are peaks")
    device = Device(
        id=fields.text("id"),
        name=fields.text("name"),
        kind=kind,
        arch=fields.text("arch"),
        compute_capability=None if is_cpu else _version(fields, "compute_capability"),
        int8_tensor_cores=False if is_cpu else fields.flag("int8_tensor_cores"),
        memory_gb=() if is_cpu else _memory(fields),
        memory_bandwidth_gbps=fields.optional_number("memory_bandwidth_gbps"),
        peaks=peaks,
        basis=fields.choice("basis", BASES) if peaks else None,
        jetpacks=fields.texts("jetpacks") if kind == "jetson" else (),
        tensorrt=_version(fields, "tensorrt") if kind == "gpu" and fields.has("tensorrt") else None,
        cpu=_arithmetic(fields, app=app) if is_cpu else None,
        app=app,
        detect=fields.texts("detect") if is_cpu and not app else (),
        sources=_sources(fields),
    )
    fields.finish()
    return device


def _memory(fields: Fields) -> tuple[float, ...]:
    sizes = fields.numbers("memory_gb")
    if not sizes:
        raise fields.wrong("memory_gb", "at least one size in GB")
    return sizes


def _arithmetic(fields: Fields, *, app: bool) -> CpuArithmetic:
    cpu = CpuArithmetic(
        activation=fields.choice("activation", ACTIVATIONS),
        weight_bits=fields.choice("weight_bits", WEIGHT_BITS),
        required_flags=fields.texts("required_flags"),
        arch=fields.text("arch"),
    )
    detect = () if app else fields.texts("detect")
    if not detect and not app:
        raise fields.wrong("detect", "at least one CPU flag")
    if cpu.weight_bits == 7 and cpu.required_flags:
        raise fields.wrong("required_flags", "none: 7-bit weights are right on every machine of the architecture")
    if cpu.weight_bits == 8 and not app and not set(detect) <= set(cpu.required_flags):
        raise fields.wrong("required_flags", f"at least {', '.join(detect)}, the flags of the class itself")
    return cpu


def _check_stack(device: Device, rows: Rows) -> None:
    where = f"device {device.id}"
    if device.kind == "jetson" and not device.jetpacks:
        raise ValueError(f"{where}: jetpacks is empty; expected the releases that run on it.")
    for release in device.jetpacks:
        stack = rows.stack_of(release) if _RELEASE.fullmatch(release) else None
        if stack is None:
            raise ValueError(f"{where}: jetpacks names {release!r}; expected releases of {', '.join(rows.jetpacks)}.")
        if device.compute_capability not in stack.compute_capabilities:
            raise ValueError(
                f"{where}: compute_capability is {device.compute_capability!r}; "
                f"expected one of JetPack {release}: {', '.join(stack.compute_capabilities)}."
            )
    if device.kind == "jetson" and all(_is_optional(release, rows) for release in device.jetpacks):
        raise ValueError(f"{where}: jetpacks are all optional upgrades; expected one that can be the default.")
    is_rtx = device.compute_capability in rows.rtx.compute_capabilities
    if device.kind == "gpu" and is_rtx == (device.tensorrt is not None):
        seen = device.tensorrt or "missing"
        expected = "none, as TensorRT-RTX compiles for it" if is_rtx else "a version, as TensorRT-RTX does not know it"
        raise ValueError(f"{where}: tensorrt is {seen}; expected {expected}.")
    if device.tensorrt and version_key(device.tensorrt) < (10,):
        raise ValueError(f"{where}: tensorrt is {device.tensorrt}; expected 10.0 or later outside a Jetson.")


def _is_optional(release: str, rows: Rows) -> bool:
    stack = rows.stack_of(release)
    return stack is not None and stack.optional
