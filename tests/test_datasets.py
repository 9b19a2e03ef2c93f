from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from timm.data.readers.reader_image_folder import find_images_and_targets
from torchvision.datasets.folder import find_classes

from vitexport.datasets import ImageSet, natural_order, open_images, open_labelled, read_labels, string_order
from vitexport.errors import InputError
from vitexport.preprocess import PreprocessSpec, preprocess

SPEC = PreprocessSpec(
    height=8, width=10, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4), interpolation="bilinear", crop_pct=1.0, crop_mode="squash"
)


def put(path: Path, shade: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (12, 9), (shade % 256, 50, 200)).save(path)
    return path


def put_many(root: Path, count: int, start: int = 0) -> Path:
    for index in range(start, start + count):
        put(root / f"{index:03}.png", index)
    return root


def names(images: ImageSet) -> list[str]:
    return [file.relative for file in images.files]


def test_images_come_in_the_order_of_their_relative_paths(tmp_path: Path) -> None:
    for name in ("b/2.png", "a.png", "b/10.png", "B/1.png", "a/z/y/x.png", "a-b.png"):
        put(tmp_path / name)
    assert names(open_images(tmp_path)) == ["B/1.png", "a-b.png", "a.png", "a/z/y/x.png", "b/10.png", "b/2.png"]


def test_every_suffix_counts_in_any_case_and_nothing_else(tmp_path: Path) -> None:
    for name in ("1.PNG", "2.jpeg", "3.Tiff", "4.bmp"):
        put(tmp_path / name)
    (tmp_path / "labels.txt").write_text("cat")
    (tmp_path / "archive.zip").write_bytes(b"PK")
    (tmp_path / "folder.png").mkdir()
    images = open_images(tmp_path)
    assert names(images) == ["1.PNG", "2.jpeg", "3.Tiff", "4.bmp"]
    assert images.skipped == {}


def test_hidden_files_and_what_lies_in_hidden_folders_are_left_out(tmp_path: Path) -> None:
    put(tmp_path / "seen.png")
    for name in ("._seen.png", ".thumbnails/1.png", "sub/.cache/deep/2.png"):
        put(tmp_path / name)
    assert names(open_images(tmp_path)) == ["seen.png"]


def test_a_set_below_a_hidden_folder_is_read(tmp_path: Path) -> None:
    put(tmp_path / ".cache" / "set" / "1.png")
    assert names(open_images(tmp_path / ".cache" / "set")) == ["1.png"]


@settings(max_examples=30, deadline=None)
@given(count=st.integers(1, 12), limit=st.integers(1, 15))
def test_a_limit_is_kept_and_what_it_leaves_is_unused(
    tmp_path_factory: pytest.TempPathFactory, count: int, limit: int
) -> None:
    root = put_many(tmp_path_factory.mktemp("set"), count)
    images = open_images(root, limit=limit)
    used = [file.path for file in images.files]
    assert len(used) == min(limit, count)
    assert sorted([*used, *images.unused]) == sorted(root.iterdir())


def test_a_limit_reaches_into_every_class_folder(tmp_path: Path) -> None:
    for folder in "abcde":
        put_many(tmp_path / folder, 6)
    assert {name[0] for name in names(open_images(tmp_path, limit=5))} == set("abcde")


def test_the_same_limit_takes_the_same_images(tmp_path: Path) -> None:
    put_many(tmp_path, 23)
    assert names(open_images(tmp_path, limit=7)) == names(open_images(tmp_path, limit=7))


def test_unused_images_make_a_set_of_their_own(tmp_path: Path) -> None:
    put_many(tmp_path, 10)
    first = open_images(tmp_path, limit=4)
    rest = open_images(tmp_path, among=first.unused)
    assert sorted([*names(first), *names(rest)]) == names(open_images(tmp_path))
    assert len(rest.files) == 6


BROKEN = {"text.png": b"not a picture", "empty.jpg": b"", "zeros.gif": bytes(500)}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_image_among_good_ones_is_skipped_by_name_with_a_reason(name: str, tmp_path: Path) -> None:
    put_many(tmp_path, 12)
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / name).write_bytes(BROKEN[name])
    images = open_images(tmp_path)
    assert len(images.files) == 12
    assert dict(images.skipped) == {f"sub/{name}": "not an image that Pillow can read"}


