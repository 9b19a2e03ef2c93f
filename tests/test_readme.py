"""The commands and the Python of every committed page run as written."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

from vitexport.cli.commands import cli

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

README = ROOT / "README.md"
HOUSE = ROOT / "vitexport" / "README.md"
MEASURED = ROOT / "scripts" / "README.md"
REFERENCE = ROOT / "vitexport" / "cli" / "README.md"
# What people read before they decide.
MOST_BYTES = 10 << 10


def _readme(place: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """`scripts/readme` of the clone at `place`."""
    command = [sys.executable, str(place / "scripts" / "readme"), *words]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_every_page_runs_in_a_copy_of_the_tree() -> None:
    done = _readme(ROOT, "--check")
    assert done.returncode == 0, done.stderr
    seen = re.fullmatch(r"(\d+) commands and (\d+) python blocks ran on (\d+) pages\n", done.stdout)
    assert seen is not None, done.stdout
    assert [int(figure) >= least for figure, least in zip(seen.groups(), (8, 1, 2), strict=True)] == [True] * 3


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A repository with the script and two pages."""
    place = tmp_path / "clone"
    (place / "scripts").mkdir(parents=True)
    shutil.copy2(ROOT / "scripts" / "readme", place / "scripts" / "readme")
    (place / "vitexport" / "room" / "templates").mkdir(parents=True)
    (place / "README.md").write_text("```console\n$ echo one > kept; echo shown\nold\n```\n", encoding="utf-8")
    page = "```python\nname = 'kept'\n```\nand\n```python\nprint(open(name).read())\n```\n```console\n$ cat kept\n```\n"
    (place / "vitexport" / "room" / "README.md").write_text(page, encoding="utf-8")
    template = "```console\n$ false\n```\n"
    (place / "vitexport" / "room" / "templates" / "README.md").write_text(template, encoding="utf-8")
    subprocess.run(["git", "init", "-q", str(place)], check=True)
    return place


def test_pages_run_in_order_and_python_blocks_are_one_program(clone: Path) -> None:
    done = _readme(clone)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "2 commands and 2 python blocks ran on 2 pages\n"
    assert (clone / "README.md").read_text("utf-8") == "```console\n$ echo one > kept; echo shown\nshown\n```\n"
    assert "```console\n$ cat kept\none\n```" in (clone / "vitexport" / "room" / "README.md").read_text("utf-8")
    assert not (clone / "kept").exists()


@pytest.mark.parametrize(
    ("language", "body", "words"),
    [("python", "print(1 / 0)", "ZeroDivisionError"), ("console", "$ ls not-there", "exit code")],
)
def test_a_page_that_fails_is_named(clone: Path, language: str, body: str, words: str) -> None:
    (clone / "vitexport" / "room" / "README.md").write_text(f"```{language}\n{body}\n```\n", encoding="utf-8")
    done = _readme(clone, "--check")
    assert done.returncode == 1
    assert "vitexport/room/README.md" in done.stderr
    assert words in done.stderr


def test_the_measured_table_is_there() -> None:
    section = MEASURED.read_text(encoding="utf-8").partition("<!-- measure -->")[2].partition("<!-- /measure -->")[0]
    rows = [line for line in section.splitlines() if line.startswith("| ")]
    assert len(rows) >= 10


def test_every_room_is_on_the_plan_of_the_house() -> None:
    rooms = {path.name for path in (ROOT / "vitexport").iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    plan = HOUSE.read_text(encoding="utf-8")
    unnamed = {room for room in rooms - {"__init__.py", "__main__.py"} if room not in plan}
    assert unnamed == set()


def test_the_first_page_is_short_and_links_every_other() -> None:
    page = README.read_text(encoding="utf-8")
    assert len(page.encode()) <= MOST_BYTES
    linked = {ROOT / path for path in re.findall(r"\]\(([^)#]+/README\.md)\)", page)}
    words = ["git", "ls-files", "-z", "calibration/*README.md", "scripts/*README.md", "vitexport/*README.md"]
    listed = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True)
    # Those with templates are written into other people's projects; those of data name its source.
    ours = (name for name in filter(None, listed.stdout.split("\0")) if "/templates/" not in name)
    pages = {ROOT / name for name in ours if name.count("/") < 3}
    assert linked == pages


@pytest.mark.parametrize("page", [*sorted((ROOT / "vitexport").glob("*/README.md")), README, HOUSE, MEASURED], ids=str)
def test_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#\s]+)\)", page.read_text(encoding="utf-8"))
    gone = [link for link in links if "://" not in link and not (page.parent / link).exists()]
    assert gone == []


def test_the_reference_has_every_command() -> None:
    page = REFERENCE.read_text(encoding="utf-8")
    assert set(re.findall(r"^\$ vitexport (\w+) --help$", page, re.MULTILINE)) == set(cli.commands)


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


def test_ruff_and_mypy_see_every_python_script_whatever_its_name() -> None:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    hidden = set()
    for name in filter(None, listed.split("\0")):
        path = ROOT / name
        if not path.suffix and path.is_file() and re.match(rb"#!.*python", path.read_bytes()[:80]):
            hidden.add(name)
    tools = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]
    assert hidden
    assert hidden == set(tools["ruff"]["extend-include"])
    assert hidden == {name for name in tools["mypy"]["files"] if "/" in name}


def test_scripts_are_executable() -> None:
    for name in ("quickstart", "test", "measure", "readme"):
        assert (ROOT / "scripts" / name).stat().st_mode & 0o111
    assert Path(ROOT / ".ci" / "run").stat().st_mode & 0o111
