"""Folders of the user's, if any, enter; the real images that parity and golden checks use leave.

Without a folder these are photographs that come with the package: never noise, on which a ViT's activations look nothing
like those on a picture.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vitexport.datasets import ImageSet
from vitexport.preprocess import PreprocessSpec, load_image, to_pixels

PHOTOGRAPHS = Path(__file__).parent / "photographs"
GOLDEN_COUNT = 32


def probe_pixels(images: ImageSet | None, spec: PreprocessSpec) -> NDArray[np.uint8]:
    """Up to `GOLDEN_COUNT` pictures, resized and cropped, uint8 [n, height, width, 3].

    Args:
        images: Evenly spaced pictures of it are taken; None for views of the package's photographs.
        spec: The model's preprocessing.
    """
    if images is not None:
        count = min(GOLDEN_COUNT, len(images.files))
        return images.pixels(spec, [index * len(images.files) // count for index in range(count)])
    views = [view for path in sorted(PHOTOGRAPHS.glob("*.jpg")) for view in _views(load_image(path))]
    return np.stack([to_pixels(view, spec) for view in views[:GOLDEN_COUNT]])


def _views(picture: Image.Image) -> list[Image.Image]:
    """The picture, its mirror image, and two overlapping crops: four different inputs from one photograph."""
    width, height = picture.size
    return [
        picture,
        picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
        picture.crop((0, 0, width * 2 // 3, height * 2 // 3)),
        picture.crop((width // 3, height // 3, width, height)),
    ]
