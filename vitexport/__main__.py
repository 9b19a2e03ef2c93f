"""``python -m vitexport`` enters; the command line runs."""

from __future__ import annotations

from vitexport.cli import main

if __name__ == "__main__":
    main()
