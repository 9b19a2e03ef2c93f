"""Whole families, as `scripts/zoo` runs them: export, parity at batch 1, 2 and 3, float16, INT8 and three engines.

A few small models of different make in every run; one of each family of the default list behind the marker ``slow``.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from conftest import ROOT

sys.path.insert(0, str(ROOT / "scripts"))

from timm_zoo import models, table, worker

# Plain attention with a class token; relative positions; convolutions with attention; rotary positions, no classifier.
FEW = ("test_vit", "test_vit_relpos", "test_coatnet", "vit_tiny_patch16_dinov3_qkvb", "efficientvit_m0")
SMALLEST = tuple(names[0] for names in models.DEFAULT.values() if names[0] not in FEW)


def assert_green(name: str, folder: Path) -> None:
    record = folder / "record.json"
    worker.run(name, record)
    assert table.problems(json.loads(record.read_text(encoding="utf-8"))) == []


@pytest.mark.parametrize("name", FEW)
def test_a_model_is_green(tmp_path: Path, name: str) -> None:
    assert_green(name, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALLEST)
def test_each_family_is_green(tmp_path: Path, name: str) -> None:
    assert_green(name, tmp_path)
