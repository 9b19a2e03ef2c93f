"""Input: a runner and its words; output: what it printed, the seconds and the peak memory of its process.

Each tool runs in a process of its own, and each peer in a virtual environment of its own, made here from a lock file: their
versions of ONNX exclude one another's and vitexport's.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Ran:
    """A finished process.

    Attributes:
        said: The JSON of its last line, or None where it failed.
        seconds: Of the whole process, imports included.
        processor_seconds: The same, added over the processors; other work on the machine changes it less.
        peak_mib: Its largest resident memory.
        failure: Its last words where it failed.
    """

    said: dict[str, Any] | None
    seconds: float
    processor_seconds: float
    peak_mib: float
    failure: str | None = None


def environment_python(name: str | None, work: Path) -> Path:
    """The interpreter that has the packages of ``requirements-<name>.txt``, installed now if they are not there.

    Raises:
        SystemExit: There is no uv, or it fails.
    """
    if name is None:
        return Path(sys.executable)
    requirements = HERE / f"requirements-{name}.txt"
    folder = work / "environments" / name
    python, made_from = folder / "bin" / "python", folder / ".made-from"
    wanted = hashlib.sha256(requirements.read_bytes()).hexdigest()
    if made_from.is_file() and made_from.read_text(encoding="ascii") == wanted:
        return python
    uv = shutil.which("uv") or shutil.which("uv", path=str(Path(sys.executable).parent))
    if uv is None:
        raise SystemExit("uv was not found; it makes the environments of the other quantizers (pip install uv).")
    print(f"installing {requirements.name} into {folder}", file=sys.stderr, flush=True)
    shutil.rmtree(folder, ignore_errors=True)
    for words in (
        ["venv", "--quiet", "--python", sys.executable, str(folder)],
        ["pip", "install", "--quiet", "--python", str(python), "-r", str(requirements)],
    ):
        if subprocess.run([uv, *words], check=False).returncode != 0:
            raise SystemExit(f"uv {words[0]} failed; the lines above say why.")
    made_from.write_text(wanted, encoding="ascii")
    return python


def compile_packages(python: Path) -> None:
    """Compile what is installed beside `python` to bytecode, as pip does: or the first of many runs would pay for all."""
    code = "import sysconfig; print(sysconfig.get_path('purelib'))"
    packages = subprocess.run([python, "-c", code], check=True, capture_output=True, text=True).stdout.strip()
    # Some packages carry files for other versions of Python; those fail, and are not imported either.
    subprocess.run([python, "-m", "compileall", "-q", "-q", "-j", "0", packages], check=False)


def package_version(python: Path, package: str) -> str:
    """Version of a distribution in the environment of `python`."""
    code = f"import importlib.metadata; print(importlib.metadata.version({package!r}))"
    return subprocess.run([python, "-c", code], check=True, capture_output=True, text=True).stdout.strip()


def run(python: Path, runner: str, words: Sequence[str], log: Path) -> Ran:
    """Run a module of ``runners/`` and wait for it; all that it says goes to `log`. Paths among `words` must be absolute."""
    command = [str(python), "-m", f"quantizers.runners.{runner}", *words]
    launcher = [sys.executable, "-I", str(HERE / "launcher.py"), str(log), *command]
    # A module is looked for in the folder that Python is started in. Bytecode is kept, as where packages are installed.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    done = subprocess.run(launcher, cwd=HERE.parent, env=environment, check=True, capture_output=True, text=True)
    usage = json.loads(done.stdout)
    last = _last_line(log)
    ran = Ran(
        said=None,
        seconds=usage["seconds"],
        processor_seconds=usage["processor_seconds"],
        peak_mib=usage["peak_mib"],
    )
    if usage["exit_code"] != 0:
        return dataclasses.replace(ran, failure=f"exit code {usage['exit_code']}: {last}")
    return dataclasses.replace(ran, said=json.loads(last))


def _last_line(log: Path) -> str:
    lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return lines[-1].strip()[:300] if lines else "it said nothing"
