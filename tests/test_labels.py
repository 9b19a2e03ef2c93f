"""Which files of class names are read, and how those are refused that state no one order."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vitexport.errors import InputError
from vitexport.labels import read_class_names, read_labels

CATS = ("cat", "dog", "owl")


def put(path: Path, content: Any) -> Path:
    text = content if isinstance(content, str) else json.dumps(content)
    path.write_bytes(text.encode())
    return path


def test_labels_are_read_in_order_without_blank_lines(tmp_path: Path) -> None:
    path = tmp_path / "labels.txt"
    path.write_bytes("cat\r\n\n  great white shark \nçà\n".encode())
    assert read_labels(path, 3) == ("cat", "great white shark", "çà")


def test_the_mark_that_windows_editors_put_first_is_not_part_of_a_name(tmp_path: Path) -> None:
    path = tmp_path / "labels.txt"
    path.write_bytes(b"\xef\xbb\xbfcat\ndog\n")
    assert read_labels(path) == ("cat", "dog")


@pytest.mark.parametrize(
    ("content", "classes", "message"),
    [
        (b"", None, "is empty"),
        (b"\n \n", None, "is empty"),
        (b"cat\ndog\n", 3, "has 2 names, but the model has 3 classes"),
        (b"cat\ndog\nowl\n", 2, "has 3 names, but the model has 2 classes"),
        (b"\xff\xfe\x00", None, "is not UTF-8 text"),
    ],
)
def test_a_labels_file_that_cannot_be_right_is_refused(
    content: bytes, classes: int | None, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "labels.txt"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        read_labels(path, classes)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    "content", ["0: cat\n1: dog\n2: owl\n", "2: owl\n0: cat\n1: dog\n", "cat,0\ndog,1\nowl,2\n", "owl,2\ncat,0\ndog,1\n"]
)
def test_an_index_beside_each_name_is_the_order_and_no_part_of_the_name(content: str, tmp_path: Path) -> None:
    assert read_labels(put(tmp_path / "labels.txt", content), 3) == CATS


@pytest.mark.parametrize("names", [("class 0", "class 1"), ("1: a", "2: b"), ("a, 7", "b, 8"), ("crane, bird", "crane, 2")])
def test_numbers_that_count_nothing_are_part_of_the_names(names: tuple[str, ...], tmp_path: Path) -> None:
    assert read_labels(put(tmp_path / "labels.txt", "\n".join(names))) == names


def test_a_missing_labels_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"absent\.txt cannot be read"):
        read_labels(tmp_path / "absent.txt")


@pytest.mark.parametrize(
    "content",
    [
        list(CATS),
        {"0": "cat", "1": "dog", "2": "owl"},
        {"2": "owl", "0": "cat", "1": "dog"},
        {"owl": 2, "cat": 0, "dog": 1},
        {"id2label": {"0": "cat", "1": "dog", "2": "owl"}, "label2id": {"cat": 0, "dog": 1, "owl": 2}, "model_type": "vit"},
        {"class_to_idx": {"dog": 1, "cat": 0, "owl": 2}},
        {"label_names": list(CATS)},
        {"architecture": "vit", "pretrained_cfg": {"label_names": list(CATS)}},
        {"architecture": "vit", "pretrained_cfg": {"id2label": {"0": "cat", "1": "dog", "2": "owl"}}},
        {"0": ["n01", "cat"], "1": ["n02", "dog"], "2": ["n03", "owl"]},
        '\ufeff["cat",\r\n"dog", "owl"]\r\n',
    ],
    ids=str,
)
@pytest.mark.parametrize("name", ["labels.json", "labels.txt", "config.json"])
def test_json_is_read_whatever_the_file_is_called(content: Any, name: str, tmp_path: Path) -> None:
    assert read_labels(put(tmp_path / name, content), 3) == CATS


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("labels.csv", "cat\ndog\nowl\n"),
        ("labels.csv", "name\ncat\ndog\nowl\n"),
        ("labels.csv", "0,cat\n1,dog\n2,owl\n"),
        ("labels.csv", "index,name\n2,owl\n0,cat\n1,dog\n"),
        ("labels.csv", "cat,0\nowl,2\ndog,1\n"),
        ("labels.csv", "name,index\r\ndog,1\r\ncat,0\r\nowl,2\r\n"),
        ("labels.csv", ",name\n0,cat\n1,dog\n2,owl\n"),
        ("labels.csv", "\ufeffindex;name\n1;dog\n0;cat\n2;owl\n"),
        ("labels.csv", "class,count,name\n0,17,cat\n1,4,dog\n2,9,owl\n"),
        ("labels.csv", 'name,synset\n"cat",n01\ndog,n02\nowl,n03\n'),
        ("labels.tsv", "id\tlabel\n1\tdog\n0\tcat\n2\towl\n"),
        ("labels.tsv", "cat\ndog\nowl\n"),
        ("labels.txt", "1,dog\n0,cat\n2,owl\n"),
        ("labels.txt", "0\tcat\n1\tdog\n2\towl\n"),
        ("labels", "cat\ndog\nowl"),
    ],
    ids=str,
)
def test_tables_and_text(name: str, content: str, tmp_path: Path) -> None:
    assert read_labels(put(tmp_path / name, content), 3) == CATS


@pytest.mark.parametrize(
    ("name", "content", "labels"),
    [
        (
            "labels.txt",
            "tench, Tinca tinca\ngoldfish, Carassius auratus\n",
            ("tench, Tinca tinca", "goldfish, Carassius auratus"),
        ),
        ("labels.txt", "0\n1\n2\n", ("0", "1", "2")),
        ("labels.txt", "7\n3\n5\n", ("7", "3", "5")),
        ("labels.txt", "1 euro\n2 euro\n50 cent\n", ("1 euro", "2 euro", "50 cent")),
        ("labels.csv", '0,"crane, bird"\n1,"crane, machine"\n', ("crane, bird", "crane, machine")),
        ("labels.csv", "label\nname\n", ("label", "name")),
        ("labels.json", {"1": 0, "10": 1, "2": 2}, ("1", "10", "2")),
        ("labels.json", {"0": "1", "1": "10", "2": "2"}, ("1", "10", "2")),
        ("labels.json", ["1", "10", "2"], ("1", "10", "2")),
        ("labels.json", [3, 1, 2], ("3", "1", "2")),
    ],
    ids=str,
)
def test_what_looks_like_something_else(name: str, content: Any, labels: tuple[str, ...], tmp_path: Path) -> None:
    assert read_labels(put(tmp_path / name, content), len(labels)) == labels


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("labels.txt", '["cat",\n"dog",\n', "starts with \\[ as JSON does, and is not valid JSON: .*line 3"),
        ("labels.txt", "{cat\ndog\n", "starts with { as JSON does"),
        ("labels.json", "cat\ndog\n", "is not JSON: it starts with 'cat"),
        ("labels.json", "[]", "empty list"),
        ("labels.json", "{}", "empty object"),
        ("labels.json", {"0": "cat", "2": "owl"}, "2 indices, 0 to 2, and must have 0 to 1: index 1 is missing"),
        ("labels.json", {"1": "cat", "2": "owl"}, "start at 1 and must start at 0"),
        ("labels.json", '{"0": "cat", "0": "dog"}', "key '0' more than once"),
        ("labels.json", {"cat": 0, "dog": 0}, "index 0 is there twice, for 'cat' and 'dog'"),
        ("labels.json", {"cat": 0, "dog": 1.5}, "1.5 is not the index of a class"),
        ("labels.json", {"cat": 0, "dog": True}, "True is not the index of a class"),
        ("labels.json", {"zero": "cat", "one": "dog"}, "'zero' is not the index of a class"),
        ("labels.json", {"-1": "cat", "0": "dog"}, "'-1' is not the index of a class"),
        ("labels.json", [{"id": 0, "name": "cat"}], "class 0 is .*not a text"),
        ("labels.json", ["cat", None], "class 1 is null, not a text"),
        ("labels.json", ["cat", ""], "class 1 is empty"),
        ("labels.json", {"0": "cat", "1": " "}, "class 1 is empty"),
        ("labels.json", ["cat", "do\u0007g"], r"class 1, 'do\\x07g', holds the control character U\+0007"),
        ("labels.json", ["cat", "do\ng"], r"control character U\+000A"),
        ("labels.json", '["\\ud800", "dog"]', r"control character U\+D800"),
        ("labels.txt", "cat\x1b[31m\ndog\n", r"control character U\+001B"),
        ("labels.txt", "cat\x0bdog\n", r"control character U\+000B"),
        ("labels.json", {"id2label": {"0": "cat", "1": "dog"}, "label2id": {"dog": 0, "cat": 1}}, "different orders"),
        ("config.json", {"architecture": "vit", "pretrained_cfg": {"mean": [0.5]}}, "names no classes: none of id2label"),
        ("labels.csv", "index,name\n", "holds no names"),
        ("labels.csv", "index,name\n0,cat\n0,dog\n", "index 0 is there twice"),
        ("labels.csv", "index,name\n0,cat\n2,dog\n", "index 1 is missing"),
        ("labels.csv", "index,name\n0,cat\nx,dog\n", "'x' is not the index"),
        ("labels.csv", "0,cat\n1,crane, bird\n", "row 2 has 3 columns and the first has 2"),
        ("labels.csv", "n01,cat\nn02,dog\n", "which of them are index and name is not clear"),
        ("labels.csv", "0,1\n1,0\n", "which of them are index and name is not clear"),
        ("labels.txt", "1 dog\n0 cat\n", "index in front of each name, and not in rising order"),
        ("labels.txt", "- cat\n- dog\n", "is a YAML list"),
    ],
    ids=str,
)
def test_what_states_no_one_order_is_refused_by_name(name: str, content: Any, message: str, tmp_path: Path) -> None:
    path = put(tmp_path / name, content)
    with pytest.raises(InputError, match=message) as caught:
        read_labels(path)
    assert str(path) in str(caught.value)


def test_a_folder_is_read_by_its_config(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"has no config\.json"):
        read_labels(tmp_path)
    put(tmp_path / "config.json", {"id2label": {"0": "cat", "1": "dog", "2": "owl"}})
    assert read_labels(tmp_path, 3) == CATS


def test_descriptions_are_for_people_and_names_for_folders(tmp_path: Path) -> None:
    names, descriptions = ["n01", "n02"], {"n01": "tench", "n02": "goldfish"}
    found = read_class_names(put(tmp_path / "config.json", {"label_names": names, "label_descriptions": descriptions}), 2)
    assert (found.labels, found.synsets) == (("tench", "goldfish"), ("n01", "n02"))


def test_a_file_that_is_no_text_of_names_is_not_read_whole(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    with path.open("wb") as stream:
        stream.truncate(1 << 30)
    with pytest.raises(InputError, match="has 1074 MB; expected one name a line"):
        read_labels(path)


NAMES = st.lists(st.text(st.characters(codec="utf-8", exclude_categories=("C", "Z")), min_size=1), min_size=1, max_size=12)


@settings(max_examples=60, deadline=None)
@given(names=NAMES, data=st.data())
def test_every_json_form_gives_the_same_names(
    names: list[str], data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("labels")
    pairs = data.draw(st.permutations(list(enumerate(names))))
    forms: list[Any] = [
        names,
        {str(index): name for index, name in pairs},
        {"id2label": {str(index): name for index, name in pairs}},
    ]
    if len(set(names)) == len(names):
        forms.append({"class_to_idx": {name: index for index, name in pairs}})
    for form in forms:
        assert read_labels(put(folder / "labels.json", form), len(names)) == tuple(names)
