"""What the user asks for enters as a `BuildRequest`; what would be done leaves as a `Plan`. Plain data."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal

from vitexport.artifacts import BatchRange, Precision
from vitexport.quantize.settings import QuantSettings
from vitexport.roofline import Prediction
from vitexport.source.request import ModelRequest
from vitexport.targets import Finding, Target
from vitexport.validate.numerics import Budget

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
        data: Labelled validation images, one folder per class.
        labels: File of class names in the order of the logits.
        batch: Batch sizes that the artifact accepts.
        embed_preprocess: Whether the bundle gets a model that takes the picture itself; None: as the target wants it.
        top_indices: How many classes that model names; 0 leaves probabilities and ranking out of it.
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
    batch: BatchRange = dataclasses.field(default_factory=lambda: BatchRange.parse("1"))
    embed_preprocess: bool | None = None
    top_indices: int = 5
    budget: Budget = dataclasses.field(default_factory=Budget)
    out: Path | None = None
    force: bool = False

    def embeds(self, target: Target) -> bool:
        """Whether the bundle gets a model that takes the picture itself."""
        return target.app if self.embed_preprocess is None else self.embed_preprocess


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
