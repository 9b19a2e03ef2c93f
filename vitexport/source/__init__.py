"""A model's name, a checkpoint and overrides enter; the live module in eval mode and its `ModelSource` leave."""

from __future__ import annotations

from vitexport.source.families import VIT_FAMILIES
from vitexport.source.heads import Exposed, takes_other_sizes
from vitexport.source.load import LiveModel, check_available, load
from vitexport.source.request import Head, ModelRequest

__all__ = ["VIT_FAMILIES", "Exposed", "Head", "LiveModel", "ModelRequest", "check_available", "load", "takes_other_sizes"]
