"""The version of vitexport that is installed."""

from __future__ import annotations

import importlib.metadata

try:
    __version__ = importlib.metadata.version("vitexport")
except importlib.metadata.PackageNotFoundError:  # run from a copy of the source that was never installed
    __version__ = "unknown"
