"""What the tests of written projects share: where their packages and stubs are, and a command that has to succeed."""

from __future__ import annotations

import subprocess
from pathlib import Path

from conftest import ROOT

PACKAGES = ROOT / "scripts" / "npm" / "node_modules"
STUBS = Path(__file__).parent / "stubs"
# ONNX Runtime's own releases for several platforms, in an npm package for Unity.
RELEASES = PACKAGES / "com.github.asus4.onnxruntime" / "Plugins"


def ran(command: list[str], folder: Path) -> str:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=180)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
