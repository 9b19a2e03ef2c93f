"""Input: a picture and a `PreprocessSpec`; output: the float32 tensor that the model was trained to see.

This is the only implementation: calibration, validation and the shipped runtime call it, so what was validated is what
ships. It follows timm's evaluation transform (``timm.data.create_transform(..., is_training=False)``), which is built on
torchvision's Pillow path, and is held equal to it, bit for bit before normalization, by a test.

A model of one channel sees the picture in grey, converted before it is resized, as timm's loader does it with
``input_img_mode="L"``. Two channels, or more than three, are no picture that Pillow knows: they come as an array, and each
channel is resized as a grey picture.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import math
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from vitexport.errors import InputError, UsageError

ImageLike: TypeAlias = "str | Path | Image.Image | NDArray[Any]"
CropMode = Literal["center", "squash", "border"]
_Colour: TypeAlias = "int | tuple[int, ...]"

RESAMPLING: Mapping[str, Image.Resampling] = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
    "box": Image.Resampling.BOX,
    "hamming": Image.Resampling.HAMMING,
}

# SyntaxError is what Pillow's PNG reader raises on a broken chunk.
_DECODE_ERRORS = (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError)

_MOST_GREY = 255
# 1/255, however it was rounded.
LEAST_STD = 0.0039

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm", ".pgm"})
ARRAY_SUFFIXES = frozenset({".npy"})
# Numbers of channels that pictures have: grey and RGB.
PICTURE_CHANNELS = (1, 3)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PreprocessSpec:
    """How a picture becomes the model's input. Built once, from the model's own data config.

    Attributes:
        height, width: Size of the model's input in pixels.
        mean, std: Per channel (red, green, blue for three), for values scaled to 0…1; as many as the model has channels.
        interpolation: A key of `RESAMPLING`.
        crop_pct: Share of the resized image that the crop keeps; the image is first resized to size / crop_pct.
        crop_mode: ``center`` keeps the aspect ratio and crops; ``squash`` resizes each side on its own; ``border``
            fits the longer side and pads with the mean.
    """

    height: int
    width: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str
    crop_pct: float
    crop_mode: CropMode = "center"

    def __post_init__(self) -> None:
        if self.height < 1 or self.width < 1:
            raise UsageError(f"The input size is {self.height} x {self.width}; both sides must be at least 1 pixel.")
        if self.interpolation not in RESAMPLING:
            raise UsageError(f"Interpolation {self.interpolation!r} is unknown; use one of {', '.join(RESAMPLING)}.")
        if not 0.1 <= self.crop_pct <= 1:
            raise UsageError(f"crop_pct is {self.crop_pct}; it must be at least 0.1 and at most 1.")
        if not self.mean or len(self.mean) != len(self.std):
            raise UsageError(f"mean {self.mean} and std {self.std} must have one value each for every channel.")
        _check_mean_and_std(self.mean, self.std)
        if self.crop_mode not in ("center", "squash", "border"):
            raise UsageError(f"crop_mode {self.crop_mode!r} is unknown; use center, squash or border.")

    @property
    def channels(self) -> int:
        """Channels of the model's input: 1 grey, 3 RGB; any other number is that of an array."""
        return len(self.mean)

    @property
    def source_channels(self) -> int:
        """Channels of what is preprocessed: a grey model takes RGB pictures too, and makes them grey."""
        return 3 if self.channels == 1 else self.channels

    @property
    def takes_pictures(self) -> bool:
        """Whether Pillow's pictures can be its input; if not, arrays are."""
        return self.channels in PICTURE_CHANNELS

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; `from_json` reads them back."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> PreprocessSpec:
        """Read what `to_json` wrote.

        Raises:
            KeyError, TypeError, ValueError: `data` is not a spec.
        """
        return cls(
            height=int(data["height"]),
            width=int(data["width"]),
            mean=_numbers(data["mean"]),
            std=_numbers(data["std"]),
            interpolation=str(data["interpolation"]),
            crop_pct=float(data["crop_pct"]),
            crop_mode=cast(CropMode, data["crop_mode"]),
        )


