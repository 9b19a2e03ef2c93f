"""PyTorch beside a bundle: the same architecture from the manifest alone, or the reason why not."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Built

from vitexport.bundle import Manifest
from vitexport.cli.commands import cli
from vitexport.eager import pytorch_beside
from vitexport.errors import ToolchainError
from vitexport.validate.bench import Contender


@pytest.fixture
def manifest(cpu_bundle: Built) -> Manifest:
    return cpu_bundle.bundle.manifest


def changed(manifest: Manifest, **model: Any) -> Manifest:
    return dataclasses.replace(manifest, model={**manifest.model, **model})


def only(manifest: Manifest) -> Contender:
    beside = pytorch_beside(manifest, gpu=False)
    assert beside.skipped is None
    [contender] = beside.contenders
    return contender


def test_the_architecture_is_built_without_its_weights(manifest: Manifest) -> None:
    contender = only(manifest)
    assert contender.name == "PyTorch fp32"
    assert contender.gpu_time is None
    assert "random weights" in contender.runtime
    outputs: Any = contender.run(np.zeros((2, 3, 32, 32), np.float32))
    assert [output.shape for output in outputs] == [(2, 10)]


@pytest.mark.parametrize("fixture", ["several_bundle", "embedding_bundle"])
def test_other_outputs_are_computed_too(fixture: str, request: pytest.FixtureRequest) -> None:
    manifest = request.getfixturevalue(fixture).bundle.manifest
    outputs: Any = only(manifest).run(np.zeros((1, 3, 32, 32), np.float32))
    assert [output.shape[1:] for output in outputs] == [output.shape for output in manifest.outputs]


@pytest.mark.parametrize(
    ("change", "fragment"),
    [
        ({"architecture": "vit_of_somebody"}, "has no architecture 'vit_of_somebody'"),
        ({"name": "local-dir:elsewhere", "architecture": ""}, "has no architecture 'local-dir:elsewhere'"),
        ({"parameters": 1}, "the bundle's model has 1 and takes 32 x 32"),
        ({"kwargs": {}}, "takes 224 x 224 pixels; the bundle's model has"),
        ({"kwargs": {"no_such_keyword": 1}}, "cannot be built again from its name"),
    ],
)
def test_another_model_than_the_bundles_is_not_timed(change: dict[str, Any], fragment: str, manifest: Manifest) -> None:
    beside = pytorch_beside(changed(manifest, **change), gpu=False)
    assert beside.contenders == ()
    assert beside.skipped is not None
    assert fragment in beside.skipped


def test_without_a_gpu_for_pytorch_an_engine_has_nothing_beside_it(manifest: Manifest) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU; tests/gpu times it")
    beside = pytorch_beside(manifest, gpu=True)
    assert beside.contenders == ()
    assert "finds no CUDA GPU" in str(beside.skipped)


def test_what_pytorch_refuses_is_an_error_of_ours(manifest: Manifest) -> None:
    with pytest.raises(ToolchainError, match="PyTorch failed: "):
        only(manifest).run(np.zeros((1, 7, 32, 32), np.float32))


@pytest.mark.parametrize(
    ("absent", "fragment"),
    [("torch", "torch is not installed here"), ("timm", "timm is not installed here")],
)
def test_without_pytorch_or_timm_the_bundle_is_timed_alone(
    absent: str, fragment: str, cpu_bundle: Built, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delitem(sys.modules, "vitexport.eager", raising=False)
    monkeypatch.delattr("vitexport.eager", raising=False)
    monkeypatch.setitem(sys.modules, absent, None)
    assert cli.main(["bench", str(cpu_bundle.root), "--seconds", "0.1"], standalone_mode=False) == 0
    assert f"skipped  pytorch  {fragment}" in capsys.readouterr().out


def test_bench_writes_what_compare_reads(cpu_bundle: Built, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "run.json"
    assert cli.main(["bench", str(cpu_bundle.root), "--seconds", "0.1", "-o", str(path)], standalone_mode=False) == 0
    shown = capsys.readouterr().out
    assert "PyTorch fp32  end to end" in shown
    assert cli.main(["compare", str(path), str(cpu_bundle.root)], standalone_mode=False) == 0
    assert "B / A p50" in capsys.readouterr().out
