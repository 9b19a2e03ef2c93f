"""Input: a model's name; output: what came of its export, parity, float16, INT8 and engines, as JSON, stage by stage.

Run as ``python -m timm_zoo.worker NAME RECORD.json`` by `timm_zoo.runs`, one process a model. It calls the rooms that
``vitexport build`` calls. Weights are untrained, so it fills in what timm's constructors leave at 0 or next to it: behind a
layer scale of 1e-5 a block could compute anything, and nobody would see it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any, TypeVar
from unittest import mock

import numpy as np
import onnx_ir as ir
import timm
import torch
from numpy.typing import NDArray
from onnx_ir.passes import PassResult
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from vitexport import source as sources
from vitexport import stacks
from vitexport.artifacts import BatchRange, ModelSource, OnnxModel, Outputs, silent
from vitexport.datasets import open_images
from vitexport.errors import VitexportError
from vitexport.export import export_graph
from vitexport.legality import refuse
from vitexport.preprocess import PreprocessSpec, normalize
from vitexport.quantize import Calibration, QuantSettings, calibrate, integers, output_db
from vitexport.quantize.fallback import most_sensitive_first
from vitexport.rewrites import apply, load, save
from vitexport.rewrites.emulate_float16 import EmulateFloat16
from vitexport.rewrites.float16 import Float16
from vitexport.rewrites.simplify import Simplify
from vitexport.rewrites.stay_float32 import float32_nodes
from vitexport.runtime.backends import open_onnx
from vitexport.source.timm_models import create
from vitexport.stacks.delivery import FILE_NAME, make_engine
from vitexport.stacks.tensorrt_strong import with_pairs
from vitexport.targets import OPSET, resolve
from vitexport.validate import metrics
from vitexport.validate.probes import PHOTOGRAPHS, probe_pixels
from vitexport.validate.reference import reference_outputs

# Compute capabilities 8.6, 8.9 and 12.0.
TARGETS = ("a10", "l4", "rtx-5090")
BATCH = BatchRange.parse("1:2:3")
CALIBRATION = 32
JUDGED = 8
SMALLEST_RMS = 0.005
# A model for larger images is run with small ones: its graph is the same, and attention over 2,304 tokens takes an hour.
LARGEST_SIDE = 518
SMALL_SIDE = 224
INT8_DB = 35.0
MOST_FLOAT = 0.25
T = TypeVar("T")


class Row:
    """What is known of one model, written down after every stage, so that a kill loses none of it."""

    def __init__(self, name: str, path: Path) -> None:
        self.path = path
        self.data: dict[str, Any] = {"name": name, "stages": {}}

    def stage(self, name: str, step: Callable[[], T], show: Callable[[T], dict[str, Any]] = lambda _: {}) -> T | None:
        """The result of `step`, recorded with its seconds and what `show` makes of it; None with its error noted."""
        self.data["running"] = name
        self.write()
        start = time.perf_counter()
        entry: dict[str, Any] = {}
        result = None
        try:
            result = step()
            entry |= show(result)
        except VitexportError as error:
            entry["error"] = f"{type(error).__name__}: {error}"
        entry["seconds"] = time.perf_counter() - start
        self.data["stages"][name] = entry
        del self.data["running"]
        self.write()
        return result

    def write(self) -> None:
        """Put it on disk, whole or not at all."""
        partial = self.path.with_suffix(".partial")
        partial.write_text(json.dumps(self.data, indent=1) + "\n", encoding="utf-8")
        partial.rename(self.path)


def run(name: str, path: Path) -> None:
    """All stages of one model."""
    row = Row(name, path)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        loaded = row.stage("load", lambda: load_alive(name, folder), lambda pair: describe(pair[1]))
        if loaded is not None:
            _stages(row, *loaded, folder)
    row.data["finished"] = True
    row.write()


def _stages(row: Row, module: sources.Exposed, source: ModelSource, folder: Path) -> None:
    # The whole photographs; calibration sees parts of them.
    images = normalize(probe_pixels(None, source.preprocess, JUDGED), source.preprocess)
    wanted = reference_outputs(module, source.outputs, images)
    row.data["variation"] = variation(wanted)
    for words in (BATCH, BatchRange.parse("1")):
        kind = "dynamic" if words.is_dynamic else "static"
        folding: list[float] = []
        with timed_folding(folding):
            exported = row.stage(f"export {kind}", functools.partial(export, module, source, folder, words), graph_facts)
        if exported is None:
            return
        row.data["stages"][f"export {kind}"]["folding"] = sum(folding)
        sizes = (1, 2, 3) if words.is_dynamic else (1,)
        check = row.stage(
            f"parity {kind}",
            functools.partial(parity, exported, images, wanted, sizes),
            lambda worst: {"value": worst},
        )
        if check is None:
            return
        exported = dataclasses.replace(exported, path=exported.path.rename(folder / f"{kind}.onnx"))
        if words.is_dynamic:
            dynamic = exported
    wide = row.stage(
        "float32 nodes", lambda: float32_nodes(load(dynamic.path), images[:3]), lambda names: {"count": len(names)}
    )
    if wide is None:
        return
    row.stage("fp16", lambda: float16_twin(dynamic, images, wanted, folder, wide), dict)
    quantized = row.stage("int8", lambda: int8(dynamic, source, images, wanted, folder), lambda found: found[2])
    if quantized is not None:
        onnx, beyond, _ = quantized
        for target in TARGETS:
            row.stage(f"engine {target}", functools.partial(engine, onnx, source, target, folder, beyond), dict)


def load_alive(name: str, folder: Path) -> tuple[sources.Exposed, ModelSource]:
    """The model through vitexport's own door, with weights from a checkpoint in which nothing is 0."""
    if name.startswith("torchvision:"):
        return sources.load(sources.ModelRequest(name=name, pretrained=False))
    side = other_side(name)
    asked = sources.ModelRequest(name=name, pretrained=False, img_size=side)
    model = create(asked, weights=False)
    enliven(model, torch.Generator().manual_seed(1))
    config = timm.data.resolve_model_data_config(model)
    height, width = config["input_size"][1:] if side is None else (side, side)
    spec = PreprocessSpec(
        height=height, width=width, mean=config["mean"], std=config["std"], interpolation="bicubic", crop_pct=1.0
    )
    hold_size(model, torch.from_numpy(normalize(probe_pixels(None, spec, JUDGED), spec)))
    checkpoint = folder / "model.safetensors"
    save_file({key: value.detach().clone().contiguous() for key, value in model.state_dict().items()}, checkpoint)
    del model
    try:
        return sources.load(dataclasses.replace(asked, checkpoint=checkpoint))
    finally:
        checkpoint.unlink()


