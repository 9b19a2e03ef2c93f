"""Input: a mapping read from TOML or JSON; output: its values by name, each of the type that was asked for."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, TypeVar

T = TypeVar("T")


class Fields:
    """Typed access to one mapping that somebody else wrote.

    Every method takes the key; an ``optional_`` method returns None where the key is absent or null.
    All of them raise ValueError with the place, the key, what was seen and what was expected.
    """

    __slots__ = ("_data", "_seen", "where")

    def __init__(self, data: object, where: str) -> None:
        """Take `data`, which `where` names in messages.

        Raises:
            ValueError: `data` is not a mapping with text keys.
        """
        if not isinstance(data, Mapping) or not all(isinstance(key, str) for key in data):
            raise ValueError(f"{where} is {data!r}; expected a table of named values.")
        self._data: Mapping[str, Any] = data
        self._seen: set[str] = set()
        self.where = where

    def wrong(self, key: str, expected: str) -> ValueError:
        """The error for `key`: what stands there, and what was `expected`."""
        seen = repr(self._data[key]) if key in self._data else "missing"
        return ValueError(f"{self.where}: {key} is {seen}; expected {expected}.")

    def has(self, key: str) -> bool:
        """Whether `key` is there and not null."""
        return self._take(key) is not None

    def text(self, key: str) -> str:
        """A text that is not empty."""
        value = self._take(key)
        if not isinstance(value, str) or not value:
            raise self.wrong(key, "a text")
        return value

    def optional_text(self, key: str) -> str | None:
        """A text that is not empty, or None."""
        return self.text(key) if self.has(key) else None

    def flag(self, key: str) -> bool:
        """True or false."""
        value = self._take(key)
        if not isinstance(value, bool):
            raise self.wrong(key, "true or false")
        return value

    def integer(self, key: str) -> int:
        """A positive whole number."""
        value = self._take(key)
        if not isinstance(value, int) or isinstance(value, bool) or value <= 0:
            raise self.wrong(key, "a positive whole number")
        return value

    def number(self, key: str) -> float:
        """A positive finite number, as float."""
        value = self._take(key)
        if not _is_positive(value):
            raise self.wrong(key, "a positive number")
        return float(value)

    def optional_number(self, key: str) -> float | None:
        """A positive finite number, or None."""
        return self.number(key) if self.has(key) else None

    def numbers(self, key: str) -> tuple[float, ...]:
        """A list of positive finite numbers."""
        value = self._take(key)
        if not isinstance(value, (list, tuple)) or not all(_is_positive(item) for item in value):
            raise self.wrong(key, "a list of positive numbers")
        return tuple(float(item) for item in value)

    def named_numbers(self, key: str) -> dict[str, float]:
        """A table of positive finite numbers."""
        value = self._take(key)
        if not isinstance(value, Mapping) or not all(_is_positive(item) for item in value.values()):
            raise self.wrong(key, "a table of positive numbers")
        return {str(name): float(item) for name, item in value.items()}

    def texts(self, key: str) -> tuple[str, ...]:
        """A list of texts that are not empty."""
        value = self._take(key)
        if not isinstance(value, (list, tuple)) or not all(isinstance(item, str) and item for item in value):
            raise self.wrong(key, "a list of texts")
        return tuple(value)

    def named_texts(self, key: str) -> dict[str, str]:
        """A table of texts."""
        value = self._take(key)
        if not isinstance(value, Mapping) or not all(isinstance(item, str) for item in value.values()):
            raise self.wrong(key, "a table of texts")
        return {str(name): item for name, item in value.items()}

    def choice(self, key: str, options: tuple[T, ...]) -> T:
        """One of `options`, of the same type too: 7.0 is not 7."""
        value = self._take(key)
        for option in options:
            if type(value) is type(option) and value == option:
                return option
        raise self.wrong(key, " or ".join(repr(option) for option in options))

    def tables(self, key: str) -> tuple[object, ...]:
        """A list that is not empty; `Fields` checks each of its tables."""
        value = self._take(key)
        if not isinstance(value, list) or not value:
            raise self.wrong(key, "a list of tables")
        return tuple(value)

    def table(self, key: str) -> object:
        """What stands at `key`; `Fields` checks that it is a table."""
        return self._take(key)

    def finish(self) -> None:
        """Refuse keys that nobody asked for: a misspelt optional key would otherwise be ignored.

        Raises:
            ValueError: At least one key was never read.
        """
        unknown = sorted(set(self._data) - self._seen)
        if unknown:
            raise ValueError(f"{self.where}: unknown {', '.join(unknown)}; expected {', '.join(sorted(self._seen))}.")

    def _take(self, key: str) -> Any:
        self._seen.add(key)
        return self._data.get(key)


def _is_positive(value: object) -> bool:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return is_number and math.isfinite(value) and value > 0  # type: ignore[arg-type, operator]
