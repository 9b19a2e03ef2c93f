"""A recipe replays: the same bytes from the same images, and a refusal from others."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from conftest import Built, sample_request

from vitexport.artifacts import file_sha256, silent
from vitexport.bundle import Bundle
from vitexport.errors import InputError, UsageError
from vitexport.pipeline import plan, run
from vitexport.pipeline.recipe import read_recipe
from vitexport.quantize.settings import Observer, Placement, QuantSettings
from vitexport.report import Report
from vitexport.validate.budget import Budget


def test_a_manifest_replays_to_the_same_bytes(cpu_bundle: Built, tmp_path: Path) -> None:
    request = sample_request(tmp_path / "again", recipe=cpu_bundle.root / "manifest.json")
    again, _ = run(request, silent)
    assert file_sha256(again.root / "model.onnx") == file_sha256(cpu_bundle.root / "model.onnx")
    assert again.manifest.recipe == cpu_bundle.bundle.manifest.recipe


def test_settings_of_the_recipe_are_followed(cpu_bundle: Built, tmp_path: Path) -> None:
    recipe = dict(cpu_bundle.bundle.manifest.recipe or {})
    recipe["settings"] = {**recipe["settings"], "exclude": ["fc2"]}
    recipe["stay_float"] = ["blocks.0.attn.proj"]
    file = tmp_path / "recipe.json"
    file.write_text(json.dumps(recipe))
    bundle, _ = run(sample_request(tmp_path / "other", recipe=file), silent)
    made = bundle.manifest.recipe or {}
    assert made["stay_float"] == ["blocks.0.attn.proj"]
    assert not [layer for layer in made["layers"] if layer.endswith("fc2")]
    assert len(made["layers"]) == 8


def test_placement_b_says_what_it_quantized_and_equalized(tmp_path: Path) -> None:
    settings = QuantSettings(placement=Placement(base="B"))
    request = sample_request(tmp_path / "b", target="jetson-orin-nano-8gb", quantization=settings)
    bundle, report = run(request, silent)
    (note,) = [note for note in report.notes if note.startswith("Placement B")]
    # Two products of two inputs each in every one of three blocks.
    assert "quantizes 12 inputs of attention products" in note
    recipe = bundle.manifest.recipe or {}
    strengths = [recipe["strengths"][group] for group in recipe["inputs"]]
    assert len(strengths) == 3
    folded = sum(strength > 0 for strength in strengths)
    assert folded
    assert f"equalized against each other in {folded} attentions" in note


def test_other_images_are_refused_before_the_work(cpu_bundle: Built, tmp_path: Path) -> None:
    recipe = cpu_bundle.root / "manifest.json"
    found = plan(sample_request(tmp_path / "x", recipe=recipe, calibration_size=32))
    assert [re.search(r"32 of 64 differ", finding.message) is not None for finding in found.findings] == [True]
    assert found.exit_code == InputError("").exit_code


def test_a_recipe_and_settings_of_ones_own_exclude_each_other(cpu_bundle: Built, tmp_path: Path) -> None:
    settings = QuantSettings(placement=Placement(base="A", head=True))
    request = sample_request(tmp_path / "x", recipe=cpu_bundle.root / "manifest.json", quantization=settings)
    with pytest.raises(UsageError, match="`recipe` decides"):
        run(request, silent)
    assert not (tmp_path / "x").exists()


def test_a_recipe_for_other_arithmetic_is_refused_before_the_work(cpu_bundle: Built, tmp_path: Path) -> None:
    request = sample_request(
        tmp_path / "x", target="jetson-orin-nano-8gb", recipe=cpu_bundle.root / "manifest.json", calibration_size=64
    )
    found = plan(request)
    assert any("was made for onnxruntime-cpu" in finding.message for finding in found.findings)
    assert found.exit_code == InputError("").exit_code


def test_a_recipe_of_another_model_is_refused(cpu_bundle: Built, tmp_path: Path) -> None:
    recipe = {**(cpu_bundle.bundle.manifest.recipe or {}), "stay_float": ["blocks.7.mlp.fc2"]}
    file = tmp_path / "recipe.json"
    file.write_text(json.dumps(recipe))
    with pytest.raises(InputError, match=r"leaves blocks\.7\.mlp\.fc2 in float"):
        run(sample_request(tmp_path / "x", recipe=file), silent)
    assert not (tmp_path / "x").exists()


def test_attention_goes_back_to_float_where_its_products_miss_the_budget(tmp_path: Path) -> None:
    """Placement B loses 10 dB in the softmax; a budget between both is met by the attentions' going back."""
    settings = QuantSettings(placement=Placement(base="B"), observer=Observer(kind="percentile", percentile=97.0))
    request = sample_request(
        tmp_path / "b",
        target="jetson-orin-nano-8gb",
        quantization=settings,
        calibration_size=16,
        data=None,
        budget=Budget(max_drop=1.0, min_agreement=99.0),
    )
    bundle, _ = run(request, silent)
    recipe = bundle.manifest.recipe or {}
    attentions = {f"blocks.{block}.attn/MatMul.2" for block in range(3)}
    assert attentions & set(recipe["stay_float"])
    assert set(recipe["inputs"]) == attentions - set(recipe["stay_float"])


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "{}",
        '{"recipe": null}',
        '{"settings": {}, "stay_float": [], "images": {}}',
        '{"settings": [], "stay_float": [], "images": {}}',
        '{"settings": {"placement": "Z"}, "stay_float": 3, "images": {}}',
        "\x00\xff",
    ],
)
def test_what_is_no_recipe_is_a_message(tmp_path: Path, content: str) -> None:
    file = tmp_path / "recipe.json"
    file.write_bytes(content.encode("latin-1"))
    with pytest.raises(InputError, match=r"recipe\.json"):
        read_recipe(file)


def clipped(out: Path, *, percentile: float, min_agreement: float, include: tuple[str, ...] = ()) -> tuple[Bundle, Report]:
    """A build whose ranges cut off much of what was seen."""
    settings = QuantSettings(observer=Observer(kind="percentile", percentile=percentile), include=include)
    budget = Budget(max_drop=1.0, min_agreement=min_agreement)
    return run(sample_request(out, quantization=settings, calibration_size=16, data=None, budget=budget), silent)


def test_layers_go_back_to_float_until_the_budget_is_met(tmp_path: Path) -> None:
    """At a percentile that clips a fifth of everything INT8 is far off, and some layers must go back."""
    bundle, report = clipped(tmp_path / "b", percentile=80.0, min_agreement=98.0)
    recipe = bundle.manifest.recipe or {}
    assert recipe["stay_float"]
    assert len(recipe["stay_float"]) + len(recipe["layers"]) == 12
    agreement = next(check for check in report.checks if check.name == "agreement")
    assert agreement.status == "passed"
    note = next(note for note in report.notes if "stay float" in note)
    assert all(module in note for module in recipe["stay_float"])


def test_float_ships_with_a_failed_check_where_nothing_meets_the_budget(tmp_path: Path) -> None:
    bundle, report = clipped(tmp_path / "b", percentile=51.0, min_agreement=100.0, include=("blocks.0.mlp.fc2",))
    assert bundle.manifest.precision == "fp32"
    assert bundle.manifest.recipe is None
    failed = [check for check in report.checks if check.status == "failed"]
    assert [check.name for check in failed] == ["int8"]
    assert "fp32 ships" in failed[0].message
    assert report.exit_code == 1
