"""The library's messages speak of fields; the command line shows them as options."""

from __future__ import annotations

import ast
import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import ROOT, TINY

from vitexport.api import _PARTS
from vitexport.cli.wording import FIELD, as_options
from vitexport.errors import UsageError
from vitexport.pipeline import BuildRequest, run

# What a build reaches, and what words of trtexec, TensorRT or another command are not in.
ROOMS = (
    *("source", "pipeline", "quantize", "legality", "validate", "apps", "triton", "datasets.py", "annotations.py"),
    *("labels.py", "bundle.py", "export.py", "preprocess.py", "api.py", "golden_check.py"),
)
TARGETS = tuple(f"targets/{name}.py" for name in ("catalogue", "cpu", "preflight", "several"))
PACKAGE = ROOT / "vitexport"
FILES = tuple(path for room in (*ROOMS, *TARGETS) for path in sorted(PACKAGE.glob(room if "." in room else f"{room}/*.py")))


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("give `calibration`.", "give --calibration."),
        ("`max_drop` and `head=none`", "--max-drop and --head none"),
        ("`pretrained=False` or `pretrained`", "--no-pretrained or --pretrained"),
        ("`kwargs` and `out`", "--model-kwarg and --out"),
        ("`force` it; `features=2,5`", "--force it; --features 2,5"),
        ("`vitexport inspect` and `no_such_field`", "`vitexport inspect` and `no_such_field`"),
        ("give `templates` or `queue_delay`", "give --template or --queue-delay"),
        ("nothing here", "nothing here"),
    ],
)
def test_fields_become_options(text: str, shown: str) -> None:
    assert as_options(text) == shown


def messages(path: Path) -> Iterator[str]:
    """The strings of a file that are not docstrings."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    documented = [node.body[0] for node in ast.walk(tree) if isinstance(node, kinds) and node.body]
    docstrings = {id(first.value) for first in documented if isinstance(first, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
            yield node.value


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_message_of_the_library_names_an_option(path: Path) -> None:
    for message in messages(path):
        assert not re.search(r"(?<![\w-])--([a-z]|$)|\bwith -o\b", message), f"{path.name} speaks of an option: {message!r}"


# Those of other commands than build, and of a document that one writes.
OTHERS = {"sweep", "seconds", "instances", "queue_delay"}
NO_FIELDS = {"values"}


def test_every_field_that_a_message_names_is_one() -> None:
    fields = {field.name for part in _PARTS for field in dataclasses.fields(part)} | OTHERS | NO_FIELDS
    named = {match[1] for path in FILES for message in messages(path) for match in FIELD.finditer(message)}
    assert {"calibration", "labels", "force", "head"} <= named
    assert named <= fields


def test_an_error_speaks_of_the_field_in_python(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="give `calibration`") as refused:
        run(BuildRequest(model=TINY, target="cpu", precision="int8", out=tmp_path / "out"))
    assert as_options(str(refused.value)).endswith("give --calibration.")
