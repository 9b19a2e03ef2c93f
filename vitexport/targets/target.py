"""The values of this room: a `Device` (a row of the catalogue) and a `Target` (a device with its stack resolved).

`Target` is written into the manifest of a bundle and read back from it without the catalogue, so a bundle means the
same under a later vitexport. Its mappings are plain dicts (typed read-only): `copy`, `pickle` and `asdict` work.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

from vitexport.targets.fields import Fields

Kind = Literal["jetson", "gpu", "cpu"]
Runtime = Literal["onnxruntime", "tensorrt-rtx", "tensorrt"]
NetworkTyping = Literal["strong", "weak"]
Activation = Literal["uint8", "int8"]
WeightBits = Literal[7, 8]
Basis = Literal["published", "half-of-sparse", "clock", "secondary", "unconfirmed"]

# Everything that vitexport builds, on one target or another.
PRECISIONS = ("fp32", "fp16", "int8")

KINDS: tuple[Kind, ...] = ("jetson", "gpu", "cpu")
RUNTIMES: tuple[Runtime, ...] = ("onnxruntime", "tensorrt-rtx", "tensorrt")
TITLES: Mapping[str, str] = {"onnxruntime": "ONNX Runtime", "tensorrt": "TensorRT", "tensorrt-rtx": "TensorRT-RTX"}
TYPINGS: tuple[NetworkTyping, ...] = ("strong", "weak")
ACTIVATIONS: tuple[Activation, ...] = ("uint8", "int8")
WEIGHT_BITS: tuple[WeightBits, ...] = (7, 8)
BASES: tuple[Basis, ...] = ("published", "half-of-sparse", "clock", "secondary", "unconfirmed")


def version_key(version: str) -> tuple[int, ...]:
    """``10.13.3`` as (10, 13, 3), for comparisons.

    Raises:
        ValueError: A part is not a whole number.
    """
    return tuple(int(part) for part in version.split("."))


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class CpuArithmetic:
    """How the int8 variant of a CPU class multiplies.

    Attributes:
        activation: Type of the quantized activations.
        weight_bits: 7 where two products are added in a saturating int16 (VPMADDUBSW): 2 x 255 x 64 still fits.
        required_flags: One of them at least must be on the machine that runs the variant; empty: any machine of `arch`.
        arch: Instruction set, ``x86_64`` or ``aarch64``.
    """

    activation: Activation
    weight_bits: WeightBits
    required_flags: tuple[str, ...]
    arch: str

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; `from_json` reads them back."""
        return {
            "activation": self.activation,
            "weight_bits": self.weight_bits,
            "required_flags": list(self.required_flags),
            "arch": self.arch,
        }

    @classmethod
    def from_json(cls, data: object) -> CpuArithmetic:
        """Read what `to_json` wrote.

        Raises:
            ValueError: `data` is something else; the message names the field.
        """
        fields = Fields(data, "target.cpu")
        return cls(
            activation=fields.choice("activation", ACTIVATIONS),
            weight_bits=fields.choice("weight_bits", WEIGHT_BITS),
            required_flags=fields.texts("required_flags"),
            arch=fields.text("arch"),
        )


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """One row of the catalogue, validated.

    Attributes:
        id: What ``--target`` takes.
        name: For people.
        kind: Jetson, another NVIDIA GPU, or a class of CPUs.
        arch: GPU architecture, for example ``ampere``; instruction set of a CPU class.
        compute_capability: CUDA compute capability, for example ``8.9``; None for a CPU.
        int8_tensor_cores: Whether TensorRT can run INT8 on it; false for a CPU.
        memory_gb: Memory of each variant that is sold under the name, in GB; empty if not known.
        memory_bandwidth_gbps: GB/s; None if not known.
        peaks: Dense TFLOPS (``fp16``) and TFLOPS or TOPS (``int8``, ``fp8``, ``fp4``) of the GPU alone.
        basis: How `peaks` is known; None where there are none.
        jetpacks: JetPack releases that it got; the first of each stack that runs on it.
        tensorrt: Oldest full TensorRT that vitexport writes for, where TensorRT-RTX cannot be used; None for a Jetson.
        cpu: Arithmetic of a CPU class.
        app: Whether models run there inside an application: a browser, a phone. No machine is detected as one.
        detect: CPU flags of which one puts a machine into this class.
        sources: Where the row comes from, short.
    """

    id: str
    name: str
    kind: Kind
    arch: str
    compute_capability: str | None
    int8_tensor_cores: bool
    memory_gb: tuple[float, ...]
    memory_bandwidth_gbps: float | None
    peaks: Mapping[str, float] = dataclasses.field(hash=False)
    basis: Basis | None
    jetpacks: tuple[str, ...]
    tensorrt: str | None
    cpu: CpuArithmetic | None
    app: bool
    detect: tuple[str, ...]
    sources: tuple[str, ...]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A device with everything resolved that the other rooms ask for.

    Attributes:
        id: Id of the device in the catalogue; ``cpu`` has become the class of the machine.
        name: For people.
        kind: Jetson, another NVIDIA GPU, or a class of CPUs.
        compute_capability: CUDA compute capability, for example ``8.9``; of several GPUs the lowest; None for a CPU.
        runtime: The library that runs the shipped artifact.
        jetpack: JetPack release of a Jetson, as it was asked for; its stack is the catalogue's.
        tensorrt: Version of TensorRT on that stack, or of TensorRT-RTX; for another GPU the oldest one to use.
        opset: ONNX opset that the graph is written with.
        typing: Whether TensorRT takes types from the graph (``strong``) or chooses among allowed ones (``weak``).
        layernorm_op: Whether the stack has a LayerNormalization operator.
        precisions: What vitexport can build for it, of fp32, fp16 and int8.
        unavailable: For each of fp32, fp16 and int8 that is not in `precisions`, the reason, as a clause.
        memory_gb: GB; the smallest variant that is sold under the name, so that a bundle fits every one.
        peaks: Dense TFLOPS or TOPS by precision, as far as known.
        memory_bandwidth_gbps: GB/s, if known.
        cpu: Arithmetic of the int8 variant on a CPU; None otherwise.
        more_capabilities: The other compute capabilities, ascending, of several GPUs that one engine serves.
        app: Whether the model runs inside an application, which gets its preprocessing in the graph.
    """

    id: str
    name: str
    kind: Kind
    compute_capability: str | None
    runtime: Runtime
    jetpack: str | None
    tensorrt: str | None
    opset: int
    typing: NetworkTyping | None
    layernorm_op: bool
    precisions: tuple[str, ...]
    unavailable: Mapping[str, str] = dataclasses.field(hash=False)
    memory_gb: float | None
    peaks: Mapping[str, float] = dataclasses.field(hash=False)
    memory_bandwidth_gbps: float | None
    cpu: CpuArithmetic | None
    more_capabilities: tuple[str, ...] = ()
    app: bool = False

    @property
    def compute_capabilities(self) -> tuple[str, ...]:
        """All that the engine is compiled for, ascending; none for a CPU."""
        return () if self.compute_capability is None else (self.compute_capability, *self.more_capabilities)

    @property
    def engine_here(self) -> bool:
        """Whether the engine can be compiled on any machine; full TensorRT needs the device, a CPU needs no engine."""
        return self.runtime == "tensorrt-rtx"

    @property
    def loads_graph(self) -> bool:
        """Whether the runtime loads the ONNX graph itself, which is then written in that runtime's own operators."""
        return self.kind == "cpu"

    @property
    def is_jetson(self) -> bool:
        """Whether it is a module with its GPU, and maybe a DLA, on the chip, and a TensorRT of JetPack."""
        return self.kind == "jetson"

    @property
    def int8_arithmetic(self) -> str | None:
        """Of a CPU's integer operators, for people; None where there are none."""
        return None if self.cpu is None else f"{self.cpu.activation} activations, {self.cpu.weight_bits}-bit weights"

    @property
    def engine_place(self) -> str:
        """Where the engine is built, for people."""
        return "not needed" if self.loads_graph else "here" if self.engine_here else "on the device"

    @property
    def library(self) -> str:
        """The runtime with its version, for people: ``TensorRT 10.3.0``."""
        title = TITLES.get(self.runtime, self.runtime)
        return title if self.tensorrt is None else f"{title} {self.tensorrt}"

    @property
    def stack(self) -> str:
        """`library`, with the JetPack release that brings it."""
        return self.library if self.jetpack is None else f"{self.library} (JetPack {self.jetpack})"

    @property
    def full_tensorrt(self) -> tuple[int, ...] | None:
        """The version of full TensorRT; None for TensorRT-RTX, which counts its own, and for a CPU."""
        return version_key(self.tensorrt) if self.runtime == "tensorrt" and self.tensorrt else None

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values for the manifest; `from_json` reads them back."""
        return {
            **{field.name: getattr(self, field.name) for field in dataclasses.fields(self)},
            "precisions": list(self.precisions),
            "unavailable": dict(self.unavailable),
            "peaks": dict(self.peaks),
            "cpu": self.cpu.to_json() if self.cpu else None,
            "more_capabilities": list(self.more_capabilities),
        }

    @classmethod
    def from_json(cls, data: object) -> Target:
        """Read what `to_json` wrote; fields of a later vitexport are ignored.

        Raises:
            ValueError: `data` is something else; the message names the field, what was seen and what was expected.
        """
        fields = Fields(data, "target")
        return cls(
            id=fields.text("id"),
            name=fields.text("name"),
            kind=fields.choice("kind", KINDS),
            compute_capability=fields.optional_text("compute_capability"),
            runtime=fields.choice("runtime", RUNTIMES),
            jetpack=fields.optional_text("jetpack"),
            tensorrt=fields.optional_text("tensorrt"),
            opset=fields.integer("opset"),
            typing=fields.choice("typing", TYPINGS) if fields.has("typing") else None,
            layernorm_op=fields.flag("layernorm_op"),
            precisions=fields.texts("precisions"),
            unavailable=fields.named_texts("unavailable"),
            memory_gb=fields.optional_number("memory_gb"),
            peaks=fields.named_numbers("peaks"),
            memory_bandwidth_gbps=fields.optional_number("memory_bandwidth_gbps"),
            cpu=CpuArithmetic.from_json(fields.table("cpu")) if fields.has("cpu") else None,
            more_capabilities=fields.texts("more_capabilities") if fields.has("more_capabilities") else (),
            app=fields.flag("app") if fields.has("app") else False,
        )
