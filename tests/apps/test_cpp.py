"""The written C++ project, built by its own CMake against a release of ONNX Runtime, and run."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from conftest import VALIDATION, Built
from numpy.typing import NDArray
from PIL import Image, ImageOps
from projects import HEADERS, STB, WHOLE, compiled, ran, released

from vitexport.apps import write_app
from vitexport.preprocess import load_image
from vitexport.runtime.backends.onnx_runtime import OnnxRuntimeBackend
from vitexport.validate.probes import PHOTOGRAPHS

STRICT = ["g++", "-std=c++17", "-Wall", "-Wextra", "-Wpedantic", "-Wshadow", "-Wconversion", "-Werror"]
DIGITS = sorted(VALIDATION.glob("*/*.png"))[::40]
COMPILER = pytest.mark.skipif(shutil.which("g++") is None, reason="g++ is missing")
DECODER = pytest.mark.skipif(
    shutil.which("g++") is None or not STB.is_file(),
    reason="g++ or Debian's libstb-dev is missing; run scripts/app-packages as root",
)
API = pytest.mark.skipif(
    shutil.which("g++") is None or not HEADERS.is_dir(),
    reason="g++ or npm's com.github.asus4.onnxruntime is missing; run scripts/app-packages",
)
EXIF_ORIENTATION = 0x0112


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return released(tmp_path_factory.mktemp("onnxruntime") / "release")


@pytest.fixture(scope="module")
def sources(web_bundle: Built, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("cpp") / "project"
    write_app(web_bundle.bundle, "cpp", root)
    return root / "src"


@pytest.fixture(scope="module")
def reader(sources: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A program that prints a picture's size and pixels, with every bad access and undefined step an error."""
    folder = tmp_path_factory.mktemp("reader")
    (folder / "onnxruntime_cxx_api.h").write_text("namespace Ort { struct Env {}; struct Session { Session(void*) {} }; }\n")
    (folder / "read.cpp").write_text(
        """#include "picture.hpp"
#include <cstdio>
#include <exception>
int main(int count, char** words) try {
  for (int index = 1; index < count; ++index) {
    const Picture picture = read_picture(words[index]);
    std::printf("%d %d\\n", static_cast<int>(picture.height), static_cast<int>(picture.width));
    std::fwrite(picture.rgb.data(), 1, picture.rgb.size(), stdout);
  }
} catch (const std::exception& error) {
  std::fprintf(stderr, "%s\\n", error.what());
  return 1;
}
""",
        encoding="utf-8",
    )
    command = [*STRICT, "-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-o", "read", "read.cpp"]
    ran([*command, str(sources / "picture.cpp"), f"-I{sources}", "-isystem", str(STB.parent), "-isystem", "."], folder)
    return folder / "read"


def pixels(reader: Path, picture: Path) -> NDArray[np.uint8]:
    done = subprocess.run([str(reader), str(picture)], capture_output=True, check=True, timeout=60)
    size, _, data = done.stdout.partition(b"\n")
    height, width = map(int, size.split())
    return np.frombuffer(data, np.uint8).reshape(height, width, 3)


@WHOLE
def test_the_project_computes_what_python_computes(sources: Path, release: Path, web_bundle: Built, tmp_path: Path) -> None:
    project = compiled(sources.parent, release)
    pictures = list(DIGITS)
    for name in ("astronaut", "coffee", "chelsea"):
        # JPEG decoders differ in the last bit.
        pictures.append(tmp_path / f"{name}.png")
        load_image(PHOTOGRAPHS / f"{name}.jpg").save(pictures[-1])
    lines = ran(["build/classify", "model.onnx", *map(str, pictures)], project).splitlines()
    backend = OnnxRuntimeBackend(project / "model.onnx")
    labels = web_bundle.bundle.manifest.labels
    assert labels is not None
    assert len(lines) == 6 * len(pictures)
    for number, path in enumerate(pictures):
        title, *guesses = lines[6 * number : 6 * number + 6]
        assert re.fullmatch(rf"{re.escape(str(path))}  \(\d+\.\d ms\)", title)
        expected = backend.run(np.asarray(load_image(path))[None])
        seen = [line.split() for line in guesses]
        assert [label for _, _, label in seen] == [labels[index] for index in expected["top_indices"][0]]
        shown = 100 * expected["probabilities"][0][expected["top_indices"][0].astype(int)]
        np.testing.assert_allclose([float(percent) for percent, _, _ in seen], shown, atol=0.02)


