"""The frozen values that travel between the rooms: what one stage leaves and the next one takes.

They need the standard library only (and `PreprocessSpec`, which is plain data too; NumPy names the type of arrays). The
live ``nn.Module`` is never one of their fields.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray

from vitexport.errors import UsageError
from vitexport.preprocess import PreprocessSpec

Precision = Literal["fp32", "fp16", "int8"]
Typing = Literal["strong", "weak"]
# What loads an engine.
ENGINE_LIBRARIES = ("tensorrt", "tensorrt-rtx")
Part = Literal["body", "patch", "head", "attention", "other"]
OutputKind = Literal["logits", "probabilities", "label_logits", "values", "embedding", "tokens", "feature_map"]
# What a model is for, which decides how its answer is read, shown and judged.
Task = Literal["classification", "multi-label", "regression", "embedding"]
# Probability from which on a label of a multi-label model is true.
DEFAULT_THRESHOLD = 0.5
# Names of the two classes that one logit tells apart, where the user gave none.
BINARY_NAMES = ("negative", "positive")
# What a model computes for n images: by name of the output, float32 [n, …].
Outputs: TypeAlias = Mapping[str, NDArray[np.float32]]
INPUT_NAME = "image"
# Role of the model that takes the picture itself.
ONNX_APP = "onnx_app"


class Progress(Protocol):
    """How a stage reports: called with what it is doing, and how much of how much is done."""

    def __call__(self, what: str, done: int = 0, total: int = 0) -> None: ...


def silent(what: str, done: int = 0, total: int = 0) -> None:
    """The `Progress` that shows nothing."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class BatchRange:
    """Batch sizes that an artifact accepts: smallest, the one it is tuned for, largest."""

    minimum: int
    optimum: int
    maximum: int

    @property
    def is_dynamic(self) -> bool:
        """Whether more than one batch size is accepted."""
        return self.minimum != self.maximum

    def __str__(self) -> str:
        return f"{self.minimum}:{self.optimum}:{self.maximum}" if self.is_dynamic else str(self.minimum)

    @classmethod
    def parse(cls, text: str) -> BatchRange:
        """Read ``8`` or ``1:8:32``.

        Raises:
            UsageError: Not one or three whole numbers in rising order from 1 to 999,999.
        """
        parts = text.split(":")
        if len(parts) in (1, 3) and all(part.isascii() and part.isdigit() and len(part) < 7 for part in parts):
            sizes = [int(part) for part in parts]
            low, best, high = sizes if len(sizes) == 3 else sizes * 3
            if 1 <= low <= best <= high:
                return cls(minimum=low, optimum=best, maximum=high)
        raise UsageError(
            f"Batch {text!r} is not valid; give one size (1) or minimum:optimum:maximum (1:8:32), up to 999999."
        )


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class OutputSpec:
    """One output of the model.

    Attributes:
        name: In the graph and everywhere else.
        kind: ``logits`` and ``probabilities`` [classes], where one logit alone tells two classes apart by its sign;
            ``label_logits`` [labels], each of which is true or not by itself; ``values`` [values] in a unit of their own; an
            ``embedding`` [channels], ``tokens`` [tokens, channels], or a ``feature_map`` [channels, height, width], or in a
            model's own order of the three.
        shape: For one image.
    """

    name: str
    kind: OutputKind
    shape: tuple[int, ...]

    @property
    def names_classes(self) -> bool:
        """Whether its largest number names a class, so that there is a top-1."""
        return self.kind in ("logits", "probabilities") and not self.is_binary

    @property
    def is_binary(self) -> bool:
        """Whether it is one logit, whose sign decides between two classes."""
        return self.kind == "logits" and self.shape == (1,)

    @property
    def is_answer(self) -> bool:
        """Whether it is what the task asks for: classes, labels or values, and not features of the picture."""
        return self.kind in ("logits", "probabilities", "label_logits", "values")

    @classmethod
    def from_json(cls, data: Any) -> OutputSpec:
        """Read what `dataclasses.asdict` wrote.

        Raises:
            ValueError: It is something else.
        """
        name, kind, shape = data["name"], data["kind"], data["shape"]
        sizes = isinstance(shape, list) and all(type(size) is int and 0 < size < 1 << 31 for size in shape)
        if not isinstance(name, str) or not name.isidentifier() or kind not in get_args(OutputKind) or not sizes:
            raise ValueError(f"output {data!r} is not what vitexport writes")
        return cls(name=name, kind=kind, shape=tuple(shape))


def num_classes(outputs: Sequence[OutputSpec]) -> int | None:
    """How many classes the model tells apart: the width of the output that names them, two of one logit; None without."""
    if is_binary(outputs):
        return len(BINARY_NAMES)
    return next((output.shape[0] for output in outputs if output.names_classes), None)


def is_binary(outputs: Sequence[OutputSpec]) -> bool:
    """Whether one logit is the model's answer."""
    return any(output.is_binary for output in outputs)


