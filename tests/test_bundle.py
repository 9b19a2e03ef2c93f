from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Built
from graphs import LOGITS
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vitexport.artifacts import DEFAULT_THRESHOLD, BatchRange, OutputSpec, Precision, task_of
from vitexport.bundle import (
    GOLDEN_PIXELS,
    MANIFEST,
    REPORT,
    REPORT_PAGE,
    Bundle,
    Manifest,
    check_output,
    hash_files,
    open_bundle,
    staging,
    write_json,
    write_manifest,
)
from vitexport.errors import BundleError, InputError
from vitexport.preprocess import PreprocessSpec
from vitexport.report import Report, skipped
from vitexport.targets import catalogue, resolve

SPEC = PreprocessSpec(height=4, width=6, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), interpolation="bicubic", crop_pct=0.9)
REPORT_OF_TINY = Report(title="tiny", checks=(skipped("latency", "not measured"),), measurements={}, machine={})
MODEL = {"name": "vit", "weights": "random:seed=0", "weights_sha256": "0" * 64, "parameters": 5}
GOLDEN_LOGITS = "golden/logits.npy"
ARTIFACTS = {"onnx": "model.onnx", "golden_pixels": GOLDEN_PIXELS, "golden_logits": GOLDEN_LOGITS}
THREE_CLASSES = OutputSpec(name=LOGITS, kind="logits", shape=(3,))
EMBEDDING = OutputSpec(name="embedding", kind="embedding", shape=(5,))
FEATURE = OutputSpec(name="feature_2", kind="feature_map", shape=(5, 2, 3))
ENGINE = {
    "library": "tensorrt",
    "library_version": "10.3.0",
    "recipe": {"compute_capabilities": ["8.7"]},
    "skipped": "built on the device",
}
RECIPE = {"layers": [], "images": {}, "settings": {"placement": "A", "observer": "percentile:99.999"}}
# Every file of each bundle, so that each is a test of its own; a test below holds the lists against the folders.
TINY_FILES = ("golden/logits.npy", "golden/pixels.npy", "manifest.json", "model.onnx", "report.json", "report.md")
CPU_FILES = (*TINY_FILES, "model.float.onnx", "golden/preprocessed.npy")
L4_FILES = (*CPU_FILES, "model.engine", "golden/checkpoints.json", "golden/checkpoints.npy")


def classes(**changes: Any) -> OutputSpec:
    return dataclasses.replace(THREE_CLASSES, **changes)


def make_manifest(**changes: Any) -> Manifest:
    values: dict[str, Any] = {
        "versions": {"vitexport": "0.1.0"},
        "model": MODEL,
        "target": resolve("l4"),
        "precision": "fp32",
        "batch": BatchRange.parse("1"),
        "preprocess": SPEC,
        "labels": ("cat", "dog", "çà"),
        "synsets": None,
        "outputs": (THREE_CLASSES,),
        "artifacts": ARTIFACTS,
        "engine": None,
        "recipe": None,
        "files": {},
    }
    values |= changes
    return Manifest(**({"task": task_of(values["outputs"]), "threshold": DEFAULT_THRESHOLD} | values))


def fill(folder: Path, **changes: Any) -> Path:
    """The smallest folder that is a bundle."""
    (folder / "golden").mkdir(parents=True)
    np.save(folder / GOLDEN_PIXELS, np.arange(2 * 4 * 6 * 3, dtype=np.uint8).reshape(2, 4, 6, 3))
    np.save(folder / GOLDEN_LOGITS, np.ones((2, 3), np.float32))
    (folder / "model.onnx").write_bytes(b"a model of 17 bytes")
    write_json(folder / REPORT, REPORT_OF_TINY.to_json())
    (folder / REPORT_PAGE).write_text(REPORT_OF_TINY.to_markdown(), encoding="utf-8")
    write_manifest(folder, make_manifest(**({"files": hash_files(folder)} | changes)))
    return folder


def rewrite(root: Path, edit: Callable[[dict[str, str]], None], **changes: Any) -> None:
    """Write the manifest again, as a forger who knows the format would, with its files edited."""
    manifest = open_bundle(root).manifest
    files = dict(manifest.files)
    edit(files)
    write_manifest(root, dataclasses.replace(manifest, files=files, **changes))


def flip(path: Path, index: int) -> None:
    data = bytearray(path.read_bytes())
    data[index] ^= 1
    path.write_bytes(data)


