"""Input: calibrated layers; output: what each of them alone does to the model's outputs.

The error of a layer's own output is known from calibration for nothing, but says little of what becomes of it: behind one
layer the network averages it away, behind another it is all that the next stage sees. Measuring that takes a graph for each
layer, so it is asked for only where a budget is missed.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnx_ir as ir

from vitexport.artifacts import Outputs
from vitexport.quantize.calibrate import Calibrated, Calibration, first_images
from vitexport.rewrites import apply, session, weight_bytes
from vitexport.rewrites.insert_qdq import InsertQdq
from vitexport.runtime.backends.onnx_runtime import available_threads
from vitexport.runtime.model import join

IMAGES = 4
# Each graph that is looked at is in memory about three times: as it is edited, as it is written, and as it runs.
MEMORY_BYTES = 4 << 30
COPIES = 3


def output_db(work: Calibration, calibrated: Calibrated) -> Mapping[str, float]:
    """SQNR in dB of the worst output with one module in INT8 and all others in float, on the first calibration images.

    By module, and by group of further inputs. The quantized numbers are computed in float, for a CPU's arithmetic too.

    Raises:
        ToolchainError: ONNX Runtime fails.
    """
    model, size = calibrated.folded, work.batch
    images = [first_images(work, start) for start in range(0, IMAGES, size)]
    wanted = _outputs(model, images)
    names = list(dict.fromkeys([*calibrated.modules.values(), *(item.group for item in calibrated.inputs)]))

    def alone(name: str) -> float:
        graph = model.clone()
        layers = [layer for layer in calibrated.layers if calibrated.modules[layer.node] == name]
        inputs = [item for item in calibrated.inputs if item.group == name]
        apply(graph, InsertQdq(layers, inputs, symmetric=work.arithmetic.symmetric))
        return _worst_db(wanted, _outputs(graph, images))

    side_by_side = max(1, min(available_threads(), MEMORY_BYTES // (COPIES * max(weight_bytes(model), 1))))
    with ThreadPoolExecutor(side_by_side) as pool:
        found: dict[str, float] = {}
        for name, decibels in zip(names, pool.map(alone, names), strict=True):
            found[name] = decibels
            work.progress("measuring layers", len(found), len(names))
    return found


def _outputs(model: ir.Model, images: list[np.typing.NDArray[np.float32]]) -> Outputs:
    # One thread each, so that the figures, and the choice by them, do not depend on the machine's number of processors.
    # Node by node: fused into integer operators, Q/DQ saturates on CPUs without VNNI.
    backend = session(model, threads=1, exact=True)
    return join([backend.run(batch) for batch in images])


def _worst_db(wanted: Outputs, seen: Outputs) -> float:
    """Least SQNR of all outputs; minus infinity where one has a NaN."""
    shares = [np.square(seen[name] - values).sum() / max(np.square(values).sum(), 1e-30) for name, values in wanted.items()]
    share = float(np.max(shares))
    return float(-10 * np.log10(max(share, 1e-30))) if np.isfinite(share) else float("-inf")
