"""Input: words of a trtexec command and a version of TensorRT; output: those that its trtexec does not read."""

from __future__ import annotations

import functools
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vitexport.errors import InputError, ToolchainError
from vitexport.targets.fields import Fields
from vitexport.targets.target import version_key

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_PATH = Path(__file__).with_name("trtexec.toml")


@functools.lru_cache(maxsize=1)
def options() -> Mapping[str, tuple[str, str | None]]:
    """For each option, without its dashes, the first version that reads it and the first that no longer does.

    Raises:
        InputError: The installed file is missing or damaged.
    """
    try:
        fields = Fields(tomllib.loads(_PATH.read_text(encoding="utf-8")), "trtexec")
        found = {}
        rows: Any = fields.table("options")
        for name in rows:
            row = Fields(rows[name], name)
            found[name] = (row.text("since"), row.optional_text("until"))
            row.finish()
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"{_PATH}: {error} Reinstall vitexport.") from error
    return found


def reads(option: str, tensorrt: str) -> bool:
    """Whether trtexec of TensorRT `tensorrt` reads ``--option``."""
    if option not in options():
        return False
    since, until = options()[option]
    version = version_key(tensorrt)
    return version_key(since) <= version and (until is None or version < version_key(until))


def check_words(words: Sequence[str], tensorrt: str) -> None:
    """Check a command line against what trtexec of TensorRT `tensorrt` reads.

    Raises:
        ToolchainError: It would refuse an option.
    """
    names = [word.removeprefix("--").partition("=")[0] for word in words]
    if unknown := [name for name in names if not reads(name, tensorrt)]:
        raise ToolchainError(
            f"trtexec of TensorRT {tensorrt} does not read --{', --'.join(unknown)}. Build for a newer stack "
            "(`jetpack`), or with `precision=fp32`, which needs no options of its own."
        )
