"""Run the command line by ``python -m vitexport``."""

from __future__ import annotations

from vitexport.cli import main

if __name__ == "__main__":
    main()
