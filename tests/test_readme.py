"""The README's commands run as written, and the Python on it does what it says."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from conftest import ROOT, Built

README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_every_command_runs_in_a_copy_of_the_tree() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "readme"), "--check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[0]) >= 8


def test_the_python_example_runs(cpu_bundle: Built) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    code = example.replace('"bundles/digits-cpu"', repr(str(cpu_bundle.root)))
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("[[('7', 0.9")


def test_the_measured_table_is_there() -> None:
    section = README.partition("<!-- measure -->")[2].partition("<!-- /measure -->")[0]
    rows = [line for line in section.splitlines() if line.startswith("| ")]
    assert len(rows) >= 10


def test_every_room_is_on_the_plan_of_the_house() -> None:
    rooms = {path.name for path in (ROOT / "vitexport").iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    unnamed = {room for room in rooms - {"__init__.py", "__main__.py"} if room not in README}
    assert unnamed == set()


def test_nothing_committed_names_a_path_of_a_machine_or_an_index() -> None:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    # Put together here, so that this file does not name them itself.
    banned = re.compile("|".join(("/ro" + "ot/", "/wo" + "rk/", "py" + r"pi\.org", "files\\.python" + "hosted")))
    for name in filter(None, listed.split("\0")):
        path = ROOT / name
        if path.suffix in {".png", ".jpg", ".safetensors", ".npy"} or not path.is_file():
            continue
        found = banned.search(path.read_text(encoding="utf-8"))
        assert found is None, f"{name}: {found}"


def test_scripts_are_executable() -> None:
    for name in ("quickstart", "test", "measure", "readme"):
        assert (ROOT / "scripts" / name).stat().st_mode & 0o111
    assert Path(ROOT / ".ci" / "run").stat().st_mode & 0o111
