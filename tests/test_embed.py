"""Builds whose bundle holds a model that takes the picture itself."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from conftest import TINY, VALIDATION, Built
from PIL import Image

from vitexport import stacks
from vitexport.artifacts import BatchRange, silent
from vitexport.errors import UsageError
from vitexport.pipeline import BuildRequest, plan, run
from vitexport.pipeline import embed as embedding
from vitexport.preprocess import PreprocessSpec, load_image, preprocess
from vitexport.runtime.backends.onnx_runtime import OnnxRuntimeBackend
from vitexport.runtime.model import Prediction
from vitexport.targets import resolve
from vitexport.validate.budget import Budget
from vitexport.validate.pictures import PictureError, compare_pictures

CHECKS = ("picture_mean", "picture_largest", "picture_outputs")


def tiny(tmp_path: Path, **changes: Any) -> Built:
    request = BuildRequest(
        model=TINY, target="cpu", precision="fp32", out=tmp_path / "out", budget=Budget(max_drop=100, min_agreement=0)
    )
    return Built(*run(dataclasses.replace(request, **changes), silent))


def app(built: Built) -> Path:
    path = built.bundle.artifact("onnx_app")
    assert path is not None
    return path


def test_a_browser_s_bundle_holds_the_model_that_takes_the_picture(web_bundle: Built) -> None:
    status = {check.name: check.status for check in web_bundle.report.checks}
    assert {name: status[name] for name in CHECKS} == dict.fromkeys(CHECKS, "passed")
    assert status["latency"] == "skipped"
    figures = web_bundle.report.measurements["embedded"]
    assert 0 <= figures["mean_levels"] < 0.05
    assert figures["onnx_bytes"] == app(web_bundle).stat().st_size < 1.2e6
    assert web_bundle.report.measurements["size"]["onnx_app_bytes"] == figures["onnx_bytes"]
    assert {"python preprocessing", "preprocessing in the graph"} <= set(figures["latency"])
    assert any("on the machine of the build, not in Browser" in note for note in web_bundle.report.notes)


def test_one_file_answers_as_the_bundle_does(web_bundle: Built) -> None:
    backend, plain = OnnxRuntimeBackend(app(web_bundle)), OnnxRuntimeBackend(web_bundle.root / "model.onnx")
    for path in sorted(VALIDATION.glob("*/*.png"))[::40]:
        picture = load_image(path)
        seen = backend.run(np.asarray(picture)[None])
        expected = Prediction(outputs=plain.run(preprocess(picture, web_bundle.bundle.manifest.preprocess)[None]))
        # A pixel that is off by its one level may round to another step of an INT8 tensor.
        np.testing.assert_allclose(seen["logits"], expected.logits, atol=0.05)
        np.testing.assert_allclose(seen["probabilities"], expected.probabilities, atol=5e-3)
        assert seen["top_indices"][0].tolist() == np.argsort(-seen["logits"][0])[:5].tolist()
        assert seen["top_indices"][0][0] == expected.logits.argmax()


def test_the_file_says_what_it_is(web_bundle: Built) -> None:
    model, manifest = onnx.load(str(app(web_bundle))), web_bundle.bundle.manifest
    entries = {entry.key: json.loads(entry.value) for entry in model.metadata_props}
    assert tuple(entries["vitexport.labels"]) == manifest.labels
    assert PreprocessSpec.from_json(entries["vitexport.preprocess"]) == manifest.preprocess
    assert entries["vitexport.model"]["weights_sha256"] == manifest.model["weights_sha256"]
    assert (entries["vitexport.precision"], entries["vitexport.target"]) == ("int8", "web")
    assert entries["vitexport.versions"] == dict(manifest.versions)


def test_a_cpu_bundle_gets_it_when_asked_and_its_cost_is_measured(tmp_path: Path) -> None:
    built = tiny(tmp_path, embed_preprocess=True, top_indices=0, batch=BatchRange.parse("1:2:4"))
    latency = built.report.measurements["embedded"]["latency"]
    assert set(latency) == {"python preprocessing", "preprocessing in the graph", "model without", "model with"}
    assert any("ms in the graph" in note for note in built.report.notes)
    pictures = np.random.default_rng(0).integers(0, 256, (3, 50, 40, 3), dtype=np.uint8)
    seen = OnnxRuntimeBackend(app(built)).run(pictures)
    assert {name: values.shape for name, values in seen.items()} == {"logits": (3, 7)}


def test_a_bundle_without_an_application_has_none(cpu_bundle: Built) -> None:
    assert cpu_bundle.bundle.artifact("onnx_app") is None


def test_an_embedding_is_held_by_its_cosine(tmp_path: Path) -> None:
    built = tiny(tmp_path, model=dataclasses.replace(TINY, head="features"), target="android-arm64", precision="fp16")
    check = next(check for check in built.report.checks if check.name == "picture_outputs")
    assert (check.status, check.limit) == ("passed", embedding.LEAST_COSINE)
    assert app(built).stat().st_size < (built.root / "model.float.onnx").stat().st_size


def test_what_differs_too_much_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def worse(*arguments: Any) -> PictureError:
        return dataclasses.replace(compare_pictures(*arguments), largest=4.0)

    monkeypatch.setattr(embedding, "compare_pictures", worse)
    monkeypatch.setattr(embedding, "odd_pictures", lambda _: {"grey": Image.new("RGB", (40, 30), (90, 90, 90))})
    built = tiny(tmp_path, embed_preprocess=True)
    assert built.report.verdict == "failed"
    assert built.bundle.artifact("onnx_app") is None
    assert not (built.root / "model.app.onnx").exists()
    assert any("was refused" in note for note in built.report.notes)


def test_tensorrt_takes_no_picture(tmp_path: Path) -> None:
    request = BuildRequest(model=TINY, target="jetson-orin-nano-8gb", embed_preprocess=True, out=tmp_path / "out")
    with pytest.raises(UsageError, match="`embed_preprocess` is for ONNX Runtime"):
        run(request, silent)


def test_the_plan_tells_of_it(tmp_path: Path) -> None:
    steps = plan(BuildRequest(model=TINY, target="web", out=tmp_path / "out")).steps
    assert any("graph of its own" in step for step in steps)
    assert not any("beside PyTorch" in step for step in steps)
    assert not BuildRequest(model=TINY, target="web", embed_preprocess=False).embeds(stacks.of(resolve("web")))
