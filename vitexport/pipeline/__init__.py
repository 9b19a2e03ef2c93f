"""Input: a `BuildRequest`; output: a `Plan` (its problems and steps, nothing run) or a finished bundle.

The only room that knows the order of the stages: source → export → PyTorch's outputs → every precision made and judged →
timing → choice → graphs written → engine → bundle. What a request alone tells is judged before PyTorch is imported.
"""

from __future__ import annotations

from vitexport.pipeline.entry import plan, run
from vitexport.pipeline.request import BuildRequest, Plan

__all__ = ["BuildRequest", "Plan", "plan", "run"]
