"""What can be refused without PyTorch is refused before PyTorch is imported; and a build counts its stages."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from conftest import CALIBRATION, TINY, VALIDATION

from vitexport import stacks
from vitexport.artifacts import Progress
from vitexport.errors import UsageError
from vitexport.pipeline import BuildRequest, plan, run
from vitexport.pipeline.stages import Stages, stages_of
from vitexport.targets import resolve

HEAVY = ("torch", "timm", "onnx", "onnx_ir", "scipy", "onnxruntime", "rich")
# Calls the command line once for each list of words, in one interpreter, and says what was imported after each.
CALLS = """
import contextlib, io, json, sys
from vitexport.cli import main
rows = []
for words in json.loads(sys.argv[1]):
    sys.argv = ["vitexport", *words]
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
        try:
            main()
        except SystemExit as ended:
            code = ended.code
    rows.append([code, said.getvalue(), [name for name in json.loads(sys.argv0) if name in sys.modules]])
print(json.dumps(rows))
""".replace("sys.argv0", repr(json.dumps(HEAVY)))
BUILD = ("build", "vit_tiny_patch16_224", "--no-pretrained")
CPU = (*BUILD, "--target", "cpu")


def refusals(folder: Path) -> list[tuple[Sequence[str], int, str]]:
    """Words, exit code and a part of the message."""
    (folder / "there").mkdir()
    (folder / "there" / "manifest.json").write_text("{}", encoding="utf-8")
    (folder / "empty").mkdir()
    (folder / "empty.txt").write_text("\n", encoding="utf-8")
    nowhere = str(folder / "nowhere")
    return [
        ((*BUILD, "--target", "nosuch"), 2, "is not in the catalogue"),
        ((*BUILD, "--target", "l4", "--jetpack", "6.2"), 2, "JetPack"),
        ((*CPU, "--batch", "8:1"), 2, "minimum:optimum:maximum"),
        ((*CPU, "--precision", "fp16"), 2, "fp16 is not available"),
        ((*CPU, "--precision", "int8"), 2, "needs real images"),
        ((*CPU, "--placement", "D"), 2, "D"),
        ((*CPU, "--placement", "B", "--calibration", str(CALIBRATION)), 2, "TensorRT's"),
        ((*CPU, "--observer", "percentile:7x"), 2, "percentile"),
        ((*CPU, "--include", "("), 2, "'('"),
        ((*CPU, "--max-drop", "-1"), 2, "0 or more"),
        ((*CPU, "--crop-pct", "0.05"), 2, "at least 0.1"),
        ((*CPU, "--interpolation", "best"), 2, "Interpolation 'best' is unknown"),
        ((*CPU, "--features", "1,0"), 2, "in rising order"),
        ((*CPU, "--head", "none", "--softmax"), 2, "needs a classifier head"),
        ((*CPU, "--model-kwarg", "checkpoint_path=w.pth"), 2, "Model keyword checkpoint_path"),
        ((*CPU, "-o", str(folder / "there")), 3, "exists"),
        ((*CPU, "-o", str(folder / "empty.txt" / "bundle")), 3, "cannot be"),
        ((*CPU, "--calibration", nowhere), 3, "does not exist"),
        ((*CPU, "--calibration", str(folder / "empty")), 3, "holds no images"),
        ((*CPU, "--data", nowhere), 3, "does not exist"),
        ((*CPU, "--data", str(VALIDATION / "7")), 3, "has no sub-folders"),
        ((*CPU, "--labels", nowhere), 3, "cannot be read"),
        ((*CPU, "--labels", str(folder / "empty.txt")), 3, "is empty"),
        ((*CPU, "--recipe", nowhere), 3, "cannot be read"),
        ((*CPU, "--checkpoint", nowhere), 3, "does not exist"),
        (("build", f"local-dir:{nowhere}", "--target", "cpu"), 3, "does not exist"),
        (("predict", nowhere, "x.png"), 3, "does not exist"),
        (("validate", nowhere), 3, "does not exist"),
        (("plan", *BUILD[1:], "--target", "nosuch"), 2, "is not in the catalogue"),
    ]


def test_nothing_heavy_is_imported_for_a_refusal(tmp_path: Path) -> None:
    cases = refusals(tmp_path)
    words = json.dumps([list(words) for words, _, _ in cases])
    done = subprocess.run([sys.executable, "-c", CALLS, words], capture_output=True, text=True, check=True, cwd=tmp_path)
    rows = json.loads(done.stdout)
    assert len(rows) == len(cases)
    for (words_given, code, fragment), (seen, said, imported) in zip(cases, rows, strict=True):
        assert (seen, fragment in said) == (code, True), (words_given, seen, said)
        # rich shows a plan, the last of them; what else is refused says one line.
        assert imported == (["rich"] if words_given[0] == "plan" else []), (words_given, imported)


def test_a_plan_that_is_refused_early_says_that_the_model_was_not_looked_at(tmp_path: Path) -> None:
    found = plan(BuildRequest(model=TINY, target="l4", data=tmp_path / "none", labels=tmp_path / "none.txt")).findings
    assert [finding.level for finding in found] == ["error", "error", "note"]
    assert "not looked at" in found[-1].message


@pytest.mark.parametrize(
    ("target", "changes", "expected"),
    [
        ("cpu", {}, ("making and validating fp32", "timing beside PyTorch")),
        ("cpu", {"calibration": CALIBRATION}, ("making and validating int8", "making and validating fp32")),
        ("l4", {"precision": "fp16"}, ("making and validating fp16", "compiling the engine for NVIDIA L4")),
        ("jetson-orin-nano-8gb", {"precision": "fp16"}, ("writing the engine's recipe",)),
        ("web", {"precision": "fp32"}, ("putting the preprocessing into a graph",)),
    ],
)
def test_the_stages_of_a_build(target: str, changes: dict[str, object], expected: tuple[str, ...]) -> None:
    request = dataclasses.replace(BuildRequest(model=TINY, target=target), **changes)  # type: ignore[arg-type]
    precisions = ("int8", "fp32") if request.calibration else (request.precision.replace("auto", "fp32"),)
    names = stages_of(request, stacks.of(resolve(target)), precisions)  # type: ignore[arg-type]
    assert names[:3] == ("loading the model", "exporting to ONNX", "running PyTorch")
    assert names[-1] == "writing the bundle"
    assert set(expected) <= set(names)
    assert len(set(names)) == len(names)


def test_a_stage_that_was_not_planned_is_a_defect_and_one_left_out_is_passed_over() -> None:
    said: list[str] = []
    stages = Stages(("a", "b", "c"), recorder(said))
    stages.begin("a")
    stages("within", 1, 2)
    stages.begin("c")
    assert said == ["stage 1 of 3: a", "stage 1 of 3: within 1/2", "stage 3 of 3: c"]
    with pytest.raises(ValueError, match="not in tuple"):
        stages.begin("d")


def recorder(said: list[str]) -> Progress:
    def progress(what: str, done: int = 0, total: int = 0) -> None:
        said.append(f"{what} {done}/{total}" if total else what)

    return progress


def test_a_build_goes_through_its_stages_in_order(tmp_path: Path) -> None:
    said: list[str] = []
    request = BuildRequest(model=TINY, target="web", precision="fp32", out=tmp_path / "out")
    run(request, recorder(said))
    begun = dict.fromkeys(line.partition(":")[0] for line in said)
    expected = len(stages_of(request, stacks.of(resolve("web")), ("fp32",)))
    assert list(begun) == [f"stage {number} of {expected}" for number in range(1, expected + 1)]
    assert said[0] == f"stage 1 of {expected}: loading the model"


def test_a_refused_build_says_nothing_of_stages(tmp_path: Path) -> None:
    said: list[str] = []
    with pytest.raises(UsageError, match="not in the catalogue"):
        run(BuildRequest(model=TINY, target="nosuch", out=tmp_path / "out"), recorder(said))
    assert said == []
