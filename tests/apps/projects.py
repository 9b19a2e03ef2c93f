"""What the tests of written projects share: where their packages and stubs are, and a command that has to succeed."""

from __future__ import annotations

import subprocess
from pathlib import Path

from conftest import ROOT

PACKAGES = ROOT / "scripts" / "npm" / "node_modules"
STUBS = Path(__file__).parent / "stubs"
# Releases of ONNX Runtime for several platforms, packed by a third party for Unity (asus4/onnxruntime-unity).
RELEASES = PACKAGES / "com.github.asus4.onnxruntime" / "Plugins"


def ran(command: list[str], folder: Path) -> str:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=180)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
