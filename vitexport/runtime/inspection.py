"""Input: what TensorRT's engine inspector says of an engine, as JSON; output: what became of each transformer block.

The JSON is `EngineInspector.get_engine_information`'s, or what ``trtexec --exportLayerInfo`` writes. Its layout differs
between releases: 8.x and 10.x give each tensor one ``Format/Datatype`` and name the engine's own tensors in ``Bindings``;
11.x has ``Datatype`` and ``Format`` apart and ``I/O Tensors`` (NVIDIA, Migrating IEngineInspector Usage from TensorRT 10.x
to 11.x). An engine that was not built with detailed profiling verbosity has the layers' names only. 8.x shows all that its
compiler (Myelin) made of a Vision Transformer as one layer, of which nothing can be said
(https://github.com/NVIDIA/TensorRT/issues/3243); later releases list the kernels.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from vitexport.errors import InputError
from vitexport.report import Check, at_least, at_most, skipped

# Names of the checks that `checks` makes: of speed, not of what the engine computes.
CHECKS = ("fused_attention", "int8_layers")
# An INT8 layer that runs wider computes no less exactly, but pays for its Q/DQ without the faster product: of one in ten of
# them the rest of the engine still gains.
LEAST_INT8_PERCENT = 90.0
# Fused attention is documented for FP16 and BF16 heads of 16 to 256 channels, in eights; in INT8 for fewer (TensorRT
# documentation, "Fused Attention").
FUSED_HEADS = range(16, 257, 8)
FUSED_INT8_HEADS = (16, 32, 64)
FUSED_INT8_TOKENS = 512
# How many exceptions a sentence names.
NAMED = 3

# From the narrowest on.
_PRECISIONS = ("INT4", "FP8", "INT8", "BF16", "FP16", "TF32", "FP32")
_TYPES = (
    ("int8", "INT8"),
    ("int4", "INT4"),
    ("fp8", "FP8"),
    ("bf16", "BF16"),
    ("bfloat16", "BF16"),
    ("half", "FP16"),
    ("fp16", "FP16"),
    ("float", "FP32"),
    ("fp32", "FP32"),
)
_OPERANDS = {"i8": "INT8", "e4m3": "FP8", "f8": "FP8", "bf16": "BF16", "f16": "FP16", "f32": "FP32"}
# The first operand's type in the name of a kernel: sm80_xmma_gemm_i8i8_i8i32_f32_tn_…, cutlass3x_…gemm_f8_f8_f32_…
_TACTIC = re.compile(r"_(i8|e4m3|f8|bf16|f16|f32)(?=(?:i8|e4m3|f8|bf16|f16|f32)?_)")
# ampere_h16816gemm_128x64_ldg8_…, turing_int8_i8816…
_OLD_TACTIC = re.compile(r"(?:^|_)(h|i|s)\d+(?:gemm|cudnn)")
_OLD_OPERANDS = {"h": "FP16", "i": "INT8", "s": "FP32"}

_NODE = re.compile(r"\[ONNX Layer: ([^\]]*)\]")
_REFORMAT = re.compile(r"^Reformatting CopyNode for (?:Input|Output) Tensor \d+ to ")
_KERNEL_END = re.compile(r"_myl\d+_\d+$")
_BLOCK = re.compile(r"^(?:.*\.)?(?:(?:blocks?|resblocks|layers?|stages?)(?:\.\d+)+|encoder_layer_\d+)(?=\.|$)")
# Kernels of the compiler are named for what they do: __myl_TranReshMove_…; these only move values, or round them.
_KERNEL = re.compile(r"^__myl_((?:[A-Z][a-z]+)+)")
_MOVES = frozenset(
    ("Move", "Mov", "Tran", "Tra", "Resh", "Res", "Cast", "Cas", "Slic", "Sli", "Repl", "Rep", "Sque", "Squ", "Unsq", "Copy")
)
_REFORMATS = frozenset(("Reformat", "MyelinReformat"))
# Of one node's several layers the one that multiplies says its precision.
_PRODUCTS = re.compile(r"gemm|matrixmultiply|convolution|correlation|fusion|xmma|cutlass", re.IGNORECASE)
_LINEAR = ("MatMul", "Gemm", "Conv")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Tensor:
    """What goes into a layer of the engine, or comes out: its type (``FP16``, empty if not known), and its shape."""

    precision: str
    shape: tuple[int, ...]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """One layer of the engine.

    Attributes:
        name: TensorRT's own.
        kind: For example ``gemm``, ``kgen``, ``Reformat``; empty where only names are known.
        nodes: Names of the ONNX nodes that it computes.
        inputs, outputs: Its tensors, without constants.
        tactic: Name of the kernel, or empty.
    """

    name: str
    kind: str = ""
    nodes: tuple[str, ...] = ()
    inputs: tuple[Tensor, ...] = ()
    outputs: tuple[Tensor, ...] = ()
    tactic: str = ""

    @property
    def is_whole(self) -> bool:
        """Whether it stands for many kernels that are not shown: a compiled subgraph of TensorRT 8, or one on a DLA."""
        return self.kind in ("Myelin", "DLA") or self.name.startswith("{ForeignNode[")

    @property
    def is_reformat(self) -> bool:
        """Whether it only moves values, or rounds them to another type."""
        kernel = _KERNEL.match(self.name)
        if self.kind == "kgen" and kernel is not None:
            return set(re.findall("[A-Z][a-z]+", kernel[1])) <= _MOVES
        # A NoOp has the name of a reformat too, and costs nothing.
        return self.kind in _REFORMATS

    @property
    def precision(self) -> str:
        """What it multiplies in: as its kernel is named, or else the narrowest of its inputs; empty if neither says."""
        found = _TACTIC.search(self.tactic)
        if found is not None:
            return "TF32" if found[1] == "f32" and "tf32" in self.tactic else _OPERANDS[found[1]]
        if (old := _OLD_TACTIC.search(self.tactic)) is not None:
            return _OLD_OPERANDS[old[1]]
        seen = {tensor.precision for tensor in self.inputs}
        return next((precision for precision in _PRECISIONS if precision in seen), "")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Attention:
    """One attention.

    Attributes:
        module: The timm module of its softmax.
        fused: Whether one kernel computes its products and its softmax.
        precision: Of its products; empty if not known.
        head: Channels of a head, and `tokens` that are attended to; None where the shapes do not say.
    """

    module: str
    fused: bool
    precision: str
    head: int | None
    tokens: int | None

    @property
    def is_documented(self) -> bool:
        """Whether TensorRT documents that an attention like this one is fused; False too where that is not known."""
        if self.head is None or self.tokens is None:
            return False
        if self.precision == "INT8":
            return self.head in FUSED_INT8_HEADS and self.tokens <= FUSED_INT8_TOKENS
        return self.precision in ("FP16", "BF16") and self.head in FUSED_HEADS

    def __str__(self) -> str:
        return f"{'fused' if self.fused else 'not fused'}{f', {self.precision}' if self.precision else ''}"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """One transformer block, or (without a name) what is outside of all.

    Attributes:
        name: For example ``blocks.7``.
        attentions: Usually one.
        linear: Precision by timm module of each MatMul, Gemm or Conv that is no product of an attention.
        reformats: Layers that only move values, or round them to another type.
    """

    name: str
    attentions: tuple[Attention, ...]
    linear: Mapping[str, str]
    reformats: int

    def to_json(self) -> dict[str, Any]:
        """Plain values, for a report."""
        by_precision: dict[str, list[str]] = {}
        for module, precision in self.linear.items():
            by_precision.setdefault(precision or "not known", []).append(_within(module, self.name))
        return {
            "attention": "; ".join(dict.fromkeys(map(str, self.attentions))),
            "linear": by_precision,
            "reformats": self.reformats,
        }


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Inspection:
    """What TensorRT made of a network.

    Attributes:
        layers: How many layers the engine has.
        named_only: Whether nothing but their names is known.
        wholes: Layers that stand for many kernels which are not shown.
        unplaced: Fused attentions that their kernels' names tell, and no ONNX node.
        blocks: In the order of the engine, what is outside of them last.
    """

    layers: int
    named_only: bool
    wholes: int
    unplaced: int
    blocks: tuple[Block, ...]

    @property
    def attentions(self) -> list[Attention]:
        """All of them."""
        return [attention for block in self.blocks for attention in block.attentions]

    @property
    def linear(self) -> dict[str, str]:
        """Precision by timm module, of all blocks and what is outside of them."""
        return {module: precision for block in self.blocks for module, precision in block.linear.items()}

    @property
    def reformats(self) -> int:
        """Layers that only move values, or round them."""
        return sum(block.reformats for block in self.blocks)

    @property
    def sentence(self) -> str:
        """For example ``12/12 attentions fused; 47 of 48 linear layers in INT8, mlp.fc2 of blocks.7 in FP32``, and so on."""
        parts = []
        attentions = self.attentions
        if attentions:
            fused = sum(attention.fused for attention in attentions)
            parts.append(f"{fused}/{len(attentions)} attentions fused")
        elif self.unplaced:
            parts.append(f"{self.unplaced} fused attentions, by the names of their kernels")
        if linear := self._linear_sentence():
            parts.append(linear)
        if self.wholes:
            parts.append(f"{self.wholes} of {self.layers} layers are whole subgraphs, of which TensorRT shows nothing")
        if not self.named_only:
            parts.append(f"{self.reformats} reformat{'s' if self.reformats != 1 else ''}")
        return "; ".join(parts) or f"{self.layers} layers, of which only the names are known"

    def _linear_sentence(self) -> str:
        """The commonest precision of the blocks' linear layers, and which have another."""
        inside = {(block.name, module): how for block in self.blocks if block.name for module, how in block.linear.items()}
        if not inside:
            return ""
        [(usual, count)] = Counter(inside.values()).most_common(1)
        others = [
            f"{_within(module, block)} of {block} in {how or 'an unknown type'}"
            for (block, module), how in inside.items()
            if how != usual
        ]
        how_many = f"all {count}" if not others else f"{count} of {len(inside)}"
        more = f" and {len(others) - NAMED} more" if len(others) > NAMED else ""
        return ", ".join([f"{how_many} linear layers in {usual or 'an unknown type'}", *others[:NAMED]]) + more

    def to_json(self) -> dict[str, Any]:
        """Plain values, for a report; `vitexport.report.block_rows` shows them."""
        seen = [block for block in self.blocks if block.attentions or block.linear or block.reformats]
        return {"summary": self.sentence, "blocks": {block.name: block.to_json() for block in seen}}