def file_suffixes(channels: int) -> frozenset[str]:
    """How the names of files end that a model of so many channels takes."""
    return IMAGE_SUFFIXES if channels in PICTURE_CHANNELS else ARRAY_SUFFIXES


def _check_mean_and_std(mean: tuple[float, ...], std: tuple[float, ...]) -> None:
    """Refuse what no pictures of 0…1 can have, and so is meant for pictures of 0…255, or was divided by 255 twice.

    A model that takes values of 0…255 is legitimate and has a std of 1/255, which is the least.

    Raises:
        UsageError: With the values for 0…1, if these are for 0…255.
    """
    is_mean, is_std = all(0 <= value <= 1 for value in mean), all(LEAST_STD <= value <= 1 for value in std)
    if is_mean and is_std:
        return
    given = {"mean": mean, "std": std}
    wrong = {name: given[name] for name, is_right in (("mean", is_mean), ("std", is_std)) if not is_right}
    told = " and ".join(f"{name} {','.join(f'{value:g}' for value in values)}" for name, values in wrong.items())
    right = {name: tuple(value / 255 for value in values) for name, values in wrong.items()}
    least = {"mean": 0.0, "std": LEAST_STD}
    if all(least[name] <= value <= 1 for name, values in right.items() for value in values):
        cure = " and ".join(f"{name} {_listed(values)}" for name, values in right.items())
        raise UsageError(
            f"{told}: that is for pixel values of 0 to 255; vitexport scales pixels to 0…1 first, and there no mean or "
            f"std is above 1. Divided by 255: {cure}."
        )
    raise UsageError(
        f"{told} cannot be those of pixel values of 0…1: a mean lies between 0 and 1, and a std between 1/255 (for a model "
        "that takes values of 0 to 255) and 1 (no scaling)."
    )


def _listed(values: tuple[float, ...]) -> str:
    return ",".join(f"{value:.4g}" for value in values)


def _numbers(values: Any) -> tuple[float, ...]:
    return tuple(float(value) for value in values)


def load_channels(source: ImageLike, channels: int) -> tuple[Image.Image, ...]:
    """What is resized on its own: one RGB picture, one grey picture, or a grey picture of each channel of an array.

    Args:
        source: As `load_image`; where `channels` is neither 1 nor 3, an array uint8 [height, width, channels] or a path to
            one (``.npy``).
        channels: Of the model's input.

    Raises:
        InputError: As `load_image`; or the array has another shape or type.
    """
    if channels in PICTURE_CHANNELS:
        return (load_image(source, "RGB" if channels == 3 else "L"),)
    array = _load_array(source, channels)
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != channels or 0 in array.shape:
        name = "An array" if isinstance(source, np.ndarray) else f"Array {source}"
        raise InputError(
            f"{name} has shape {array.shape} and type {array.dtype}; expected uint8, [height, width, {channels}]."
        )
    return tuple(Image.fromarray(np.ascontiguousarray(array[:, :, index])) for index in range(channels))


def _load_array(source: ImageLike, channels: int) -> NDArray[Any]:
    if isinstance(source, np.ndarray):
        return source
    what = f"a model of {channels} channels takes arrays, uint8 [height, width, {channels}], or .npy files of such"
    if isinstance(source, Image.Image):
        raise InputError(f"A Pillow image of mode {source.mode} was given; {what}.")
    path = Path(source)
    _check_regular(path, "Array")
    if path.suffix.lower() not in ARRAY_SUFFIXES:
        raise InputError(f"{path} was given; {what}. numpy.save writes them.")
    try:
        # Mapped, not read: a header that lies about its size must not take the memory.
        array: NDArray[Any] = np.load(path, allow_pickle=False, mmap_mode="r")
    except (OSError, ValueError, EOFError, ArithmeticError) as error:
        raise InputError(
            f"{path} is not an array that NumPy can read: {' '.join(str(error).split()).rstrip('.')}."
        ) from None
    return array


