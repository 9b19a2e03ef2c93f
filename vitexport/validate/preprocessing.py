"""What decoding and resizing made of two photographs at build time enters; whether they do the same here leaves.

The golden inputs are kept after resize and crop, so they say nothing of what comes before. Two of the package's photographs,
a grey one and one in colour, go that way again on the device, through the very code that prepares a user's pictures.
"""

from __future__ import annotations

import hashlib

import numpy as np
import PIL
from numpy.typing import NDArray

from vitexport.errors import InputError
from vitexport.preprocess import PreprocessSpec, to_pixels
from vitexport.report import Check, at_most, skipped
from vitexport.validate.probes import PHOTOGRAPHS

NAME = "preprocessing"
PICTURES = ("camera.jpg", "chelsea.jpg")
# In levels of 255, on the mean: JPEG decoders may round otherwise, a resize of another kind is further away.
LIMIT = 1.0
SHOWN = 16


def preprocessed(spec: PreprocessSpec) -> NDArray[np.uint8]:
    """The photographs after decoding, resize and crop: uint8 [2, height, width, 3].

    Raises:
        InputError: A photograph is not there or cannot be read.
    """
    return np.stack([to_pixels(PHOTOGRAPHS / name, spec) for name in PICTURES])


def same_preprocessing(kept: NDArray[np.uint8] | None, spec: PreprocessSpec) -> Check:
    """Hold `kept`, what `preprocessed` gave when the bundle was built, against what it gives here.

    Args:
        kept: None where an earlier vitexport built the bundle.
        spec: The model's preprocessing.
    """
    if kept is None:
        return skipped(NAME, "the bundle keeps no preprocessed photographs; build it again with this vitexport")
    try:
        here = preprocessed(spec)
    except InputError as error:
        return skipped(NAME, str(error))
    if here.shape != kept.shape:
        return skipped(NAME, f"the bundle keeps {len(kept)} photographs, this vitexport has {len(here)}")
    what = f"{len(here)} photographs decoded, resized and cropped here (Pillow {PIL.__version__})"
    digest = hashlib.sha256(here.tobytes()).hexdigest()
    if digest == hashlib.sha256(kept.tobytes()).hexdigest():
        return at_most(NAME, 0.0, LIMIT, f"{what} are the build's, sha256 {digest[:SHOWN]}…", "levels")
    difference = np.abs(here.astype(np.int16) - kept)
    message = (
        f"{what} differ from the build's by {difference.mean():.3f} levels of 255 on the mean, {difference.max()} at most"
    )
    return at_most(NAME, float(difference.mean()), LIMIT, message, "levels")
