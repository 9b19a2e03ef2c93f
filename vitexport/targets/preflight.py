"""Input: a target, a precision, a batch size and the model's size; output: everything that speaks against them at once.

Nothing is built or measured: this is what can be said before the slow part begins.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Literal

from vitexport.targets.rows import packaged
from vitexport.targets.target import PRECISIONS, Target, version_key

# Bytes per weight and per activation. Between the linear layers the activations of an int8 variant are FP16 on a GPU;
# a CPU class has no memory size to check them against.
_WEIGHT_BYTES = {"fp32": 4, "fp16": 2, "int8": 1}
_ACTIVATION_BYTES = {"fp32": 4, "fp16": 2, "int8": 2}
# The rest is for the runtime itself, and on a Jetson for the system that shares the memory.
_USABLE_MEMORY_PERCENT = 80
_GB = 1_000_000_000


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing to know before building.

    Attributes:
        level: ``error`` forbids the build, ``warning`` asks for a decision, ``note`` only informs.
        message: What was asked for, what the target can do, and what to do instead.
    """

    level: Literal["error", "warning", "note"]
    message: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ModelFacts:
    """What the memory check needs of a model.

    Attributes:
        parameters: Number of weights.
        peak_activation_elements: Elements that are alive at once for one image, inputs and outputs of the widest layer.
    """

    parameters: int
    peak_activation_elements: int


def findings(target: Target, *, precision: str, batch_max: int, model: ModelFacts | None) -> tuple[Finding, ...]:
    """All findings, errors first, then warnings, then notes.

    Args:
        target: From `resolve`.
        precision: What to build, ``fp32``, ``fp16`` or ``int8``; anything else is itself a finding.
        batch_max: Largest batch that the artifact shall take.
        model: None leaves the memory check out.
    """
    found = [
        *_precision(target, precision),
        *_batch(batch_max),
        *(_memory(target, precision, batch_max, model) if model else ()),
        *_attention(target, precision),
        *_int8_rate(target, precision),
        *_stack_notes(target),
    ]
    order = ("error", "warning", "note")
    return tuple(sorted(found, key=lambda finding: order.index(finding.level)))


def _precision(target: Target, precision: str) -> Iterator[Finding]:
    if precision in target.precisions:
        return
    choice = f"For {target.id} use {' or '.join(target.precisions)}."
    if precision in target.unavailable:
        reason = target.unavailable[precision].rstrip(".")
        yield Finding(
            level="error", message=f"{precision} is not available for {target.id} ({target.name}): {reason}. {choice}"
        )
    else:
        yield Finding(
            level="error",
            message=f"{precision} is not offered for any target: vitexport builds {', '.join(PRECISIONS)}. {choice}",
        )


def _batch(batch_max: int) -> Iterator[Finding]:
    if batch_max < 1:
        yield Finding(level="error", message=f"The largest batch is {batch_max}; use 1 or more.")


def _memory(target: Target, precision: str, batch_max: int, model: ModelFacts) -> Iterator[Finding]:
    if target.memory_gb is None or precision not in _WEIGHT_BYTES:
        return
    usable = round(target.memory_gb * _GB) * _USABLE_MEMORY_PERCENT // 100
    weights = model.parameters * _WEIGHT_BYTES[precision]
    per_image = model.peak_activation_elements * _ACTIVATION_BYTES[precision]
    needed = weights + batch_max * per_image
    if needed <= usable:
        return
    largest = (usable - weights) // per_image if per_image else 0
    if largest >= 1:
        cure = f"The largest batch that fits is {largest}."
    else:
        cure = "Not even batch 1 fits: use a smaller model, fewer bytes per weight, or a device with more memory."
    yield Finding(
        level="error",
        message=f"{precision} with batches of up to {batch_max} needs about {needed / _GB:.2f} GB (weights "
        f"{weights / _GB:.2f} GB, {per_image / _GB:.4f} GB per image); {target.id} has {target.memory_gb:g} GB, "
        f"of which {_USABLE_MEMORY_PERCENT} % can be counted on. {cure}",
    )


def _attention(target: Target, precision: str) -> Iterator[Finding]:
    # Fused multi-head attention is an FP16 (or INT8) kernel; on Orin it came with TensorRT 8.6.
    if target.kind != "jetson" or target.compute_capability != "8.7" or target.tensorrt is None:
        return
    if precision != "fp32" and version_key(target.tensorrt) < (8, 6):
        yield Finding(
            level="warning",
            message=f"TensorRT {target.tensorrt} of JetPack {target.jetpack} has no fused attention on Orin, which "
            "costs speed. Use `jetpack=6.0` or later (TensorRT 8.6.2), if the device can be upgraded.",
        )


def _int8_rate(target: Target, precision: str) -> Iterator[Finding]:
    # Blackwell Ultra (B300) has its INT8 tensor rate cut.
    int8, fp16 = target.peaks.get("int8"), target.peaks.get("fp16")
    if precision == "int8" and int8 is not None and fp16 is not None and int8 < fp16:
        yield Finding(
            level="warning",
            message=f"{target.name} computes INT8 at {int8:g} TOPS and FP16 at {fp16:g} TFLOPS: int8 will be slower. "
            "Use fp16.",
        )


def _stack_notes(target: Target) -> Iterator[Finding]:
    if target.runtime == "tensorrt":
        version = f"TensorRT {target.tensorrt}" + ("" if target.kind == "jetson" else " or later")
        yield Finding(
            level="note",
            message=f"The engine for {target.id} has to be built on the device itself, with {version}: TensorRT-RTX, "
            "which compiles on any machine, does not support it.",
        )
    if target.typing == "weak":
        yield Finding(
            level="note",
            message=f"TensorRT {target.tensorrt} builds weakly typed networks: it chooses the precision of each layer "
            "among those allowed. Validate on the device.",
        )
    jetpack = packaged().stack_of(target.jetpack) if target.jetpack else None
    if jetpack and jetpack.note:
        yield Finding(level="note", message=f"{jetpack.note}.")