def test_an_image_cut_short_is_skipped_with_what_pillow_says(tmp_path: Path) -> None:
    put_many(tmp_path, 12)
    whole = put(tmp_path / "cut.jpg").read_bytes()
    (tmp_path / "cut.jpg").write_bytes(whole[: len(whole) - 40])
    images = open_images(tmp_path)
    assert list(images.skipped) == ["cut.jpg"]
    assert "truncated" in images.skipped["cut.jpg"].lower()


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".gif", ".bmp", ".webp", ".ppm"])
def test_reasons_hold_no_memory_address_and_are_the_same_each_time(suffix: str, tmp_path: Path) -> None:
    put_many(tmp_path, 40)
    whole = put(tmp_path / f"whole{suffix}").read_bytes()
    for part in (2, 3, 5):
        (tmp_path / f"cut{part}{suffix}").write_bytes(whole[: len(whole) * part // 6])
    reasons = open_images(tmp_path).skipped
    assert reasons
    assert all("0x" not in reason and reason == reason.strip() and "\n" not in reason for reason in reasons.values())
    assert open_images(tmp_path).skipped == reasons


@pytest.mark.parametrize(("good", "bad"), [(9, 1), (18, 2), (27, 3)])
def test_one_in_ten_may_be_broken(good: int, bad: int, tmp_path: Path) -> None:
    put_many(tmp_path, good)
    for index in range(bad):
        (tmp_path / f"bad{index}.png").write_bytes(b"x")
    assert len(open_images(tmp_path).skipped) == bad


@pytest.mark.parametrize(("good", "bad"), [(8, 1), (17, 2), (0, 1), (0, 3)])
def test_more_than_one_in_ten_is_an_error_that_counts_and_names_the_first(good: int, bad: int, tmp_path: Path) -> None:
    put_many(tmp_path, good)
    for index in range(bad):
        (tmp_path / f"bad{index}.png").write_bytes(b"x")
    with pytest.raises(InputError, match=rf"{bad} of {good + bad} images .* the first is bad0\.png: not an image"):
        open_images(tmp_path)


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="absent does not exist or is not a folder"):
        open_images(tmp_path / "absent")


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is not a folder"):
        open_images(put(tmp_path / "1.png"))


def test_an_empty_folder_says_which_files_it_wants(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("none here")
    with pytest.raises(InputError, match=r"holds no images.*\.png"):
        open_images(tmp_path)


def test_batches_hold_the_preprocessed_images_in_order(tmp_path: Path) -> None:
    images = open_images(put_many(tmp_path, 7))
    batches = list(images.batches(SPEC, 3))
    assert [len(batch) for batch in batches] == [3, 3, 1]
    wanted = np.stack([preprocess(file.path, SPEC) for file in images.files])
    np.testing.assert_array_equal(np.concatenate(batches), wanted)


def test_the_hash_follows_the_content_of_every_image(tmp_path: Path) -> None:
    put_many(tmp_path, 3)
    before = open_images(tmp_path).sha256
    assert open_images(tmp_path).sha256 == before
    put(tmp_path / "001.png", 77)
    assert open_images(tmp_path).sha256 != before
    put(tmp_path / "001.png", 1)
    assert open_images(tmp_path).sha256 == before


def test_the_hash_follows_names_and_number(tmp_path: Path) -> None:
    put_many(tmp_path, 3)
    before = open_images(tmp_path).sha256
    assert open_images(tmp_path, limit=2).sha256 != before
    (tmp_path / "002.png").rename(tmp_path / "003.png")
    assert open_images(tmp_path).sha256 != before


def test_the_hash_does_not_depend_on_where_the_folder_is(tmp_path: Path) -> None:
    sets = [open_images(put_many(tmp_path / name, 3)) for name in ("here", "there")]
    assert sets[0].sha256 == sets[1].sha256


def test_the_hash_follows_the_labels(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        put_many(tmp_path / name, 2)
    one = open_labelled(tmp_path, labels=["cat", "dog"], synsets=None, classes=2)
    other = open_labelled(tmp_path, labels=["dog", "cat"], synsets=None, classes=2)
    assert one.sha256 != other.sha256


def test_labels_decide_the_order_of_the_classes(tmp_path: Path) -> None:
    put_many(tmp_path / "cat", 1)
    put_many(tmp_path / "zebra", 2)
    images = open_labelled(tmp_path, labels=["zebra", "ant", "cat"], synsets=None, classes=3)
    assert names(images) == ["cat/000.png", "zebra/000.png", "zebra/001.png"]
    assert images.labels is not None
    assert images.labels.tolist() == [2, 0, 0]
    assert images.labels.dtype == np.int64
    assert images.classes == ("zebra", "ant", "cat")


def test_without_labels_the_sorted_folders_are_the_classes(tmp_path: Path) -> None:
    for name in ("b", "a", "c"):
        put_many(tmp_path / name / "deeper", 1)
    images = open_labelled(tmp_path, labels=None, synsets=None, classes=3)
    assert images.classes == ("a", "b", "c")
    assert [file.label for file in images.files] == [0, 1, 2]


@pytest.mark.parametrize("classes", [2, 4])
def test_without_labels_another_number_of_folders_is_refused(classes: int, tmp_path: Path) -> None:
    for name in "abc":
        put_many(tmp_path / name, 1)
    with pytest.raises(InputError, match=rf"3 class folders, but the model has {classes} classes.*`labels`"):
        open_labelled(tmp_path, labels=None, synsets=None, classes=classes)


def test_synsets_stand_for_labels(tmp_path: Path) -> None:
    put_many(tmp_path / "n02", 1)
    put_many(tmp_path / "tench", 1)
    images = open_labelled(tmp_path, labels=["tench", "goldfish"], synsets=["n01", "n02"], classes=2)
    assert {file.relative: file.label for file in images.files} == {"n02/000.png": 1, "tench/000.png": 0}
    assert images.classes == ("tench", "goldfish")


def test_classes_of_one_name_are_told_apart_by_synsets_only(tmp_path: Path) -> None:
    labels, synsets = ["crane", "goldfish", "crane"], ["n02012849", "n01443537", "n03126707"]
    (tmp_path / "labels.txt").write_text("\n".join(labels), encoding="utf-8")
    assert read_labels(tmp_path / "labels.txt", classes=3) == tuple(labels)
    data = tmp_path / "data"
    put_many(data / "n03126707", 1)
    put_many(data / "goldfish", 1)
    images = open_labelled(data, labels=labels, synsets=synsets, classes=3)
    assert {file.relative: file.label for file in images.files} == {"n03126707/000.png": 2, "goldfish/000.png": 1}
    put_many(data / "crane", 1)
    with pytest.raises(InputError, match=r"'crane' in .* could be class 0 or 2, which have that one name"):
        open_labelled(data, labels=labels, synsets=synsets, classes=3)


def test_a_folder_that_is_no_label_is_named_beside_the_labels(tmp_path: Path) -> None:
    for name in ("cat", "cow", "crow"):
        put_many(tmp_path / name, 1)
    with pytest.raises(InputError, match=r"'cow' and 1 more in .* 2 labels \(cat, dog, …\)"):
        open_labelled(tmp_path, labels=["cat", "dog"], synsets=None, classes=2)


def test_hidden_folders_are_no_classes(tmp_path: Path) -> None:
    put_many(tmp_path / "cat", 1)
    put_many(tmp_path / ".trash", 1)
    assert names(open_labelled(tmp_path, labels=["cat"], synsets=None, classes=1)) == ["cat/000.png"]


def test_a_class_folder_without_images_is_named(tmp_path: Path) -> None:
    put_many(tmp_path / "cat", 1)
    (tmp_path / "dog").mkdir()
    with pytest.raises(InputError, match="dog holds no images"):
        open_labelled(tmp_path, labels=["cat", "dog"], synsets=None, classes=2)


def test_a_flat_folder_is_no_labelled_set(tmp_path: Path) -> None:
    put_many(tmp_path, 2)
    with pytest.raises(InputError, match="no sub-folders; expected one folder of images per class"):
        open_labelled(tmp_path, labels=None, synsets=None, classes=2)


def test_a_missing_data_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="absent does not exist"):
        open_labelled(tmp_path / "absent", labels=None, synsets=None, classes=2)


def test_a_broken_image_keeps_the_labels_of_the_others_in_place(tmp_path: Path) -> None:
    put_many(tmp_path / "a", 6)
    put_many(tmp_path / "b", 6)
    (tmp_path / "a" / "003.png").write_bytes(b"x")
    images = open_labelled(tmp_path, labels=None, synsets=None, classes=2)
    assert images.labels is not None
    assert images.labels.tolist() == [0] * 5 + [1] * 6
    assert list(images.skipped) == ["a/003.png"]


def test_an_unlabelled_set_has_no_labels(tmp_path: Path) -> None:
    assert open_images(put_many(tmp_path, 1)).labels is None


@pytest.mark.parametrize(
    "names", [[str(index + 1) for index in range(12)], ["b", "A", "c", "B1"], ["img10", "img9"], ["n-2", "n-10", "N-3"]]
)
def test_natural_and_string_order_are_those_of_timm_and_torchvision(names: list[str], tmp_path: Path) -> None:
    for name in names:
        put(tmp_path / name / "1.png")
    _, natural = find_images_and_targets(str(tmp_path))
    _, string = find_classes(str(tmp_path))
    assert natural_order(names) == sorted(natural, key=natural.__getitem__)
    assert string_order(names) == sorted(string, key=string.__getitem__)


def test_where_the_two_orders_differ_nothing_is_guessed(tmp_path: Path) -> None:
    for index in range(1, 11):
        put(tmp_path / str(index) / "1.png")
    orders = r"1, 2, 3, 4, … in natural order \(timm's\) and 1, 10, 2, 3, … in string order"
    with pytest.raises(InputError, match=rf"{orders}.*`labels`.*`class_order` natural or string"):
        open_labelled(tmp_path, labels=None, synsets=None, classes=10)
    natural = open_labelled(tmp_path, labels=None, synsets=None, classes=10, order="natural")
    string = open_labelled(tmp_path, labels=None, synsets=None, classes=10, order="string")
    assert natural.classes == ("1", "2", "3", "4", "5", "6", "7", "8", "9", "10")
    assert string.classes == ("1", "10", "2", "3", "4", "5", "6", "7", "8", "9")
    assert {file.relative: file.label for file in string.files}["10/1.png"] == 1
    labelled = open_labelled(tmp_path, labels=natural.classes, synsets=None, classes=10)
    assert [file.label for file in labelled.files] == [file.label for file in natural.files]


def test_the_orders_are_shown_where_they_begin_to_differ(tmp_path: Path) -> None:
    for index in range(90, 111):
        put(tmp_path / f"a{index}" / "1.png")
    with pytest.raises(InputError, match=r"are a90, a91, a92, a93, … in natural order .* and a100, a101, a102, a103, …"):
        open_labelled(tmp_path, labels=None, synsets=None, classes=21)


def test_folders_that_timm_sorts_by_chance_are_refused(tmp_path: Path) -> None:
    for name in ("1", "01"):
        put(tmp_path / name / "1.png")
    with pytest.raises(InputError, match="order of the classes is unknown"):
        open_labelled(tmp_path, labels=None, synsets=None, classes=2)
    with pytest.raises(InputError, match=r"'01' and '1' .* equal in natural order"):
        open_labelled(tmp_path, labels=None, synsets=None, classes=2, order="natural")
    assert open_labelled(tmp_path, labels=None, synsets=None, classes=2, order="string").classes == ("01", "1")


@settings(max_examples=25, deadline=None)
@given(count=st.integers(1, 9), size=st.integers(1, 6))
def test_whole_batches_are_filled_from_the_beginning_of_the_set(
    tmp_path_factory: pytest.TempPathFactory, count: int, size: int
) -> None:
    images = open_images(put_many(tmp_path_factory.mktemp("set"), count))
    every = np.concatenate(list(images.batches(SPEC, 1)))
    batches = list(images.batches(SPEC, size, whole=True))
    assert {len(batch) for batch in batches} == {size}
    assert len(batches) == -(-count // size)
    np.testing.assert_array_equal(np.concatenate(batches), every[np.arange(len(batches) * size) % count])
    ragged = list(images.batches(SPEC, size))
    assert sum(map(len, ragged)) == count
    np.testing.assert_array_equal(np.concatenate(ragged), every)


def put_unnameable(root: Path) -> bytes:
    """A picture whose name is Latin-1: no UTF-8 file can hold it."""
    name = os.fsencode(root) + b"/caf\xe9.png"
    Path(os.fsdecode(name)).write_bytes(put(root / "plain.png").read_bytes())
    return name


def test_a_name_that_is_not_utf8_is_skipped_and_shown_in_ascii(tmp_path: Path) -> None:
    put_many(tmp_path, 12)
    put_unnameable(tmp_path)
    images = open_images(tmp_path)
    assert len(images.files) == 13
    [(name, reason)] = images.skipped.items()
    assert (name, reason) == ("caf\\udce9.png", "its name is not UTF-8")
    json.dumps(dict(images.skipped), ensure_ascii=False).encode()