def inspect_engine(text: str) -> Inspection:
    """Read the inspector's JSON.

    Raises:
        InputError: `text` is something else.
    """
    layers = read_layers(text)
    # Which module of several layers a softmax is in decides what its products are, so all nodes are looked at first.
    visible = [layer for layer in layers if not layer.is_whole]
    nodes = [_split(node) for layer in visible for node in layer.nodes]
    softmax = {module: None for module, operator in nodes if operator == "Softmax" and module}
    names = list(dict.fromkeys(block_of(module) for module, _ in nodes if block_of(module)))
    attentions = [_attention(module, visible) for module in softmax]
    linear = _linear(visible, softmax)
    reformats = Counter(_place(layer) for layer in visible if layer.is_reformat)
    return Inspection(
        layers=len(layers),
        named_only=bool(layers) and not any(layer.kind for layer in layers),
        wholes=len(layers) - len(visible),
        unplaced=sum(_is_attention_kernel(layer) and not layer.nodes for layer in visible),
        blocks=tuple(
            Block(
                name=name,
                attentions=tuple(attention for attention in attentions if block_of(attention.module) == name),
                linear={module: how for module, how in linear.items() if block_of(module) == name},
                reformats=reformats[name],
            )
            for name in (*names, "")
        ),
    )


def read_layers(text: str) -> list[Layer]:
    """The layers of an engine, of any release's layout.

    Raises:
        InputError: `text` is no inspector's JSON.
    """
    try:
        # Names in Metadata are separated by control characters, which some writers leave as they are.
        data = json.loads(text, strict=False)
        return [_layer(entry) for entry in _entries(data["Layers"])]
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise InputError(
            f"This is not what TensorRT's engine inspector writes ({type(error).__name__}: {error}); expected JSON with a "
            "list of Layers, from trtexec --exportLayerInfo=FILE --profilingVerbosity=detailed."
        ) from None


