"""Input: a live module and one image; output: every matrix product and convolution that it computes from the image.

What is computed from weights alone is left out: an export folds it into a constant.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakIdKeyDictionary

from vitexport.artifacts import Part, Product

# A product over fewer inputs is not quantized; `vitexport.quantize.place` says why.
FEWEST_INPUTS = 4
aten = torch.ops.aten
CONVOLUTIONS = frozenset({aten.conv1d, aten.conv2d, aten.conv3d, aten.convolution})
MATRIX_PRODUCTS = frozenset({aten.linear, aten.matmul, aten.mm, aten.bmm, aten.addmm, aten.baddbmm})
ATTENTION = aten.scaled_dot_product_attention


def count_products(module: nn.Module, image: torch.Tensor, run: Callable[[], None], *, prefix: str) -> tuple[Product, ...]:
    """The products that `run` computes, in order.

    Args:
        module: What `run` calls with `image`, in inference mode; gives the names.
        image: float32 [1, 3, height, width]: what is computed from it, counts.
        run: Called once.
        prefix: Taken off the names.
    """
    counter = _Counter(image)
    hooks = []
    for name, child in module.named_modules():
        hooks.append(child.register_forward_pre_hook(functools.partial(counter.enter, name.removeprefix(prefix))))
        hooks.append(child.register_forward_hook(counter.leave))
    try:
        with counter:
            run()
    finally:
        for hook in hooks:
            hook.remove()
    return tuple(counter.products)


class _Counter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """In inference mode PyTorch's operators arrive here whole, and not in the parts that they are made of."""

    def __init__(self, image: torch.Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.products: list[Product] = []
        self._image = image
        self._computed: Any = WeakIdKeyDictionary()
        self._computed[image] = True
        self._within = [""]

    def enter(self, name: str, *_: Any) -> None:
        self._within.append(name)

    def leave(self, *_: Any) -> None:
        self._within.pop()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run `func`; what it computes from the image is remembered, and counted if it multiplies."""
        del types
        kwargs = kwargs or {}
        operator = func._overloadpacket  # noqa: SLF001 - how PyTorch's own FlopCounterMode tells operators apart
        if operator not in CONVOLUTIONS | MATRIX_PRODUCTS | {ATTENTION}:
            with self:
                whole = func.decompose(*args, **kwargs)
            if whole is not NotImplemented:
                return whole
        result = func(*args, **kwargs)
        if any(tensor in self._computed for tensor in _tensors((args, kwargs))):
            for tensor in _tensors(result):
                self._computed[tensor] = True
            self._count(operator, args, result)
        return result

    def _count(self, operator: Any, args: Sequence[Any], result: Any) -> None:
        if operator in CONVOLUTIONS:
            self._convolution(args, result)
        elif operator is ATTENTION:
            query, key, value = args[:3]
            scores = query.numel() * key.shape[-2]
            self._add(scores, 0, "attention")
            self._add(scores // query.shape[-1] * value.shape[-1], 0, "attention")
        elif operator in MATRIX_PRODUCTS:
            self._matrix(operator, args, result)

    def _convolution(self, args: Sequence[Any], result: torch.Tensor) -> None:
        kernel = args[1]
        inputs = math.prod(kernel.shape[1:])
        part: Part = "body" if kernel.shape[1] == args[0].shape[1] and inputs >= FEWEST_INPUTS else "other"
        if args[0] is self._image:
            part = "patch"
        self._add(result.numel() * inputs, kernel.numel(), part)

    def _matrix(self, operator: Any, args: Sequence[Any], result: torch.Tensor) -> None:
        left, right = args[1:3] if operator in (aten.addmm, aten.baddbmm) else args[:2]
        fixed = [tensor for tensor in (left, right) if tensor not in self._computed]
        part: Part = "attention"
        if fixed:
            # The head: a product over one token an image, with a bias, which becomes a Gemm.
            single = operator is aten.linear and left.dim() == 2 and len(args) > 2 and args[2] is not None
            enough = right is fixed[0] and right.dim() == 2 and left.shape[-1] >= FEWEST_INPUTS
            part = "head" if single else "body" if enough else "other"
        self._add(result.numel() * left.shape[-1], sum(tensor.numel() for tensor in fixed), part)

    def _add(self, macs: int, weights: int, part: Part) -> None:
        self.products.append(Product(module=self._within[-1], macs=macs, weights=weights, part=part))


def _tensors(value: Any) -> list[torch.Tensor]:
    """All tensors in nested lists, tuples and dicts."""
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, Mapping):
        value = list(value.values())
    return [tensor for item in value for tensor in _tensors(item)] if isinstance(value, (list, tuple)) else []
