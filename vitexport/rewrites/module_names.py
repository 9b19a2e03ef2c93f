"""Input: a fresh export; output: its nodes and values under the names of the timm modules they came from."""

from __future__ import annotations

import ast
from collections.abc import Collection

import onnx_ir as ir
from onnx_ir.passes import InPlacePass, PassResult, PostconditionError

from vitexport.artifacts import INPUT_NAME
from vitexport.rewrites.graph import unique_name

SCOPES_KEY = "pkg.torch.onnx.name_scopes"


class ModuleNames(InPlacePass):
    """Rename ``node_MatMul_12`` to ``blocks.0.attn.qkv/MatMul`` and drop the exporter's metadata.

    The metadata holds stack traces with paths of the machine that exported, so it must not ship.

    Args:
        modules: Names of all modules of the live model; the innermost one in a node's scope names the node.
        prefix: What all names of modules and parameters begin with, and lose.
    """

    def __init__(self, modules: Collection[str], prefix: str = "") -> None:
        self.modules = frozenset(modules)
        self.prefix = prefix
        self._interface: tuple[list[str], list[str]] = ([], [])

    def call(self, model: ir.Model) -> PassResult:
        """Rename in graph order, so that the same model always gets the same names."""
        graph = model.graph
        outputs = {str(value.name) for value in graph.outputs}
        self._interface = ([INPUT_NAME], [str(value.name) for value in graph.outputs])
        for name, value in list(graph.initializers.items()):
            if self.prefix and name.startswith(self.prefix):
                del graph.initializers[name]
                value.name = name.removeprefix(self.prefix)
                graph.register_initializer(value)
        taken: set[str] = {*graph.initializers, INPUT_NAME, *outputs}
        for node in graph:
            module = self._module(node)
            node.name = unique_name(f"{module}/{node.op_type}" if module else node.op_type, taken)
            taken.add(node.name)
            for index, output in enumerate(node.outputs):
                if not output.is_graph_output():
                    output.name = node.name if index == 0 else f"{node.name}:{index}"
            _name_constants(graph, node, module, taken)
        _clear_metadata(model)
        return PassResult(model, modified=True)

    def ensures(self, model: ir.Model) -> None:
        """Names are unique and the graph's interface kept its own."""
        names = [node.name for node in model.graph]
        if len(set(names)) != len(names):
            raise PostconditionError("two nodes have the same name")
        interface = ([value.name for value in model.graph.inputs], [value.name for value in model.graph.outputs])
        if interface != self._interface:
            raise PostconditionError(f"inputs and outputs are {interface}, expected {self._interface}")

    def _module(self, node: ir.Node) -> str:
        scopes = ast.literal_eval(node.metadata_props.get(SCOPES_KEY, "[]"))
        known = [scope for scope in scopes if scope in self.modules and scope.startswith(self.prefix)]
        return known[-1].removeprefix(self.prefix) if known else ""


def _name_constants(graph: ir.Graph, node: ir.Node, module: str, taken: set[str]) -> None:
    """Give exporter-made constants (``val_13``) a name that says who reads them; parameters keep theirs."""
    for index, value in enumerate(node.inputs):
        if value is None or value.name not in graph.initializers or not str(value.name).startswith("val_"):
            continue
        is_weight = bool(module) and node.op_type in ("MatMul", "Gemm", "Conv") and index == 1
        # The exporter stores the weight of a linear layer transposed, as MatMul takes it: [in, out].
        name = f"{module}.weight" if is_weight else f"{node.name}.input{index}"
        old = str(value.name)
        value.name = unique_name(name, taken)
        taken.add(value.name)
        if old in graph.initializers:
            del graph.initializers[old]
            graph.register_initializer(value)


def _clear_metadata(model: ir.Model) -> None:
    model.metadata_props.clear()
    model.doc_string = None
    model.graph.metadata_props.clear()
    model.graph.doc_string = None
    model.graph.name = "vitexport"
    for value in (*model.graph.inputs, *model.graph.outputs, *model.graph.initializers.values()):
        value.metadata_props.clear()
    for node in model.graph:
        # The exporter keeps PyTorch's whole traced program here.
        node.meta.clear()
        node.metadata_props.clear()
        node.doc_string = None
        for output in node.outputs:
            output.metadata_props.clear()
