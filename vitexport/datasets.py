"""Input: a folder of pictures; output: the readable ones, in a fixed order, with their hashes and classes.

Used for calibration (any depth, no classes), for labelled validation (one folder per class) and on the device.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import itertools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from vitexport.errors import InputError
from vitexport.labels import read_labels
from vitexport.preprocess import (
    PICTURE_CHANNELS,
    PreprocessSpec,
    file_suffixes,
    load_channels,
    load_image,
    normalize,
    open_picture,
    to_pixels,
)

# More unreadable images than this share of a folder is taken for a mistake, not for a few bad files.
MAX_UNREADABLE = 0.10
# How many class folders a message names.
SHOWN = 4

ClassOrder = Literal["natural", "string"]

__all__ = [
    "ClassOrder",
    "ImageFile",
    "ImageSet",
    "natural_order",
    "open_images",
    "open_labelled",
    "read_labels",
    "string_order",
]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ImageFile:
    """One readable picture.

    Attributes:
        path: Where it is.
        relative: Its POSIX path under the set's root; what the manifest names it by.
        sha256: Of the file.
        label: Index of its class, or None in an unlabelled set.
    """

    path: Path
    relative: str
    sha256: str
    label: int | None = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ImageSet:
    """Readable pictures in the order of their relative paths.

    Attributes:
        name: Name of the root folder, for reports.
        files: The pictures.
        skipped: Reason by relative path of those that could not be read.
        unused: Readable or not, the pictures under the root that `limit` left out.
        classes: Class names in label order, or None in an unlabelled set.
        targets: Labels (0 or 1) or values of each picture, float32 [n, k]; None in a set that has none.
        target_names: Names of these k, or None.
    """

    name: str
    files: tuple[ImageFile, ...]
    skipped: Mapping[str, str]
    unused: tuple[Path, ...] = ()
    classes: tuple[str, ...] | None = None
    targets: NDArray[np.float32] | None = None
    target_names: tuple[str, ...] | None = None

    @property
    def sha256(self) -> str:
        """Over names, hashes and labels of all files: two sets with the same value hold the same pictures and truth."""
        digest = hashlib.sha256()
        for file in self.files:
            digest.update(f"{file.relative}\0{file.sha256}\0{file.label}\n".encode())
        if self.targets is not None:
            digest.update(self.targets.astype("<f4").tobytes())
        return digest.hexdigest()

    @property
    def labels(self) -> NDArray[np.int64] | None:
        """Class index of each picture, int64 [n]; None in an unlabelled set."""
        if self.classes is None:
            return None
        return np.asarray([file.label for file in self.files], dtype=np.int64)

    def batches(self, spec: PreprocessSpec, size: int, *, whole: bool = False) -> Iterator[NDArray[np.float32]]:
        """Preprocessed pictures, float32 [up to `size`, channels, height, width], one batch in memory at a time.

        With `whole` the last batch is filled up from the beginning of the set, so that a graph which takes no smaller
        one can be run and no picture counts more than one more time (given at least `size` pictures).
        """
        count = len(self.files)
        for start in range(0, count, size):
            end = start + size if whole else min(start + size, count)
            yield normalize(self.pixels(spec, [index % count for index in range(start, end)]), spec)

    def pixels(self, spec: PreprocessSpec, indices: Sequence[int]) -> NDArray[np.uint8]:
        """Resized and cropped pictures, uint8 [len(indices), height, width, channels]."""
        return np.stack([to_pixels(self.files[index].path, spec) for index in indices])


def open_images(root: Path, *, limit: int | None = None, among: Sequence[Path] | None = None, channels: int = 3) -> ImageSet:
    """Every picture below `root` (or only those in `among`), or `limit` of them spread evenly over the sorted paths.

    Each is decoded once here, so that a bad one is known before the slow steps. Of a model of two channels, or of more than
    three, the pictures are arrays (``.npy``).

    Raises:
        InputError: `root` is no folder, holds no picture, or more than 10 % cannot be read.
    """
    paths = _find(root, channels) if among is None else list(among)
    chosen = _spread(paths, limit) if limit is not None else paths
    files, skipped = _read(root, chosen, dict.fromkeys(chosen), channels)
    taken = set(chosen)
    return ImageSet(name=root.name, files=files, skipped=skipped, unused=tuple(path for path in paths if path not in taken))


def check_images(root: Path, channels: int = 3) -> None:
    """Refuse a folder that holds no pictures, without decoding any.

    Raises:
        InputError: `root` is no folder, or holds no picture.
    """
    _find(root, channels)


def open_labelled(  # noqa: PLR0913 - the folder, and all that decides the order of its classes
    root: Path,
    *,
    labels: Sequence[str] | None,
    synsets: Sequence[str] | None,
    classes: int,
    order: ClassOrder | None = None,
    channels: int = 3,
) -> ImageSet:
    """Every picture of a folder with one sub-folder per class.

    Args:
        root: The folder.
        labels: Class names in the order of the logits; the folders must be named after them. None: the folders' own
            names are the classes, in the order that `order` says.
        synsets: Other names that folders may have for the same classes (``n01440764``), in the same order.
        classes: Width of the logits.
        order: How folders without `labels` are sorted; None where both orders are the same.
        channels: As for `open_images`.

    Raises:
        InputError: As `open_images`; or the folders do not match the labels, or are more than the logits; or natural and
            string order differ and neither `labels` nor `order` is given.
    """
    if not root.is_dir():
        raise InputError(f"Data folder {root} does not exist or is not a folder.")
    folders = sorted(path.name for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    if not folders:
        raise InputError(f"Data folder {root} has no sub-folders; expected one folder of images per class.")
    if labels is None:
        labels, synsets = _sorted_classes(root, folders, order, classes), None
    indices_of = _class_order(root, folders, labels, synsets)
    paths = [path for folder in folders for path in _find(root / folder, channels)]
    indices = {path: indices_of[path.relative_to(root).parts[0]] for path in paths}
    files, skipped = _read(root, sorted(paths, key=lambda path: path.relative_to(root).as_posix()), indices, channels)
    return ImageSet(name=root.name, files=files, skipped=skipped, classes=tuple(labels))


def natural_order(names: Iterable[str]) -> list[str]:
    """Sorted as timm sorts class folders: without regard to case, and digits by the number that they write."""
    return sorted(sorted(names), key=_natural_key)


def string_order(names: Iterable[str]) -> list[str]:
    """Sorted as torchvision's ImageFolder sorts class folders: character by character."""
    return sorted(names)


