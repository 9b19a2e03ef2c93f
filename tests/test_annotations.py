"""Validation data in a CSV file: both forms, and what is said of files that have neither."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vitexport.annotations import Truth, open_annotated, open_validation
from vitexport.artifacts import Task
from vitexport.datasets import ImageSet
from vitexport.errors import InputError

NAMES = ("cat", "dog", "rain")
Open = Callable[..., ImageSet]


@pytest.fixture
def opened(tmp_path: Path) -> Open:
    """Opens a CSV file with this text, beside pictures a.png to d.png."""
    (tmp_path / "pictures").mkdir()
    for name in "abcd":
        Image.new("RGB", (4, 4), (ord(name), 0, 0)).save(tmp_path / "pictures" / f"{name}.png")

    def run(
        text: str | bytes, task: Task = "multi-label", names: tuple[str, ...] | None = NAMES, count: int = 3
    ) -> ImageSet:
        path = tmp_path / "data.csv"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return open_annotated(path, Truth(task=task, names=names, synsets=None, count=count))

    return run


def targets(images: ImageSet) -> list[list[float]]:
    assert images.targets is not None
    assert images.targets.dtype == np.float32
    return [list(map(float, row)) for row in images.targets]


def test_a_column_for_each_label_in_any_order(opened: Open) -> None:
    images = opened("dog,image,rain,cat\n1,pictures/b.png,0,0\n0,pictures/a.png,1.0,1\n\n")
    assert [file.path.name for file in images.files] == ["b.png", "a.png"]
    assert targets(images) == [[0, 1, 0], [1, 0, 1]]
    assert (images.name, images.target_names, images.labels) == ("data.csv", NAMES, None)


def test_one_column_of_names_and_a_byte_order_mark(opened: Open) -> None:
    images = opened(b"\xef\xbb\xbfimage,labels\r\npictures/a.png,cat; rain\r\npictures/b.png,\r\npictures/c.png,dog|cat\r\n")
    assert targets(images) == [[1, 0, 1], [0, 0, 0], [1, 1, 0]]


def test_columns_name_what_has_no_names(opened: Open) -> None:
    images = opened("image,height,weight\npictures/a.png,1.5,-2e3\n", "regression", None, 2)
    assert targets(images) == [[1.5, -2000]]
    assert images.target_names == ("height", "weight")


def test_targets_are_part_of_the_set_s_hash(opened: Open) -> None:
    one, same, other = (opened(f"image,x\npictures/a.png,{value}\n", "regression", None, 1) for value in (1, 1, 2))
    assert one.sha256 == same.sha256 != other.sha256


def test_a_picture_that_cannot_be_read_goes_with_its_targets(opened: Open, tmp_path: Path) -> None:
    rows = [f"pictures/{index}.png,{index}" for index in range(20)]
    for index in range(20):
        Image.new("RGB", (4, 4)).save(tmp_path / "pictures" / f"{index}.png")
    (tmp_path / "pictures" / "7.png").write_text("no picture", encoding="utf-8")
    images = opened("\n".join(["image,x", *rows]), "regression", None, 1)
    assert targets(images) == [[index] for index in range(20) if index != 7]
    assert list(images.skipped) == ["pictures/7.png"]


@pytest.mark.parametrize(
    ("text", "task", "words"),
    [
        ("", "multi-label", "is empty"),
        ("image,cat,dog,rain\n", "multi-label", "names no images"),
        ("picture,cat\npictures/a.png,1\n", "multi-label", "expected a CSV file with a column image"),
        ("image;cat;dog;rain\npictures/a.png;1;0;0\n", "multi-label", "Separate columns by commas"),
        ("image,cat,dog,fish\npictures/a.png,1,0,0\n", "multi-label", "column 'fish' is none of the model's labels"),
        ("image,cat,dog\npictures/a.png,1,0\n", "multi-label", "lacks a column 'rain'"),
        ("image,cat,cat,rain\npictures/a.png,1,0,1\n", "multi-label", "two columns 'cat'"),
        ("image,cat,dog,rain\npictures/a.png,1,0,0\npictures/b.png,1,2,0\n", "multi-label", "line 3: '2' in column 'dog'"),
        ("image,cat,dog,rain\npictures/a.png,1,0\n", "multi-label", "line 2: 3 cells; expected 4"),
        ("image,labels\npictures/a.png,cat;fish\n", "multi-label", "line 2: 'fish' is none of the model's labels"),
        ("image,cat,dog,rain\npictures/z.png,1,0,0\n", "multi-label", "line 2: image 'pictures/z.png' does not exist"),
        ("image,cat,dog,rain\n,1,0,0\n", "multi-label", "line 2: image '' does not exist"),
        ("image,labels\npictures/a.png,cat\npictures/a.png,dog\n", "multi-label", "line 3: .* was given in line 2"),
        ('image,labels\npictures/a.png,"cat\n', "multi-label", "expected comma-separated values"),
        ("image,cat,dog,rain\npictures/a.png,1,tall,3\n", "regression", "line 2: 'tall' in column 'dog' is not a number"),
        ("image,cat,dog,rain\npictures/a.png,1,nan,3\n", "regression", "'nan' in column 'dog' is not a number"),
        (b"\xff\xfeimage", "regression", "is not UTF-8"),
    ],
)
def test_what_does_not_fit_is_said(opened: Open, text: str | bytes, task: Task, words: str) -> None:
    with pytest.raises(InputError, match=words):
        opened(text, task)


def test_what_has_no_order_needs_names(opened: Open) -> None:
    with pytest.raises(InputError, match="give `labels`"):
        opened("image,labels\npictures/a.png,cat\n", names=None)
    with pytest.raises(InputError, match="has 2 columns beside image"):
        opened("image,cat,dog\npictures/a.png,1,0\n", names=None)


def test_each_task_has_its_form(tmp_path: Path) -> None:
    (tmp_path / "data.csv").write_text("image,x\n", encoding="utf-8")
    for task, path, words in (
        ("multi-label", tmp_path, "is a folder, and a multi-label model is judged on a CSV file"),
        ("regression", tmp_path, "one column of numbers for each output"),
        ("classification", tmp_path / "data.csv", "one sub-folder per class"),
        ("regression", tmp_path / "none.csv", "cannot be read: No such file"),
    ):
        with pytest.raises(InputError, match=words):
            open_validation(path, Truth(task=task, names=None, synsets=None, count=2))  # type: ignore[arg-type]
