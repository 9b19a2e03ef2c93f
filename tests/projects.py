"""What the tests of written projects share: packages and stubs, and how a project is written, built, served and shown."""

from __future__ import annotations

import contextlib
import functools
import http.server
import json
import platform
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT

from vitexport.apps import AppKind, write_app
from vitexport.bundle import Bundle

HERE = Path(__file__).parent / "apps"
PACKAGES = ROOT / "scripts" / "npm" / "node_modules"
STUBS = HERE / "stubs"
CHROMIUM = Path("/usr/bin/chromium")
# Releases of ONNX Runtime for several platforms, packed by a third party for Unity (asus4/onnxruntime-unity).
RELEASES = PACKAGES / "com.github.asus4.onnxruntime" / "Plugins"
HEADERS = RELEASES / "iOS~" / "onnxruntime.xcframework" / "ios-arm64" / "onnxruntime.framework" / "Headers"
LIBRARY = RELEASES / "Linux" / "x64" / "libonnxruntime.so"
STB = Path("/usr/include/stb/stb_image.h")

NODE = pytest.mark.skipif(
    shutil.which("node") is None or not PACKAGES.is_dir(),
    reason="node or its packages miss; run scripts/app-packages",
)
BROWSER = pytest.mark.skipif(not CHROMIUM.exists(), reason="Debian's chromium is missing; run scripts/app-packages as root")
WHOLE = pytest.mark.skipif(
    shutil.which("g++") is None
    or shutil.which("cmake") is None
    or not STB.is_file()
    or not LIBRARY.is_file()
    or platform.machine() != "x86_64",
    reason="g++, CMake, Debian's libstb-dev or npm's com.github.asus4.onnxruntime, which is for x86-64, is missing",
)


def ran(command: list[str], folder: Path) -> str:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=180)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def written(bundle: Bundle, kind: AppKind, folder: Path) -> Path:
    """The project, with the packages of the tests where its own would be installed."""
    write_app(bundle, kind, folder)
    if kind in ("node", "web"):
        (folder / "node_modules").symlink_to(PACKAGES)
    return folder


def released(folder: Path) -> Path:
    """A folder as ONNX Runtime's releases for Linux have it."""
    (folder / "lib").mkdir(parents=True)
    (folder / "include").symlink_to(HEADERS)
    for name in ("libonnxruntime.so", "libonnxruntime.so.1"):
        (folder / "lib" / name).symlink_to(LIBRARY)
    return folder


def compiled(project: Path, release: Path) -> Path:
    """A C++ project, built by its own CMake."""
    options = ["-DCMAKE_BUILD_TYPE=Release", "-DCMAKE_CXX_FLAGS=-Werror", f"-DONNXRUNTIME_ROOT={release}"]
    ran(["cmake", "-S", ".", "-B", "build", *options], project)
    ran(["cmake", "--build", "build"], project)
    return project


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *arguments: Any) -> None:
        """Nothing."""


@contextlib.contextmanager
def served(folder: Path) -> Iterator[str]:
    """A static server without any header of its own; the address of the folder on this machine."""
    handler = functools.partial(QuietHandler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("localhost", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://localhost:{server.server_port}/"
        server.shutdown()
        thread.join()


def browsed(bundle: Bundle, picture: Path, folder: Path) -> dict[str, Any]:
    """What the written page says of `picture` in a browser; the screenshot is ``page.png`` in `folder`."""
    project = written(bundle, "web", folder / "web")
    ran(["node", "vendor.js"], project)
    (project / "node_modules").unlink()
    with served(project) as address:
        words = [str(PACKAGES), address, str(picture), str(folder / "page.png")]
        report: dict[str, Any] = json.loads(ran(["node", str(HERE / "browse.mjs"), *words], folder))
    return report
