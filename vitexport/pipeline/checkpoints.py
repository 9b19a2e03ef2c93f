"""Write samples of what the modules of the float export and of the graph that ships compute, as files of the bundle."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from vitexport.artifacts import BatchRange
from vitexport.pipeline.candidates import Judge
from vitexport.quantize.observe import with_outputs
from vitexport.rewrites import session as open_session
from vitexport.runtime.checkpoints import IMAGES, Checkpoint, Checkpoints, sample, samples_of, write_checkpoints
from vitexport.runtime.model import run_in_batches
from vitexport.stacks import Variant
from vitexport.validate import metrics

# Below this a tensor of the shipped graph is another quantity than the float graph's of the same name: equalization scales
# what LayerNorm and the activations put out, and the factor of a query moves into its weights.
SAME_DB = 10.0


def keep_checkpoints(ours: ir.Model, variant: Variant, judge: Judge) -> dict[str, str]:
    """Write what a device needs to find the first module that departs.

    Args:
        ours: The float graph.
        variant: What ships.
        judge: Has the stack, which says what the engine is compared with, and the golden inputs.

    Returns:
        Role and path of each file.
    """
    with judge.session.watch.stage("checkpoints"):
        theirs = judge.stack.sampled(variant)
        if theirs is None:
            return {}
        found = _shared(ours.graph, theirs.graph)
        images = judge.reference.golden_images[:IMAGES]
        tensors = [tensor for tensor, _ in found]
        values, seen = (_samples(graph, tensors, images, judge.batch) for graph in (ours, theirs))
    decibels = [metrics.sqnr_db(values[:, index], seen[:, index]) for index in range(len(found))]
    kept = [index for index, each in enumerate(decibels) if each >= SAME_DB]
    if not kept:
        return {}
    items = tuple(Checkpoint(tensor=found[index][0], module=found[index][1], built_db=decibels[index]) for index in kept)
    return write_checkpoints(judge.session.folder, Checkpoints(items=items, values=np.ascontiguousarray(values[:, kept])))


def _shared(ours: ir.Graph, theirs: ir.Graph) -> list[tuple[str, str]]:
    """Of each timm module the last tensor that both graphs have, and the module, in the order of the graph."""
    there = {output.name for node in theirs for output in node.outputs if not output.is_graph_output()}
    last: dict[str, str] = {}
    for node in ours:
        module, slash, _ = str(node.name).partition("/")
        output = node.outputs[0]
        if slash and output.name in there and not output.is_graph_output():
            # Taken out first: a module is where its last tensor is.
            last.pop(module, None)
            last[module] = str(output.name)
    return [(tensor, module) for module, tensor in last.items()]


def _samples(model: ir.Model, tensors: Sequence[str], images: NDArray[np.float32], batch: BatchRange) -> NDArray[np.float32]:
    """float32 [images, tensors, samples] of what `model` computes, node by node as it is written."""
    count = samples_of(len(tensors))
    result = np.empty((len(images), len(tensors), count), np.float32)
    if not tensors:
        return result
    backend = open_session(with_outputs(model, tensors), outputs=tensors, exact=True)
    for number in range(len(images)):
        # One after another: all tensors of one image are held at a time.
        computed = run_in_batches(backend, images[number : number + 1], batch)
        for index, tensor in enumerate(tensors):
            result[number, index] = sample(computed[tensor], count)[0]
    return result
