#!/usr/bin/env python3
"""Print how checkpoints of other frameworks and mistaken builds fare, as Markdown.

Usage: scripts/checkpoint_matrix.py [--verbose]

The files are made by the frameworks themselves, from the tables of the tests (tests/frameworks.py, tests/references.py): run
it in an environment with the test extra. A file counts as loaded where the logits equal its framework's to 1e-5 of the
largest, and as refused where the error names the cause. The exit code is 1 if anything was wrong in silence or refused
without need.
"""

from __future__ import annotations

import collections
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from conftest import SAMPLE  # noqa: E402
from frameworks import Case as Written  # noqa: E402
from frameworks import cases  # noqa: E402
from references import RIGHT, RIGHT_FILES, WRONG, WRONG_FILES, Case, FileCase, judge, open_file  # noqa: E402

from vitexport.errors import InputError, VitexportError  # noqa: E402
from vitexport.pipeline import BuildRequest, reference_checks  # noqa: E402
from vitexport.pipeline.prepare import prepare  # noqa: E402
from vitexport.source import load  # noqa: E402

SAME = 1e-5
OUTCOMES = ("loaded", "refused by name", "refused without its name", "wrong in silence")


def outcome(case: Written, folder: Path) -> str:
    """One of `OUTCOMES` for the case's file."""
    asked, wanted = case.make(folder)
    try:
        exposed, _ = load(asked)
    except InputError as error:
        return "refused by name" if wanted is None and case.refusal in str(error) else "refused without its name"
    if wanted is None:
        return "wrong in silence"
    largest = float((exposed(case.image)[0] - wanted).abs().max())
    return "loaded" if largest <= SAME * float(wanted.abs().max()) else "wrong in silence"


def table(title: tuple[str, ...], rows: Sequence[tuple[object, ...]]) -> None:
    """Print a Markdown table."""
    print(f"| {' | '.join(title)} |\n|{' --- |' * len(title)}")
    for row in rows:
        print(f"| {' | '.join(map(str, row))} |")
    print()


def frameworks(*, verbose: bool) -> int:
    """Print outcomes by framework; returns how many files were wrong."""
    counts: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    for case in cases():
        with tempfile.TemporaryDirectory() as folder:
            found = outcome(case, Path(folder))
        counts[case.framework][found] += 1
        if verbose or found in OUTCOMES[2:]:
            print(f"{case.name}: {found}", file=sys.stderr)
    rows: list[tuple[object, ...]] = [
        (framework, sum(found.values()), *(found[name] for name in OUTCOMES)) for framework, found in counts.items()
    ]
    total = sum(counts.values(), collections.Counter())
    table(("framework", "files", *OUTCOMES), [*rows, ("all", sum(total.values()), *(total[name] for name in OUTCOMES))])
    return sum(total[name] for name in OUTCOMES[2:])


def answered(build: Callable[[Path], Mapping[str, str]]) -> str:
    """``passed``, ``refused``, or the checks that failed, for a build in a folder of its own."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            found = build(Path(folder))
        except VitexportError:
            return "refused"
    return ", ".join(name for name, status in found.items() if status == "failed") or "passed"


def from_file(case: FileCase, folder: Path) -> dict[str, str]:
    """Status of each check; a note that the case wants counts as a check that failed."""
    prepared = open_file(case, folder)
    if case.note:
        return {"named": "failed" if any(case.note in note for note in prepared.source.notes) else "passed"}
    return judge(Case(), prepared, {}, folder)


def from_right_file(case: FileCase, folder: Path) -> dict[str, str]:
    """Status of each check; a note that the case does not expect counts as a check that failed."""
    prepared = open_file(case, folder)
    unexpected = [note for note in prepared.source.notes if not case.note or case.note not in note]
    return {"named": "failed" if unexpected else "passed", **judge(Case(), prepared, {}, folder)}


def builds() -> int:
    """Print what wrong and right builds of the sample come to; returns how many came to the wrong end."""
    sample = prepare(BuildRequest(model=SAMPLE, target="cpu", precision="fp32"))
    # What a busy machine has no time for is skipped, which is not what is asked here.
    setattr(reference_checks, "SECONDS", 1e9)  # noqa: B010
    wrong = {name: (expected, partial(judge, case, sample, {})) for name, (expected, case) in WRONG.items()}
    wrong |= {name: (expected, partial(from_file, case)) for name, (expected, case) in WRONG_FILES.items()}
    right = [partial(judge, case, sample, {}) for case in RIGHT.values()]
    right += [partial(from_right_file, case) for case in RIGHT_FILES.values()]
    found = {name: answered(build) for name, (_, build) in wrong.items()}
    table(("wrong build", "what stopped it"), list(found.items()))
    stopped = sum(wrong[name][0] in found[name] for name in wrong)
    passed = sum(answered(build) == "passed" for build in right)
    print(f"{stopped} of {len(wrong)} wrong builds were stopped or named; {passed} of {len(right)} right ones passed.")
    return len(wrong) - stopped + len(right) - passed


if __name__ == "__main__":
    missed = frameworks(verbose="--verbose" in sys.argv[1:]) + builds()
    sys.exit(1 if missed else 0)
