"""Input: a graph and a target; output: the rules of the target's engine that the graph breaks.

The graph may come from any tool: nothing is run or compiled, no shape need be known, and what the rules cannot see they
do not judge. `RULES` says each rule with its source; which of them a parser enforces by itself, which it reads over
in silence, was tried with TensorRT-RTX 1.7.1 where the rule says so.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import onnx_ir as ir

from vitexport.errors import InputError, ToolchainError
from vitexport.legality import cpu, numbers, operators, products
from vitexport.legality.rules import ERRORS, RULES, WARNINGS, Level, Violation
from vitexport.legality.view import View, input_of
from vitexport.targets import Target

__all__ = [
    "ERRORS",
    "RULES",
    "WARNINGS",
    "Level",
    "Violation",
    "census",
    "qdq_violations",
    "read_graph",
    "refuse",
    "violations",
]


def violations(model: ir.Model, target: Target) -> tuple[Violation, ...]:
    """Every rule of `target`'s engine that `model` breaks: errors first, each level in graph order.

    Args:
        model: Of any origin; it is not changed. Constants in other files are read where a rule looks at them.
        target: From `vitexport.targets.resolve`.
    """
    view = View(model)
    rules = RULES_OF.get(target.runtime)
    found = list(rules(view, target)) if rules is not None else []
    found += [
        Violation(rule="unreadable", node=name, message=f"cannot be read: {reason}")
        for name, reason in view.unreadable.items()
    ]
    return tuple(sorted(dict.fromkeys(found), key=lambda violation: violation.level))


def _on_tensorrt(view: View, target: Target) -> Iterator[Violation]:
    yield from operators.opset_of_target(view, target)
    for node in view.nodes:
        yield from operators.operator_in_tensorrt(view, node, target)
        yield from numbers.quantized_constants(view, node)
        if numbers.is_pair(node):
            yield from numbers.onnx_numbers(view, node)
            yield from numbers.tensorrt_numbers(view, node)
            yield from numbers.types_on(view, node, target)
        if products.is_product(node):
            yield from products.quantized_product(view, node)
        yield from products.float32_product(view, node, target)
        yield from products.placement(view, node)


def _on_onnxruntime(view: View, target: Target) -> Iterator[Violation]:
    for node in view.nodes:
        yield from operators.operator_in_onnx_runtime(view, node)
        if numbers.is_pair(node):
            yield from numbers.onnx_numbers(view, node)
        if (arithmetic := target.cpu) is not None:
            yield from cpu.saturation(view, node, arithmetic)
    yield from cpu.slow_pairs(view, view.nodes)


# By runtime of the target. One that is not here reads ONNX as it is written, and has no rules of its own.
RULES_OF: Mapping[str, Callable[[View, Target], Iterator[Violation]]] = {
    "onnxruntime": _on_onnxruntime,
    "tensorrt": _on_tensorrt,
    "tensorrt-rtx": _on_tensorrt,
}


def qdq_violations(model: ir.Model, *, symmetric: bool = True) -> tuple[Violation, ...]:
    """The rules about Q/DQ that hold for every TensorRT, in graph order.

    Args:
        model: As for `violations`.
        symmetric: Off for a graph that judges a CPU variant: its types and zero points are then free.
    """
    view = View(model)
    found: list[Violation] = []
    for node in view.nodes:
        if numbers.is_pair(node):
            found += numbers.onnx_numbers(view, node)
            found += numbers.tensorrt_numbers(view, node, symmetric=symmetric)
            found += numbers.quantized_constants(view, node)
        if products.is_product(node):
            for index in (0, 1):
                source = view.source(input_of(node, index))
                if source is not None and source.weight:
                    found += products.weight_axis(view, node, index, source)
    return tuple(dict.fromkeys(found))


def refuse(model: ir.Model, target: Target) -> None:
    """Let no graph of ours pass that breaks a rule.

    Raises:
        ToolchainError: `model` breaks one with level ``error``; the message names the rule, the node and their number.
    """
    errors = [violation for violation in violations(model, target) if violation.level == "error"]
    if errors:
        first, more = errors[0], len(errors) - 1
        raise ToolchainError(
            f"The graph that was written for {target.name} breaks the rule {first.rule}: {first.node} {first.message}"
            f"{f' (and {more} more violations)' if more else ''}. The rule: {first.demand} "
            "This is a defect of vitexport; another `precision` may avoid it."
        )


def census(model: ir.Model) -> Mapping[str, int]:
    """How the products of `model` are computed, and how many there are of each kind, the most frequent first."""
    view = View(model)
    counts: Counter[str] = Counter()
    for node in view.nodes:
        if products.is_product(node):
            counts[f"{node.op_type} {_kind(view, node)}"] += 1
        elif node.op_type in operators.INTEGER:
            counts[node.op_type] += 1
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def _kind(view: View, node: ir.Node) -> str:
    sources = [view.source(input_of(node, index)) for index in (0, 1)]
    found = [source for source in sources if source is not None]
    if not found:
        return "in float"
    if len(found) == 1:
        return "with a quantized weight only" if found[0].weight else "with a quantized activation only"
    weights = [source for source in found if source.weight]
    if not weights:
        return "of two quantized activations"
    shape = view.shape(input_of(weights[0].dequantize, 1))
    return "quantized per tensor" if shape is None or all(size == 1 for size in shape) else "quantized per channel"


def read_graph(path: Path) -> ir.Model:
    """Read an ONNX file that any tool wrote; data in other files stays there until a rule looks at it.

    Raises:
        InputError: There is no such file, or it holds no ONNX graph; one sentence.
    """
    if not path.is_file():
        raise InputError(f"{path} {'is not a file' if path.exists() else 'does not exist'}; give an ONNX model.")
    try:
        model = ir.load(path, format="protobuf")
        empty = not len(model.graph) and not model.graph.outputs
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}.") from error
    except Exception as error:  # whatever protobuf or onnx-ir raise on a foreign file
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        raise InputError(f"{path} is not a whole ONNX model ({reason}). Export it again, or copy it again.") from error
    if empty:
        raise InputError(f"{path} holds no ONNX graph ({path.stat().st_size} bytes). Give a file that a tool exported.")
    return model