def other_side(name: str) -> int | None:
    """The side of the images that a model is run with instead of its own, in pixels; None for its own."""
    config = timm.get_pretrained_cfg(name)
    return SMALL_SIDE if config is not None and max(config.input_size[1:]) > LARGEST_SIDE else None


@torch.no_grad()
def enliven(model: nn.Module, generator: torch.Generator) -> None:
    """Give every tensor that is one number throughout values of its own; statistics of BatchNorm too."""

    def normal(tensor: torch.Tensor) -> torch.Tensor:
        return torch.randn(tensor.shape, generator=generator)

    for parameter in model.parameters():
        first = float(parameter.reshape(-1)[0])
        if not bool((parameter == first).all()):
            # A head that starts a thousand times smaller than its bias would give every picture the same logits.
            small = 0 < float(parameter.square().mean()) < SMALLEST_RMS**2
            if small and parameter.dim() > 1:
                parameter.mul_(0.02 / float(parameter.square().mean().sqrt()))
            continue
        if 0 < abs(first) < 0.1 and parameter.numel() > 1:  # a layer scale
            parameter.copy_(1 + 0.1 * normal(parameter))
        elif first == 0.0:
            parameter.copy_(0.02 * normal(parameter))
        else:
            parameter.copy_(first * (1 + 0.1 * normal(parameter)))
    # Not the statistics of the pictures, channel by channel: a deep random network with those amplifies any noise by tens of
    # decibels (measured: 40 dB on the input of mobilevitv2_050 leave 2 to 19 dB), and says nothing of a trained one. What
    # they are made for, to hold the size of values, is `hold_size`'s.
    for name, buffer in model.named_buffers():
        if name.endswith("running_mean"):
            buffer.copy_(0.05 * normal(buffer))
        elif name.endswith("running_var"):
            buffer.copy_(1 + 0.2 * torch.rand(buffer.shape, generator=generator))
    scale_queries(model)


