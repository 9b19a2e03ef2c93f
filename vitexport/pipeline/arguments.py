"""Find what the words of a `BuildRequest` and the files that it names contradict, without importing PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from vitexport.datasets import check_images
from vitexport.errors import InputError
from vitexport.labels import read_labels
from vitexport.pipeline.request import BuildRequest
from vitexport.preprocess import PreprocessSpec
from vitexport.source.request import ModelRequest, channels_asked, check_outputs, check_own, create_kwargs


def request_checks(request: BuildRequest) -> Iterator[Callable[[], object]]:
    """One call for each thing that can be refused before the model is made; each raises a `VitexportError` if it must."""
    model = request.model
    yield lambda: check_own(model)
    yield lambda: create_kwargs(model)
    yield lambda: check_outputs(model)
    yield lambda: _check_preprocess(model)
    yield lambda: _check_model_files(model)
    calibration, data, labels = request.calibration, request.data, request.labels
    if calibration is not None:
        yield lambda: check_images(calibration, channels_asked(model) or 3)
    if data is not None:
        yield lambda: _check_data(data)
    if labels is not None:
        # One logit takes the names of two classes, and an embedding has none.
        counts = model.num_classes != 1 and model.head in (None, "classifier") and not model.features
        yield lambda: read_labels(labels, model.num_classes if counts else None)


def _check_preprocess(model: ModelRequest) -> None:
    """Check what was given against what a `PreprocessSpec` takes; the rest comes from the model."""
    PreprocessSpec(
        height=1,
        width=1,
        mean=_three(model.mean) or (0.0, 0.0, 0.0),
        std=_three(model.std) or (1.0, 1.0, 1.0),
        interpolation=model.interpolation or "bicubic",
        crop_pct=1.0 if model.crop_pct is None else model.crop_pct,
    )


def _three(values: tuple[float, ...] | None) -> tuple[float, float, float] | None:
    """One value for each of three channels; None where the model has to tell how many there are."""
    if values is None or len(values) not in (1, 3):
        return None
    return (values[0], values[0], values[0]) if len(values) == 1 else (values[0], values[1], values[2])


def _check_model_files(model: ModelRequest) -> None:
    if model.checkpoint is not None and not model.checkpoint.exists():
        raise InputError(f"Checkpoint {model.checkpoint} does not exist or is not a file.")
    name = str(model.name)
    folder = Path(name.removeprefix("local-dir:"))
    if name.startswith("local-dir:") and not folder.is_dir():
        raise InputError(f"{name}: folder {folder} does not exist or is not a folder.")


def _check_data(root: Path) -> None:
    """Class folders, or the file that other tasks take."""
    if root.is_file():
        return
    if not root.is_dir():
        raise InputError(f"Data folder {root} does not exist or is not a folder.")
    if not any(path.is_dir() and not path.name.startswith(".") for path in root.iterdir()):
        raise InputError(f"Data folder {root} has no sub-folders; expected one folder of images per class.")
