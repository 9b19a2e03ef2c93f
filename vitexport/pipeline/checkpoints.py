"""The float export and the graph that ships enter; samples of what their modules compute leave, as files of the bundle."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from vitexport.artifacts import OnnxModel
from vitexport.pipeline.candidates import Candidate, float16_twin
from vitexport.pipeline.work import Reference, Work
from vitexport.preprocess import normalize
from vitexport.quantize.observe import with_outputs
from vitexport.rewrites import load, remove, session
from vitexport.runtime.checkpoints import IMAGES, Checkpoint, Checkpoints, sample, samples_of, write_checkpoints
from vitexport.runtime.model import run_in_batches
from vitexport.validate import metrics

# Below this a tensor of the shipped graph is another quantity than the float graph's of the same name: equalization scales
# what LayerNorm and the activations put out, and the factor of a query moves into its weights.
SAME_DB = 10.0


def keep_checkpoints(
    work: Work, exported: Path, shipped: OnnxModel, chosen: Candidate, reference: Reference
) -> dict[str, str]:
    """Write what a device needs to find the first module that departs; role and path of each file leave.

    Args:
        work: Of this build.
        exported: The float graph.
        shipped: The graph that the engine is built from.
        chosen: What ships, with the nodes that stay float32.
        reference: Has the golden inputs.
    """
    target = work.prepared.target
    if target.typing is None:
        return {}
    with work.watch.stage("checkpoints"):
        judged = shipped.path
        if target.typing == "weak" and shipped.precision != "fp32":
            # The graph says nothing of the float16 that such an engine computes in.
            judged = float16_twin(work, shipped, shipped.precision, chosen.stay_float32)
        ours, theirs = load(exported), load(judged)
        found = _shared(ours.graph, theirs.graph)
        images = normalize(reference.golden_pixels[:IMAGES], work.prepared.source.preprocess)
        tensors = [tensor for tensor, _ in found]
        values = _samples(work, ours, tensors, images)
        seen = _samples(work, theirs, tensors, images)
        if judged != shipped.path:
            remove(judged)
    decibels = [metrics.sqnr_db(values[:, index], seen[:, index]) for index in range(len(found))]
    kept = [index for index, each in enumerate(decibels) if each >= SAME_DB]
    if not kept:
        return {}
    items = tuple(Checkpoint(tensor=found[index][0], module=found[index][1], built_db=decibels[index]) for index in kept)
    return write_checkpoints(work.folder, Checkpoints(items=items, values=np.ascontiguousarray(values[:, kept])))


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


def _samples(work: Work, model: ir.Model, tensors: Sequence[str], images: NDArray[np.float32]) -> NDArray[np.float32]:
    """float32 [images, tensors, samples] of what `model` computes, node by node as it is written."""
    count = samples_of(len(tensors))
    result = np.empty((len(images), len(tensors), count), np.float32)
    if not tensors:
        return result
    backend = session(with_outputs(model, tensors), outputs=tensors, exact=True)
    for number in range(len(images)):
        # One after another: all tensors of one image are held at a time.
        computed = run_in_batches(backend, images[number : number + 1], work.request.batch)
        for index, tensor in enumerate(tensors):
            result[number, index] = sample(computed[tensor], count)[0]
    return result
