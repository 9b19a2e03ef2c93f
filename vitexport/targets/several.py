"""Input: names of GPUs; output: one `Target` whose single engine file serves them all.

TensorRT-RTX compiles one file for several compute capabilities; full TensorRT builds each engine on its own device, and a
CPU needs none.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from vitexport.errors import UsageError
from vitexport.targets.catalogue import resolve
from vitexport.targets.target import PRECISIONS, Target, version_key


def resolve_all(names: Sequence[str], *, jetpack: str | None = None) -> Target:
    """Resolve one name as `resolve` does, or several to what all of their devices can do.

    Args:
        names: Ids in the catalogue, at least one; a repeated one counts once.
        jetpack: As for `resolve`.

    Raises:
        UsageError: An unknown name, or several that no single engine serves.
        DeviceError: As for `resolve`.
    """
    targets = [resolve(name, jetpack=jetpack) for name in dict.fromkeys(names)]
    if len(targets) == 1:
        return targets[0]
    for target in targets:
        if target.runtime != "tensorrt-rtx":
            runtime = "ONNX Runtime" if target.kind == "cpu" else "full TensorRT, which builds on the device itself"
            raise UsageError(
                f"Several targets share one engine of TensorRT-RTX, and {target.id} ({target.name}) runs {runtime}. Build a "
                "bundle of its own for it."
            )
    return _common(targets)


def _common(targets: Sequence[Target]) -> Target:
    """The least of what several GPUs offer."""
    first = targets[0]
    capabilities = sorted({str(target.compute_capability) for target in targets}, key=version_key)
    unavailable = {name: reason for target in targets for name, reason in target.unavailable.items()}
    known = [target.peaks for target in targets]
    bandwidths = [target.memory_bandwidth_gbps for target in targets]
    memories = [target.memory_gb for target in targets]
    return dataclasses.replace(
        first,
        id="+".join(target.id for target in targets),
        name=f"{', '.join(target.name for target in targets[:-1])} and {targets[-1].name}",
        compute_capability=capabilities[0],
        more_capabilities=tuple(capabilities[1:]),
        precisions=tuple(name for name in PRECISIONS if name not in unavailable),
        unavailable=unavailable,
        memory_gb=min((memory for memory in memories if memory is not None), default=None),
        # The slowest of them; a rate that one of them leaves open is open for all.
        peaks={name: min(peaks[name] for peaks in known) for name in known[0] if all(name in peaks for peaks in known)},
        memory_bandwidth_gbps=None if None in bandwidths else min(each for each in bandwidths if each is not None),
    )
