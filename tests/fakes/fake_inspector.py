"""What an engine inspector says of the engine that was made of an ONNX graph, in the layout of each generation.

The fields, their names and their order are those of what real ones wrote (tests/data/inspector). TensorRT 8 shows all that
its compiler made of a Vision Transformer as one layer.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from typing import Any

import onnx

SEPARATOR = "\x1f"
FLOATS = {onnx.TensorProto.FLOAT: "Float", onnx.TensorProto.FLOAT16: "Half"}
KERNELS = {
    "Int8": "sm80_xmma_gemm_i8i8_i8i32_f32_tn_n_tilesize64x64x64_stage3_warpsize2x2x1_tensor16x8x32",
    "Half": "sm80_xmma_gemm_f16f16_f16f16_f16_tn_n_tilesize32x32x64_stage6_warpsize2x2x1_tensor16x8x16",
    "Float": "sm80_xmma_gemm_f32f32_f32f32_f32_tn_n_tilesize32x32x64_stage3_warpsize2x2x1",
}


def layer(  # noqa: PLR0917 - as the inspector orders them
    name: str, kind: str, nodes: Sequence[str], inputs: Sequence[Any], outputs: Sequence[Any], tactic: str
) -> dict[str, Any]:
    """One layer in the layout of 10.x; tensors are pairs of a type and dimensions."""
    return {
        "Name": name,
        "LayerType": kind,
        "Inputs": [tensor(f"{name} in {index}", *each) for index, each in enumerate(inputs)],
        "Outputs": [tensor(f"{name} out {index}", *each) for index, each in enumerate(outputs)],
        "TacticName": tactic,
        "StreamId": 0,
        "Metadata": SEPARATOR.join(f"[ONNX Layer: {node}]" for node in nodes),
    }


def tensor(name: str, precision: str, dimensions: Sequence[int]) -> dict[str, Any]:
    return {"Name": name, "Dimensions": list(dimensions), "Format/Datatype": precision}


def linear(module: str, precision: str, operator: str = "MatMul") -> dict[str, Any]:
    """A linear layer with its bias, as one product."""
    nodes = [f"{module}/{operator}", f"{module}/Add"]
    inner = [(precision, (1, 65, 128))]
    name = f"{module.replace('.', '_')}/{operator}_myl0_1"
    return layer(name, "gemm", nodes, inner, [("Half", (1, 65, 128))], KERNELS[precision])


def attention(
    module: str, precision: str, *, fused: bool, head: int = 32, tokens: int = 65, kernel: bool = True
) -> list[dict[str, Any]]:
    """An attention as one kernel, or as four."""
    products = [f"{module}/MatMul", f"{module}/MatMul.2"]
    q, k, scores = (4, tokens, head), (4, head, tokens), (4, tokens, tokens)
    if fused:
        tactic = "_gemm_mha_v2_0x957a2fe283f77dcf35c142c1390a3e6a" if kernel else "__myl_Odd_0x95"
        nodes = [products[0], f"{module}/Softmax", products[1]]
        inputs = [(precision, q), (precision, k), (precision, q)]
        return [layer("_gemm_mha_v2_myl0_2", "kgen", nodes, inputs, [(precision, q)], tactic)]
    softmax = [f"{module}/Softmax"]
    gemm = KERNELS[precision]
    first, second = [(precision, q), (precision, k)], [(precision, scores), (precision, q)]
    return [
        layer(f"{products[0]}_myl0_2", "gemm", products[:1], first, [(precision, scores)], gemm),
        layer("__myl_MaxrSubExpSum_myl0_3", "kgen", softmax, [(precision, scores)], [(precision, scores)], "__myl_Max_0x1"),
        layer("__myl_DivMul_myl0_4", "kgen", softmax, [(precision, scores)], [(precision, scores)], "__myl_DivMul_0x2"),
        layer(f"{products[1]}_myl0_5", "gemm", products[1:], second, [(precision, q)], gemm),
    ]


def layers_of(data: bytes, *, unfused: Collection[str], wide: Collection[str]) -> list[dict[str, Any]]:
    """What becomes of a graph of vitexport's: a gemm for each linear layer, a kernel for each attention, and two moves."""
    graph = onnx.load_from_string(data).graph
    types = {value.name: FLOATS.get(value.type.tensor_type.elem_type, "") for value in graph.value_info}
    producers = {output: node for node in graph.node for output in node.output}
    attentions = [node.name.rpartition("/")[0] for node in graph.node if node.op_type == "Softmax"]
    found = [layer("__myl_Cast_myl0_0", "kgen", ["image/Cast"], [("Float", (1, 3, 32, 32))], [("Half", (1, 3, 32, 32))], "")]
    for node in graph.node:
        module = node.name.rpartition("/")[0]
        if node.op_type in ("MatMul", "Gemm", "Conv") and module not in attentions:
            before = producers.get(node.input[0])
            quantized = before is not None and before.op_type == "DequantizeLinear"
            kind = "Int8" if quantized else types.get(node.output[0]) or "Float"
            found.append(linear(module, "Float" if module in wide else kind, node.op_type))
        elif node.op_type == "Softmax":
            kind = "Float" if module in wide else types.get(node.output[0]) or "Float"
            found.append(layer("__myl_TranReshMove_myl0_1", "kgen", [f"{module}/Transpose"], [], [], "__myl_Tran_0x1"))
            found += attention(module, kind, fused=module not in unfused)
    return found


def say(layers: Sequence[dict[str, Any]], tensors: Sequence[str], *, layout: str, detailed: bool) -> str:
    """The inspector's JSON of a generation: ``8``, ``10`` or ``11``."""
    shown: list[Any] = list(layers)
    if layout == "8" and layers:
        whole = f"{{ForeignNode[{layers[0]['Name']}...{layers[-1]['Name']}]}}"
        ends = {"Inputs": layers[0]["Inputs"], "Outputs": layers[-1]["Outputs"]}
        shown = [{"Name": whole, "LayerType": "Myelin", **ends, "TacticValue": "0x0000000000000000", "Metadata": ""}]
    if layout == "11":
        shown = [_renamed(each) for each in layers]
    if not detailed:
        shown = [each["Name"] for each in shown]
    if layout == "11":
        return json.dumps({"Layers": shown, "I/O Tensors": [{"Name": name, "IOMode": "Input"} for name in tensors]})
    return json.dumps({"Layers": shown, "Bindings": list(tensors)})


def _renamed(each: dict[str, Any]) -> dict[str, Any]:
    """A layer in the layout of 11.x."""
    made: dict[str, Any] = {}
    for key, value in each.items():
        made[key] = value
        if key in ("Inputs", "Outputs"):
            made[key] = [
                {
                    "Name": item["Name"],
                    "Dimensions": item["Dimensions"],
                    "Datatype": item["Format/Datatype"],
                    "Format": "(Linear) Row major linear format",
                }
                for item in value
            ]
        if key == "Inputs":
            made["Constants"] = []
    return made
