"""What `Model.predict` and the command take, what the command writes, and calls from several threads."""

from __future__ import annotations

import csv
import io
import json
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import VALIDATION, Built
from devices import Device
from numpy.typing import NDArray
from PIL import Image

from vitexport.cli.images import find_pictures
from vitexport.cli.prediction_files import write_predictions
from vitexport.errors import InputError, UsageError
from vitexport.runtime import Model, load, pictures

DIGITS = sorted(VALIDATION.glob("*/digit_00*.png"))[:9]


@pytest.fixture(scope="module")
def model(cpu_bundle: Built) -> Model:
    return load(cpu_bundle.root, threads=1)


@pytest.fixture(scope="module")
def wanted(model: Model) -> NDArray[np.float32]:
    return model.predict(DIGITS).logits


class Pipe(io.RawIOBase):
    """A stream that cannot be rewound, as a socket or a request's body."""

    def __init__(self, data: bytes) -> None:
        self.rest = data

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        part, self.rest = self.rest[: min(len(buffer), 100)], self.rest[min(len(buffer), 100) :]
        buffer[: len(part)] = part
        return len(part)


def test_bytes_streams_generators_and_iterators_give_what_paths_give(model: Model, wanted: NDArray[np.float32]) -> None:
    data = [path.read_bytes() for path in DIGITS]
    several: tuple[Any, ...] = (
        data,
        (bytearray(each) for each in data),
        iter([memoryview(each) for each in data]),
        [io.BytesIO(each) for each in data],
        (Pipe(each) for each in data),
        map(Image.open, map(io.BytesIO, data)),
        (path for path in DIGITS),
        DIGITS,
        dict.fromkeys(DIGITS),
    )
    for given in several:
        np.testing.assert_array_equal(model.predict(given).logits, wanted)
    ones: tuple[Any, ...] = (data[0], io.BytesIO(data[0]), Pipe(data[0]), bytearray(data[0]))
    for one in ones:
        np.testing.assert_array_equal(model.predict(one).logits, wanted[:1])
    with DIGITS[0].open("rb") as stream:
        np.testing.assert_array_equal(model.predict(stream).logits, wanted[:1])


def test_a_generator_is_drawn_from_batch_by_batch(l4_bundle: Built, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn, ran = 0, []
    many = load(l4_bundle.root, backend="onnxruntime", threads=1)
    assert many.manifest.batch.maximum == 8
    compute = many.backend.run

    def run(images: NDArray[np.float32]) -> Any:
        ran.append((len(images), drawn))
        return compute(images)

    def yielded() -> Iterator[Path]:
        nonlocal drawn
        for index in range(20):
            drawn += 1
            yield DIGITS[index % len(DIGITS)]

    monkeypatch.setattr(many.backend, "run", run)
    assert many.predict(yielded()).logits.shape == (20, 10)
    # What was drawn when each batch ran: never more than one batch ahead of what is computed.
    assert ran == [(8, 8), (8, 16), (4, 20)]
    drawn, parts = 0, many.predict_batches(yielded())
    assert (len(next(parts).logits), drawn) == (8, 8)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (b"", "The 0 bytes of the picture are not an image"),
        ([b"no picture"], "The 10 bytes of picture 0 are not an image"),
        ([DIGITS[0], DIGITS[0].read_bytes()[:60]], "bytes of picture 1 (cannot be decoded|are not an image)"),
        (io.StringIO("text"), "mode 'rb'"),
        ([io.StringIO("text")], "picture 0 .*mode 'rb'"),
        (7, "not a value of type int"),
        ([3], "picture 0 is a value of type int"),
        (None, "not a value of type NoneType"),
        ([], "No images were given"),
        (iter(()), "No images were given"),
    ],
)
def test_what_is_no_picture_is_named(given: Any, message: str, model: Model) -> None:
    with pytest.raises(InputError, match=message):
        model.predict(given)


def test_the_picture_that_is_too_large_is_refused_without_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.BytesIO()
    Image.new("L", (60, 60)).save(stream, "PNG")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 2000)
    assert len(list(pictures.each(stream.getvalue()))) == 1  # beyond the limit: Pillow would warn
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(InputError, match="decompression bomb"):
        list(pictures.each(stream.getvalue()))


# ---- threads


