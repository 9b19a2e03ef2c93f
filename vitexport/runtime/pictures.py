"""Input: whatever an application has of a picture; output: what `preprocess` takes, one after another."""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Iterable, Iterator
from typing import Any, BinaryIO, TypeAlias, cast

import numpy as np
from PIL import Image, UnidentifiedImageError

from vitexport.errors import InputError
from vitexport.preprocess import ImageLike

# A path, a Pillow image or a uint8 array; the bytes of a picture's file, or a stream of them.
Picture: TypeAlias = "ImageLike | bytes | bytearray | memoryview | BinaryIO"

# What Pillow raises on bytes that are no picture, or not all of one.
_DECODE_ERRORS = (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError)


def each(images: Picture | Iterable[Picture]) -> Iterator[ImageLike]:
    """The pictures of `images`: itself where it is one, else each of what it holds or yields, decoded when its turn comes.

    Raises:
        InputError: One is neither a picture nor a path to one, or cannot be decoded; or `images` is nothing of the kind.
    """
    if _is_one(images):
        yield _opened(images, "the picture")
        return
    if not isinstance(images, Iterable):
        raise InputError(
            f"A picture is a path, bytes, a binary stream, a Pillow image or a uint8 array, not {_kind(images)}."
        )
    for index, image in enumerate(images):
        yield _opened(image, f"picture {index}")


def _is_one(images: object) -> bool:
    known = (str, os.PathLike, bytes, bytearray, memoryview, Image.Image, np.ndarray)
    # A stream is iterable too: line by line, which no picture is made of.
    return isinstance(images, known) or hasattr(images, "read")


def _opened(image: Any, name: str) -> ImageLike:
    if isinstance(image, (bytes, bytearray, memoryview)):
        return _decoded(bytes(image), name)
    if hasattr(image, "read") and not isinstance(image, Image.Image):
        data = image.read()
        if not isinstance(data, bytes):
            raise InputError(f"Stream of {name} gives {_kind(data)}, not bytes; open the file with mode 'rb'.")
        return _decoded(data, name)
    if not _is_one(image):
        raise InputError(f"{name} is {_kind(image)}; expected a path, bytes, a binary stream, a Pillow image or an array.")
    return cast("ImageLike", image)


def _decoded(data: bytes, name: str) -> Image.Image:
    """Decode the bytes of a picture's file; Pillow's limit for large pictures holds, without its warning at half of it."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(data))
            image.load()
    except UnidentifiedImageError:
        raise InputError(f"The {len(data)} bytes of {name} are not an image that Pillow can read.") from None
    except _DECODE_ERRORS as error:
        raise InputError(f"The {len(data)} bytes of {name} cannot be decoded: {str(error).rstrip('.')}.") from None
    return image


def _kind(value: object) -> str:
    return f"a value of type {type(value).__name__}"
