"""Input: a live module; output: the same function, in the form that exports to operators which engines fuse.

Whatever is changed here is checked against what the untouched module computed.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from vitexport.errors import ToolchainError

# Another order of summation is all that may differ.
SAME = 1e-4


def make_exportable(module: nn.Module, image: torch.Tensor, outputs: Sequence[torch.Tensor]) -> None:
    """Change `module` in place.

    Args:
        module: In eval mode.
        image: float32 [1, 3, height, width].
        outputs: What the module computed for it.

    Raises:
        ToolchainError: It computes something else afterwards.
    """
    unfuse_attention(module)
    with torch.inference_mode():
        after = module(image)
    for before, now in zip(outputs, after, strict=True):
        difference = float((now - before).abs().max()) / max(float(before.abs().max()), 1e-30)
        if not difference <= SAME:
            raise ToolchainError(
                f"The form of {type(module).__name__} that exports computes something else: {difference:.1e} of its largest "
                f"output, expected at most {SAME:.0e}. This is a defect of vitexport."
            )


def unfuse_attention(model: nn.Module) -> None:
    """Export attention as scale → MatMul → Softmax → MatMul, the pattern that TensorRT and ONNX Runtime fuse.

    PyTorch's decomposition of scaled_dot_product_attention scales q and k separately and reshapes k through a chain of
    Shape and Slice operators; no upstream issue was found that would change it.
    """
    for module in model.modules():
        if hasattr(module, "fused_attn"):
            setattr(module, "fused_attn", False)  # noqa: B010 - nn.Module types every attribute as a tensor
