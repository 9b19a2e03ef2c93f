"""Input: a float graph for ONNX Runtime; output: the same with its large weights kept in float16, half the file.

It computes in float32 as before: each weight is widened by a Cast, which ONNX Runtime does once, when it loads the model
(constant folding, all runtimes from the phone to WebAssembly). A weight that float16 cannot hold stays as it is.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import InPlacePass, PassResult

from vitexport.rewrites.graph import cast, constant, unique_name

# Smaller constants are biases, scales and shapes: nothing is saved, and some of them are statistics.
FEWEST = 1024


class Float16Weights(InPlacePass):
    """Keep every float32 weight of at least `FEWEST` numbers in float16."""

    def call(self, model: ir.Model) -> PassResult:
        """Give each weight another name and type, and its old readers a Cast of it."""
        graph = model.graph
        first = next(iter(graph))
        names = {str(output.name) for node in graph for output in node.outputs} | set(graph.initializers)
        changed = False
        for name, value in list(graph.initializers.items()):
            array = constant(value)
            if array is None or array.dtype != np.float32 or array.size < FEWEST or value.is_graph_output():
                continue
            with np.errstate(over="ignore"):
                half = array.astype(np.float16)
            if not np.isfinite(half).all():
                continue
            uses = list(value.uses())
            del graph.initializers[name]
            kept_name = unique_name(f"{name}.float16", names)
            names.add(kept_name)
            tensor = ir.tensor(half, name=kept_name)
            kept = ir.Value(name=kept_name, type=ir.TensorType(ir.DataType.FLOAT16), shape=value.shape, const_value=tensor)
            graph.register_initializer(kept)
            widened = cast(kept, ir.DataType.FLOAT, name)
            graph.insert_before(first, [widened])
            for use in uses:
                use.node.replace_input_with(use.idx, widened.outputs[0])
            changed = True
        return PassResult(model, modified=changed)