def _check_regular(path: Path, what: str) -> None:
    """Refuse what is not there, and what would be waited for without end: a pipe."""
    try:
        if not path.exists():
            raise InputError(f"{what} {str(path)!r} does not exist.")
        if not path.is_file():
            raise InputError(f"{path} is not a regular file.")
    except (OSError, ValueError) as error:  # a name that no file can have
        raise InputError(f"{what} {path} cannot be read: {str(error).rstrip('.')}.") from None


def load_image(source: ImageLike, mode: Literal["RGB", "L"] = "RGB") -> Image.Image:
    """Open a picture as torchvision's folder loader does: ``convert("RGB")``, EXIF orientation not applied.

    Args:
        source: A path; a Pillow image; or an array of uint8, [height, width, 3] RGB or [height, width] grey.
        mode: ``L`` converts to grey instead, as timm's loader does with ``input_img_mode="L"``; an array may then be
            [height, width, 1] too.

    Raises:
        InputError: The file is missing, is not a picture or is cut short, or its grey values do not fit into 8 bits; or the
            array has another shape or type.
    """
    if isinstance(source, Image.Image):
        try:
            return _converted(source, mode)
        except _DECODE_ERRORS as error:
            # Pillow reads the file behind a picture only now.
            raise InputError(f"A Pillow image cannot be read: {error}") from None
    if isinstance(source, np.ndarray):
        grey = source[:, :, 0] if mode == "L" and source.ndim == 3 and source.shape[2] == 1 else source
        grey_or_rgb = grey.ndim == 2 or (grey.ndim == 3 and grey.shape[2] == 3)
        if source.dtype != np.uint8 or not grey_or_rgb or 0 in source.shape:
            raise InputError(
                f"An image array has shape {source.shape} and type {source.dtype}; "
                "expected uint8, [height, width, 3] RGB or [height, width] grey."
            )
        return Image.fromarray(np.ascontiguousarray(grey)).convert(mode)
    _check_regular(Path(source), "Image")
    try:
        with open_picture(source) as image:
            return _converted(image, mode, f"Image {source}")
    except UnidentifiedImageError:
        raise InputError(f"{source} is not an image that Pillow can read.") from None
    except _DECODE_ERRORS as error:
        raise InputError(f"Image {source} cannot be read: {str(error).rstrip('.')}.") from None