def hammer(call: Callable[[int], Any], threads: int = 8, calls: int = 15) -> list[Any]:
    """Results of call(0), call(1) …, made by many threads that start at once and are switched very often."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    start = threading.Barrier(threads)

    def work(first: int) -> list[Any]:
        start.wait()
        return [call(index) for index in range(first, threads * calls, threads)]

    try:
        with ThreadPoolExecutor(threads) as pool:
            parts = list(pool.map(work, range(threads)))
    finally:
        sys.setswitchinterval(interval)
    return [parts[index % threads][index // threads] for index in range(threads * calls)]


def test_eight_threads_get_the_answers_of_one(cpu_bundle: Built, wanted: NDArray[np.float32]) -> None:
    with load(cpu_bundle.root, threads=2) as model:
        found = hammer(lambda index: model.predict(DIGITS[index % len(DIGITS)]).logits)
    for index, logits in enumerate(found):
        np.testing.assert_array_equal(logits[0], wanted[index % len(DIGITS)])


def test_eight_threads_share_one_tensorrt_engine(orin: Device) -> None:
    """Its execution context, its buffers and its CUDA graph serve one caller at a time; and each call on its GPU."""
    orin.cuda.cudaSetDevice(1)  # where this thread works; a new thread begins with device 0
    folder, report = orin.build()
    assert folder is not None, report.checks
    with load(orin.root) as model:
        assert model.fallback is None
        alone = [model.predict(path).logits for path in DIGITS]
        found = hammer(lambda index: model.predict(DIGITS[index % len(DIGITS)]).logits)
        assert orin.cuda.cudaGetDevice()[1] == 1
    for index, logits in enumerate(found):
        np.testing.assert_array_equal(logits, alone[index % len(DIGITS)])
    with pytest.raises(UsageError, match="was closed"):
        model.predict(DIGITS[0])


# ---- the command's pictures


@pytest.fixture
def album(tmp_path: Path) -> Path:
    """Pictures in folders, and what lies beside them."""
    for name in ("b.png", "a.JPG", "sub/c.png", "sub/deep/d.bmp", ".hidden/e.png", "sub/.f.png"):
        path = tmp_path / "album" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(path, {".jpg": "JPEG"}.get(path.suffix.lower()))
    (tmp_path / "album" / "notes.txt").write_text("none", encoding="utf-8")
    (tmp_path / "album" / "odd[1].png").write_bytes((tmp_path / "album" / "b.png").read_bytes())
    (tmp_path / "empty").mkdir()
    return tmp_path / "album"


def test_files_folders_and_patterns_in_a_stable_order(album: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(album.parent)
    assert find_pictures(["album"]) == [
        f"album/{name}" for name in ("a.JPG", "b.png", "odd[1].png", "sub/c.png", "sub/deep/d.bmp")
    ]
    assert find_pictures(["album/**/*.png"]) == ["album/b.png", "album/odd[1].png", "album/sub/c.png"]
    assert find_pictures(["album/*.png", "album/a.JPG"]) == ["album/b.png", "album/odd[1].png", "album/a.JPG"]
    # A name that is there is no pattern.
    assert find_pictures(["album/odd[1].png"]) == ["album/odd[1].png"]
    assert find_pictures(["album/b.png", "album/b.png"]) == ["album/b.png"] * 2


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("empty", "holds no images; expected files ending in"),
        ("album/*.gif", r"No file matches 'album/\*\.gif'"),
        ("album/none.png", "'album/none.png' does not exist"),
        ("album/.hidden/*", None),
    ],
)
def test_what_matches_nothing_is_refused(
    word: str, message: str | None, album: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(album.parent)
    if message is None:
        assert find_pictures([word]) == ["album/.hidden/e.png"]
        return
    with pytest.raises(InputError, match=message):
        find_pictures(["album", word])


# ---- the command's files


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def test_a_table_and_json_lines_hold_what_json_prints(tmp_path: Path) -> None:
    rows = [
        {
            "image": "ä,b.png",
            "top": [{"label": 'a "quoted", name', "probability": 0.1}, {"label": "二", "probability": 1e-9}],
        },
        {"image": "c.png", "top": [{"label": "x", "probability": 1.0}]},
    ]
    write_predictions(tmp_path / "out.jsonl", rows, {})
    assert [json.loads(line) for line in (tmp_path / "out.jsonl").read_text("utf-8").splitlines()] == rows
    write_predictions(tmp_path / "out.csv", rows, {})
    assert rows_of(tmp_path / "out.csv") == [
        {
            "image": "ä,b.png",
            "label_1": 'a "quoted", name',
            "probability_1": "0.1",
            "label_2": "二",
            "probability_2": "1e-09",
        },
        {"image": "c.png", "label_1": "x", "probability_1": "1.0", "label_2": "", "probability_2": ""},
    ]
    write_predictions(tmp_path / "out.csv", [{"image": "x", "values": {"age": 3.5}, "shape": [2, 3]}], {})
    assert rows_of(tmp_path / "out.csv") == [{"image": "x", "age": "3.5", "shape": "2 x 3"}]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.csv", "out.jsonl"]


def test_an_older_file_stays_where_the_new_one_cannot_be_written(tmp_path: Path) -> None:
    write_predictions(tmp_path / "out.jsonl", [{"image": "x"}], {})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_predictions(tmp_path / "out.jsonl", [{"image": "y"}, {"value": float("nan")}], {})
    assert (tmp_path / "out.jsonl").read_text("utf-8") == '{"image": "x"}\n'
    assert [path.name for path in tmp_path.iterdir()] == ["out.jsonl"]
