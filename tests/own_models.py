"""Modules of one's own: what a person writes in plain PyTorch, knowing nothing of timm."""

from __future__ import annotations

import torch
from torch import nn

from vitexport.preprocess import PreprocessSpec

SPEC = PreprocessSpec(
    height=32, width=32, mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3), interpolation="bilinear", crop_pct=0.875
)


class PlainVit(nn.Module):
    """A ViT of PyTorch's own parts: nn.TransformerEncoder, whose fast path has no ONNX form."""

    def __init__(self, classes: int = 5, width: int = 32) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 8, 8)
        self.token = nn.Parameter(torch.randn(1, 1, width) * 0.02)
        self.position = nn.Parameter(torch.randn(1, 17, width) * 0.02)
        layer = nn.TransformerEncoderLayer(width, 2, 2 * width, 0.1, "gelu", batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.norm = nn.LayerNorm(width)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(width, classes)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        tokens = self.patches(image).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.token.expand(image.shape[0], -1, -1), tokens], dim=1) + self.position
        out: torch.Tensor = self.head(self.drop(self.norm(self.encoder(tokens))[:, 0]))
        return out


def make() -> nn.Module:
    """What a file on the command line returns: the module alone."""
    torch.manual_seed(0)
    return PlainVit()


def make_with_spec() -> tuple[nn.Module, PreprocessSpec]:
    """The module, which says how many classes it has, with its preprocessing."""
    model = make()
    model.num_classes = 5  # type: ignore[assignment]
    return model, SPEC


def make_nothing() -> int:
    """What is no module."""
    return 7


def make_error() -> nn.Module:
    """What does not get that far."""
    raise LookupError("the weights are elsewhere")


class FixedBatch(PlainVit):
    """Its forward makes a number of the batch size."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return super().forward(image) + torch.zeros(len(image), 1)