def _entries(layers: Any) -> list[Any]:
    if not isinstance(layers, list):
        raise TypeError(f"Layers is a {type(layers).__name__}")
    return layers


def block_of(module: str) -> str:
    """The transformer block that a timm module is in, for example ``blocks.7`` of ``blocks.7.mlp.fc2``; empty if in none."""
    found = _BLOCK.match(module)
    return found[0] if found else ""


def checks(inspection: Inspection, int8_layers: Collection[str] = ()) -> tuple[Check, ...]:
    """Whether TensorRT made of the network what it was given for. Each has a limit of its own.

    Args:
        inspection: Of the engine.
        int8_layers: timm modules that are to run in INT8; empty if none.
    """
    found = [_fused_check(inspection)]
    if int8_layers:
        found.append(_int8_check(inspection, int8_layers))
    return tuple(found)


def _fused_check(inspection: Inspection) -> Check:
    """No attention is unfused that TensorRT documents to be fused."""
    name, attentions = CHECKS[0], inspection.attentions
    if not attentions:
        return skipped(name, _why_nothing(inspection, "attention"))
    missed = [attention.module for attention in attentions if not attention.fused and attention.is_documented]
    message = inspection.sentence
    if missed:
        more = f" and {len(missed) - NAMED} more" if len(missed) > NAMED else ""
        message += f"; not fused although TensorRT documents it: {', '.join(missed[:NAMED])}{more}"
    elif not all(attention.fused for attention in attentions):
        message += "; TensorRT does not document that the others are fused (their type, head size or number of tokens)"
    return at_most(name, len(missed), 0, message)


