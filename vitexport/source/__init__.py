"""Input: a model's name, a checkpoint and overrides; output: the live module in eval mode and its `ModelSource`.

The request is plain data; PyTorch and timm are imported with the first name that needs them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vitexport import lazy

if TYPE_CHECKING:
    from vitexport.source.families import VIT_FAMILIES
    from vitexport.source.heads import Exposed, takes_other_sizes
    from vitexport.source.load import LiveModel, check_available, load
    from vitexport.source.request import Head, ModelRequest

__all__ = ["VIT_FAMILIES", "Exposed", "Head", "LiveModel", "ModelRequest", "check_available", "load", "takes_other_sizes"]

lazy.public_names(
    __name__,
    {
        "VIT_FAMILIES": "vitexport.source.families",
        "Exposed": "vitexport.source.heads",
        "Head": "vitexport.source.request",
        "LiveModel": "vitexport.source.load",
        "ModelRequest": "vitexport.source.request",
        "check_available": "vitexport.source.load",
        "load": "vitexport.source.load",
        "takes_other_sizes": "vitexport.source.heads",
    },
)
