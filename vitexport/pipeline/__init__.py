"""A `BuildRequest` enters; a `Plan` (what speaks against it, nothing run) or a finished bundle leaves.

The only room that knows the order of the stages: source → export → quantize → float16 → engine → validate → bundle.
"""

from __future__ import annotations

from vitexport.pipeline.build import run
from vitexport.pipeline.prepare import plan
from vitexport.pipeline.request import BuildRequest, Plan

__all__ = ["BuildRequest", "Plan", "plan", "run"]
