"""The support table's own arithmetic, and what happens to a model whose process dies, hangs or eats the memory."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from conftest import ROOT
from torch import nn

sys.path.insert(0, str(ROOT / "scripts"))

from timm_zoo import models, runs, table
from timm_zoo.worker import hold_size

from vitexport.source import VIT_FAMILIES

GREEN: dict[str, Any] = {
    "name": "test_vit",
    "seconds": 20.0,
    "peak_mib": 900.0,
    "stages": {
        "load": {"family": "vision_transformer", "parameters": 400_000, "size": [160, 160], "outputs": {"logits": [1000]}},
        "export dynamic": {"seconds": 4.2},
        "parity dynamic": {"value": 5e-7},
        "export static": {"seconds": 3.0},
        "parity static": {"value": 4e-7},
        "float32 nodes": {"count": 0},
        "fp16": {"sqnr_db": 60.1, "largest": 1e-3},
        "int8": {"sqnr_db": 39.2, "layers": 24},
        "engine a10": {"bytes": 10},
        "engine l4": {"bytes": 10},
        "engine rtx-5090": {"bytes": 10},
    },
}


def with_stage(name: str, **changes: Any) -> dict[str, Any]:
    return {**GREEN, "stages": {**GREEN["stages"], name: changes}}


def test_a_model_that_meets_every_limit_is_green() -> None:
    assert table.problems(GREEN) == []
    assert table.row(GREEN)[-1] == "green"
    assert table.row(GREEN)[:5] == ["test_vit", "vision_transformer", "0.4", "160 × 160", "logits 1000"]
    assert len(table.row(GREEN)) == len(table.HEADER)


@pytest.mark.parametrize(
    ("stage", "changes", "words"),
    [
        ("parity dynamic", {"value": 2e-4}, "parity dynamic: 2.0e-04"),
        ("parity static", {"value": float("nan")}, "parity static: nan"),
        ("fp16", {"sqnr_db": 30.0, "largest": 0.02}, "fp16: 2.0e-02"),
        ("int8", {"sqnr_db": 34.96, "layers": 3}, "int8: 35.0 dB, 35 are asked"),
        ("engine l4", {"error": "ToolchainError: no"}, "engine l4: ToolchainError: no"),
    ],
)
def test_each_limit_makes_a_model_red(stage: str, changes: dict[str, Any], words: str) -> None:
    record = with_stage(stage, **changes)
    assert any(problem.startswith(words) for problem in table.problems(record))
    assert table.row(record)[-1] == "**red**"


def test_a_stage_that_never_ran_is_named() -> None:
    record = {**GREEN, "stages": {key: value for key, value in GREEN["stages"].items() if not key.startswith("engine")}}
    assert table.problems(record) == ["not run: engine a10, engine l4, engine rtx-5090"]


def test_the_page_counts_what_was_not_run_against_the_share() -> None:
    page = table.page(
        [GREEN, {**with_stage("int8", error="InputError: x"), "name": "b"}], ["c", "d"], {"b": "Because."}, "How."
    )
    assert "1 of 4 models of 1 families are green (25.0 %); 2 were not run." in page
    assert "**b**\n- int8: InputError: x\n- Why: Because." in page
    assert "## Not run\n\nc, d" in page


def test_the_default_list_has_every_family_and_all_are_known() -> None:
    known = set(models.all_names())
    names = models.default_names()
    assert set(names) <= known
    assert len(names) == len(set(names))
    assert len(known) >= 700
    families = {timm.model_entrypoint(name).__module__.rpartition(".")[2] for name in names if ":" not in name}
    assert families == VIT_FAMILIES


def worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str) -> dict[str, Any]:
    """The record of a process that does `code` in the place of a model's stages."""
    script = tmp_path / "script.py"
    script.write_text(code, encoding="utf-8")
    monkeypatch.setattr(runs, "COMMAND", [sys.executable, str(script)])
    return runs.run_one(
        "test_vit", tmp_path, sorted(os.sched_getaffinity(0))[:1], state={"code": "x"}, seconds=5, memory_mib=300
    )


def test_a_process_that_hangs_is_stopped_and_keeps_what_it_had(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = (
        "import json, sys, time\n"
        "json.dump({'name': 'test_vit', 'running': 'export dynamic', 'stages': {'load': {}}}, open(sys.argv[2], 'w'))\n"
        "time.sleep(60)\n"
    )
    record = worker(tmp_path, monkeypatch, code)
    assert record["stages"] == {"load": {}, "export dynamic": {"error": "took longer than 5 s"}}
    assert record == runs.read(tmp_path, "test_vit")
    assert 5 <= record["seconds"] < 30


def test_a_process_that_takes_the_memory_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = worker(tmp_path, monkeypatch, "import time\nheld = bytearray(400 << 20)\ntime.sleep(60)\n")
    assert record["stages"] == {"start": {"error": "needed more than 300 MiB"}}


def test_a_process_that_dies_is_told_by_its_last_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = worker(tmp_path, monkeypatch, "raise SystemExit('no such model')\n")
    assert record["stages"]["start"]["error"] == "the process ended with 1: no such model"
    assert json.loads(runs.record_path(tmp_path, "test_vit").read_text(encoding="utf-8"))["state"] == {"code": "x"}


def test_what_grows_is_held_at_a_batch_norm_and_what_does_not_stays() -> None:
    images = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for gain in (1000.0, 0.001):
            product, norm = nn.Conv2d(3, 8, 1, bias=False), nn.BatchNorm2d(8)
            product.weight.mul_(gain)
            model = nn.Sequential(product, norm).eval()
            before = norm.get_buffer("running_var").clone()
            hold_size(model, images)
            assert torch.equal(norm.get_buffer("running_var"), before) == (gain < 1)
            assert float(model(images).square().mean()) < 2.0