@WHOLE
def test_what_is_no_picture_or_no_model_is_said(sources: Path, release: Path, tmp_path: Path) -> None:
    names = [str(sources / name) for name in ("classifier.cpp", "main.cpp", "picture.cpp")]
    command = [*STRICT, "-o", str(tmp_path / "classify"), *names, "-isystem", str(HEADERS), "-isystem", str(STB.parent)]
    ran([*command, str(release / "lib" / "libonnxruntime.so"), f"-Wl,-rpath,{release / 'lib'}"], tmp_path)
    for words, said in (
        (["nothing.onnx", str(DIGITS[0])], "nothing.onnx"),
        ([str(sources.parent / "model.onnx"), "nothing.png"], "nothing.png: cannot be read"),
        ([str(sources.parent / "model.onnx"), str(tmp_path)], f"{tmp_path}: cannot be read"),
        ([str(sources.parent / "model.onnx"), str(sources / "main.cpp")], "main.cpp: unknown image type"),
    ):
        done = subprocess.run(
            [str(tmp_path / "classify"), *words], capture_output=True, text=True, check=False, cwd=tmp_path, timeout=60
        )
        assert done.returncode == 1
        assert said in done.stderr


@API
@pytest.mark.parametrize("source", ["classifier.cpp", "main.cpp"])
def test_it_compiles_without_a_warning_on_any_machine(sources: Path, source: str, tmp_path: Path) -> None:
    ran([*STRICT, "-fsyntax-only", "-isystem", str(HEADERS), str(sources / source)], tmp_path)


@DECODER
@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("order", ["<", ">"])
def test_pictures_are_turned_upright(reader: Path, orientation: int, order: str, tmp_path: Path) -> None:
    ramp = np.linspace(0, 255, 48 * 32).reshape(32, 48)
    picture = Image.fromarray(np.stack([ramp, np.roll(ramp, 700), 255 - ramp], axis=2).astype(np.uint8))
    exif = Image.Exif()
    exif.endian = order
    exif[EXIF_ORIENTATION] = orientation
    picture.save(tmp_path / "held.jpg", exif=exif, quality=95, subsampling=0)
    # Any number of 0xFF may stand before a marker.
    encoded = (tmp_path / "held.jpg").read_bytes()
    (tmp_path / "held.jpg").write_bytes(encoded[:2] + b"\xff\xff" + encoded[2:])
    with Image.open(tmp_path / "held.jpg") as held:
        expected = np.asarray(ImageOps.exif_transpose(held).convert("RGB"), np.int16)
    seen = pixels(reader, tmp_path / "held.jpg")
    assert seen.shape == expected.shape
    assert np.abs(seen - expected).max() <= 4


@DECODER
def test_png_is_decoded_to_the_same_pixels(reader: Path) -> None:
    np.testing.assert_array_equal(pixels(reader, DIGITS[3]), np.asarray(load_image(DIGITS[3])))


@DECODER
def test_damaged_exif_is_no_reason_to_crash(reader: Path, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = 6
    Image.new("RGB", (16, 8), (200, 10, 10)).save(tmp_path / "whole.jpg", exif=exif)
    whole = (tmp_path / "whole.jpg").read_bytes()
    start = whole.index(b"Exif")
    random = np.random.default_rng(0)
    files = []
    for number in range(200):
        damaged = bytearray(whole)
        for _ in range(1 + number % 3):
            damaged[start - 2 + int(random.integers(0, 40))] = int(random.integers(0, 256))
        files.append(tmp_path / f"{number}.jpg")
        files[-1].write_bytes(damaged if number % 4 else damaged[: start + number % 40])
    for part in np.array_split(np.asarray(files, dtype=object), 40):
        done = subprocess.run([str(reader), *map(str, part)], capture_output=True, check=False, timeout=60)
        assert done.returncode in (0, 1), done.stderr
        assert b"Sanitizer" not in done.stderr
        assert b"runtime error" not in done.stderr


@COMPILER
def test_labels_are_read_as_they_were_written(sources: Path, tmp_path: Path) -> None:
    program = tmp_path / "labels.cpp"
    program.write_text(
        f"""#include "{sources / "labels.hpp"}"
#include <cstdio>
int main(int, char** words) {{
  for (const auto& label : read_labels(words[1])) std::printf("%s\\n", label.c_str());
}}
""",
        encoding="utf-8",
    )
    ran([*STRICT, "-o", "labels", "labels.cpp"], tmp_path)
    labels = ["Ente, Hausente", 'the "tench"', "back\\slash", "tab\there", "日本"]
    written_labels = json.dumps(labels, ensure_ascii=False)
    assert ran([str(tmp_path / "labels"), written_labels], tmp_path).splitlines() == labels
    assert ran([str(tmp_path / "labels"), "null"], tmp_path) == ""
