"""Input: a trained ViT; output: the same function with a few channels made large, as trained ViTs at scale have them.

Behind each LayerNorm, γ and β of some channels are multiplied by a factor and the columns of qkv or fc1 that read them are
divided by it; rows of v in qkv are multiplied, and the columns of proj that read them divided. Every factor is a power of
two, so float32 rounds nothing that it did not round before.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor, nn

SEED = 0


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Outliers:
    """How many channels of each tensor are made large, and by what: a channel for each factor.

    Attributes:
        norm: Factors of channels behind each LayerNorm.
        values: Factors of channels of v.
    """

    norm: tuple[float, ...]
    values: tuple[float, ...]


# Measured in pretrained ViTs are channels 20 to 1000 times as large as the others.
MODERATE = Outliers(norm=(16.0, 32.0, 64.0), values=(16.0,))
EXTREME = Outliers(norm=(64.0, 256.0, 1024.0), values=(16.0, 64.0))


def scale_channels(model: nn.Module, outliers: Outliers) -> dict[str, dict[int, float]]:
    """Rescale `model` (a timm ``VisionTransformer``) in place; returns the factor of each channel by the tensor's name.

    The channels are drawn anew for each tensor, from a fixed seed.
    """
    generator = torch.Generator().manual_seed(SEED)
    chosen: dict[str, dict[int, float]] = {}
    with torch.no_grad():
        for index, block in enumerate(model.get_submodule("blocks").children()):
            for norm, reader in (("norm1", "attn.qkv"), ("norm2", "mlp.fc1")):
                factors = _draw(outliers.norm, block.get_parameter(f"{norm}.weight").shape[0], generator)
                _scale_norm(block, norm, reader, factors)
                chosen[f"blocks.{index}.{norm}"] = factors
            factors = _draw(outliers.values, block.get_parameter("attn.proj.weight").shape[1], generator)
            _scale_values(block, factors)
            chosen[f"blocks.{index}.attn.v"] = factors
    return chosen


def _draw(factors: tuple[float, ...], channels: int, generator: torch.Generator) -> dict[int, float]:
    picked = torch.randperm(channels, generator=generator)[: len(factors)].tolist()
    return dict(zip(picked, factors, strict=True))


def _vector(factors: dict[int, float], channels: int) -> Tensor:
    scale = torch.ones(channels)
    for channel, factor in factors.items():
        scale[channel] = factor
    return scale


def _scale_norm(block: nn.Module, norm: str, reader: str, factors: dict[int, float]) -> None:
    weight = block.get_parameter(f"{norm}.weight")
    scale = _vector(factors, weight.shape[0])
    weight.mul_(scale)
    block.get_parameter(f"{norm}.bias").mul_(scale)
    block.get_parameter(f"{reader}.weight").div_(scale)


def _scale_values(block: nn.Module, factors: dict[int, float]) -> None:
    """The last third of qkv's rows is v; its channels, head by head, are proj's columns."""
    proj = block.get_parameter("attn.proj.weight")
    width = proj.shape[1]
    scale = _vector(factors, width)
    block.get_parameter("attn.qkv.weight")[2 * width :].mul_(scale[:, None])
    block.get_parameter("attn.qkv.bias")[2 * width :].mul_(scale)
    proj.div_(scale)