def _natural_key(name: str) -> list[tuple[int, str]]:
    """Text and numbers in turn, always beginning with text, so that two keys can be compared."""
    parts = re.split(r"(\d+)", name.lower())
    return [(int(part), "") if index % 2 else (0, part) for index, part in enumerate(parts)]


def _sorted_classes(root: Path, folders: Sequence[str], order: ClassOrder | None, classes: int) -> list[str]:
    """The folders' names in the order of the logits, where nothing but they say it."""
    if len(folders) != classes:
        raise InputError(
            f"Data folder {root} has {len(folders)} class folders, but the model has {classes} classes. "
            "Give `labels` with the class names in the order of the logits."
        )
    natural, string = natural_order(folders), string_order(folders)
    ties = [pair for pair in itertools.pairwise(natural) if _natural_key(pair[0]) == _natural_key(pair[1])]
    if order == "natural" and ties:
        raise InputError(
            f"Class folders {ties[0][0]!r} and {ties[0][1]!r} in {root} are equal in natural order; timm takes either one "
            "first. Give `labels` with the class names in the order of the logits."
        )
    if order is None and (natural != string or ties):
        start = next((place for place, pair in enumerate(zip(natural, string, strict=True)) if pair[0] != pair[1]), 0)
        raise InputError(
            f"The order of the classes is unknown: the class folders in {root} are {_from(natural, start)} in natural order "
            f"(timm's) and {_from(string, start)} in string order (torchvision's ImageFolder). Give vitexport build "
            "`labels` with the class names in the order of the logits, or `class_order` natural or string, whichever "
            "the model was trained with."
        )
    return natural if order == "natural" else string