@torch.no_grad()
def scale_queries(model: nn.Module) -> None:
    """Give the norm of Gemma 4's queries the 1/sqrt(d) that its attention leaves to training.

    With weights of 1 the softmax picks one token, and PyTorch's own float32 is 2e-4 away from its float64.
    """
    for module in model.modules():
        if type(module).__name__ == "Gemma4Attention":
            weight = module.get_parameter("q_norm.weight")
            weight.mul_(weight.numel() ** -0.5)


@torch.no_grad()
def hold_size(model: nn.Module, images: torch.Tensor) -> None:
    """Let each BatchNorm take back what its input grew by, all channels alike; what did not grow stays as it is.

    Without it the stream of visformer_tiny doubles with every block, its scores reach thousands, and a softmax of those is
    no function that any rounding leaves alone: 60 dB on the picture left 45 dB.
    """

    def hold(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        variance = module.get_buffer("running_var")
        variance.mul_(max(1.0, float(inputs[0].square().mean() / variance.mean())))

    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]  # noqa: SLF001
    if norms:
        hooks = [module.register_forward_pre_hook(hold) for module in norms if module.running_var is not None]
        model.eval()(images)
        for hook in hooks:
            hook.remove()


def describe(source: ModelSource) -> dict[str, Any]:
    """What the table says of the model itself."""
    return {
        "family": source.family,
        "parameters": source.parameters,
        "size": [source.preprocess.height, source.preprocess.width],
        "outputs": {output.name: list(output.shape) for output in source.outputs},
    }


@contextlib.contextmanager
def timed_folding(seconds: list[float]) -> Iterator[None]:
    """A block in which each clean-up of an exported graph, constant folding above all, adds its seconds."""
    call = Simplify.call

    def timed(self: Simplify, model: ir.Model) -> PassResult:
        start = time.perf_counter()
        try:
            return call(self, model)
        finally:
            seconds.append(time.perf_counter() - start)

    with mock.patch.object(Simplify, "call", timed):
        yield


def export(module: sources.Exposed, source: ModelSource, folder: Path, batch: BatchRange) -> OnnxModel:
    """The float ONNX."""
    path = folder / "model.float.onnx"
    save(export_graph(module, source, opset=OPSET, layernorm_op=True, batch=batch), path)
    return OnnxModel.of(path, opset=OPSET, batch=batch, precision="fp32")


def graph_facts(model: OnnxModel) -> dict[str, Any]:
    """Size and operators of a graph."""
    counts: dict[str, int] = {}
    for node in load(model.path).graph:
        counts[node.op_type] = counts.get(node.op_type, 0) + 1
    return {"bytes": model.size, "operators": dict(sorted(counts.items()))}


def variation(outputs: Outputs) -> float:
    """How much the outputs differ between pictures, as a share of what they are: the least of all outputs."""
    shares = [np.sqrt(np.square(values - values.mean(0)).mean() / np.square(values).mean()) for values in outputs.values()]
    return float(np.min(shares))


def parity(model: OnnxModel, images: NDArray[np.float32], wanted: Outputs, sizes: tuple[int, ...]) -> float:
    """Largest error over all outputs and batch sizes, as a share of the output's largest value."""
    backend = open_onnx(model.path)
    errors = []
    for size in sizes:
        seen = backend.run(images[:size])
        errors += [metrics.relative_error(values[:size], seen[name]) for name, values in wanted.items()]
    return float(np.max(errors))


def float16_twin(
    model: OnnxModel, images: NDArray[np.float32], wanted: Outputs, folder: Path, wide: Collection[str]
) -> dict[str, Any]:
    """The float16 graph, computed on this CPU as the engine rounds."""
    graph = load(model.path)
    apply(graph, EmulateFloat16(wide))
    save(graph, folder / "fp16.onnx")
    return noise(folder / "fp16.onnx", images, wanted)