def _int8_check(inspection: Inspection, wanted: Collection[str]) -> Check:
    """Layers with Q/DQ are multiplied in INT8."""
    name, linear = CHECKS[1], inspection.linear
    seen = {module: linear[module] for module in wanted if linear.get(module)}
    if not seen:
        return skipped(name, _why_nothing(inspection, "INT8 layer"))
    narrow = [module for module, how in seen.items() if how == "INT8"]
    percent = 100 * len(narrow) / len(seen)
    message = f"{len(narrow)} of {len(seen)} layers of the INT8 recipe are multiplied in INT8"
    if unseen := len(wanted) - len(seen):
        message += f" ({unseen} more are not to be seen in the engine)"
    others = [f"{module} in {how}" for module, how in seen.items() if how != "INT8"]
    if others:
        more = f" and {len(others) - NAMED} more" if len(others) > NAMED else ""
        message += f"; {', '.join(others[:NAMED])}{more}"
    return at_least(name, percent, LEAST_INT8_PERCENT, message, "percent")


def _why_nothing(inspection: Inspection, what: str) -> str:
    if inspection.named_only:
        return f"the engine holds the names of its layers only, so no {what} can be judged; build it with detailed verbosity"
    if inspection.wholes:
        return (
            f"no {what} is to be seen: TensorRT shows {inspection.wholes} of the engine's {inspection.layers} layers as "
            "whole subgraphs (8.x does; 10.0 and later list their kernels)"
        )
    return f"no {what} is to be seen in the engine's {inspection.layers} layers"


# ---- layers


def _layer(entry: Any) -> Layer:
    if isinstance(entry, str):
        return Layer(name=entry, nodes=() if entry.startswith("{ForeignNode[") else _named(entry))
    name = str(entry["Name"])
    nodes = tuple(_NODE.findall(str(entry.get("Metadata") or "")))
    kind = str(entry.get("LayerType", ""))
    if not nodes and kind != "Myelin":
        nodes = _named(name)
    return Layer(
        name=name,
        kind=kind,
        nodes=nodes,
        inputs=_tensors(entry.get("Inputs")),
        outputs=_tensors(entry.get("Outputs")),
        tactic=str(entry.get("TacticName", "")),
    )


def _tensors(entries: Any) -> tuple[Tensor, ...]:
    return tuple(
        Tensor(
            precision=_precision(entry),
            shape=tuple(size for size in entry.get("Dimensions") or () if isinstance(size, int)),
        )
        for entry in entries or ()
        if isinstance(entry, dict)
    )


