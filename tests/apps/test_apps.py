"""Projects that ``vitexport app`` writes: what is in them, and what those of them compute that can run here."""

from __future__ import annotations

import base64
import dataclasses
import json
import re
import subprocess
from pathlib import Path

import numpy as np
import pytest
from conftest import VALIDATION, Built
from PIL import Image
from projects import BROWSER, HERE, NODE, PACKAGES, browsed, ran, served, written

from vitexport.apps import KINDS, TEMPLATES, AppKind, write_app
from vitexport.artifacts import BatchRange
from vitexport.errors import InputError, UsageError
from vitexport.preprocess import load_image
from vitexport.runtime.backends.onnx_runtime import OnnxRuntimeBackend
from vitexport.validate.probes import PHOTOGRAPHS

DIGITS = sorted(VALIDATION.glob("*/*.png"))[::8]


@pytest.mark.parametrize("kind", KINDS)
def test_every_project_is_whole(kind: AppKind, web_bundle: Built, tmp_path: Path) -> None:
    files = write_app(web_bundle.bundle, kind, tmp_path / kind)
    model = next(name for name in files if name.endswith("model.onnx"))
    app = web_bundle.bundle.artifact("onnx_app")
    assert app is not None
    assert (tmp_path / kind / model).read_bytes() == app.read_bytes()
    assert {"README.md", ".gitignore"} <= set(files)
    for name in files:
        if name != model:
            text = (tmp_path / kind / name).read_text(encoding="utf-8")
            assert "@@" not in text, name
            assert not re.search(r"[ \t]$", text, re.MULTILINE), name
            assert text.endswith("\n"), name


def test_templates_use_only_known_words() -> None:
    words = {
        word
        for path in TEMPLATES.rglob("*")
        if path.is_file()
        for word in re.findall(r"@@([a-z]+)", path.read_text(encoding="utf-8"))
    }
    assert words == {"title", "slug", "precision", "mib", "steps", "found"}


@NODE
def test_node_computes_what_python_computes(web_bundle: Built, tmp_path: Path) -> None:
    project = written(web_bundle.bundle, "node", tmp_path / "node")
    pictures = list(DIGITS)
    for name in ("astronaut", "coffee", "chelsea"):
        # JPEG decoders differ in the last bit.
        pictures.append(tmp_path / f"{name}.png")
        load_image(PHOTOGRAPHS / f"{name}.jpg").save(pictures[-1])
    assert len(pictures) == 53
    answers = json.loads(ran(["node", "classify.js", "--json", *map(str, pictures)], project))
    backend = OnnxRuntimeBackend(project / "model.onnx")
    labels = web_bundle.bundle.manifest.labels
    assert labels is not None
    for path, seen in zip(pictures, answers, strict=True):
        expected = backend.run(np.asarray(load_image(path))[None])
        np.testing.assert_allclose(seen["logits"], expected["logits"][0], atol=1e-3, err_msg=path.name)
        top = [entry["label"] for entry in seen["top"]]
        assert top == [labels[index] for index in expected["top_indices"][0]], path.name
        assert seen["milliseconds"] > 0


@NODE
def test_the_written_node_project_passes_its_own_tests(web_bundle: Built, tmp_path: Path) -> None:
    project = written(web_bundle.bundle, "node", tmp_path / "node")
    assert "# fail 0" in ran(["node", "--test", "--test-reporter=tap"], project)
    for path in project.glob("**/*.js"):
        if "node_modules" not in path.parts:
            ran(["node", "--check", str(path)], project)


