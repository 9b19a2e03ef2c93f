"""Input: a model's layers and a `Target`; output: the shortest time that the device's peak rates allow, as an estimate.

The roofline of each layer: it takes at least its multiply-adds over the peak rate of their type, and at least its weights
over the memory bandwidth; layers follow one another, so the larger times are summed. Everything else is left out (what is
not a product, activations that leave the caches, launches, copies), and rates are taken at 100 %: a device that is faster
has other rates than the catalogue's, those of another power mode or of FP16 accumulation for example.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from vitexport.artifacts import Precision, Product
from vitexport.targets import Target, catalogue

# One multiply-add is two operations, as the makers of GPUs count.
OPERATIONS = 2
WEIGHT_BYTES = {"fp16": 2, "int8": 1}
ASSUMPTIONS = (
    "at 100 %, weights read once a call, activations kept in the caches; launches, copies and whatever is not a matrix "
    "product are not in it: measured latencies are longer"
)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A lower bound for the latency of one call.

    Attributes:
        precision: ``fp16`` or ``int8``.
        batch: Images in the call.
        seconds: Of the call; the sum over all layers of the longer of arithmetic and memory.
        arithmetic_seconds: What the multiply-adds alone take.
        memory_seconds: What reading the weights alone takes.
        bound_by_arithmetic: Share of `seconds` that is spent in layers whose arithmetic is the longer.
        flops: Operations of the call.
        int8_share: Share of them that is in INT8.
        weight_bytes: Of all products.
    """

    precision: Precision
    batch: int
    seconds: float
    arithmetic_seconds: float
    memory_seconds: float
    bound_by_arithmetic: float
    flops: int
    int8_share: float
    weight_bytes: int

    def __str__(self) -> str:
        """One line, for example ``fp16 at least 1.07 ms for one image (…)``."""
        images = "one image" if self.batch == 1 else f"a batch of {self.batch}"
        if self.bound_by_arithmetic >= 0.5:
            bound = f"{self.bound_by_arithmetic * 100:.0f} % of it bound by arithmetic"
        else:
            bound = f"{100 - self.bound_by_arithmetic * 100:.0f} % of it bound by the memory bandwidth"
        return (
            f"{self.precision} at least {self.seconds * 1e3:.3g} ms for {images}, {bound}: "
            f"{self.flops / 1e9:.3g} GFLOP, {self.weight_bytes / 2**20:.1f} MiB of weights"
        )


def why_none(target: Target, precision: str) -> str | None:
    """Why there is no estimate for `precision` on `target`; None if there is one."""
    if not target.peaks or target.memory_bandwidth_gbps is None:
        return f"the catalogue has no peak rates for {target.name}"
    if precision not in WEIGHT_BYTES or precision not in target.peaks:
        return f"the catalogue has no peak rate of {target.name} in {precision}"
    if precision == "int8" and "fp16" not in target.peaks:
        return f"the catalogue has no peak rate of {target.name} in fp16, for what INT8 leaves in float"
    return None


def basis(target: Target) -> str:
    """Where the rates of `target` come from, for people."""
    # Of several GPUs that share an engine each rate is the lowest.
    devices = [catalogue()[name] for name in target.id.split("+") if name in catalogue()]
    bases = dict.fromkeys(device.basis for device in devices if device.basis)
    slowest = "the slowest of " if len(devices) > 1 else ""
    known = f" ({', '.join(bases)})" if bases else ""
    return f"the dense peak rates and the memory bandwidth that the catalogue has for {slowest}{target.name}{known}"


def estimate(target: Target, products: Sequence[Product], precision: Precision, batch: int) -> Estimate:
    """The lower bound for one call of `batch` images.

    Args:
        target: Of which `why_none` has nothing to say.
        products: Of the whole model; for INT8 those with ``int8`` set count at that rate, the others at that of FP16.
        precision: ``fp16`` or ``int8``.
        batch: 1 or more.
    """
    bandwidth = (target.memory_bandwidth_gbps or 0.0) * 1e9
    total = arithmetic = memory = bound = 0.0
    flops = in_int8 = weight_bytes = 0
    for product in products:
        kind = "int8" if precision == "int8" and product.int8 else "fp16"
        operations = OPERATIONS * product.macs * batch
        size = product.weights * WEIGHT_BYTES[kind]
        computing, reading = operations / (target.peaks[kind] * 1e12), size / bandwidth
        total += max(computing, reading)
        arithmetic += computing
        memory += reading
        bound += computing if computing >= reading else 0.0
        flops += operations
        in_int8 += operations if kind == "int8" else 0
        weight_bytes += size
    return Estimate(
        precision=precision,
        batch=batch,
        seconds=total,
        arithmetic_seconds=arithmetic,
        memory_seconds=memory,
        bound_by_arithmetic=bound / total if total else 0.0,
        flops=flops,
        int8_share=in_int8 / flops if flops else 0.0,
        weight_bytes=weight_bytes,
    )


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """What can be said of a target's latency before anything is built.

    Attributes:
        estimates: The shortest first.
        about: What they rest on, as one sentence; empty without any.
        skipped: Why there are none, or None.
    """

    estimates: tuple[Estimate, ...] = ()
    about: str = ""
    skipped: str | None = None

    def seconds(self, precision: str) -> float | None:
        """Of the estimate for `precision`, if there is one."""
        return next((entry.seconds for entry in self.estimates if entry.precision == precision), None)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values for a report."""
        return {
            "about": self.about,
            "skipped": self.skipped,
            **{entry.precision: dataclasses.asdict(entry) for entry in self.estimates},
        }


def predict(target: Target, products: Mapping[Precision, Sequence[Product]], batch: int) -> Prediction:
    """Estimates for each of the precisions, from the products of its own graph; or why there are none."""
    reasons = {precision: why_none(target, precision) for precision in products}
    found = [
        estimate(target, layers, precision, batch) for precision, layers in products.items() if reasons[precision] is None
    ]
    if not found:
        return Prediction(
            skipped=next(
                (reason for reason in reasons.values() if reason),
                f"the catalogue has no rates for what {target.name} computes in",
            )
        )
    found.sort(key=lambda entry: entry.seconds)
    return Prediction(estimates=tuple(found), about=f"from {basis(target)}, {ASSUMPTIONS}")
