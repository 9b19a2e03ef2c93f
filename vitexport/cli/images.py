"""Find the pictures that files, folders and patterns of a command line mean, in a stable order."""

from __future__ import annotations

import glob
from collections.abc import Sequence
from pathlib import Path

from vitexport.errors import InputError
from vitexport.preprocess import IMAGE_SUFFIXES


def find_pictures(words: Sequence[str]) -> list[str]:
    """The pictures that each word means, in the order of the words.

    A file is itself. Of a folder every picture below it is meant, by the end of its name, and of a pattern (``*``, ``?``,
    ``[…]``; ``**`` for folders of any depth) every file that fits; both sorted, without names that begin with a dot.

    Raises:
        InputError: A word means nothing.
    """
    return [picture for word in words for picture in _of(word)]


def _of(word: str) -> list[str]:
    path = Path(word)
    if path.is_dir():
        found = [below for below in path.rglob("*") if below.suffix.lower() in IMAGE_SUFFIXES and below.is_file()]
        shown = [below for below in found if not any(part.startswith(".") for part in below.relative_to(path).parts)]
        if not shown:
            raise InputError(f"Folder {word} holds no images; expected files ending in {', '.join(sorted(IMAGE_SUFFIXES))}.")
        return [str(below) for below in sorted(shown, key=lambda below: below.relative_to(path).as_posix())]
    if not path.exists() and glob.has_magic(word):
        matched = sorted(name for name in glob.glob(word, recursive=True) if Path(name).is_file())  # noqa: PTH207 - takes ~/
        if not matched:
            raise InputError(f"No file matches {word!r}; ** stands for folders of any depth, as in 'photos/**/*.jpg'.")
        return matched
    if not path.exists():
        raise InputError(f"Image {word!r} does not exist.")
    return [word]
