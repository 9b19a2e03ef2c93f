"""Input: what preprocessing made of known pictures at build time; output: whether it does the same here.

The golden inputs are kept after resize and crop, so they say nothing of what comes before. On the device a pattern of noise,
on which no two filters agree, and two of the package's photographs, a grey one and one in colour, go that way again, through
the very code that prepares a user's pictures.
"""

from __future__ import annotations

import hashlib
import math

import numpy as np
import PIL
from numpy.typing import NDArray

from vitexport.errors import InputError
from vitexport.preprocess import PreprocessSpec, load_image, to_pixels
from vitexport.report import Check, at_most, skipped
from vitexport.validate.probes import PHOTOGRAPHS, as_input

PREPROCESSING, DECODING = "preprocessing", "decoding"
PICTURES = ("camera.jpg", "chelsea.jpg")
PATTERN = (500, 930)
# In levels of 255. Releases of Pillow may round a level otherwise, as its 13 resizes tall pictures in another order.
LARGEST = 1.0
# On the mean: decoders of JPEG differ in how they round and enlarge colours, less than that.
DECODED = 1.0
SHOWN = 16


def pattern(channels: int = 3) -> NDArray[np.uint8]:
    """Noise that is the same everywhere: uint8 [500, 930, channels]."""
    shape = (*PATTERN, channels)
    noise = hashlib.shake_256(b"vitexport").digest(math.prod(shape))
    return np.frombuffer(noise, np.uint8).reshape(shape)


def preprocessed(spec: PreprocessSpec) -> NDArray[np.uint8]:
    """The pattern and the photographs after decoding, resize and crop: uint8 [3, height, width, channels].

    Raises:
        InputError: A photograph is not there or cannot be read.
    """
    photographs = [as_input(load_image(PHOTOGRAPHS / name), spec) for name in PICTURES]
    return np.stack([to_pixels(source, spec) for source in (pattern(spec.source_channels), *photographs)])


def same_preprocessing(kept: NDArray[np.uint8] | None, spec: PreprocessSpec) -> tuple[Check, ...]:
    """Check `kept`, what `preprocessed` gave when the bundle was built, against what it gives here.

    Args:
        kept: None where an earlier vitexport built the bundle.
        spec: The model's preprocessing.
    """
    if kept is None:
        return (skipped(PREPROCESSING, "the bundle keeps no preprocessed pictures; build it again with this vitexport"),)
    try:
        here = preprocessed(spec)
    except InputError as error:
        # A device that cannot decode the package's own photographs will not decode the user's.
        return (Check(name=DECODING, status="failed", message=str(error)),)
    if here.shape != kept.shape:
        message = f"the bundle keeps {len(kept)} preprocessed pictures, this vitexport makes {len(here)}"
        return (skipped(PREPROCESSING, message),)
    difference = np.abs(here.astype(np.int16) - kept)
    largest, mean = float(difference[0].max()), float(difference[1:].mean())
    photographs = f"{len(PICTURES)} photographs:"
    what = f"noise, resized and cropped here (Pillow {PIL.__version__}):"
    return (
        at_most(PREPROCESSING, largest, LARGEST, f"{what} {_told(here[:1], kept[:1], largest, 'at most')}", "levels"),
        at_most(DECODING, mean, DECODED, f"{photographs} {_told(here[1:], kept[1:], mean, 'mean')}", "levels"),
    )


def _told(here: NDArray[np.uint8], kept: NDArray[np.uint8], distance: float, kind: str) -> str:
    digest, expected = (hashlib.sha256(pixels.tobytes()).hexdigest() for pixels in (here, kept))
    if digest == expected:
        return f"the build's pixels, sha256 {digest[:SHOWN]}…"
    return f"not the build's pixels, by {distance:.3f} levels of 255 {'on the mean' if kind == 'mean' else kind}"
