from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
from PIL import Image

from vitexport.preprocess import RESAMPLING, PreprocessSpec, to_pixels
from vitexport.validate import preprocessing
from vitexport.validate.preprocessing import DECODED, PICTURES, preprocessed, same_preprocessing

SPEC = PreprocessSpec(height=32, width=48, mean=(0.5,) * 3, std=(0.5,) * 3, interpolation="bicubic", crop_pct=0.9)
BOTH = ("preprocessing", "decoding")


def statuses(spec: PreprocessSpec, kept: np.typing.NDArray[np.uint8]) -> dict[str, str]:
    return {check.name: check.status for check in same_preprocessing(kept, spec)}


def test_the_same_way_gives_the_same_hashes() -> None:
    kept = preprocessed(SPEC)
    assert kept.shape == (1 + len(PICTURES), 32, 48, 3)
    assert kept.dtype == np.uint8
    checks = same_preprocessing(kept, SPEC)
    assert [(check.name, check.status, check.measured) for check in checks] == [(name, "passed", 0.0) for name in BOTH]
    assert all("sha256" in check.message for check in checks)


@pytest.mark.parametrize("side", [32, 224, 518])
def test_no_two_filters_are_taken_for_each_other(side: int) -> None:
    spec = dataclasses.replace(SPEC, height=side, width=side)
    made = {name: preprocessed(dataclasses.replace(spec, interpolation=name)) for name in RESAMPLING}
    for one, other in itertools.permutations(RESAMPLING, 2):
        found = statuses(dataclasses.replace(spec, interpolation=one), made[other])
        assert found["preprocessing"] == "failed", (one, other)


@pytest.mark.parametrize(
    "other", [dataclasses.replace(SPEC, crop_pct=0.88), dataclasses.replace(SPEC, crop_mode="squash")], ids=["pct", "mode"]
)
def test_another_crop_fails_with_its_difference(other: PreprocessSpec) -> None:
    check = same_preprocessing(preprocessed(other), SPEC)[0]
    assert check.status == "failed"
    assert check.measured is not None
    assert f"by {check.measured:.3f} levels of 255 at most" in check.message


def test_a_level_of_another_rounding_passes_and_is_told() -> None:
    kept = preprocessed(SPEC)
    kept[:, ::7] ^= 1
    resized, decoded = same_preprocessing(kept, SPEC)
    assert (resized.status, resized.measured) == ("passed", 1.0)
    assert decoded.status == "passed"
    assert decoded.measured == pytest.approx(5 / 32)
    assert "not the build's pixels, by 1.000 levels" in resized.message
    assert "on the mean" in decoded.message


def test_a_decoder_that_computes_something_else_is_seen() -> None:
    kept = preprocessed(SPEC)
    kept[1:] += np.uint8(DECODED + 1)
    assert statuses(SPEC, kept) == {"preprocessing": "passed", "decoding": "failed"}


def test_red_and_blue_exchanged_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = preprocessed(SPEC)
    monkeypatch.setattr(preprocessing, "to_pixels", lambda *words: to_pixels(*words)[..., ::-1])
    assert statuses(SPEC, kept) == dict.fromkeys(BOTH, "failed")


def test_a_library_that_resamples_otherwise_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = preprocessed(SPEC)
    monkeypatch.setitem(RESAMPLING, SPEC.interpolation, Image.Resampling.BILINEAR)
    assert statuses(SPEC, kept)["preprocessing"] == "failed"


def test_what_cannot_be_held_against_anything_is_skipped() -> None:
    for kept, fragment in ((None, "keeps no preprocessed pictures"), (preprocessed(SPEC)[:1], "keeps 1 preprocessed")):
        [check] = same_preprocessing(kept, SPEC)
        assert (check.status, fragment in check.message) == ("skipped", True)


def test_a_photograph_that_cannot_be_decoded_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = preprocessed(SPEC)
    monkeypatch.setattr(preprocessing, "PICTURES", ("none.jpg",))
    [check] = same_preprocessing(kept, SPEC)
    assert (check.name, check.status) == ("decoding", "failed")
    assert "does not exist" in check.message
