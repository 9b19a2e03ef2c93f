"""Input: names, shapes and settings of one Triton model; output: its ``config.pbtxt``, in protobuf's text form."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

# A message: its fields in order; a list is a repeated field. Words of an enum are `Word`s, other texts are quoted.
Message: TypeAlias = Mapping[str, Any]


class Word(str):
    """A text that stands without quotes: ``TYPE_FP32``."""

    __slots__ = ()


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Tensor:
    """An input or output of a model.

    Attributes:
        name: In the model.
        data_type: ``TYPE_FP32`` and the like.
        dims: Without the batch where Triton batches; -1 is any size.
        labels: Whether its numbers have names, in ``labels.txt``.
    """

    name: str
    data_type: str
    dims: tuple[int, ...]
    labels: bool = False

    def message(self) -> Message:
        """As Triton's ModelInput or ModelOutput."""
        named = {"label_filename": "labels.txt"} if self.labels else {}
        return {"name": self.name, "data_type": Word(self.data_type), "dims": list(self.dims), **named}


def text_of(message: Message, indent: str = "") -> str:
    """`message` in protobuf's text form, one field a line."""
    lines = []
    for name, value in message.items():
        values = value if isinstance(value, Sequence) and not isinstance(value, str) else [value]
        if isinstance(value, list) and value and all(isinstance(item, int) for item in value):
            lines.append(f"{indent}{name}: [{', '.join(map(str, value))}]")
            continue
        lines += [_field(name, item, indent) for item in values]
    return "\n".join(lines)


def _field(name: str, value: Any, indent: str) -> str:
    if isinstance(value, Mapping):
        inner = text_of(value, indent + "  ")
        return f"{indent}{name} {{\n{inner}\n{indent}}}" if inner else f"{indent}{name} {{}}"
    if isinstance(value, bool):
        return f"{indent}{name}: {str(value).lower()}"
    if isinstance(value, Word) or not isinstance(value, str):
        return f"{indent}{name}: {value}"
    return f"{indent}{name}: {json.dumps(value, ensure_ascii=False)}"


def map_of(entries: Mapping[str, Any]) -> list[Message]:
    """A protobuf map as it stands in text: entries of key and value."""
    return [{"key": key, "value": value} for key, value in entries.items()]
