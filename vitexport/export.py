"""Export a live module to a float graph in the target's opset."""

from __future__ import annotations

import gc

import onnx_ir as ir
import torch
from onnx_ir.passes.common import RemoveUnusedNodesPass
from torch import nn

from vitexport.artifacts import INPUT_NAME, BatchRange, ModelSource
from vitexport.errors import InputError, ToolchainError
from vitexport.quiet import quiet
from vitexport.rewrites import InPlacePass, apply, stamp
from vitexport.rewrites.lower_col2im import LowerCol2Im
from vitexport.rewrites.lower_gelu import LowerGelu
from vitexport.rewrites.lower_layernorm import LowerLayerNorm
from vitexport.rewrites.lower_opset import LowerOpset
from vitexport.rewrites.module_names import ModuleNames
from vitexport.rewrites.scale_query import ScaleQuery
from vitexport.rewrites.simplify import Simplify

# The oldest opset with a Gelu operator, and the newest that TensorRT 10.3 (JetPack 6.1) parses.
EXPORT_OPSET = 20
# `vitexport.source` wraps the model, to choose its outputs; the graph carries the names of the model's own modules.
WRAPPED = "model."


def export_graph(model: nn.Module, source: ModelSource, *, opset: int, layernorm_op: bool, batch: BatchRange) -> ir.Model:
    """The float graph of `model`, whose weights it shares where nothing had to be computed of them.

    Args:
        model: In eval mode, as `vitexport.source.load` returns it.
        source: Its description; gives the input size.
        opset: 13 to 20.
        layernorm_op: Whether the target's parser knows LayerNormalization; if not, it is written out.
        batch: A range gives a symbolic first dimension, one size a static graph.

    Raises:
        ToolchainError: PyTorch's exporter failed, or the graph cannot be written in `opset`.
    """
    exported = _trace(model, source, batch)
    _check_batch(exported, source, batch)
    rewrites: list[InPlacePass] = [
        Simplify(),
        ModuleNames(dict(model.named_modules()), prefix=WRAPPED),
        LowerCol2Im(),
        ScaleQuery(),
    ]
    if opset < 20:
        rewrites.append(LowerGelu())
    if not layernorm_op:
        rewrites.append(LowerLayerNorm())
    if opset < EXPORT_OPSET:
        rewrites.append(LowerOpset(opset))
    apply(exported, *rewrites)
    RemoveUnusedNodesPass()(exported)
    stamp(exported)
    return exported


def _trace(model: nn.Module, source: ModelSource, batch: BatchRange) -> ir.Model:
    spec = source.preprocess
    # A traced batch of 1 would be taken for a constant; two is the smallest size that stays symbolic.
    example = torch.zeros(2 if batch.is_dynamic else batch.minimum, spec.channels, spec.height, spec.width)
    shapes = ({0: torch.export.Dim("batch", min=1, max=max(batch.maximum, 2))},) if batch.is_dynamic else None
    try:
        with quiet("torch.onnx", "onnxscript", "torch.export", "onnx_ir"):
            program = torch.onnx.export(
                model,
                (example,),
                dynamo=True,
                opset_version=EXPORT_OPSET,
                input_names=[INPUT_NAME],
                output_names=[output.name for output in source.outputs],
                dynamic_shapes=shapes,
                optimize=False,
                verbose=False,
            )
    except MemoryError:
        raise
    except Exception as error:
        # The exporter wraps whatever it meets, and its message is pages long; the first line says which step failed.
        lines = [line.strip() for line in str(error.__cause__ or error).splitlines() if line.strip()]
        raise ToolchainError(
            f"PyTorch {torch.__version__} cannot export {source.name} with batch {batch}: "
            f"{lines[0] if lines else type(error).__name__}"
        ) from error
    if program is None:
        raise ToolchainError(f"PyTorch {torch.__version__} returned nothing for {source.name}.")
    exported: ir.Model = program.model
    del program
    gc.collect()
    return exported


def _check_batch(exported: ir.Model, source: ModelSource, batch: BatchRange) -> None:
    """Check the exported input against the batch: what forward turns into a Python number is a constant there."""
    shape = exported.graph.inputs[0].shape
    if batch.is_dynamic and shape is not None and isinstance(shape[0], int):
        raise InputError(
            f"The forward of {source.name} turns the batch size into a constant, as len(image) or int(...) do: the export "
            f"takes batches of {shape[0]} alone. Use image.shape[0] there, or build with one batch size instead of {batch}."
        )
