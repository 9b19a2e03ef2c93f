"""The parts of scripts/benchmark_quantizers that need no other quantizer: what it compares on, and what it prints."""

from __future__ import annotations

import copy
import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ROOT, VALIDATION
from exports import live, placed
from hypothesis import given, settings
from hypothesis import strategies as st

from vitexport.datasets import open_images, open_labelled
from vitexport.validate.metrics import HIGHEST_SQNR_DB

sys.path.insert(0, str(ROOT / "scripts"))

from quantizers import judge, models, pictures, processes, table
from quantizers.contenders import CONTENDERS
from quantizers.outliers import EXTREME, MODERATE, Outliers, scale_channels

GOLDEN = Path(__file__).parent / "golden"
POWERS = st.lists(st.sampled_from([2.0**power for power in range(-3, 11)]), max_size=4).map(tuple)


def test_rescaled_sample_computes_the_same_logits_with_large_channels_inside() -> None:
    inputs = torch.from_numpy(next(open_images(VALIDATION, limit=16).batches(live("sample")[1].preprocess, 16)))
    for outliers in (MODERATE, EXTREME):
        model = copy.deepcopy(live("sample")[0].model)
        norm = model.get_submodule("blocks.1.norm1")
        with torch.inference_mode():
            logits, before = model(inputs), _outputs(model, norm, inputs)
            factors = scale_channels(model, outliers)
            change = (model(inputs) - logits).abs().max() / logits.abs().max()
            after = _outputs(model, norm, inputs)
        assert float(change) <= models.LARGEST_CHANGE
        assert sorted(factors["blocks.1.norm1"].values()) == sorted(outliers.norm)
        for channel, factor in factors["blocks.1.norm1"].items():
            assert torch.equal(after[..., channel], before[..., channel] * factor)
        untouched = [index for index in range(128) if index not in factors["blocks.1.norm1"]]
        assert torch.equal(after[..., untouched], before[..., untouched])


@settings(deadline=None, max_examples=15)
@given(norm=POWERS, values=POWERS)
def test_any_powers_of_two_leave_the_function(norm: tuple[float, ...], values: tuple[float, ...]) -> None:
    model = copy.deepcopy(live("tiny")[0].model)
    inputs = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        logits = model(inputs)
        scale_channels(model, Outliers(norm=norm, values=values))
        assert float((model(inputs) - logits).abs().max()) <= models.LARGEST_CHANGE * float(logits.abs().max())


def _outputs(model: torch.nn.Module, module: torch.nn.Module, inputs: torch.Tensor) -> torch.Tensor:
    seen: list[torch.Tensor] = []
    with module.register_forward_hook(lambda _module, _inputs, output: seen.append(output)):
        model(inputs)
    return seen[0]


@pytest.mark.parametrize("kind", pictures.DEGRADATIONS)
def test_degraded_pixels_depend_on_the_seed_alone(kind: str) -> None:
    pixels = open_images(VALIDATION, limit=1).pixels(live("sample")[1].preprocess, [0])[0]
    first, again, other = (pictures.degrade(pixels, kind, seed) for seed in (3, 3, 5))
    assert first.shape == pixels.shape
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    # Recognizable still: the digit's own pixels explain most of what is there.
    assert np.corrcoef(first.reshape(-1), pixels.reshape(-1))[0, 1] > 0.7


def test_degraded_copies_keep_names_classes_and_bytes(tmp_path: Path) -> None:
    labels = [str(digit) for digit in range(10)]
    images = open_labelled(VALIDATION, labels=labels, synsets=None, classes=10)
    spec = live("sample")[1].preprocess
    for folder in (tmp_path / "a", tmp_path / "b"):
        pictures.write_degraded(images, spec, folder)
    first, second = (open_labelled(tmp_path / name, labels=labels, synsets=None, classes=10) for name in ("a", "b"))
    assert [(file.relative, file.label) for file in first.files] == [(file.relative, file.label) for file in images.files]
    assert first.sha256 == second.sha256
    assert first.sha256 != images.sha256


def test_crops_are_as_many_as_asked_for_and_the_same_again(tmp_path: Path) -> None:
    for name in ("a", "b"):
        pictures.write_crops(tmp_path / name, 12)
    first, second = open_images(tmp_path / "a"), open_images(tmp_path / "b")
    assert len(first.files) == 12
    assert len({file.sha256 for file in first.files}) == 12
    assert first.sha256 == second.sha256


