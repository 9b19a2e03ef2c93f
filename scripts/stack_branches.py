#!/usr/bin/env python3
"""Count where the package asks which runtime stack it works for, outside of the rooms whose business that is.

Usage: scripts/stack_branches.py [--list]

What counts is a comparison with the name of a stack, a kind of device or a typing ("cpu", "tensorrt-rtx", "weak" …), and a
condition on ``target.app``, ``.typing`` or ``.cpu``. PyTorch's ``device.type`` does not, nor do capabilities that a target
or a stack states (``loads_graph``, ``is_timed``): a new stack answers them in its own file. The rooms are
`vitexport/stacks` and `vitexport/targets`.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("stacks", "targets")
NAMES = frozenset({"cpu", "gpu", "jetson", "onnxruntime", "tensorrt", "tensorrt-rtx", "strong", "weak"})
FACTS = frozenset({"app", "typing", "cpu"})


def branches(tree: ast.AST) -> Iterator[int]:
    """Lines of what counts."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare):
            # PyTorch's devices have the names of some of ours.
            sides = [node.left, *node.comparators] if ast.unparse(node.left).rpartition(".")[2] != "type" else []
            if any(_names_stack(side) for side in sides) or (_is_fact(node.left) and _is_none(node.comparators[0])):
                yield node.lineno
        tested = [node.test] if isinstance(node, (ast.If, ast.IfExp, ast.While)) else []
        tested += node.values if isinstance(node, ast.BoolOp) else []
        tested += [node.operand] if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not) else []
        yield from (test.lineno for test in tested if _is_fact(test))


def _names_stack(node: ast.expr) -> bool:
    if isinstance(node, (ast.Tuple, ast.List, ast.Set)):
        return any(_names_stack(entry) for entry in node.elts)
    return isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value in NAMES


def _is_fact(node: ast.expr) -> bool:
    """``target.app`` and the like, or a variable ``cpu``."""
    if isinstance(node, ast.Attribute):
        return node.attr in FACTS
    return isinstance(node, ast.Name) and node.id == "cpu"


def _is_none(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is None


def main() -> None:
    """Print the count, and with ``--list`` each place."""
    total = 0
    for path in sorted((ROOT / "vitexport").rglob("*.py")):
        relative = path.relative_to(ROOT / "vitexport")
        if relative.parts[0] in ROOMS or "templates" in relative.parts:
            continue
        text = path.read_text(encoding="utf-8")
        lines = sorted(branches(ast.parse(text)))
        total += len(lines)
        if "--list" in sys.argv[1:]:
            for line in lines:
                print(f"vitexport/{relative}:{line}: {text.splitlines()[line - 1].strip()}")
    print(f"{total} branches on the stack outside of {' and '.join(ROOMS)}")


if __name__ == "__main__":
    main()
