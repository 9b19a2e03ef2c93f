"""What the user asks for, as a `BuildRequest`, and what would be done, as a `Plan`. Plain data."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal

from vitexport.artifacts import DEFAULT_THRESHOLD, BatchRange, Precision
from vitexport.datasets import ClassOrder
from vitexport.quantize.settings import QuantSettings
from vitexport.roofline import Prediction
from vitexport.source.request import ModelRequest
from vitexport.stacks import Stack
from vitexport.targets import Finding, Target
from vitexport.validate.budget import Budget

PrecisionChoice = Literal["auto", "fp32", "fp16", "int8"]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class BuildRequest:
    """Everything that ``vitexport build`` was asked for.

    Attributes:
        model: The model and its weights.
        target: Id of the target, or ``cpu`` for this machine's class.
        more_targets: Further GPUs that the same engine file shall serve.
        jetpack: JetPack release of a Jetson; None for its newest.
        precision: ``auto`` takes the fastest that stays within the budget.
        calibration: Folder of images for INT8.
        calibration_size: How many of them are used.
        quantization: How INT8 is made.
        recipe: File with an earlier build's recipe, which then decides instead of `quantization`.
        data: Labelled validation images: a folder with one sub-folder per class; for multi-label and regression a CSV file
            (`vitexport.annotations`).
        labels: File of the names of classes, labels or values in the order of the output, or a folder with a config.json
            that has them. One logit takes two, of the negative and the positive class, or the positive one's alone.
        class_order: How the class folders of `data` are sorted, where no labels are known: ``natural`` as timm's training
            does it, ``string`` as torchvision's ImageFolder; None where both are the same.
        expect_top1: Top-1 in percent that the model is known to have on `data`; None where nothing is known.
        threshold: Multi-label: probability from which on a label is true, 0 to 1.
        batch: Batch sizes that the artifact accepts.
        opset: ONNX opset that the files are written with; None takes the newest that vitexport writes and the target reads.
        embed_preprocess: Whether the bundle gets a model that takes the picture itself; None: as the target wants it.
        top_indices: How many classes or labels that model names; 0 leaves probabilities and ranking out of it. None: 5 where
            there are any.
        budget: Accuracy that may be lost.
        out: The bundle's folder; None names it after model and target.
        force: Whether an existing bundle is replaced.
    """

    model: ModelRequest
    target: str
    more_targets: tuple[str, ...] = ()
    jetpack: str | None = None
    precision: PrecisionChoice = "auto"
    calibration: Path | None = None
    calibration_size: int = 256
    quantization: QuantSettings = dataclasses.field(default_factory=QuantSettings)
    recipe: Path | None = None
    data: Path | None = None
    labels: Path | None = None
    class_order: ClassOrder | None = None
    expect_top1: float | None = None
    threshold: float = DEFAULT_THRESHOLD
    batch: BatchRange = dataclasses.field(default_factory=lambda: BatchRange.parse("1"))
    opset: int | None = None
    embed_preprocess: bool | None = None
    top_indices: int | None = None
    budget: Budget = dataclasses.field(default_factory=Budget)
    out: Path | None = None
    force: bool = False

    def embeds(self, stack: Stack) -> bool:
        """Whether the bundle gets a model that takes the picture itself."""
        return stack.takes_pictures if self.embed_preprocess is None else self.embed_preprocess


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a build would do.

    Attributes:
        target: None if it could not be resolved.
        out: Where the bundle would go.
        precisions: Candidates, in the order in which they would be tried.
        steps: One sentence each.
        prediction: What the device takes at least.
        findings: Problems (``error``), and what else the user should know.
        exit_code: Of the first error, or 0.
    """

    target: Target | None
    out: Path | None
    precisions: tuple[Precision, ...]
    steps: tuple[str, ...]
    prediction: Prediction | None
    findings: tuple[Finding, ...]
    exit_code: int
