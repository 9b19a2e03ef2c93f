"""The opset that the user asks for, and the target with it, or the range that it must lie in."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from vitexport.errors import UsageError
from vitexport.targets.rows import packaged
from vitexport.targets.target import Target, version_key

# The oldest that vitexport lowers a graph to: TensorRT 8.2 of JetPack 4.6 reads it.
OLDEST_OPSET = 13
# ONNX's operator changelog: the first with LayerNormalization, and the first whose Q/DQ takes float16 scales.
LAYERNORM_OPSET = 17
FLOAT16_QDQ_OPSET = 19


def with_opset(target: Target, opset: int, precisions: Sequence[str]) -> Target:
    """`target`, to be written for in `opset`.

    Below opset 17 LayerNormalization is written out. A strongly typed engine would compute its parts in float16, where they
    overflow, so there an opset without the operator is refused.

    Args:
        target: As it was resolved: its own opset is the newest that vitexport writes and its stack documents.
        opset: What was asked for.
        precisions: Those that are to be built.

    Raises:
        UsageError: Outside the range, which the message names with its reason.
    """
    oldest, why = OLDEST_OPSET, f"vitexport writes {OLDEST_OPSET} and newer"
    if target.typing == "strong" and "int8" in precisions:
        oldest = FLOAT16_QDQ_OPSET
        why = f"an INT8 engine of {target.library} needs Q/DQ with float16 scales, which opset {oldest} brought"
    elif target.typing == "strong" and "fp16" in precisions:
        oldest = LAYERNORM_OPSET
        why = f"a float16 engine of {target.library} needs LayerNormalization, which opset {oldest} brought"
    if not oldest <= opset <= target.opset:
        if opset > target.opset:
            why = f"{target.opset} is the newest that vitexport writes for {target.library}"
        valid = f"from {oldest} to {target.opset}" if oldest < target.opset else str(oldest)
        raise UsageError(f"Opset {opset} is refused for {target.name}: {why}. Give one {valid}.")
    return dataclasses.replace(target, opset=opset, layernorm_op=target.layernorm_op and opset >= LAYERNORM_OPSET)


def newest_opset(target: Target) -> int:
    """The newest opset that the parser of `target`'s stack documents, as far as the catalogue knows."""
    rows = packaged()
    if target.runtime == "tensorrt-rtx":
        return rows.rtx.opset_max
    stack = rows.stack_of(target.jetpack) if target.jetpack else None
    if stack is not None:
        return stack.opset_max
    own = version_key(target.tensorrt or "0")
    return max((row.opset_max for row in rows.jetpacks.values() if version_key(row.tensorrt) <= own), default=target.opset)


def refuses_float32_products(target: Target) -> bool:
    """Whether its engine library has no float32 matrix product there, as TensorRT-RTX on Turing."""
    refused = packaged().rtx.fp32_refused
    return target.runtime == "tensorrt-rtx" and not refused.keys().isdisjoint(target.compute_capabilities)