def noise(path: Path, images: NDArray[np.float32], wanted: Outputs) -> dict[str, Any]:
    """SQNR and largest relative error of the worst output."""
    backend = open_onnx(path, exact=True)
    parts = [backend.run(images[start : start + 1]) for start in range(len(images))]
    seen = {name: np.concatenate([part[name] for part in parts]) for name in wanted}
    return {
        "sqnr_db": float(np.min([metrics.sqnr_db(values, seen[name]) for name, values in wanted.items()])),
        "largest": float(np.max([metrics.relative_error(values, seen[name]) for name, values in wanted.items()])),
    }


def int8(
    model: OnnxModel, source: ModelSource, images: NDArray[np.float32], wanted: Outputs, folder: Path
) -> tuple[OnnxModel, frozenset[str], dict[str, Any]]:
    """The Q/DQ graph of placement A, its float32 nodes, and how far it is from PyTorch on images new to calibration.

    Layers whose results are beyond float16 stay float. Where the others miss `INT8_DB`, the most sensitive of them stay
    float too, as ``vitexport build`` does for its budget: as few as meet it, and at most `MOST_FLOAT` of them.
    """
    stack = stacks.of(resolve(TARGETS[0]))
    pictures = folder / "calibration"
    pictures.mkdir()
    for index, picture in enumerate(calibration_pictures()):
        picture.save(pictures / f"{index:02d}.png")
    calibration = Calibration(
        graph=load(model.path),
        batch=model.batch.minimum,
        images=open_images(pictures, limit=CALIBRATION),
        spec=source.preprocess,
        arithmetic=stack.arithmetic,
        settings=QuantSettings(),
        progress=silent,
    )
    calibrated = calibrate(calibration)
    wide = float32_nodes(calibrated.folded, images[:3])
    beyond = frozenset(module for node, module in calibrated.modules.items() if node in wide)

    def made(floating: Collection[str]) -> tuple[OnnxModel, dict[str, Any]]:
        numbers = integers(calibrated, beyond.union(floating))
        path = folder / "model.int8.onnx"
        save(with_pairs(calibrated.folded, numbers), path)
        counts = {"layers": len(numbers.layers), "floating": len(floating), "beyond": len(beyond)}
        onnx = OnnxModel.of(path, opset=model.opset, batch=model.batch, precision="int8")
        return onnx, noise(path, images, wanted) | counts

    onnx, figures = made(())
    whole = figures["sqnr_db"]
    if not whole >= INT8_DB:
        decibels = output_db(calibration, calibrated)
        ranking = [name for name in most_sensitive_first(decibels) if name not in beyond]
        most = int(len(ranking) * MOST_FLOAT)
        fewest = fewest_that(lambda floating: made(ranking[:floating])[1]["sqnr_db"] >= INT8_DB, most)
        onnx, figures = made(ranking[: fewest or 0])
    return onnx, wide, figures | {"all_db": whole}


def fewest_that(meets: Callable[[int], bool], most: int) -> int | None:
    """The smallest number up to `most` that `meets`, by bisection; None if `most` does not."""
    if most < 1 or not meets(most):
        return None
    low, high = 0, most
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if meets(middle) else (middle, high)
    return high


def calibration_pictures() -> list[Image.Image]:
    """Four overlapping parts of each photograph."""
    result = []
    for path in sorted(PHOTOGRAPHS.glob("*.jpg")):
        picture = Image.open(path).convert("RGB")
        width, height = picture.size
        across, down = width * 2 // 3, height * 2 // 3
        corners = [(left, top) for left in (0, width - across) for top in (0, height - down)]
        result += [picture.crop((left, top, left + across, top + down)) for left, top in corners]
    return result


def engine(model: OnnxModel, source: ModelSource, target: str, folder: Path, wide: Collection[str]) -> dict[str, Any]:
    """The engine of the INT8 graph with float16 between its layers."""
    graph = load(model.path)
    apply(graph, Float16(wide))
    save(graph, folder / "typed.onnx")
    device = resolve(target)
    refuse(load(folder / "typed.onnx"), device)
    make_engine(dataclasses.replace(model, path=folder / "typed.onnx"), source.preprocess, device, folder)
    size = (folder / FILE_NAME).stat().st_size
    (folder / FILE_NAME).unlink()
    return {"bytes": size}


if __name__ == "__main__":
    run(sys.argv[1], Path(sys.argv[2]))
