"""Where one build works, what its stages cost, and who is told of them."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from vitexport.machine import Stopwatch
from vitexport.pipeline.stages import Stages


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Session:
    """Of one build.

    Attributes:
        folder: Where the bundle is written, under a temporary name.
        watch: Collects the cost of each stage.
        progress: Told of each stage, and within it.
    """

    folder: Path
    watch: Stopwatch
    progress: Stages
