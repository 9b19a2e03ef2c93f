"""An onnx-ir model enters a rewrite and the same model, changed in one respect, leaves: one rewrite, one file.

Each is an `onnx_ir.passes.InPlacePass` that states what it needs in ``requires`` and what then holds in ``ensures``.
`apply` runs them in order; a failure names the rewrite and those before it.
"""

from __future__ import annotations

from pathlib import Path

import onnx
import onnx_ir as ir
from onnx_ir.passes import InPlacePass, PassError, Sequential

from vitexport.errors import ToolchainError

__all__ = ["InPlacePass", "apply", "load", "save"]


def apply(model: ir.Model, *rewrites: InPlacePass) -> None:
    """Change `model` by each of `rewrites` in turn.

    Raises:
        ToolchainError: A rewrite failed, or its condition does not hold; the model is then not usable.
    """
    try:
        Sequential(*rewrites)(model)
    except PassError as error:
        reasons = [str(error)]
        cause = error.__cause__
        while cause is not None:
            reasons.append(str(cause))
            cause = cause.__cause__
        raise ToolchainError("The ONNX graph could not be rewritten: " + ": ".join(reasons)) from error


def load(path: Path) -> ir.Model:
    """Read an ONNX file that `save` wrote."""
    return ir.from_proto(onnx.load(path))


def save(model: ir.Model, path: Path) -> None:
    """Write `model`, checked by ONNX, in the IR version that its opset came with.

    Raises:
        ToolchainError: ONNX's checker refuses the graph.
    """
    opset = model.graph.opset_imports[""]
    model.ir_version = onnx.helper.find_min_ir_version_for([onnx.helper.make_opsetid("", opset)])
    model.producer_name, model.producer_version = "vitexport", None
    proto = ir.to_proto(model)
    try:
        onnx.checker.check_model(proto)
    except onnx.checker.ValidationError as error:
        raise ToolchainError(f"ONNX's checker refuses the graph written to {path.name}: {error}") from error
    path.write_bytes(proto.SerializeToString(deterministic=True))