def _precision(entry: Mapping[str, Any]) -> str:
    """``Half``, ``Int8`` …, or within a sentence: ``Channel major FP16 format where channel % 8 == 0``."""
    said = str(entry.get("Datatype") or entry.get("DataType") or entry.get("Format/Datatype") or "").lower()
    return next((precision for word, precision in _TYPES if word in said), "")


def _named(name: str) -> tuple[str, ...]:
    """The nodes in a layer's own name, where there is nothing better: ``a/Conv + PWN(a/Relu) || b/Conv``."""
    bare = _KERNEL_END.sub("", _REFORMAT.sub("", name))
    words = re.split(r" \+ | \|\| |, ", bare)
    return tuple(word for word in (word.replace("PWN(", "").strip("() ") for word in words) if "/" in word)


def _split(node: str) -> tuple[str, str]:
    """The module of an ONNX node and its operator: ``blocks.7.attn/MatMul.2`` is (``blocks.7.attn``, ``MatMul``)."""
    module, _, operator = node.strip("/").rpartition("/")
    kind = re.match("[A-Za-z]+", operator)
    return module.replace("/", "."), kind[0] if kind else ""


def _within(module: str, block: str) -> str:
    return module.removeprefix(f"{block}.") if block else module


def _place(layer: Layer) -> str:
    """The block that a layer works for: of several the last one, whose input it prepares; empty for none."""
    blocks = [block for node in layer.nodes if (block := block_of(_split(node)[0]))]
    return blocks[-1] if blocks else ""


# ---- attentions and linear layers


def _is_attention_kernel(layer: Layer) -> bool:
    return "mha" in f"{layer.name} {layer.tactic}".lower()


def _belongs(module: str, softmax: str) -> bool:
    """Whether a product without weights in `module` may be one of the attention whose softmax is in `softmax`."""
    return bool(module) and f"{softmax}.".startswith(f"{module}.")


def _attention(module: str, layers: Sequence[Layer]) -> Attention:
    """What became of the attention whose softmax is in `module`."""
    holders, products = [], []
    for layer in layers:
        nodes = [_split(node) for node in layer.nodes]
        own = [operator for place, operator in nodes if operator == "MatMul" and _belongs(place, module)]
        if (module, "Softmax") in nodes:
            holders.append((layer, len(own)))
        if own:
            products.append(layer)
    kernel = next((layer for layer, own in holders if own > 1 or _is_attention_kernel(layer)), None)
    first = kernel or _product(products)
    head, tokens = _shape(first, fused=kernel is not None)
    return Attention(
        module=module, fused=kernel is not None, precision=first.precision if first else "", head=head, tokens=tokens
    )


def _shape(layer: Layer | None, *, fused: bool) -> tuple[int | None, int | None]:
    """Channels of a head, and tokens that are attended to, of the layer that multiplies q with k."""
    shapes = [tensor.shape[-2:] for tensor in layer.inputs if len(tensor.shape) > 2] if layer is not None else []
    results = [tensor.shape[-2:] for tensor in layer.outputs if len(tensor.shape) > 2] if layer is not None else []
    if not shapes or not results or min(*shapes[0], *results[0]) < 1:
        return None, None
    if fused:
        # What leaves is [tokens, channels], what enters that or its transpose.
        return results[0][1], results[0][0]
    # What leaves is [tokens, tokens].
    inner = [size for size in shapes[0] if size not in results[0]]
    return (inner[0] if inner else shapes[0][1]), results[0][1]


def _linear(layers: Sequence[Layer], softmax: Collection[str]) -> dict[str, str]:
    """Precision by module of all products that are none of an attention, in the order of the engine."""
    holders: dict[str, list[Layer]] = {}
    for layer in layers:
        for module, operator in map(_split, layer.nodes):
            if operator in _LINEAR and module and not any(_belongs(module, attention) for attention in softmax):
                holders.setdefault(module, []).append(layer)
    return {module: found.precision for module, own in holders.items() if (found := _product(own)) is not None}


def _product(layers: Iterable[Layer]) -> Layer | None:
    """Of the layers that a product is in the one that multiplies, not what prepares its operands."""
    real = [layer for layer in layers if not layer.is_reformat]
    return next((layer for layer in real if _PRODUCTS.search(f"{layer.kind} {layer.tactic}")), real[0] if real else None)
