"""Input: a manifest; output: the same architecture in PyTorch eager, with random weights, to be timed beside the bundle.

Speed does not depend on what the weights are, so neither a checkpoint nor a download is needed; what was built is checked
against the manifest's outputs and number of parameters. The command line imports this module where PyTorch and timm are
installed and hands its result to the benchmark; nothing else on a device does.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from numpy.typing import NDArray
from torch import nn

from vitexport.bundle import Manifest
from vitexport.errors import ToolchainError, VitexportError
from vitexport.quiet import quiet
from vitexport.source import ModelRequest, load
from vitexport.source.zero_shot import add_stand_in
from vitexport.validate.bench import Beside, Contender
from vitexport.validate.bench_table import PYTORCH


def pytorch_beside(manifest: Manifest, *, gpu: bool) -> Beside:
    """PyTorch's contenders for the model of a bundle.

    Args:
        manifest: Of the bundle.
        gpu: Whether the bundle runs on a CUDA GPU, so that PyTorch has to as well: in float32 and float16; else in float32
            on the CPU.
    """
    if gpu and not torch.cuda.is_available():
        return Beside(skipped=f"PyTorch {torch.__version__} finds no CUDA GPU that it was built for")
    try:
        module = _same_architecture(manifest)
    except VitexportError as error:
        return Beside(skipped=f"the model cannot be built again from its name: {error}")
    if isinstance(module, str):
        return Beside(skipped=module)
    if not gpu:
        threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        torch.set_num_threads(threads)
        runtime = f"PyTorch {torch.__version__}, eager float32, CPU, {threads} threads, random weights"
        return Beside(contenders=(Contender(name=PYTORCH, runtime=runtime, run=_runner(module, "cpu", torch.float32)),))
    name = torch.cuda.get_device_name()
    found: list[Contender] = []
    for short, dtype in (("fp32", torch.float32), ("fp16", torch.float16)):
        try:
            moved = copy.deepcopy(module).to("cuda", dtype)
        except RuntimeError as error:  # no memory, or a build of PyTorch without kernels for this GPU
            return Beside(contenders=tuple(found), skipped=f"{short} cannot be put on {name}: {_one_line(error)}")
        runtime = f"PyTorch {torch.__version__}, eager {str(dtype).removeprefix('torch.')}, {name}, random weights"
        found.append(
            Contender(
                name=f"PyTorch {short}",
                runtime=runtime,
                run=_runner(moved, "cuda", dtype),
                gpu_time=_gpu_timer(moved, dtype),
            )
        )
    return Beside(contenders=tuple(found))


def _same_architecture(manifest: Manifest) -> nn.Module | str:
    """The live module, or why it would not be the same model."""
    made = manifest.model
    if str(made.get("weights", "")).startswith("module:"):
        return f"{made['name']} was a module of its author's own ({made['architecture']}), which a bundle does not hold"
    name = _name(manifest)
    if ":" not in name and not timm.is_model(name):
        return f"timm {timm.__version__} has no architecture {name or made['name']!r}"
    kinds = {output.kind for output in manifest.outputs}
    features = tuple(
        int(output.name.removeprefix("feature_")) for output in manifest.outputs if output.kind == "feature_map"
    )
    head = None
    if any(output.is_answer for output in manifest.outputs):
        head = "classifier"
    elif "embedding" in kinds:
        head = "features"
    elif "tokens" in kinds:
        head = "tokens"
    texts: Mapping[str, Any] | None = made.get("zero_shot")
    if texts is not None:
        head = str(texts["head"])
    kwargs: dict[str, Any] = {"pretrained": False, "kwargs": dict(made.get("kwargs", {})), "features": features}
    spec = manifest.preprocess
    softmax = "probabilities" in kinds
    with quiet("timm"):
        task = None if texts is not None else manifest.task
        own = softmax and texts is None
        request = ModelRequest(name=name, head=head, task=task, softmax=own, **kwargs)  # type: ignore[arg-type]
        module, source = load(request, weights=False)
    parameters = source.parameters
    if texts is not None:
        parameters += add_stand_in(module, manifest.outputs[0].shape[0], (spec.height, spec.width), softmax=softmax)
    seen = (parameters, source.preprocess.height, source.preprocess.width, [output.shape for output in module.specs])
    wanted = (made["parameters"], spec.height, spec.width, [output.shape for output in manifest.outputs])
    if seen != wanted:
        return (
            f"{name} as it is built from its name has {seen[0]} parameters and takes {seen[1]} x {seen[2]} pixels; the "
            f"bundle's model has {wanted[0]} and takes {wanted[1]} x {wanted[2]}"
        )
    return module


def _name(manifest: Manifest) -> str:
    """What builds the architecture: the bundle's own name for it where that needs no download, else timm's."""
    name = str(manifest.model["name"])
    local = name.startswith("local-dir:") and (Path(name.removeprefix("local-dir:")) / "config.json").is_file()
    return name if local or name.startswith("torchvision:") else str(manifest.model.get("architecture", ""))


def _runner(module: nn.Module, device: str, dtype: torch.dtype) -> Callable[[NDArray[np.float32]], object]:
    def run(images: NDArray[np.float32]) -> object:
        try:
            with torch.inference_mode():
                outputs = module(torch.from_numpy(images).to(device, dtype))
                return [output.float().cpu().numpy() for output in outputs]
        except RuntimeError as error:  # an operator that the type lacks, or no memory
            raise ToolchainError(f"PyTorch failed: {_one_line(error)}") from error

    return run


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


def _gpu_timer(module: nn.Module, dtype: torch.dtype) -> Callable[[NDArray[np.float32]], float]:
    """As `Timed.gpu_time`: two events around one forward pass of what is on the device already."""
    held: list[Any] = [None, None]

    def gpu_time(images: NDArray[np.float32]) -> float:
        try:
            if held[0] is not images:
                held[:] = images, torch.from_numpy(images).to("cuda", dtype)
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
            with torch.inference_mode():
                start.record()
                module(held[1])
                end.record()
                end.synchronize()
            return float(start.elapsed_time(end))
        except RuntimeError as error:
            raise ToolchainError(f"PyTorch failed: {_one_line(error)}") from error

    return gpu_time
