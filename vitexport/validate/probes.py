"""Folders of the user's, if any, enter; the real images that parity and golden checks use leave.

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
from vitexport.preprocess import PreprocessSpec, load_image, to_pixels

PHOTOGRAPHS = Path(__file__).parent / "photographs"
GOLDEN_COUNT = 32
FEWEST_GOLDEN = 4
GOLDEN_BYTES = 32 << 20


def golden_count(outputs: Sequence[OutputSpec]) -> int:
    """How many golden inputs a bundle gets: fewer where their outputs (tokens, feature maps) would make it large."""
    size = sum(4 * math.prod(output.shape) for output in outputs)
    return max(min(GOLDEN_COUNT, GOLDEN_BYTES // size), FEWEST_GOLDEN)


def probe_pixels(images: ImageSet | None, spec: PreprocessSpec, limit: int = GOLDEN_COUNT) -> NDArray[np.uint8]:
    """Up to `limit` pictures, resized and cropped, uint8 [n, height, width, 3].

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
    return np.stack([to_pixels(view, spec) for view in views[:limit]])


def _views(picture: Image.Image) -> list[Image.Image]:
    """The picture, its mirror image, and two overlapping crops: four different inputs from one photograph."""
    width, height = picture.size
    return [
        picture,
        picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
        picture.crop((0, 0, width * 2 // 3, height * 2 // 3)),
        picture.crop((width // 3, height // 3, width, height)),
    ]
