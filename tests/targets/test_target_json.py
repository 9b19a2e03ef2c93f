from __future__ import annotations

import copy
import dataclasses
import json
import pickle
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vitexport.targets import Target, catalogue, resolve

CHOICES = [(row.id, release) for row in catalogue().values() for release in (None, *row.jetpacks)]
targets = st.sampled_from(CHOICES).map(lambda choice: resolve(choice[0], jetpack=choice[1]))


@given(targets)
def test_a_target_survives_its_json(target: Target) -> None:
    assert Target.from_json(json.loads(json.dumps(target.to_json()))) == target


@given(targets)
def test_json_is_plain_from_the_start(target: Target) -> None:
    assert json.loads(json.dumps(target.to_json())) == target.to_json()


@given(targets)
def test_a_target_can_be_copied_pickled_hashed_and_made_a_dict(target: Target) -> None:
    assert copy.deepcopy(target) == target
    assert pickle.loads(pickle.dumps(target)) == target  # noqa: S301  our own bytes
    assert hash(copy.deepcopy(target)) == hash(target)
    assert dataclasses.asdict(target)["id"] == target.id


def test_a_later_version_may_add_fields() -> None:
    target = resolve("l4")
    assert Target.from_json({**target.to_json(), "dla_cores": 2}) == target


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("id", "", "a text"),
        ("id", 4, "a text"),
        ("kind", "tpu", "'jetson' or 'gpu' or 'cpu'"),
        ("runtime", None, "'onnxruntime' or 'tensorrt-rtx' or 'tensorrt'"),
        ("typing", "none", "'strong' or 'weak'"),
        ("opset", "20", "a positive whole number"),
        ("opset", True, "a positive whole number"),
        ("opset", 0, "a positive whole number"),
        ("layernorm_op", 1, "true or false"),
        ("precisions", "fp32", "a list of texts"),
        ("precisions", [16], "a list of texts"),
        ("unavailable", ["int8"], "a table of texts"),
        ("unavailable", {"int8": 1}, "a table of texts"),
        ("memory_gb", "24", "a positive number"),
        ("memory_gb", float("nan"), "a positive number"),
        ("memory_gb", -1, "a positive number"),
        ("peaks", {"fp16": "fast"}, "a table of positive numbers"),
        ("peaks", {"fp16": True}, "a table of positive numbers"),
        ("compute_capability", 8.9, "a text"),
    ],
)
def test_a_damaged_target_is_refused_by_the_name_of_its_field(key: str, value: object, expected: str) -> None:
    with pytest.raises(ValueError, match=f"^target: {key} is .*; expected {expected}"):
        Target.from_json({**resolve("l4").to_json(), key: value})


@given(st.sampled_from(["id", "name", "kind", "runtime", "opset", "layernorm_op", "precisions", "unavailable", "peaks"]))
def test_a_missing_field_is_named(key: str) -> None:
    data = resolve("jetson-nano").to_json()
    del data[key]
    with pytest.raises(ValueError, match=f"^target: {key} is missing; expected"):
        Target.from_json(data)


@pytest.mark.parametrize(
    ("cpu", "message"),
    [
        ("avx2", "target.cpu is 'avx2'; expected a table"),
        ({"activation": "uint8", "weight_bits": 6, "required_flags": [], "arch": "x86_64"}, "weight_bits is 6"),
        ({"activation": "uint8", "weight_bits": 7.0, "required_flags": [], "arch": "x86_64"}, "weight_bits is 7.0"),
        ({"activation": "int4", "weight_bits": 8, "required_flags": [], "arch": "x86_64"}, "activation is 'int4'"),
        ({"activation": "uint8", "weight_bits": 8, "arch": "x86_64"}, "required_flags is missing"),
    ],
)
def test_a_damaged_arithmetic_is_refused(cpu: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Target.from_json({**resolve("cpu-x86-avx2").to_json(), "cpu": cpu})


@pytest.mark.parametrize("data", [None, [], "target", 3, {1: 2}])
def test_what_is_no_table_is_refused(data: Any) -> None:
    with pytest.raises(ValueError, match=r"^target is .*; expected a table"):
        Target.from_json(data)
