"""Input: folders of the user's, if any; output: the real images that parity and golden checks use.

Without a folder these are photographs that come with the package: never noise, on which a ViT's activations look nothing
like those on a picture.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vitexport.artifacts import OutputSpec
from vitexport.datasets import ImageSet
from vitexport.preprocess import ImageLike, PreprocessSpec, load_image, to_pixels

PHOTOGRAPHS = Path(__file__).parent / "photographs"
GOLDEN_COUNT = 32
FEWEST_GOLDEN = 4
GOLDEN_BYTES = 32 << 20
# Those that keep the size.
_REFLECTIONS = (Image.Transpose.FLIP_LEFT_RIGHT, Image.Transpose.FLIP_TOP_BOTTOM, Image.Transpose.ROTATE_180)


def golden_count(outputs: Sequence[OutputSpec]) -> int:
    """How many golden inputs a bundle gets: fewer where their outputs (tokens, feature maps) would make it large."""
    size = sum(4 * math.prod(output.shape) for output in outputs)
    return max(min(GOLDEN_COUNT, GOLDEN_BYTES // size), FEWEST_GOLDEN)


def probe_pixels(images: ImageSet | None, spec: PreprocessSpec, limit: int = GOLDEN_COUNT) -> NDArray[np.uint8]:
    """Up to `limit` pictures, resized and cropped, uint8 [n, height, width, channels].

    Args:
        images: Evenly spaced pictures of it are taken; None for views of the package's photographs.
        spec: The model's preprocessing.
        limit: How many at most.
    """
    if images is not None:
        count = min(limit, len(images.files))
        return images.pixels(spec, [index * len(images.files) // count for index in range(count)])
    pictures = [_views(load_image(path)) for path in sorted(PHOTOGRAPHS.glob("*.jpg"))]
    # One view of each photograph first, so that a few are different photographs.
    views = [several[turn] for turn in range(len(pictures[0])) for several in pictures]
    return np.stack([to_pixels(as_input(view, spec), spec) for view in views[:limit]])


def as_input(picture: Image.Image, spec: PreprocessSpec) -> ImageLike:
    """An RGB picture as something that a model of `spec` takes: itself, or an array with the channels of several views.

    The first three channels are red, green and blue of the picture, the next three those of its mirror image, and so on
    with its other reflections, so that no two channels are the same.
    """
    if spec.takes_pictures:
        return picture
    turns = [picture, *(picture.transpose(turn) for turn in _REFLECTIONS)]
    planes = [band for turned in turns for band in turned.split()]
    return np.stack([np.asarray(planes[index % len(planes)]) for index in range(spec.channels)], axis=-1)


def _views(picture: Image.Image) -> list[Image.Image]:
    """The picture, its mirror image, and two overlapping crops: four different inputs from one photograph."""
    width, height = picture.size
    return [
        picture,
        picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
        picture.crop((0, 0, width * 2 // 3, height * 2 // 3)),
        picture.crop((width // 3, height // 3, width, height)),
    ]
