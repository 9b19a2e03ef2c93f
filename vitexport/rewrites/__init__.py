"""Change an onnx-ir model in one respect, and leave its function alone: one rewrite, one file.

Each is an `onnx_ir.passes.InPlacePass` that states what it needs in ``requires`` and what then holds in ``ensures``.
`apply` runs them in order; a failure names the rewrite and those before it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import onnx
import onnx_ir as ir
from onnx_ir.passes import InPlacePass, PassError, Sequential

from vitexport.artifacts import data_file
from vitexport.errors import InputError, ToolchainError
from vitexport.runtime.backends.onnx_runtime import OnnxRuntimeBackend

# Types that NumPy has itself; the others are left to the message.
_PLAIN = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.INT8, ir.DataType.UINT8, ir.DataType.INT32, ir.DataType.INT64)

# ONNX files are protobuf messages, which end at 2 GB; less room for the graph itself.
LARGEST_FILE = 2**31 - 2**24
# A message is built beside the weights, and its bytes beside that; what only ONNX Runtime reads is spared both from here.
LARGEST_MESSAGE = 2**28

__all__ = ["InPlacePass", "apply", "load", "remove", "save", "session", "stamp", "weight_bytes", "write"]


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
    """Read an ONNX file that `save` wrote; weights in a file beside it stay on disk until they are looked at."""
    model = ir.load(path)
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if isinstance(tensor, ir.TensorProtoTensor) and tensor.dtype in _PLAIN:
            # A tensor that stays in the protobuf message is copied each time that it is looked at.
            value.const_value = ir.tensor(tensor.numpy(), name=tensor.name)
    return model


def save(model: ir.Model, path: Path) -> None:
    """Write `model`, checked by ONNX, in the IR version that its opset came with.

    Weights beyond what one ONNX file holds go to a file of the same name with ``.data`` behind it, which the graph names.

    Raises:
        ToolchainError: ONNX's checker refuses the graph.
    """
    stamp(model)
    write(model, path)
    try:
        # By way of the file: the checker's own copy is then the only one beside the model.
        onnx.checker.check_model(str(path))
    except onnx.checker.ValidationError as error:
        remove(path)
        raise ToolchainError(f"ONNX's checker refuses the graph written to {path.name}: {error}") from error


def stamp(model: ir.Model) -> None:
    """Declare the producer, and the IR version that the opset came with: what is judged is then what ships."""
    opset = model.graph.opset_imports[""]
    model.ir_version = onnx.helper.find_min_ir_version_for([onnx.helper.make_opsetid("", opset)])
    model.producer_name, model.producer_version = "vitexport", None


def write(model: ir.Model, path: Path, *, largest: int | None = None) -> None:
    """Write `model` as it is, unchecked; weights beyond `largest` bytes, or what one file holds, go to a file beside it."""
    if weight_bytes(model) > (LARGEST_FILE if largest is None else largest):
        ir.save(model, path, external_data=data_file(path).name)
    else:
        path.write_bytes(_serialized(model))
        # Of a larger graph that had this name before.
        data_file(path).unlink(missing_ok=True)


def _serialized(model: ir.Model) -> bytes:
    """`model` as one message; weights that are still in a file beside another graph are taken into it."""
    for value in model.graph.initializers.values():
        if isinstance(value.const_value, ir.ExternalTensor):
            value.const_value = ir.tensor(value.const_value.numpy(), name=value.name)
    data: bytes = ir.to_proto(model).SerializeToString(deterministic=True)
    return data


def weight_bytes(model: ir.Model) -> int:
    """Bytes of all constants."""
    return sum(value.const_value.nbytes for value in model.graph.initializers.values() if value.const_value is not None)


def remove(path: Path) -> None:
    """Delete an ONNX file, and its weights beside it."""
    path.unlink(missing_ok=True)
    data_file(path).unlink(missing_ok=True)


def session(
    model: ir.Model, *, outputs: Sequence[str] | None = None, threads: int | None = None, exact: bool = False
) -> OnnxRuntimeBackend:
    """`model` loaded in ONNX Runtime, by way of a file: it keeps the bytes of a model that it is handed.

    Raises:
        InputError: The folder for temporary files is full, or refuses.
        ToolchainError: ONNX Runtime refuses the graph.
    """
    with tempfile.TemporaryDirectory(prefix="vitexport-") as folder:
        path = Path(folder) / "graph.onnx"
        try:
            write(model, path, largest=min(LARGEST_MESSAGE, LARGEST_FILE))
        except OSError as error:
            raise InputError(
                f"A graph of {weight_bytes(model) / 2**20:.0f} MiB cannot be kept in {tempfile.gettempdir()} while it is "
                f"looked at: {error.strerror}. Make room there, or name another folder with TMPDIR."
            ) from error
        return OnnxRuntimeBackend(path, outputs=outputs, threads=threads, exact=exact)