def test_the_array_is_what_preprocessing_gives(tmp_path: Path) -> None:
    images, spec = open_images(VALIDATION, limit=70), live("sample")[1].preprocess
    pictures.write_array(images, spec, tmp_path / "inputs.npy")
    wanted = np.concatenate(list(images.batches(spec, 70)))
    assert np.array_equal(np.load(tmp_path / "inputs.npy"), wanted)


def test_figures_of_the_float_graph_against_its_own_and_other_logits(tmp_path: Path) -> None:
    onnx = placed(tmp_path, "1", model="sample")
    labels = [str(digit) for digit in range(10)]
    images = open_labelled(VALIDATION, labels=labels, synsets=None, classes=10)
    clean = judge.judged(images, live("sample")[1].preprocess, onnx.path, "clean")
    # 1 % more everywhere: 40 dB, and the same order of classes.
    louder = dataclasses.replace(clean, name="louder", reference=clean.reference * np.float32(1.01))
    figures = judge.figures(onnx.path, (clean, louder))
    assert figures["clean"] == {"top1": 99.25, "agreement": 100.0, "sqnr_db": HIGHEST_SQNR_DB}
    assert figures["louder"]["agreement"] == 100.0
    assert figures["louder"]["sqnr_db"] == pytest.approx(40.1, abs=0.05)


def test_tables_of_a_recorded_run_read_as_before() -> None:
    recorded: dict[str, Any] = json.loads((GOLDEN / "quantizers.json").read_text(encoding="utf-8"))
    assert table.details(recorded) + "\n" == (GOLDEN / "quantizers.md").read_text(encoding="utf-8")


def test_a_run_without_cost_or_with_cost_alone_has_tables_too() -> None:
    recorded: dict[str, Any] = json.loads((GOLDEN / "quantizers.json").read_text(encoding="utf-8"))
    without = table.details({**recorded, "cost": None})
    assert "| SQNR dB, clean / degraded | swin | sample |" in without
    assert "vit_small" not in without
    alone = table.details({**recorded, "models": {}})
    assert "| SQNR dB, clean / degraded | vit_small, 64 images: s | peak MiB |" in alone
    assert "| vitexport | 8.6 | 608 |" in alone


def test_a_runner_that_fails_is_a_row_with_its_reason(tmp_path: Path) -> None:
    ran = processes.run(Path(sys.executable), "run_float", [str(tmp_path / "no.onnx"), "no.npy"], tmp_path / "log")
    assert ran.said is None
    assert ran.failure is not None
    assert ran.failure.startswith("exit code 1: ")
    assert "no.onnx" in ran.failure


def test_peak_memory_is_that_of_the_process_and_not_of_its_starter(tmp_path: Path) -> None:
    script = tmp_path / "starter.py"
    script.write_text(
        "import subprocess, sys\n"
        "held = bytearray(b'1') * (400 << 20)\n"
        "subprocess.run([sys.executable, '-I', *sys.argv[1:]], check=True)\n",
        encoding="ascii",
    )
    launcher = str(processes.HERE / "launcher.py")
    command = [sys.executable, str(script), launcher, str(tmp_path / "log"), sys.executable, "-I", "-c"]
    small, large = (
        json.loads(subprocess.run([*command, code], check=True, capture_output=True, text=True).stdout)
        for code in ("pass", "held = bytearray(b'1') * (200 << 20)")
    )
    assert small["peak_mib"] < 100
    assert 200 < large["peak_mib"] < 300
    assert small["exit_code"] == 0


def test_every_contender_has_its_runner_and_pinned_packages() -> None:
    assert len({contender.name for contender in CONTENDERS}) == len(CONTENDERS)
    for contender in CONTENDERS:
        assert (processes.HERE / "runners" / f"{contender.runner}.py").is_file()
        if contender.environment is None:
            continue
        lines = (processes.HERE / f"requirements-{contender.environment}.txt").read_text(encoding="utf-8").splitlines()
        assert all("==" in line and "://" not in line for line in lines)
        assert any(line.startswith(f"{contender.package}==") for line in lines)