def answer_of(outputs: Sequence[OutputSpec]) -> OutputSpec | None:
    """The output that holds what the task asks for; None of an embedding."""
    return next((output for output in outputs if output.is_answer), None)


def num_names(outputs: Sequence[OutputSpec]) -> int | None:
    """How many names go with the model's answer: of its classes, labels or values; None of an embedding."""
    answer = answer_of(outputs)
    return None if answer is None else num_classes(outputs) or answer.shape[0]


def task_of(outputs: Sequence[OutputSpec]) -> Task:
    """What the outputs are for."""
    answer = answer_of(outputs)
    if answer is None:
        return "embedding"
    return {"label_logits": "multi-label", "values": "regression"}.get(answer.kind, "classification")  # type: ignore[return-value]


def describe_outputs(outputs: Sequence[OutputSpec]) -> str:
    """For example ``1000 classes``, ``3 labels``, or ``embedding [384]``."""
    return ", ".join(map(_describe, outputs))


def _describe(output: OutputSpec) -> str:
    if output.is_binary:
        return "two classes by one logit"
    words = {"logits": "classes", "probabilities": "classes", "label_logits": "labels", "values": "values"}
    if output.kind in words:
        return f"{output.shape[0]} {words[output.kind] if output.shape[0] != 1 else words[output.kind][:-1]}"
    return f"{output.name} [{', '.join(map(str, output.shape))}]"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Product:
    """One matrix product or convolution of a model.

    Attributes:
        module: The timm module that computes it.
        macs: Multiply-adds for one image.
        weights: Numbers in its constant operand; 0 where both are computed.
        part: ``body``: one of the layers that INT8 is for; ``patch`` reads the image, ``head`` computes the logits,
            ``attention`` multiplies what was computed, ``other`` stays float always (depthwise convolutions).
        int8: Whether an INT8 variant computes it in integers.
    """

    module: str
    macs: int
    weights: int
    part: Part = "body"
    int8: bool = False


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ZeroShot:
    """How class texts became the classifier of an image tower: logits are ``logit_scale * cosine + logit_bias``.

    Attributes:
        origin: Name of the file of class embeddings, or open_clip's model and weights.
        sha256: Over the normalized embeddings, float32 [classes, channels], and their shape.
        logit_scale, logit_bias: As above; no bias is None.
        head: What the image tower ends in, as ``--head`` names it.
        templates: Sentences that the class names were put into; empty where the embeddings were given.
    """

    origin: str
    sha256: str
    logit_scale: float
    logit_bias: float | None = None
    head: str
    templates: tuple[str, ...] = ()

    def __str__(self) -> str:
        """For example ``zero-shot classifier: 100 x cosine with the class embeddings of birds.npy``."""
        bias = "" if self.logit_bias is None else f" {'-' if self.logit_bias < 0 else '+'} {abs(self.logit_bias):g}"
        return f"zero-shot classifier: {self.logit_scale:g} x cosine{bias} with the class embeddings of {self.origin}"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ModelSource:
    """Where the model came from.

    Attributes:
        name: What the user asked for, as timm takes it.
        architecture: timm's name of the architecture.
        family: timm module that defines it, for example ``vision_transformer``.
        kwargs: Keyword arguments that `timm.create_model` was given.
        weights: ``pretrained:<tag>``, ``checkpoint:<file name>`` or ``random:seed=<n>``.
        weights_sha256: Over the state dict (names, types, shapes and bytes, in the order of the names).
        parameters: Number of parameters and buffers.
        peak_activation_elements: Elements of the largest input and output that one module holds for one image.
        outputs: What the model computes, in order.
        timm_version, torch_version: Versions that built the model.
        preprocess: The model's own data config, with the user's overrides.
        task: What the model is for.
        labels: Names of the classes, labels or values in the order of the output, or None where they are not known.
        synsets: Class folder names that stand for the labels (ImageNet's ``n01440764``), in the same order, or None.
        products: Its matrix products and convolutions, in the order in which they are computed.
        loading: What was done to load a checkpoint, in a line; None without one.
        preparation: Each setting of `preprocess`, and who says so, in a line.
        notes: What the user should know of how file and options were brought together.
        zero_shot: How class texts became its classifier; None of a model that has its own.
    """

    name: str
    architecture: str
    family: str
    kwargs: Mapping[str, Any]
    weights: str
    weights_sha256: str
    parameters: int
    peak_activation_elements: int
    outputs: tuple[OutputSpec, ...]
    timm_version: str
    torch_version: str
    preprocess: PreprocessSpec
    task: Task
    labels: tuple[str, ...] | None = None
    synsets: tuple[str, ...] | None = None
    products: tuple[Product, ...] = ()
    loading: str | None = None
    preparation: str = ""
    notes: tuple[str, ...] = ()
    zero_shot: ZeroShot | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values for the manifest; preprocessing and labels have places of their own there, products none."""
        data = dataclasses.asdict(self)
        for key in ("preprocess", "task", "labels", "synsets", "outputs", "products", "notes"):
            del data[key]
        return data

    @property
    def num_classes(self) -> int | None:
        """How many classes the model tells apart, or None where it names none."""
        return num_classes(self.outputs)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class OnnxModel:
    """An ONNX file: input ``image`` float32 [batch, 3, height, width]; float32 outputs, one for each `OutputSpec`."""

    path: Path
    opset: int
    batch: BatchRange
    precision: Precision
    size: int

    @classmethod
    def of(cls, path: Path, *, opset: int, batch: BatchRange, precision: Precision) -> OnnxModel:
        """Describe the file at `path`."""
        return cls(
            path=path,
            opset=opset,
            batch=batch,
            precision=precision,
            size=path.stat().st_size + (data_file(path).stat().st_size if data_file(path).exists() else 0),
        )


def data_file(path: Path) -> Path:
    """Where the weights of the ONNX file at `path` are if one file does not hold them; ``model.onnx.data``."""
    return path.with_name(f"{path.name}.data")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class QuantRecipe:
    """Everything that decided the INT8 numbers; the same recipe on the same weights gives the same bytes.

    Attributes:
        settings: What the user may choose: placement, observer, rounding and so on.
        arithmetic: Of the stack: ``tensorrt`` (symmetric int8 Q/DQ), ``onnxruntime-cpu`` (the CPU's own integer operators).
        weight_bits, activation_type: 8 or 7 (a CPU without VNNI), and ``int8`` or ``uint8``.
        images: sha256 of each calibration image by its path under the calibration folder.
        skipped_images: Reason by path for images that could not be read.
        layers: The quantized timm modules, in graph order.
        stay_float: Modules and inputs that were to be quantized and went back to float to meet the budget.
        inputs: Second products of attentions, or residual Adds, that are quantized beyond the layers (placements B and C).
        ranges: Chosen activation range (low, high) by the module that reads it, after equalization.
        strengths: Equalization strength by module; of an attention in `inputs` that of q against k.
        layer_db: SQNR in dB of each layer's own output, by module, and of the least of what `inputs` read: the lower, the
            more sensitive.
    """

    settings: Mapping[str, Any]
    arithmetic: str
    weight_bits: int
    activation_type: Literal["int8", "uint8"]
    images: Mapping[str, str]
    skipped_images: Mapping[str, str]
    layers: tuple[str, ...]
    stay_float: tuple[str, ...]
    inputs: tuple[str, ...]
    ranges: Mapping[str, tuple[float, float]]
    strengths: Mapping[str, float]
    layer_db: Mapping[str, float]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class EngineRecipe:
    """How a TensorRT engine is built from the bundle's ONNX, on any machine.

    Attributes:
        typing: ``strong``: types come from the graph; ``weak``: `flags` say what TensorRT may choose.
        flags: Builder flags by name (``FP16``, ``INT8``); empty under strong typing.
        fp32_layers: Nodes whose precision must be constrained to FP32 under weak typing.
        profile: Optimization profile of input ``image``: minimum, optimum and maximum shape; None if static.
        compute_capabilities: For which the engine is compiled, for example ``8.9``.
        trtexec: The same build as a trtexec command line, for a device that has only that.
    """

    typing: Typing
    flags: tuple[str, ...]
    fp32_layers: tuple[str, ...]
    profile: tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]] | None
    compute_capabilities: tuple[str, ...]
    trtexec: str

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> EngineRecipe:
        """Read what a manifest holds.

        Raises:
            KeyError, TypeError, ValueError: It is something else.
        """
        typing, profile = data["typing"], data["profile"]
        if typing not in get_args(Typing):
            raise ValueError(f"typing is {typing!r}")
        shapes = None if profile is None else [tuple(int(size) for size in shape) for shape in profile]
        if shapes is not None and len(shapes) != 3:
            raise ValueError(f"profile has {len(shapes)} shapes")
        return cls(
            typing=typing,
            flags=tuple(str(flag) for flag in data["flags"]),
            fp32_layers=tuple(str(name) for name in data["fp32_layers"]),
            profile=None if shapes is None else (shapes[0], shapes[1], shapes[2]),
            compute_capabilities=tuple(str(entry) for entry in data["compute_capabilities"]),
            trtexec=str(data["trtexec"]),
        )


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """What the target's runtime loads, or why it is not there yet.

    Attributes:
        path: The serialized engine; None if it has to be built on the device.
        library: ``tensorrt-rtx`` or ``tensorrt``.
        library_version: Version that built it, or that must build it.
        recipe: How.
        skipped: Reason why `path` is None.
    """

    path: Path | None
    library: Literal["tensorrt-rtx", "tensorrt"]
    library_version: str
    recipe: EngineRecipe
    skipped: str | None = None


def file_sha256(path: Path) -> str:
    """Hexadecimal sha256 of a file, read in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while piece := stream.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()
