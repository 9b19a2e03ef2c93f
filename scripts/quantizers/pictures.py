"""Input: the sample's PNGs and the package's photographs; output: degraded copies, crops and arrays, as files for every
tool.

Everything is drawn from fixed seeds, so that a second run writes the same pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from numpy.lib.format import open_memmap
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from vitexport.datasets import ImageSet
from vitexport.preprocess import PreprocessSpec
from vitexport.validate.probes import PHOTOGRAPHS

SEED = 0
ROTATION_DEGREES = 15.0
NOISE = 0.1
GAIN = 0.5
OFFSET = 0.15
BLUR_PIXELS = (0.75, 1.5)
CROP_PIXELS = 256
SMALLEST_CROP = 0.3
READ_AT_ONCE = 32


def _rotated(picture: Image.Image, random: np.random.Generator) -> Image.Image:
    angle = float(random.uniform(-ROTATION_DEGREES, ROTATION_DEGREES))
    return picture.rotate(angle, Image.Resampling.BICUBIC)


def _noisy(picture: Image.Image, random: np.random.Generator) -> Image.Image:
    pixels = np.asarray(picture, np.float64)
    return _picture(pixels + random.normal(0, NOISE * 255, pixels.shape))


def _relit(picture: Image.Image, random: np.random.Generator) -> Image.Image:
    """Other contrast around the middle grey, and other brightness."""
    gain, offset = random.uniform(1 - GAIN, 1 + GAIN), random.uniform(-OFFSET, OFFSET)
    return _picture((np.asarray(picture, np.float64) - 127.5) * gain + 127.5 + offset * 255)


def _blurred(picture: Image.Image, random: np.random.Generator) -> Image.Image:
    return picture.filter(ImageFilter.GaussianBlur(float(random.uniform(*BLUR_PIXELS))))


DEGRADATIONS: Mapping[str, Callable[[Image.Image, np.random.Generator], Image.Image]] = {
    "rotated": _rotated,
    "noisy": _noisy,
    "relit": _relit,
    "blurred": _blurred,
}


def degrade(pixels: NDArray[np.uint8], kind: str, seed: int) -> NDArray[np.uint8]:
    """A copy of `pixels`, uint8 [height, width, 3], degraded in one way; the same seed gives the same copy.

    Args:
        pixels: The picture.
        kind: A key of `DEGRADATIONS`.
        seed: Decides how far it goes.
    """
    random = np.random.default_rng([SEED, seed])
    return np.asarray(DEGRADATIONS[kind](Image.fromarray(pixels), random), np.uint8)


def write_degraded(images: ImageSet, spec: PreprocessSpec, folder: Path) -> None:
    """One degraded copy of each picture under its own relative name; the kinds take turns.

    They are written in the model's input size: the digits' own 8 x 8 pixels are too few to be turned or blurred.
    """
    kinds = list(DEGRADATIONS)
    for index, file in enumerate(images.files):
        pixels = degrade(images.pixels(spec, [index])[0], kinds[index % len(kinds)], index)
        path = folder / file.relative
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)


def write_crops(folder: Path, count: int) -> None:
    """`count` square crops of the package's photographs as JPEGs, each photograph in its turn."""
    folder.mkdir(parents=True, exist_ok=True)
    photographs = [Image.open(path).convert("RGB") for path in sorted(PHOTOGRAPHS.glob("*.jpg"))]
    random = np.random.default_rng(SEED)
    for index in range(count):
        photograph = photographs[index % len(photographs)]
        shorter = min(photograph.size)
        side = int(shorter * random.uniform(SMALLEST_CROP, 1))
        left, top = (int(random.integers(0, length - side + 1)) for length in photograph.size)
        crop = photograph.crop((left, top, left + side, top + side))
        crop.resize((CROP_PIXELS, CROP_PIXELS), Image.Resampling.BICUBIC).save(folder / f"{index:04d}.jpg", quality=95)


def write_array(images: ImageSet, spec: PreprocessSpec, path: Path) -> None:
    """The preprocessed pictures, float32 [n, 3, height, width], a batch in memory at a time."""
    array = open_memmap(path, mode="w+", dtype=np.float32, shape=(len(images.files), 3, spec.height, spec.width))
    done = 0
    for batch in images.batches(spec, READ_AT_ONCE):
        array[done : done + len(batch)] = batch
        done += len(batch)
    array.flush()


def _picture(pixels: NDArray[np.float64]) -> Image.Image:
    return Image.fromarray(np.clip(np.rint(pixels), 0, 255).astype(np.uint8))
