"""Words of a command line enter; one library call is made, its result printed, and an exit code leaves."""

from __future__ import annotations

from vitexport.cli.border import main

__all__ = ["main"]