def _from(names: Sequence[str], start: int) -> str:
    """A few names, with the one before `start`, where two orders begin to differ."""
    first = max(start - 1, 0)
    shown = names[first : first + SHOWN]
    return f"{'…, ' if first else ''}{', '.join(shown)}{', …' if first + SHOWN < len(names) else ''}"


def _class_order(root: Path, folders: Sequence[str], labels: Sequence[str], synsets: Sequence[str] | None) -> dict[str, int]:
    """Index of the class by name of the folder."""
    for name in folders:
        if labels.count(name) > 1 and name not in (synsets or ()):
            first, second = [index for index, label in enumerate(labels) if label == name][:2]
            raise InputError(
                f"Class folder {name!r} in {root} could be class {first} or {second}, which have that one name. Give "
                "`labels` with a name of its own for each, and name the folders so."
            )
    known = {name: index for names in (synsets or (), labels) for index, name in enumerate(names)}
    strangers = [name for name in folders if name not in known]
    if strangers:
        more = f" and {len(strangers) - 1} more" if len(strangers) > 1 else ""
        raise InputError(
            f"Class folder {strangers[0]!r}{more} in {root} is not among the {len(labels)} labels "
            f"({', '.join(labels[:3])}, …). Rename the folders or give the right `labels`."
        )
    return {name: known[name] for name in folders}


def _find(root: Path, channels: int) -> list[Path]:
    suffixes = file_suffixes(channels)
    if not root.is_dir():
        raise InputError(f"Image folder {root} does not exist or is not a folder.")
    paths = [
        path
        for path in root.rglob("*")
        if path.suffix.lower() in suffixes and not _is_hidden(path.relative_to(root)) and path.is_file()
    ]
    if not paths:
        arrays = "" if channels in PICTURE_CHANNELS else f", arrays uint8 [height, width, {channels}]"
        raise InputError(
            f"Image folder {root} holds no images; expected files ending in {', '.join(sorted(suffixes))}{arrays}."
        )
    return sorted(paths, key=lambda path: path.relative_to(root).as_posix())


def _is_hidden(relative: Path) -> bool:
    """Whether it, or a folder that it is in, has a name with a dot in front: thumbnails, caches, waste baskets."""
    return any(part.startswith(".") for part in relative.parts)


def _spread(paths: Sequence[Path], limit: int) -> list[Path]:
    """`limit` of `paths` at equal steps: sorted class folders are then all represented."""
    if limit >= len(paths):
        return list(paths)
    return [paths[index * len(paths) // limit] for index in range(limit)]


def _read(
    root: Path, paths: Sequence[Path], labels: Mapping[Path, int | None], channels: int
) -> tuple[tuple[ImageFile, ...], dict[str, str]]:
    files: list[ImageFile] = []
    skipped: dict[str, str] = {}
    for path in paths:
        relative = path.relative_to(root).as_posix()
        if (shown := relative.encode("utf-8", "backslashreplace").decode()) != relative:
            # The manifest is UTF-8 and could not name it.
            skipped[shown] = "its name is not UTF-8"
            continue
        try:
            data = path.read_bytes()
            if channels in PICTURE_CHANNELS:
                with open_picture(io.BytesIO(data)) as image:
                    load_image(image)
            else:
                load_channels(path, channels)
        except UnidentifiedImageError:
            # Pillow's own message would hold the address of the buffer.
            skipped[relative] = "not an image that Pillow can read"
            continue
        except (OSError, ValueError, SyntaxError, EOFError, InputError, Image.DecompressionBombError) as error:
            skipped[relative] = " ".join(str(error).split())
            continue
        files.append(ImageFile(path=path, relative=relative, sha256=hashlib.sha256(data).hexdigest(), label=labels[path]))
    if len(skipped) > MAX_UNREADABLE * len(paths):
        first = next(iter(skipped.items()))
        raise InputError(
            f"{len(skipped)} of {len(paths)} images in {root} cannot be read, more than {MAX_UNREADABLE:.0%}; "
            f"the first is {first[0]}: {first[1]}. Mend or remove them."
        )
    return tuple(files), skipped