@contextlib.contextmanager
def open_picture(source: str | Path | io.BytesIO) -> Iterator[Image.Image]:
    """Pillow's ``open`` without its warning for large pictures: at twice that size it raises, and that is the limit."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        with Image.open(source) as image:
            yield image


def _converted(picture: Image.Image, mode: Literal["RGB", "L"], name: str = "A Pillow image") -> Image.Image:
    if (objection := _beyond_8_bits(picture)) is not None:
        raise InputError(f"{name} {objection}. Convert it to 8 bits first, scaled as the model's training images were.")
    if picture.mode == "P" and isinstance(picture.info.get("transparency"), bytes):
        # The same pixels; Pillow would warn that a palette with transparency is to go through RGBA.
        picture = picture.convert("RGBA")
    return picture.convert(mode)


def _beyond_8_bits(picture: Image.Image) -> str | None:
    """What Pillow would clip without a word, where it would."""
    if picture.mode == "F":
        return "has grey values of floating point, for which there is no agreed range"
    if picture.mode.startswith("I;16"):
        return "has grey values of 16 bits, and all above 255 would become white"
    if picture.mode == "I":
        least, largest = cast("tuple[float, float]", picture.getextrema())
        if least < 0 or largest > _MOST_GREY:
            return f"has grey values from {least:.0f} to {largest:.0f}, and all beyond 0 to 255 would become black or white"
    return None


def to_pixels(image: ImageLike, spec: PreprocessSpec) -> NDArray[np.uint8]:
    """Resize and crop: uint8 [height, width, channels], what the model sees before normalization.

    Raises:
        InputError: As `load_channels`.
    """
    pictures = load_channels(image, spec.channels)
    mean = tuple(round(255 * value) for value in spec.mean)
    if spec.channels == 3:
        return np.asarray(_resized_and_cropped(pictures[0], spec, mean))
    channels = zip(pictures, mean, strict=True)
    return np.stack([np.asarray(_resized_and_cropped(picture, spec, level)) for picture, level in channels], axis=-1)


def _resized_and_cropped(picture: Image.Image, spec: PreprocessSpec, mean: _Colour) -> Image.Image:
    height, width = math.floor(spec.height / spec.crop_pct), math.floor(spec.width / spec.crop_pct)
    resample = RESAMPLING[spec.interpolation]
    if spec.crop_mode == "squash":
        picture = picture.resize((width, height), resample)
        return _center_crop(picture, spec.width, spec.height)
    if spec.crop_mode == "border":
        picture = _resize_keep_ratio(picture, width, height, resample, longest=True)
        return _center_crop(picture, spec.width, spec.height, mean)
    if height == width:
        picture = _resize_shorter_side(picture, height, resample)
    else:
        picture = _resize_keep_ratio(picture, width, height, resample, longest=False)
    return _center_crop(picture, spec.width, spec.height)


def normalize(pixels: NDArray[np.uint8], spec: PreprocessSpec) -> NDArray[np.float32]:
    """uint8 [..., height, width, channels] to float32 [..., channels, height, width]: (value / 255 - mean) / std."""
    scaled = np.moveaxis(pixels, -1, -3).astype(np.float32) / np.float32(255)
    mean = np.asarray(spec.mean, np.float32).reshape(-1, 1, 1)
    std = np.asarray(spec.std, np.float32).reshape(-1, 1, 1)
    return np.ascontiguousarray((scaled - mean) / std)


def preprocess(image: ImageLike, spec: PreprocessSpec) -> NDArray[np.float32]:
    """A picture to the model's input: float32 [channels, height, width].

    Raises:
        InputError: As `load_channels`.
    """
    return normalize(to_pixels(image, spec), spec)


def _resize_shorter_side(picture: Image.Image, side: int, resample: Image.Resampling) -> Image.Image:
    """As torchvision's Resize(int): the shorter side becomes `side`, the longer one is truncated, not rounded."""
    width, height = picture.size
    size = (side, int(side * height / width)) if width <= height else (int(side * width / height), side)
    return picture if size == picture.size else picture.resize(size, resample)


def _resize_keep_ratio(
    picture: Image.Image, width: int, height: int, resample: Image.Resampling, *, longest: bool
) -> Image.Image:
    """As timm's ResizeKeepRatio with longest 0 or 1: both sides scaled by one ratio and rounded."""
    ratios = (picture.height / height, picture.width / width)
    ratio = max(ratios) if longest else min(ratios)
    size = (max(round(picture.width / ratio), 1), max(round(picture.height / ratio), 1))
    return picture.resize(size, resample)


def _center_crop(picture: Image.Image, width: int, height: int, fill: _Colour = 0) -> Image.Image:
    """As torchvision's CenterCrop: pads what is too small, then cuts; offsets are rounded half to even."""
    if picture.width < width or picture.height < height:
        left = max((width - picture.width) // 2, 0)
        top = max((height - picture.height) // 2, 0)
        canvas = Image.new(picture.mode, (max(picture.width, width), max(picture.height, height)), fill)
        canvas.paste(picture, (left, top))
        picture = canvas
    left = round((picture.width - width) / 2.0)
    top = round((picture.height - height) / 2.0)
    return picture.crop((left, top, left + width, top + height))