@NODE
def test_node_says_which_file_is_no_picture(web_bundle: Built, tmp_path: Path) -> None:
    project = written(web_bundle.bundle, "node", tmp_path / "node")
    command = ["node", "classify.js", "README.md", str(DIGITS[0])]
    done = subprocess.run(command, cwd=project, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 1
    assert done.stderr.startswith("README.md: ")
    assert str(DIGITS[0]) in done.stdout


@NODE
@BROWSER
def test_the_page_names_the_same_class_in_a_browser(web_bundle: Built, tmp_path: Path) -> None:
    screenshot, picture = tmp_path / "page.png", DIGITS[20]
    report = browsed(web_bundle.bundle, picture, tmp_path)
    expected = OnnxRuntimeBackend(tmp_path / "web" / "model.onnx").run(np.asarray(load_image(picture))[None])
    labels = web_bundle.bundle.manifest.labels
    assert labels is not None
    assert report["labels"][0] == labels[expected["top_indices"][0][0]]
    assert float(report["percents"][0].split()[0]) == pytest.approx(100 * expected["probabilities"].max(), abs=0.1)
    assert len(report["labels"]) == 5
    assert report["samples"][0] > 0
    assert report["announcement"].startswith(f"{report['labels'][0]}, ")
    assert (report["complaints"], report["focused"]) == ([], "file")
    assert "32 × 32 pixels" in report["status"]
    with Image.open(screenshot) as image:
        assert image.size == (1000, 620)


def odd_pictures_of(folder: Path) -> list[Path]:
    """A digit upright and not, beyond the largest canvas, as SVG and in 16 bits; what has no pixels; what is no picture."""
    digit = load_image(DIGITS[20]).resize((64, 64))
    exif = Image.Exif()
    exif[0x0112] = 6
    digit.rotate(90).save(folder / "held.jpg", exif=exif, quality=95, subsampling=0)
    digit.save(folder / "upright.jpg", quality=95, subsampling=0)
    digit.resize((5000, 5000), Image.Resampling.NEAREST).save(folder / "huge.png")
    inner = base64.b64encode((folder / "upright.jpg").read_bytes()).decode()
    svg = (
        '<svg xmlns="http://www.w3.org/2000/svg" width="{0}" height="{0}"><image width="{0}" height="{0}" href="{1}"/></svg>'
    )
    (folder / "drawn.svg").write_text(svg.format(64, f"data:image/jpeg;base64,{inner}"), encoding="utf-8")
    Image.fromarray(np.asarray(digit.convert("L")).astype(np.uint16) * 257).save(folder / "deep.png")
    (folder / "nothing.svg").write_text(svg.format(0, ""), encoding="utf-8")
    (folder / "text.png").write_text("no picture", encoding="utf-8")
    return [
        folder / name for name in ("upright.jpg", "held.jpg", "huge.png", "drawn.svg", "deep.png", "nothing.svg", "text.png")
    ]


@NODE
@BROWSER
def test_the_page_shows_odd_pictures_or_says_why_not(web_bundle: Built, tmp_path: Path) -> None:
    project = written(web_bundle.bundle, "web", tmp_path / "web")
    ran(["node", "vendor.js"], project)
    pictures = odd_pictures_of(tmp_path)
    script = str(HERE / "odd.mjs")
    with served(project) as address:
        states = json.loads(ran(["node", script, str(PACKAGES), address, *map(str, pictures)], tmp_path))
        (project / "ort" / "ort.wasm.min.mjs").unlink()
        (broken,) = json.loads(ran(["node", script, str(PACKAGES), address], tmp_path))
    ready, upright, held, huge, drawn, deep, nothing, text, dropped, pasted, camera = states
    assert ready["status"].startswith("Ready")
    for seen in (held, huge, drawn, deep, dropped, pasted):
        assert (seen["problem"], seen["label"]) == (None, upright["label"])
        assert seen["percent"] == pytest.approx(upright["percent"], abs=2)
    assert (held["size"], huge["size"]) == ([64, 64], [4096, 4096])
    assert "nothing.svg" in nothing["problem"]
    assert text["problem"] == "text.png is not a picture that this browser can read."
    assert (camera["problem"], camera["size"]) == (None, [480, 640])
    assert not any(state["busy"] or state["loading"] for state in states)
    assert broken["status"] == "The model could not be loaded."
    assert "npm install" in broken["problem"]
    assert not broken["loading"]


def test_a_bundle_without_such_a_model_says_how_to_get_one(cpu_bundle: Built, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"`target=web`.*`embed_preprocess`"):
        write_app(cpu_bundle.bundle, "node", tmp_path / "node")


def test_what_names_no_class_or_takes_several_pictures_is_refused(
    embedding_bundle: Built, web_bundle: Built, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="names no classes"):
        write_app(embedding_bundle.bundle, "node", tmp_path / "node")
    manifest = dataclasses.replace(web_bundle.bundle.manifest, batch=BatchRange.parse("4"))
    with pytest.raises(UsageError, match="takes 4 pictures at once"):
        write_app(dataclasses.replace(web_bundle.bundle, manifest=manifest), "web", tmp_path / "web")


def test_an_existing_folder_is_not_touched(web_bundle: Built, tmp_path: Path) -> None:
    (tmp_path / "node").mkdir()
    (tmp_path / "node" / "mine").write_text("kept", encoding="utf-8")
    with pytest.raises(InputError, match="not touched"):
        write_app(web_bundle.bundle, "node", tmp_path / "node")
    assert [path.name for path in (tmp_path / "node").iterdir()] == ["mine"]
    with pytest.raises(InputError, match=r"exists and is not empty; it is not touched\. Choose another with `out`\."):
        write_app(web_bundle.bundle, "node", web_bundle.root)
    (tmp_path / "link").symlink_to(tmp_path / "node")
    with pytest.raises(InputError, match="is a symbolic link, which is not followed"):
        write_app(web_bundle.bundle, "node", tmp_path / "link")
    (tmp_path / "empty").mkdir()
    assert "README.md" in write_app(web_bundle.bundle, "node", tmp_path / "empty")
    if Path("/proc/self").exists():
        with pytest.raises(InputError, match=r"/proc/project cannot be written: .* Nothing was left behind"):
            write_app(web_bundle.bundle, "node", Path("/proc/project"))


def test_any_name_becomes_one_that_every_ecosystem_takes(web_bundle: Built, tmp_path: Path) -> None:
    manifest = web_bundle.bundle.manifest
    odd = dataclasses.replace(manifest, model={**manifest.model, "name": 'hf-hub:org/My "Model" <v2>&amp;.in1k'})
    write_app(dataclasses.replace(web_bundle.bundle, manifest=odd), "node", tmp_path / "node")
    package = json.loads((tmp_path / "node" / "package.json").read_text(encoding="utf-8"))
    assert re.fullmatch(r"[a-z0-9-]+", package["name"])
    assert not set('"<>&') & set((tmp_path / "node" / "README.md").read_text(encoding="utf-8").splitlines()[0])
