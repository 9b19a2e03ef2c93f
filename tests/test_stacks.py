"""A runtime stack is one file; the rest of the house does not ask which it is, and touches each graph once."""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx
import onnx_ir
import pytest
import reference_stack
from conftest import CALIBRATION, ROOT, SAMPLE, VALIDATION, sample_request
from reference_stack import RUNTIME, ReferenceStack

from vitexport import artifacts, stacks
from vitexport import bundle as bundles
from vitexport.artifacts import silent
from vitexport.datasets import open_labelled
from vitexport.pipeline import BuildRequest, run
from vitexport.runtime import load
from vitexport.targets import catalogue, resolve
from vitexport.validate.budget import Budget
from vitexport.validate.device import validate_bundle

sys.path.insert(0, str(ROOT / "scripts"))
import stack_branches

MOST_BRANCHES = 10
# When graphs travelled by file, a build of this kind took 74, 34 and 21. A weakly typed engine's layers are named from the
# file that ships.
MOST = {"loads": 1, "checks": 3, "hashes": 4}


def test_little_outside_of_the_stacks_asks_which_one_it_is() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "stack_branches.py")], capture_output=True, text=True, check=True
    )
    count = int(done.stdout.split()[0])
    assert 0 < count <= MOST_BRANCHES


@pytest.mark.parametrize(
    ("code", "count"),
    [
        ('if target.kind == "cpu": pass', 1),
        ('x = 1 if target.runtime != "tensorrt-rtx" else 2', 1),
        ("if target.cpu is None and not target.app: pass", 2),
        ('if library in ("tensorrt", "other"): pass', 1),
        ("if target.loads_graph or stack.is_timed: pass", 0),
        ('if tensor.device.type == "cpu": pass', 0),
    ],
)
def test_what_counts_as_a_branch_on_the_stack(code: str, count: int) -> None:
    assert len(list(stack_branches.branches(ast.parse(code)))) == count


@pytest.mark.parametrize("name", catalogue())
def test_every_target_has_a_stack(name: str) -> None:
    stack = stacks.of(resolve(name))
    assert stack.target == resolve(name)
    assert stack.may_take_pictures or not stack.takes_pictures
    assert (stack.delivering is None) == stack.target.loads_graph


@pytest.fixture
def reference_runtime(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setitem(stacks.STACKS, (RUNTIME, None, False), ReferenceStack)
    with contextlib.contextmanager(reference_stack.known)():
        yield


@pytest.mark.usefixtures("reference_runtime")
def test_a_new_stack_is_one_file_and_one_line(tmp_path: Path) -> None:
    request = BuildRequest(
        model=SAMPLE,
        target="reference",
        precision="int8",
        calibration=CALIBRATION,
        calibration_size=32,
        out=tmp_path / "out",
    )
    bundle, report = run(request, silent)
    assert report.verdict == "passed", report.checks
    assert bundle.manifest.recipe is not None
    assert bundle.manifest.target.runtime == RUNTIME
    operators = Counter(node.op_type for node in onnx.load(bundle.root / "model.onnx").graph.node)
    assert operators["DequantizeLinear"] >= 2 * len(bundle.manifest.recipe["layers"])
    with load(bundle.root) as model:
        assert model.backend.description == "ONNX reference evaluator"
        images = open_labelled(VALIDATION, labels=None, synsets=None, classes=10)
        some = dataclasses.replace(images, files=images.files[::20])
        found = validate_bundle(model, some, Budget(), silent)
    assert found.verdict == "passed", found.checks
    # Too few pictures for a drop in accuracy to be excluded.
    assert {check.name: check.status for check in found.checks}["golden"] == "passed"


def test_a_build_reads_checks_and_hashes_each_graph_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A Jetson's INT8 build that has to search for layers that stay float."""
    counts: Counter[str] = Counter()

    def counting(what: str, function: Any) -> Any:
        def counted(*words: Any, **more: Any) -> Any:
            counts[what] += 1
            return function(*words, **more)

        return counted

    monkeypatch.setattr(onnx_ir, "load", counting("loads", onnx_ir.load))
    monkeypatch.setattr(onnx.checker, "check_model", counting("checks", onnx.checker.check_model))
    hashed = artifacts.file_sha256

    def hashing(path: Path) -> str:
        counts["hashes"] += path.suffix == ".onnx"
        return hashed(path)

    monkeypatch.setattr(bundles, "file_sha256", hashing)
    request = sample_request(
        tmp_path / "out",
        model=dataclasses.replace(SAMPLE, head="none"),
        target="jetson-orin-nano-8gb",
        jetpack="5.1",
        calibration_size=32,
        data=None,
        budget=Budget(min_cosine=0.99999),
    )
    bundle, report = run(request, silent)
    assert bundle.manifest.recipe is not None
    tried = sum(stage.name == "quantize" for stage in report.stages)
    graphs = [name for name in bundle.manifest.files if name.endswith(".onnx")]
    assert tried > 3
    assert bundle.manifest.recipe["stay_float"]
    assert len(graphs) == 2
    assert all(counts[what] <= most for what, most in MOST.items()), counts
    # Every file that ships is checked, and hashed for the manifest and when the bundle is opened.
    assert counts["checks"] >= len(graphs)
    assert counts["hashes"] == 2 * len(graphs)
