"""Show what a model says of pictures, as its task is: on a terminal, or as JSON values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from rich.text import Text

from vitexport.artifacts import Outputs, Task
from vitexport.cli.show import Output, grid
from vitexport.errors import UsageError
from vitexport.runtime.model import Prediction

DEFAULT_TOP = 5


def check_options(task: Task, *, top: int | None, threshold: float | None) -> None:
    """Refuse what the task has no use for, before anything runs.

    Raises:
        UsageError: --top or --threshold does not go with `task`, or with the other.
    """
    if threshold is not None and task != "multi-label":
        raise UsageError(f"--threshold is for multi-label models, and this bundle is for {task}; leave it out.")
    if threshold is not None and not 0 < threshold < 1:
        raise UsageError(f"--threshold is {threshold:g}; it must be above 0 and below 1.")
    if top is not None and task in ("regression", "embedding"):
        raise UsageError(f"--top ranks classes or labels, and this bundle is for {task}; leave it out.")
    if top is not None and threshold is not None:
        raise UsageError("--top shows the likeliest labels and --threshold those from a probability on; give one of them.")


def predictions_json(
    images: Sequence[str], prediction: Prediction, *, top: int | None, threshold: float | None
) -> list[dict[str, Any]]:
    """One object for each image: ``top``, of a multi-label model ``labels``, of a regression ``values``.

    Of an embedding it is one for each image and output.
    """
    if prediction.task == "regression":
        names = prediction.value_names
        return [
            {"image": image, "values": dict(zip(names, map(float, row), strict=True))}
            for image, row in zip(images, prediction.values, strict=True)
        ]
    if prediction.task == "embedding":
        return output_rows(images, prediction.outputs)
    key = "labels" if prediction.task == "multi-label" and top is None else "top"
    return [
        {"image": image, key: [{"label": label, "probability": value} for label, value in best]}
        for image, best in zip(images, _shown(prediction, top, threshold), strict=True)
    ]


def show_predictions(images: Sequence[str], prediction: Prediction, *, top: int | None, threshold: float | None) -> None:
    """The same for people: a bar for each class or label, a table of values or of what else was computed."""
    if prediction.task == "regression":
        rows = [(image, *(f"{value:.5g}" for value in row)) for image, row in zip(images, prediction.values, strict=True)]
        header = prediction.value_names if prediction.value_names != ("0",) else ("value",)
        Output().show(grid(("image", *header), rows))
    elif prediction.task == "embedding":
        _show_outputs(output_rows(images, prediction.outputs))
    else:
        _show_bars(images, prediction, _shown(prediction, top, threshold), threshold)


def _shown(prediction: Prediction, top: int | None, threshold: float | None) -> list[list[tuple[str, float]]]:
    """The likeliest classes; of labels those that are true, unless a number of them is asked for."""
    if prediction.task == "multi-label" and top is None:
        return prediction.above(threshold)
    return prediction.top(DEFAULT_TOP if top is None else top)


def _show_bars(
    images: Sequence[str], prediction: Prediction, shown: list[list[tuple[str, float]]], threshold: float | None
) -> None:
    """Label, probability and a bar for each; of a picture without a label the likeliest is named."""
    out, likeliest = Output(), prediction.top(1)
    width = max((len(label) for best in shown for label, _ in best), default=0)
    for image, best, [(nearest, value)] in zip(images, shown, likeliest, strict=True):
        out.show(Text(image, style="bold"))
        for label, probability in best:
            bar = "█" * round(probability * 30)
            out.show(Text(f"  {label:<{width}}  {probability * 100:6.2f} %  {bar}"))
        if not best:
            least = prediction.threshold if threshold is None else threshold
            out.show(Text(f"  no label from {least * 100:g} % on; the likeliest is {nearest} with {value * 100:.2f} %"))


def output_rows(images: Sequence[str], outputs: Outputs) -> list[dict[str, Any]]:
    """For each image and output: shape, and figures that tell one picture's numbers from another's."""
    return [
        {
            "image": image,
            "output": name,
            "shape": list(values.shape[1:]),
            "mean": float(values[index].mean()),
            "std": float(values[index].std()),
            "norm": float(np.linalg.norm(values[index])),
        }
        for index, image in enumerate(images)
        for name, values in outputs.items()
    ]


def _show_outputs(rows: Sequence[dict[str, Any]]) -> None:
    """The same as a table."""
    header = ("image", "output", "shape", "mean", "std", "norm")
    cells = [
        (
            str(row["image"]),
            str(row["output"]),
            " x ".join(map(str, row["shape"])),
            *(f"{row[key]:.4g}" for key in ("mean", "std", "norm")),
        )
        for row in rows
    ]
    Output().show(grid(header, cells))
