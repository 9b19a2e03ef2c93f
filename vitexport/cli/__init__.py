"""Input: words of a command line; output: the printed result of one library call, and an exit code."""

from __future__ import annotations

from vitexport.cli.border import main

__all__ = ["main"]
