"""Models beyond what one ONNX file holds: the limit is lowered, and everything goes through files of weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from conftest import VALIDATION, sample_request
from exports import placed
from graphs import run

from vitexport import rewrites
from vitexport.artifacts import BatchRange, OnnxModel, data_file, silent
from vitexport.bundle import open_bundle
from vitexport.errors import BundleError
from vitexport.pipeline import run as build
from vitexport.rewrites import load, remove, save, session, weight_bytes
from vitexport.runtime import load as load_bundle

LIMIT = 100_000


@pytest.fixture
def low_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rewrites, "LARGEST_FILE", LIMIT)


@pytest.fixture
def large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The sample with its weights beside it."""
    # Other tests share the export behind it, which is made under the real limit.
    model = load(placed(tmp_path, "1", model="sample").path)
    monkeypatch.setattr(rewrites, "LARGEST_FILE", LIMIT)
    assert weight_bytes(model) > LIMIT
    path = tmp_path / "large.onnx"
    save(model, path)
    return path


IMAGES = np.random.default_rng(0).normal(0, 1, (1, 3, 32, 32)).astype(np.float32)


def test_weights_go_beside_the_graph_and_compute_the_same(large: Path) -> None:
    assert large.stat().st_size < LIMIT < data_file(large).stat().st_size
    onnx.checker.check_model(str(large), full_check=True)
    np.testing.assert_array_equal(run(large, IMAGES), run(large.with_name("model.float.onnx"), IMAGES))
    described = OnnxModel.of(large, opset=20, batch=BatchRange.parse("1"), precision="fp32")
    assert described.size == large.stat().st_size + data_file(large).stat().st_size


def test_a_graph_that_is_saved_again_has_weights_of_its_own(large: Path) -> None:
    expected = run(large, IMAGES)
    second = large.with_name("second.onnx")
    save(load(large), second)
    remove(large)
    assert not data_file(large).exists()
    np.testing.assert_array_equal(run(second, IMAGES), expected)


def test_what_fits_one_file_again_goes_into_one(large: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load(large)
    monkeypatch.setattr(rewrites, "LARGEST_FILE", 1 << 30)
    one = large.with_name("one.onnx")
    save(model, one)
    assert not data_file(one).exists()
    remove(large)
    np.testing.assert_array_equal(run(one, IMAGES), run(large.with_name("model.float.onnx"), IMAGES))


def test_a_session_needs_no_files_afterwards(large: Path) -> None:
    expected = run(large, IMAGES)
    backend = session(load(large))
    remove(large)
    np.testing.assert_allclose(backend.run(IMAGES)["logits"], expected, atol=1e-5)


def test_what_only_a_session_reads_is_written_without_a_message_beside_it(
    large: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rewrites, "LARGEST_FILE", 1 << 30)
    monkeypatch.setattr(rewrites, "LARGEST_MESSAGE", LIMIT)
    monkeypatch.setattr(rewrites, "_serialized", None)
    np.testing.assert_allclose(session(load(large)).run(IMAGES)["logits"], run(large, IMAGES), atol=1e-5)


@pytest.mark.usefixtures("low_limit")
@pytest.mark.parametrize(("target", "precision"), [("l4", "fp32"), ("l4", "int8"), ("cpu", "int8")])
def test_a_bundle_holds_and_verifies_the_weights_beside_its_graphs(tmp_path: Path, target: str, precision: str) -> None:
    out = tmp_path / "bundle"
    _, report = build(sample_request(out, target=target, precision=precision), silent)
    # Which of two graphs is faster is not asked here: another test may have the processors.
    assert not [check for check in report.checks if check.status == "failed" and check.name != "faster_than_float"]
    assert not list(out.parent.glob(".*"))
    files = set(open_bundle(out).manifest.files)
    assert {"model.onnx", "model.onnx.data"} <= files
    assert {name for name in files if name.endswith(".data")} <= {"model.onnx.data", "model.float.onnx.data"}
    picture = VALIDATION / "7" / "digit_0081.png"
    assert load_bundle(out, backend="onnxruntime").predict(str(picture)).labels == ("7",)
    weights = out / "model.onnx.data"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\0")
    with pytest.raises(BundleError, match=r"model\.onnx\.data in bundle .* has sha256"):
        open_bundle(out)


def test_weights_beside_a_graph_go_when_it_fits_one_file(large: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = load(large.with_name("model.float.onnx"))
    monkeypatch.setattr(rewrites, "LARGEST_FILE", 1 << 30)
    save(small, large)
    assert not data_file(large).exists()
    described = OnnxModel.of(large, opset=20, batch=BatchRange.parse("1"), precision="fp32")
    assert described.size == large.stat().st_size
