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

# Types that NumPy has itself; the others are left to the message.
_PLAIN = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.INT8, ir.DataType.UINT8, ir.DataType.INT32, ir.DataType.INT64)

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
    model = ir.from_proto(onnx.load(path))
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if isinstance(tensor, ir.TensorProtoTensor) and tensor.dtype in _PLAIN:
            # A tensor that stays in the protobuf message is copied each time that it is looked at.
            value.const_value = ir.tensor(tensor.numpy(), name=tensor.name)
    return model


def save(model: ir.Model, path: Path) -> None:
    """Write `model`, checked by ONNX, in the IR version that its opset came with.

    Raises:
        ToolchainError: ONNX's checker refuses the graph.
    """
    opset = model.graph.opset_imports[""]
    model.ir_version = onnx.helper.find_min_ir_version_for([onnx.helper.make_opsetid("", opset)])
    model.producer_name, model.producer_version = "vitexport", None
    data = ir.to_proto(model).SerializeToString(deterministic=True)
    try:
        onnx.checker.check_model(data)
    except onnx.checker.ValidationError as error:
        raise ToolchainError(f"ONNX's checker refuses the graph written to {path.name}: {error}") from error
    path.write_bytes(data)
