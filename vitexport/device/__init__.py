"""What happens on the device: a bundle's engine is built, checked against PyTorch, timed and kept, without torch."""

from __future__ import annotations

from vitexport.device.build import build_here, open_for_engine
from vitexport.device.judge import inspect_file
from vitexport.device.request import EngineRequest

__all__ = ["EngineRequest", "build_here", "inspect_file", "open_for_engine"]
