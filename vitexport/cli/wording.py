"""Messages of the library speak of fields, in backquotes; the command line's user knows them as options.

The field max_drop becomes --max-drop, head=none becomes --head none, and pretrained=False becomes --no-pretrained; what no
option fills stays as it is.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping

import click

FIELD = re.compile(r"`([a-z][a-z_0-9]*)(?:=([^`\s]+))?`")
# Fields that an option fills under another name.
RENAMED = {"kwargs": "model_kwargs"}


def as_options(text: str) -> str:
    """`text` with every field that an option fills written as that option."""
    return FIELD.sub(_option, text)


def _option(match: re.Match[str]) -> str:
    name, value = match.groups()
    option = _options().get(RENAMED.get(name, name))
    if option is None:
        return match[0]
    if option.is_flag or option.secondary_opts:
        return _longest(option.secondary_opts) if value == "False" and option.secondary_opts else _longest(option.opts)
    return _longest(option.opts) if value is None else f"{_longest(option.opts)} {value}"


def _longest(spellings: list[str]) -> str:
    return max(spellings, key=len)


@functools.cache
def _options() -> Mapping[str, click.Option]:
    """By field: those of ``build`` first, which most messages are about."""
    from vitexport.cli.commands import cli

    commands = sorted(cli.commands.values(), key=lambda command: command.name != "build")
    found: dict[str, click.Option] = {}
    for command in commands:
        for parameter in command.params:
            if isinstance(parameter, click.Option):
                found.setdefault(str(parameter.name), parameter)
    return found
