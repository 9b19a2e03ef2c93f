"""Compare another way to preprocess with Pillow's, on pictures of real and odd sizes made of the package's photographs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from vitexport.preprocess import ImageLike, PreprocessSpec, load_image, preprocess
from vitexport.report import Check, at_most
from vitexport.validate.probes import PHOTOGRAPHS, as_input

# Of 255. ONNX Runtime's CPU gives Pillow's very pixels; where sums are rounded otherwise (TF32, float16), a level in each
# direction is lost, and the mean tells that from another filter.
MEAN_LIMIT = 1.0
LARGEST_LIMIT = 3.0
# Width and height: a camera's 12 megapixels, a portrait, a line, a column, a strip, one smaller than any model's input.
SIZES = ((4000, 3000), (480, 640), (300, 1), (1, 300), (1000, 33), (7, 5), (1, 1))
TYPICAL = (640, 480)
_EMBEDDED = "preprocessing in the graph against Pillow's"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PictureError:
    """How far the graph's preprocessing is from Python's, in levels of 255.

    Attributes:
        mean: Of the picture with the largest mean.
        largest: Of all values of all pictures.
        pictures: How many were compared.
        worst: Name of the picture with the largest mean.
    """

    mean: float
    largest: float
    pictures: int
    worst: str

    @property
    def checks(self) -> tuple[Check, Check]:
        """Both figures against their limits."""
        where = f"{_EMBEDDED} on {self.pictures} pictures of 1 x 1 to 4000 x 3000"
        return (
            at_most("picture_mean", self.mean, MEAN_LIMIT, f"{where}: mean {self.mean:.5f} levels of 255", "levels"),
            at_most("picture_largest", self.largest, LARGEST_LIMIT, f"largest {self.largest:.3f} levels of 255", "levels"),
        )


def odd_pictures(spec: PreprocessSpec) -> dict[str, ImageLike]:
    """Every photograph of the package as it is, one of them in grey, and in each of `SIZES`, by name, as `spec` takes it."""
    photographs = {path.stem: load_image(path) for path in sorted(PHOTOGRAPHS.glob("*.jpg"))}
    name, picture = next(iter(photographs.items()))
    grey = {f"{name}, grey": picture.convert("L").convert("RGB")}
    sized = {f"{name}, {width} x {height}": picture.resize((width, height)) for width, height in SIZES}
    return {name: as_input(picture, spec) for name, picture in {**photographs, **grey, **sized}.items()}


def typical_picture(spec: PreprocessSpec) -> ImageLike:
    """A photograph of 640 x 480, to time with, as `spec` takes it."""
    return as_input(load_image(min(PHOTOGRAPHS.glob("*.jpg"))).resize(TYPICAL), spec)


def compare_pictures(
    pictures: Mapping[str, ImageLike],
    spec: PreprocessSpec,
    embedded: Callable[[NDArray[np.uint8]], NDArray[np.float32]],
) -> PictureError:
    """Check `embedded` against `preprocess` on each of `pictures`.

    Args:
        pictures: By name, RGB, or arrays with the channels that `spec` takes.
        spec: The model's preprocessing.
        embedded: uint8 [height, width, channels] to float32 [channels, height, width], normalized.
    """
    levels = 255 * np.asarray(spec.std, np.float64).reshape(-1, 1, 1)
    means, largest = {}, 0.0
    for name, picture in pictures.items():
        difference = np.abs(embedded(np.asarray(picture)) - preprocess(picture, spec).astype(np.float64)) * levels
        means[name] = float(difference.mean())
        # A NaN stays one, and fails the check.
        largest = float(np.maximum(largest, difference.max()))
    worst = max(means, key=lambda name: np.nan_to_num(means[name], nan=np.inf))
    return PictureError(mean=means[worst], largest=largest, pictures=len(means), worst=worst)
