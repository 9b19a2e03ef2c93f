"""Load names when they are first used: importing a package or a command then imports nothing heavy."""

from __future__ import annotations

import importlib
import sys
import types
from collections.abc import Mapping
from typing import Any


def public_names(package: str, homes: Mapping[str, str]) -> None:
    """Let attributes of a package come from its modules.

    Args:
        package: Name of the package, as in `sys.modules`.
        homes: For each public name the module that defines it.
    """

    class Lazy(types.ModuleType):
        def __getattr__(self, name: str) -> Any:
            if name not in homes:
                raise AttributeError(f"module {package!r} has no attribute {name!r}")
            value = getattr(importlib.import_module(homes[name]), name)
            setattr(self, name, value)
            return value

        def __setattr__(self, name: str, value: Any) -> None:
            # Importing pkg.load sets it as `load` on pkg; whoever asks the package means the function of that name.
            if not (isinstance(value, types.ModuleType) and name in homes):
                super().__setattr__(name, value)

        def __dir__(self) -> list[str]:
            return sorted({*super().__dir__(), *homes})

    sys.modules[package].__class__ = Lazy


class Module:
    """A module that is imported when the first of its names is used.

    Args:
        name: Of the module, from its root package on.
    """

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, name: str) -> Any:
        return getattr(importlib.import_module(self._name), name)
