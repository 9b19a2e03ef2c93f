"""What the user allows a candidate to lose, and how the answers that it is judged by are read."""

from __future__ import annotations

import dataclasses

from vitexport.artifacts import DEFAULT_THRESHOLD
from vitexport.errors import UsageError


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """What the user allows. Which limit applies is decided by the task, and by whether there are labels or targets.

    Attributes:
        max_drop: Classification with labels: top-1 drop in percentage points; of one logit the drop of accuracy.
        min_agreement: Classification without: top-1 agreement with PyTorch in percent; of one logit that of its sign.
        max_map_drop: Multi-label with labels: drop of mAP, and of the micro F1 at the threshold, in percentage points.
        min_label_agreement: Multi-label without: decisions (picture and label) that are PyTorch's, in percent.
        max_error_increase: Regression with targets: growth of the mean absolute error, in percent of PyTorch's.
        max_deviation: Regression without: RMS difference from PyTorch, in percent of the spread (standard deviation) of
            PyTorch's values over the pictures.
        min_cosine: Cosine with PyTorch, of each output that is an embedding, tokens or a feature map.
    """

    max_drop: float = 1.0
    min_agreement: float = 99.0
    max_map_drop: float = 1.0
    min_label_agreement: float = 99.0
    max_error_increase: float = 5.0
    max_deviation: float = 10.0
    min_cosine: float = 0.99

    def check(self) -> None:
        """Refuse limits that no figure can meet or miss.

        Raises:
            UsageError: A limit is negative, not a number, or beyond its scale.
        """
        for name, most in _SCALES.items():
            value = getattr(self, name)
            if not 0 <= value <= most:
                bounds = f"{0} to {most:g}" if most < float("inf") else "0 or more"
                raise UsageError(f"`{name}` is {value:g}; it must be {bounds}.")


_SCALES = {
    **dict.fromkeys(("max_drop", "max_map_drop", "max_error_increase", "max_deviation"), float("inf")),
    **dict.fromkeys(("min_agreement", "min_label_agreement"), 100.0),
    "min_cosine": 1.0,
}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """How the model's answer is read.

    Attributes:
        names: Of its labels or values, in the order of the output; None where they are numbered.
        threshold: Probability from which on a label of a multi-label model is true.
    """

    names: tuple[str, ...] | None = None
    threshold: float = DEFAULT_THRESHOLD

    def name(self, index: int) -> str:
        """Of the label or value at `index`."""
        return self.names[index] if self.names is not None else str(index)
