"""Refuse what no machine can do of what ``vitexport engine`` is asked for."""

from __future__ import annotations

import dataclasses

from vitexport.bundle import Bundle
from vitexport.errors import UsageError
from vitexport.validate.budget import Budget


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class EngineRequest:
    """What ``vitexport engine`` is asked for.

    Attributes:
        workspace_mib: Most scratch memory for one layer; None for half of what the device has free.
        optimization_level: 0 to 5; None leaves it to TensorRT.
        version_compatible: Later versions of TensorRT shall run the engine too.
        hardware_compatible: Every GPU from Ampere on shall run it.
        dla_core: Deep Learning Accelerator to use; None for the GPU alone.
        strip_weights: Leave weights out of the engine; they come back from the bundle's ONNX when it is loaded.
        budget: What may be lost against PyTorch on labelled images.
        expect_top1: Top-1 in percent that the model is known to have on labelled images; None where nothing is known.
        bench_seconds: How long it is timed, once it is accepted; None for not at all.
        localize: Look for the first module that departs even if the golden outputs do not.
    """

    workspace_mib: int | None = None
    optimization_level: int | None = None
    version_compatible: bool = False
    hardware_compatible: bool = False
    dla_core: int | None = None
    strip_weights: bool = False
    budget: Budget = dataclasses.field(default_factory=Budget)
    expect_top1: float | None = None
    bench_seconds: float | None = None
    localize: bool = False


def check_request(bundle: Bundle, request: EngineRequest) -> None:
    """What cannot be done on any machine is refused before one is looked at.

    Raises:
        UsageError: The options contradict the target, the precision or the batch.
    """
    manifest = bundle.manifest
    target, library = manifest.target, (manifest.engine or {})["library"]
    if library == "tensorrt-rtx" and (request.version_compatible or request.hardware_compatible):
        raise UsageError(
            "--version-compatible and --hardware-compatible are for full TensorRT; an engine of TensorRT-RTX runs with the "
            "version that built it, on the GPUs that it was built for (build --target l4 --target a10 for several)."
        )
    if request.hardware_compatible and target.is_jetson:
        raise UsageError(
            f"--hardware-compatible is not for {target.name}: TensorRT's hardware compatibility does not support JetPack."
        )
    if request.dla_core is None:
        return
    if not target.is_jetson:
        raise UsageError(f"--dla is for Jetsons; {target.name} has no Deep Learning Accelerator.")
    if manifest.precision == "fp32":
        raise UsageError("--dla: a Deep Learning Accelerator computes float16 and int8; build the bundle with one of these.")
    if manifest.batch.is_dynamic:
        raise UsageError(
            f"--dla: a Deep Learning Accelerator takes one shape, and the bundle takes batches of {manifest.batch}; "
            "build it with one --batch size."
        )
