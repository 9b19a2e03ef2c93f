from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from PIL import Image

from vitexport.preprocess import RESAMPLING, PreprocessSpec, to_pixels
from vitexport.validate import preprocessing
from vitexport.validate.preprocessing import LIMIT, PICTURES, preprocessed, same_preprocessing

SPEC = PreprocessSpec(height=32, width=48, mean=(0.5,) * 3, std=(0.5,) * 3, interpolation="bicubic", crop_pct=0.9)


def test_the_same_way_gives_the_same_hash() -> None:
    kept = preprocessed(SPEC)
    assert kept.shape == (len(PICTURES), 32, 48, 3)
    assert kept.dtype == np.uint8
    check = same_preprocessing(kept, SPEC)
    assert (check.status, check.measured) == ("passed", 0.0)
    assert "sha256" in check.message


@pytest.mark.parametrize(
    "other",
    [
        dataclasses.replace(SPEC, interpolation="nearest"),
        dataclasses.replace(SPEC, crop_pct=0.7),
        dataclasses.replace(SPEC, crop_mode="squash"),
    ],
    ids=("interpolation", "crop_pct", "crop_mode"),
)
def test_another_way_fails_with_its_difference(other: PreprocessSpec) -> None:
    check = same_preprocessing(preprocessed(other), SPEC)
    assert check.status == "failed"
    assert check.measured is not None
    assert check.measured > LIMIT
    assert f"differ from the build's by {check.measured:.3f} levels" in check.message


def test_a_decoder_that_rounds_otherwise_passes_and_is_told() -> None:
    kept = preprocessed(SPEC)
    kept[:, ::7] ^= 1
    check = same_preprocessing(kept, SPEC)
    assert check.status == "passed"
    assert check.measured == pytest.approx(5 / 32)
    assert "1 at most" in check.message


def test_red_and_blue_exchanged_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = preprocessed(SPEC)
    convert = to_pixels
    monkeypatch.setattr(preprocessing, "to_pixels", lambda *words: convert(*words)[..., ::-1])
    assert same_preprocessing(kept, SPEC).status == "failed"


def test_a_library_that_resamples_otherwise_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = preprocessed(SPEC)
    monkeypatch.setitem(RESAMPLING, SPEC.interpolation, Image.Resampling.NEAREST)
    assert same_preprocessing(kept, SPEC).status == "failed"


def test_what_cannot_be_held_against_anything_is_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = preprocessed(SPEC)
    assert "keeps no preprocessed photographs" in same_preprocessing(None, SPEC).message
    assert "keeps 1 photographs" in same_preprocessing(kept[:1], SPEC).message
    monkeypatch.setattr(preprocessing, "PICTURES", ("none.jpg",))
    assert "does not exist" in same_preprocessing(kept, SPEC).message
    assert same_preprocessing(kept, SPEC).status == "skipped"