def listed(root: Path) -> set[str]:
    return {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()}


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    return fill(tmp_path / "tiny")


@pytest.fixture(scope="module")
def cpu_copy(cpu_bundle: Built, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(shutil.copytree(cpu_bundle.root, tmp_path_factory.mktemp("copy") / "cpu"))


@pytest.fixture(scope="module")
def l4_copy(l4_bundle: Built, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(shutil.copytree(l4_bundle.root, tmp_path_factory.mktemp("copy") / "l4"))


@contextlib.contextmanager
def changed(path: Path, index: int) -> Iterator[None]:
    flip(path, index)
    try:
        yield
    finally:
        flip(path, index)


def test_what_was_written_is_what_is_opened(tiny: Path) -> None:
    bundle = open_bundle(tiny)
    assert bundle.manifest == make_manifest(files=hash_files(tiny))
    assert bundle.artifact("onnx") == tiny / "model.onnx"
    assert bundle.artifact("engine") is None
    assert bundle.report() == REPORT_OF_TINY
    assert bundle.size == sum((tiny / name).stat().st_size for name in TINY_FILES)


def test_the_manifest_names_every_file_but_itself(tiny: Path) -> None:
    assert set(open_bundle(tiny).manifest.files) == set(TINY_FILES) - {MANIFEST}


def test_the_lists_of_files_here_are_those_of_the_bundles(tiny: Path, cpu_copy: Path, l4_copy: Path) -> None:
    assert (listed(tiny), listed(cpu_copy), listed(l4_copy)) == (set(TINY_FILES), set(CPU_FILES), set(L4_FILES))


@pytest.mark.parametrize("name", CPU_FILES)
def test_a_changed_byte_is_refused(name: str, cpu_copy: Path) -> None:
    path = cpu_copy / name
    for index in (0, path.stat().st_size // 2, -1):
        with changed(path, index), pytest.raises(BundleError, match=name):
            open_bundle(cpu_copy)
    open_bundle(cpu_copy)


@pytest.mark.parametrize("name", L4_FILES)
def test_a_changed_byte_of_a_bundle_with_an_engine_is_refused(name: str, l4_copy: Path) -> None:
    path = l4_copy / name
    with changed(path, path.stat().st_size // 3), pytest.raises(BundleError, match=name):
        open_bundle(l4_copy)


def test_no_byte_anywhere_in_the_manifest_can_change_unseen(tiny: Path) -> None:
    path = tiny / MANIFEST
    for index in range(0, path.stat().st_size, 5):
        with changed(path, index), pytest.raises(BundleError):
            open_bundle(tiny)


@pytest.mark.parametrize(
    "edit",
    [
        lambda text: text + "\n",
        lambda text: text.replace("\n", "\r\n"),
        lambda text: text.replace('"kind": "logits"', '"kind":  "logits"'),
        lambda text: text.replace('"crop_pct": 0.9', '"crop_pct": 0.90'),
        lambda text: text.replace("{", '{"precision": "int8",', 1),
        lambda text: text.replace("ç", "\\u00e7"),
    ],
    ids=["line", "line ends", "space", "digit", "key twice", "escape"],
)
def test_a_manifest_in_another_form_is_refused(edit: Callable[[str], str], tiny: Path) -> None:
    text = (tiny / MANIFEST).read_text(encoding="utf-8")
    (tiny / MANIFEST).write_bytes(edit(text).encode())
    with pytest.raises(BundleError, match="was changed after it was written"):
        open_bundle(tiny)


@pytest.mark.parametrize("name", sorted(set(TINY_FILES) - {MANIFEST}))
def test_a_missing_or_shortened_file_is_named(name: str, tiny: Path) -> None:
    data = (tiny / name).read_bytes()
    (tiny / name).write_bytes(data[:-1])
    with pytest.raises(BundleError, match=f"{name} .*was changed or damaged"):
        open_bundle(tiny)
    (tiny / name).unlink()
    with pytest.raises(BundleError, match=f"lacks {name}"):
        open_bundle(tiny)


def test_a_folder_in_the_place_of_a_file_is_refused(tiny: Path) -> None:
    (tiny / "model.onnx").unlink()
    (tiny / "model.onnx").mkdir()
    with pytest.raises(BundleError, match=r"lacks model\.onnx"):
        open_bundle(tiny)


def test_two_files_that_changed_places_are_refused(tiny: Path) -> None:
    (tiny / GOLDEN_PIXELS).rename(tiny / "spare")
    (tiny / GOLDEN_LOGITS).rename(tiny / GOLDEN_PIXELS)
    (tiny / "spare").rename(tiny / GOLDEN_LOGITS)
    with pytest.raises(BundleError, match="golden/"):
        open_bundle(tiny)


def test_a_newer_format_asks_for_a_newer_vitexport(tiny: Path) -> None:
    data = json.loads((tiny / MANIFEST).read_text(encoding="utf-8"))
    write_json(tiny / MANIFEST, {**data, "format_version": 3, "a_new_field": []})
    with pytest.raises(BundleError, match=r"has format 3; this vitexport reads up to 2\. Upgrade vitexport"):
        open_bundle(tiny)


def test_an_older_format_asks_for_another_build(tiny: Path) -> None:
    data = json.loads((tiny / MANIFEST).read_text(encoding="utf-8"))
    write_json(tiny / MANIFEST, {**data, "format_version": 1})
    with pytest.raises(BundleError, match=r"format 1, of an older vitexport; this one reads 2\. Build it again\."):
        open_bundle(tiny)


def test_a_missing_folder_a_file_and_an_empty_folder_are_no_bundles(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    for name, message in [("absent", "does not exist"), ("file", "is not a folder"), ("empty", "has no manifest.json")]:
        with pytest.raises(BundleError, match=message):
            open_bundle(tmp_path / name)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\xfe",
        b"null",
        b"[]",
        b"{}",
        b'{"format_version": "1"}',
        b'{"format_version": 0}',
        b'{"format_version": 2, "value": NaN}',
        b'{"format_version": 2, "name": "\\ud800"}',
        b"[" * 100_000,
        b'{"format_version": ' + b"9" * 5000 + b"}",
    ],
    ids=["empty", "not utf-8", "null", "list", "object", "text", "zero", "nan", "surrogate", "deep", "huge number"],
)
def test_what_is_no_manifest_is_a_bundle_error(content: bytes, tmp_path: Path) -> None:
    (tmp_path / MANIFEST).write_bytes(content)
    with pytest.raises(BundleError, match=r"manifest\.json|has format"):
        open_bundle(tmp_path)


# What older bundles do not say.
OPTIONAL = {"requires", "task", "threshold"}


@pytest.mark.parametrize("key", sorted({field.name for field in dataclasses.fields(Manifest)} - OPTIONAL))
def test_a_manifest_that_lacks_a_part_is_named_with_it(key: str, tiny: Path) -> None:
    content = make_manifest().to_json()
    del content[key]
    with pytest.raises(KeyError, match=key):
        Manifest.from_json(content)


@pytest.mark.parametrize(
    "name",
    ["../secret", "golden/../../secret", "/etc/hostname", "..", "a\\..\\..\\secret", "C:\\secret"],
)
def test_a_name_that_leaves_the_bundle_is_refused_unread(name: str, tiny: Path) -> None:
    (tiny.parent / "secret").write_text("not part of it")
    rewrite(tiny, lambda files: files.update({name: "0" * 64}))
    with pytest.raises(BundleError, match="lies outside it"):
        open_bundle(tiny)


@pytest.mark.parametrize("name", ["", ".", "golden", "a\0b", "x" * 5000, "golden/logits.npy/more"])
def test_a_name_of_no_file_is_refused(name: str, tiny: Path) -> None:
    rewrite(tiny, lambda files: files.update({name: "0" * 64}))
    with pytest.raises(BundleError):
        open_bundle(tiny)


def test_a_symbolic_link_is_refused_even_with_the_right_content(tiny: Path) -> None:
    outside = tiny.parent / "model.onnx"
    (tiny / "model.onnx").rename(outside)
    (tiny / "model.onnx").symlink_to(outside)
    with pytest.raises(BundleError, match=r"model\.onnx .* symbolic link"):
        open_bundle(tiny)


def test_a_folder_that_is_a_symbolic_link_is_refused(tiny: Path) -> None:
    outside = tiny.parent / "golden"
    (tiny / "golden").rename(outside)
    (tiny / "golden").symlink_to(outside, target_is_directory=True)
    with pytest.raises(BundleError, match=r"golden/.* symbolic link"):
        open_bundle(tiny)


def test_a_bundle_may_be_reached_through_a_symbolic_link(tiny: Path) -> None:
    link = tiny.parent / "link"
    link.symlink_to(tiny, target_is_directory=True)
    assert open_bundle(link).artifact("onnx") == link / "model.onnx"


def test_an_artifact_without_a_hash_is_refused(tiny: Path) -> None:
    (tiny / "extra.onnx").write_bytes(b"not in the list")
    rewrite(tiny, lambda _: None, artifacts={**ARTIFACTS, "onnx": "extra.onnx"})
    with pytest.raises(BundleError, match=r"names extra\.onnx as onnx, but has no sha256"):
        open_bundle(tiny)


texts = st.text(max_size=8)
manifests = st.builds(
    Manifest,
    versions=st.dictionaries(texts, texts, max_size=3),
    model=st.dictionaries(texts, st.none() | st.integers() | texts | st.lists(texts, max_size=2), max_size=3).map(
        lambda more: {**more, **MODEL}
    ),
    target=st.sampled_from(sorted(catalogue())).map(resolve),
    precision=st.sampled_from(["fp32", "fp16"]),
    batch=st.sampled_from(["1", "8", "1:4:8", "2:2:3"]).map(BatchRange.parse),
    preprocess=st.just(SPEC),
    task=st.just("classification"),
    threshold=st.floats(0.01, 0.99),
    labels=st.none() | st.tuples(texts, texts, texts),
    synsets=st.none() | st.tuples(texts, texts, texts),
    outputs=st.sampled_from([(THREE_CLASSES,), (THREE_CLASSES, EMBEDDING), (FEATURE, THREE_CLASSES)]),
    artifacts=st.just({}),
    engine=st.none()
    | st.builds(
        lambda more, library, skipped: {**more, **ENGINE, "library": library, "skipped": skipped},
        st.dictionaries(texts, st.floats(allow_nan=False, allow_infinity=False), max_size=2),
        st.sampled_from(["tensorrt", "tensorrt-rtx"]),
        st.none() | texts,
    ),
    recipe=st.none(),
    files=st.just({}),
)
quantized = st.builds(
    lambda manifest, layers, images: dataclasses.replace(
        manifest, precision="int8", recipe={**RECIPE, "layers": layers, "images": images}
    ),
    manifests,
    st.lists(st.dictionaries(texts, st.floats(allow_nan=False, allow_infinity=False), max_size=2), max_size=2),
    st.dictionaries(texts, texts, max_size=2),
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(manifest=manifests | quantized)
def test_any_manifest_survives_its_file(manifest: Manifest, tmp_path: Path) -> None:
    write_manifest(tmp_path, manifest)
    assert open_bundle(tmp_path).manifest == manifest


@pytest.mark.parametrize("precision", ["bf16", None, 8])
def test_an_unknown_precision_is_refused(precision: Precision, tiny: Path) -> None:
    rewrite(tiny, lambda _: None, precision=precision)
    with pytest.raises(BundleError, match=r"not a valid manifest.*precision"):
        open_bundle(tiny)


@pytest.mark.parametrize("key", sorted(MODEL))
@pytest.mark.parametrize("value", [None, ["a list"]])
def test_a_model_without_what_reports_show_is_refused(key: str, value: object, tiny: Path) -> None:
    absent = {name: given for name, given in MODEL.items() if name != key}
    for model in (absent, {**MODEL, key: value}):
        write_manifest(tiny, make_manifest(files=hash_files(tiny), model=model))
        with pytest.raises(BundleError, match=rf"not a valid manifest: .*model\.{key} is"):
            open_bundle(tiny)


@pytest.mark.parametrize(
    "changes",
    [
        {"labels": ("cat", "dog")},
        {"synsets": ("n01", "n02", "n03", "n04")},
        {"outputs": (), "labels": None},
        {"outputs": (classes(shape=(0,)),), "labels": None},
        {"outputs": (classes(shape=("3",)),)},
        {"outputs": (classes(shape=(3.0,)),)},
        {"outputs": (classes(shape=(3, 3)),)},
        {"outputs": (classes(shape=()),)},
        {"outputs": (classes(kind="scores"),)},
        {"outputs": (classes(name="../logits"),)},
        {"outputs": (classes(name=3),)},
        {"outputs": (THREE_CLASSES, THREE_CLASSES)},
        {"outputs": (THREE_CLASSES, classes(kind="embedding"))},
        {"outputs": (THREE_CLASSES, classes(name="probabilities", kind="probabilities"))},
        {"outputs": (classes(shape=(10**9,)),), "labels": None},
        {"outputs": (EMBEDDING,)},
        {"task": "multi-label"},
        {"threshold": 0},
        {"threshold": 1.0},
        {"recipe": RECIPE},
        {"precision": "int8"},
        {"precision": "int8", "recipe": {**RECIPE, "layers": None}},
        {"precision": "int8", "recipe": {**RECIPE, "settings": {"placement": 3, "observer": "minmax"}}},
        {"engine": {**ENGINE, "library": "onnxruntime"}},
        {"engine": {**ENGINE, "library_version": None}},
        {"engine": {**ENGINE, "recipe": {"compute_capabilities": "8.7"}}},
        {"engine": {**ENGINE, "recipe": {}}},
        {"engine": {**ENGINE, "skipped": 1}},
    ],
    ids=str,
)
def test_a_manifest_whose_parts_contradict_each_other_is_refused(changes: dict[str, Any], tiny: Path) -> None:
    write_manifest(tiny, make_manifest(files=hash_files(tiny), **changes))
    with pytest.raises(BundleError, match="is not a valid manifest"):
        open_bundle(tiny)


def test_json_files_hold_no_nan(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "a.json", {"value": float("nan")})
    assert not (tmp_path / "a.json").exists()


def test_golden_arrays_are_read_back(tiny: Path) -> None:
    pixels, outputs = open_bundle(tiny).golden()
    np.testing.assert_array_equal(pixels.ravel(), np.arange(144))
    assert pixels.shape == (2, 4, 6, 3)
    assert {name: values.tolist() for name, values in outputs.items()} == {LOGITS: [[1, 1, 1], [1, 1, 1]]}


def without_classes(folder: Path) -> dict[str, np.typing.NDArray[np.float32]]:
    """Make the bundle in `folder` one of a model with an embedding and a feature map; returns its golden outputs."""
    random = np.random.default_rng(0)
    outputs = {spec.name: random.normal(0, 1, (2, *spec.shape)).astype(np.float32) for spec in (EMBEDDING, FEATURE)}
    (folder / GOLDEN_LOGITS).unlink()
    for name, values in outputs.items():
        np.save(folder / "golden" / f"{name}.npy", values)
    files = {"onnx": "model.onnx", "golden_pixels": GOLDEN_PIXELS}
    artifacts = files | {f"golden_{name}": f"golden/{name}.npy" for name in outputs}
    changes: dict[str, Any] = {
        "outputs": (EMBEDDING, FEATURE),
        "task": "embedding",
        "labels": None,
        "artifacts": artifacts,
    }
    write_manifest(folder, make_manifest(files=hash_files(folder), **changes))
    return outputs


def test_a_bundle_without_classes_is_opened_as_it_was_written(tiny: Path) -> None:
    written = without_classes(tiny)
    bundle = open_bundle(tiny)
    assert bundle.manifest.outputs == (EMBEDDING, FEATURE)
    assert bundle.manifest.num_classes is None
    _, outputs = bundle.golden()
    assert list(outputs) == ["embedding", "feature_2"]
    for name, values in written.items():
        np.testing.assert_array_equal(outputs[name], values)


def test_every_output_needs_its_golden_array(tiny: Path) -> None:
    without_classes(tiny)
    bundle = open_bundle(tiny)
    few = {role: path for role, path in bundle.manifest.artifacts.items() if role != "golden_feature_2"}
    with pytest.raises(BundleError, match=r"has no golden_feature_2; build it again\."):
        dataclasses.replace(bundle, manifest=dataclasses.replace(bundle.manifest, artifacts=few)).golden()
    np.save(tiny / "golden" / "feature_2.npy", np.zeros((2, 5, 3, 2), np.float32))
    with pytest.raises(BundleError, match=r"feature_2\.npy is float32 \(2, 5, 3, 2\); expected float32 \(2, 5, 2, 3\)"):
        bundle.golden()


def test_a_bundle_with_probabilities_has_classes(tiny: Path) -> None:
    outputs = (classes(name="probabilities", kind="probabilities"), FEATURE)
    write_manifest(tiny, make_manifest(files=hash_files(tiny), outputs=outputs))
    assert open_bundle(tiny).manifest.num_classes == 3


@pytest.mark.parametrize(
    ("name", "array"),
    [
        (GOLDEN_PIXELS, np.zeros((2, 4, 6, 3), np.float32)),
        (GOLDEN_PIXELS, np.zeros((2, 6, 4, 3), np.uint8)),
        (GOLDEN_PIXELS, np.zeros((0, 4, 6, 3), np.uint8)),
        (GOLDEN_LOGITS, np.zeros((2, 4), np.float32)),
        (GOLDEN_LOGITS, np.zeros((2, 3), np.float64)),
        (GOLDEN_LOGITS, np.zeros((1, 3), np.float32)),
        (GOLDEN_LOGITS, np.zeros(3, np.float32)),
    ],
)
def test_golden_arrays_of_another_shape_are_refused(name: str, array: np.typing.NDArray[Any], tiny: Path) -> None:
    np.save(tiny / name, array)
    bundle = Bundle(root=tiny, manifest=make_manifest())
    with pytest.raises(BundleError, match=rf"{name} is {array.dtype} {re.escape(str(array.shape))}; expected "):
        bundle.golden()


def test_more_golden_inputs_than_outputs_are_refused(tiny: Path) -> None:
    np.save(tiny / GOLDEN_PIXELS, np.zeros((3, 4, 6, 3), np.uint8))
    with pytest.raises(BundleError, match=r"logits\.npy is float32 \(2, 3\); expected float32 \(3, 3\)\."):
        Bundle(root=tiny, manifest=make_manifest()).golden()


def test_golden_arrays_never_run_code(tiny: Path) -> None:
    np.save(tiny / GOLDEN_LOGITS, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(BundleError, match=r"logits\.npy cannot be read"):
        Bundle(root=tiny, manifest=make_manifest()).golden()


def test_a_bundle_without_golden_arrays_or_report_says_so(tiny: Path) -> None:
    with pytest.raises(BundleError, match="no golden_pixels"):
        Bundle(root=tiny, manifest=make_manifest(artifacts={})).golden()
    (tiny / REPORT).write_text("{}")
    with pytest.raises(BundleError, match="not a report"):
        Bundle(root=tiny, manifest=make_manifest(files={REPORT: "0" * 64})).report()


def test_a_report_that_the_manifest_does_not_vouch_for_is_not_read(tiny: Path) -> None:
    files = {name: digest for name, digest in hash_files(tiny).items() if name != REPORT}
    write_manifest(tiny, make_manifest(files=files))
    bundle = open_bundle(tiny)
    with pytest.raises(BundleError, match=r"has no sha256 for report\.json; it is not read"):
        bundle.report()


def test_a_report_with_an_unknown_verdict_of_a_check_is_no_report(tiny: Path) -> None:
    data = REPORT_OF_TINY.to_json()
    data["checks"][0]["status"] = "excellent"
    write_json(tiny / REPORT, data)
    write_manifest(tiny, make_manifest(files=hash_files(tiny)))
    with pytest.raises(BundleError, match=r"not a report.*'excellent'"):
        open_bundle(tiny).report()


@pytest.mark.parametrize("name", [GOLDEN_PIXELS, GOLDEN_LOGITS])
@pytest.mark.parametrize("count", [3, 10**9, 10**14, 10**18, 10**30])
def test_golden_arrays_whose_header_lies_about_their_size_take_no_memory(name: str, count: int, tiny: Path) -> None:
    shape = f"({count}, 4, 6, 3)" if name == GOLDEN_PIXELS else f"({count}, 3)"
    kind = "|u1" if name == GOLDEN_PIXELS else "<f4"
    header = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    (tiny / name).write_bytes(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode() + bytes(144))
    with pytest.raises(BundleError, match=rf"{name} (cannot be read|is {np.dtype(kind)} .*; expected )"):
        Bundle(root=tiny, manifest=make_manifest()).golden()


def stage(out: Path, work: Callable[[Path], object] = Path.touch, *, force: bool = False) -> None:
    with staging(out, force=force) as folder:
        work(folder)


def never(_: Path) -> None:
    pytest.fail("the slow part must not begin")


def raising(error: BaseException) -> Callable[[Path], None]:
    def work(folder: Path) -> None:
        (folder / "golden").mkdir()
        (folder / "golden" / "half").write_bytes(b"half")
        raise error

    return work


def inside(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_staging_leaves_the_whole_folder_and_nothing_else(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with staging(out, force=False) as folder:
        folder.rmdir()
        fill(folder)
        assert not out.exists()
    assert inside(tmp_path) == ["out"]
    open_bundle(out)


def test_others_may_read_a_finished_bundle(tmp_path: Path) -> None:
    stage(tmp_path / "out")
    assert (tmp_path / "out").stat().st_mode & 0o777 == 0o755


class Stopped(BaseException):
    """Neither an Exception nor one that Python knows."""


@pytest.mark.parametrize("error", [RuntimeError("broken"), KeyboardInterrupt(), SystemExit(1), Stopped()], ids=repr)
@pytest.mark.parametrize("old", [False, True], ids=["new", "replacing"])
def test_staging_leaves_nothing_behind_when_stopped(error: BaseException, *, old: bool, tmp_path: Path) -> None:
    if old:
        fill(tmp_path / "out")
    before = listed(tmp_path)
    with pytest.raises(type(error)):
        stage(tmp_path / "out", raising(error), force=True)
    assert listed(tmp_path) == before
    assert inside(tmp_path) == ["out"] * old


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_a_write_that_fails_is_an_input_error_and_leaves_nothing(
    code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: Path, *_: object, **__: object) -> int:
        raise OSError(code, os.strerror(code), str(self))

    def work(folder: Path) -> None:
        (folder / "first").write_bytes(b"written")
        for method in ("write_bytes", "write_text"):
            monkeypatch.setattr(Path, method, fail)
        write_json(folder / REPORT, {})

    with pytest.raises(InputError, match=rf"out cannot be written: {os.strerror(code)}\. Nothing was left"):
        stage(tmp_path / "new" / "out", work)
    assert inside(tmp_path) == []


def test_an_error_that_is_not_the_outputs_is_not_blamed_on_it(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        stage(tmp_path / "out", lambda _: (tmp_path / "weights.bin").read_bytes())
    assert inside(tmp_path) == []


FULL_DISK = """
import pathlib, sys
from vitexport.bundle import staging
from vitexport.errors import InputError
out = pathlib.Path(sys.argv[1]) / "parent" / "out"
try:
    with staging(out, force=False) as folder:
        for index in range(1000):
            (folder / f"model{index}.onnx").write_bytes(bytes(65536))
except InputError as error:
    print(error)
print(sorted(path.name for path in pathlib.Path(sys.argv[1]).rglob("*")))
"""


def test_a_disk_that_really_fills_up_leaves_nothing(tmp_path: Path) -> None:
    disk, script = tmp_path / "disk", tmp_path / "fill.py"
    disk.mkdir()
    script.write_text(FULL_DISK)
    mount = 'mount -t tmpfs -o size=1m tmpfs "$1" || exit 77; exec "$2" "$3" "$1"'
    # A mount namespace of its own: nothing to unmount, whatever happens.
    command = ["unshare", "--mount", "sh", "-c", mount, "sh", str(disk), sys.executable, str(script)]
    if shutil.which("unshare") is None:
        pytest.skip("no unshare here, to mount a small disk with")
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    if done.returncode == 77 or "unshare failed" in done.stderr:
        pytest.skip(f"a small disk cannot be mounted here: {done.stderr.strip()}")
    assert done.stderr == ""
    message, left = done.stdout.splitlines()
    assert message.endswith("out cannot be written: No space left on device. Nothing was left behind.")
    assert left == "[]"


def test_parents_are_made_and_stay_with_the_bundle(tmp_path: Path) -> None:
    stage(tmp_path / "a" / "b" / "out")
    assert (tmp_path / "a" / "b" / "out").is_dir()


def test_only_the_parents_that_were_made_go_again(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    with pytest.raises(RuntimeError):
        stage(tmp_path / "mine" / "b" / "c" / "out", raising(RuntimeError()))
    assert inside(tmp_path) == ["mine"]
    assert inside(tmp_path / "mine") == []


def test_a_parent_that_somebody_else_uses_meanwhile_stays(tmp_path: Path) -> None:
    def work(_: Path) -> None:
        (tmp_path / "a" / "theirs").touch()
        raise RuntimeError

    with pytest.raises(RuntimeError):
        stage(tmp_path / "a" / "out", work)
    assert listed(tmp_path) == {"a/theirs"}


def test_parents_made_before_one_that_cannot_be_made_go_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make = Path.mkdir

    def mkdir(self: Path, *arguments: Any, **options: Any) -> None:
        if self.name == "c":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        make(self, *arguments, **options)

    monkeypatch.setattr(Path, "mkdir", mkdir)
    with pytest.raises(InputError, match="cannot be created: No space left"):
        stage(tmp_path / "a" / "b" / "c" / "out", never)
    assert inside(tmp_path) == []


def test_a_bundle_is_replaced_only_with_force(tiny: Path) -> None:
    with pytest.raises(InputError, match="give `force` to replace it"):
        stage(tiny, never)
    stage(tiny, lambda folder: (folder / "new").touch(), force=True)
    assert listed(tiny) == {"new"}
    assert inside(tiny.parent) == ["tiny"]


@pytest.mark.parametrize("force", [False, True])
def test_a_folder_that_is_no_bundle_is_never_touched(*, force: bool, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("years of work")
    with pytest.raises(InputError, match="is not a bundle; it is not touched"):
        check_output(tmp_path / "out", force=force)
    with pytest.raises(InputError, match="is not a bundle"):
        stage(tmp_path / "out", never, force=force)
    assert listed(tmp_path) == {"out/thesis.tex"}


@pytest.mark.parametrize("force", [False, True])
def test_a_folder_that_appears_during_the_build_is_not_overwritten(*, force: bool, tmp_path: Path) -> None:
    def work(folder: Path) -> None:
        (folder / "model.onnx").touch()
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "thesis.tex").write_text("years of work")

    with pytest.raises(InputError, match="is not a bundle"):
        stage(tmp_path / "out", work, force=force)
    assert listed(tmp_path) == {"out/thesis.tex"}


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("name", [".", "", "../here"])
def test_the_current_folder_is_refused_before_the_slow_part(
    name: str, *, force: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    with pytest.raises(InputError, match="is the current folder or a mount point"):
        stage(Path(name), never, force=force)
    fill(tmp_path / "bundle")
    monkeypatch.chdir(tmp_path / "bundle")
    with pytest.raises(InputError, match="is the current folder or a mount point"):
        stage(tmp_path / "bundle", never, force=force)
    assert inside(tmp_path) == ["bundle", "here"]


@pytest.mark.skipif(not os.path.ismount("/proc"), reason="there is no mount point to try")
def test_a_mount_point_is_refused() -> None:
    with pytest.raises(InputError, match="is the current folder or a mount point"):
        check_output(Path("/proc"), force=True)


def test_an_empty_folder_may_be_the_output(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    stage(tmp_path / "out", lambda folder: (folder / "new").touch())
    assert listed(tmp_path) == {"out/new"}


def test_a_file_or_a_link_in_the_place_of_the_output_is_refused(tmp_path: Path, tiny: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tiny, target_is_directory=True)
    (tmp_path / "dangling").symlink_to(tmp_path / "absent")
    for name, why in (("file", "exists and is not a folder"), ("link", "symbolic link"), ("dangling", "symbolic link")):
        with pytest.raises(InputError, match=why):
            check_output(tmp_path / name, force=True)


def test_an_output_below_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="not a folder that this user may write to"):
        check_output(tmp_path / "file" / "out", force=False)


@pytest.mark.parametrize("name", ["x" * 300, "x" * 300 + "/out"])
def test_an_output_whose_name_is_too_long_is_an_input_error(name: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be written: File name too long"):
        check_output(tmp_path / name, force=False)


@pytest.mark.parametrize("error", [OSError(errno.EIO, "Input/output error"), KeyboardInterrupt()], ids=repr)
@pytest.mark.parametrize("call", [1, 2])
def test_an_old_bundle_survives_a_rename_that_fails(
    error: BaseException, call: int, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename, calls = Path.rename, []

    def fail(self: Path, target: Path) -> Path:
        calls.append(self)
        if len(calls) == call:
            raise error
        return rename(self, target)

    before = hash_files(tiny)
    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises((InputError, KeyboardInterrupt)):
        stage(tiny, lambda folder: (folder / "new").touch(), force=True)
    assert len(calls) >= call
    open_bundle(tiny)
    assert hash_files(tiny) == before
    assert inside(tiny.parent) == ["tiny"]


def test_an_old_bundle_is_not_deleted_when_it_cannot_be_moved_back(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rename, calls = Path.rename, []

    def fail(self: Path, target: Path) -> Path:
        calls.append(self)
        if len(calls) > 1:
            raise OSError(errno.EIO, "Input/output error")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(InputError):
        stage(tiny, force=True)
    [aside] = tiny.parent.iterdir()
    open_bundle(aside / "bundle")
