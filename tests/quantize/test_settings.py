from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vitexport.errors import UsageError
from vitexport.quantize.settings import DEFAULT_PERCENTILE, OBSERVERS, Observer, Placement, QuantSettings

placements = st.builds(Placement, base=st.sampled_from(["A", "B", "C"]), patch=st.booleans(), head=st.booleans())
# What a user types: as many digits as are printed.
observers = st.one_of(
    st.sampled_from(OBSERVERS).map(lambda kind: Observer(kind=kind)),
    st.floats(50, 100, exclude_min=True).map(lambda share: Observer(percentile=share)),
)
patterns = st.lists(st.sampled_from([r"blocks\.0", "fc2$", "", "mlp|attn"]), max_size=3).map(tuple)
every_setting = st.builds(
    QuantSettings,
    placement=placements,
    observer=observers,
    degraded=st.booleans(),
    equalize=st.booleans(),
    rounding=st.sampled_from(["gptq", "nearest"]),
    include=patterns,
    exclude=patterns,
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A", Placement()),
        ("B", Placement(base="B")),
        ("C+head", Placement(base="C", head=True)),
        ("A+head+patch", Placement(patch=True, head=True)),
    ],
)
def test_a_placement_is_read(text: str, expected: Placement) -> None:
    assert Placement.parse(text) == expected


@pytest.mark.parametrize("text", ["", "D", "a", "AB", "A+", "A+foot", "A+head+head", "+head", "head", "A +head"])
def test_any_other_placement_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match=r"Placement .* is not valid; give A, B or C"):
        Placement.parse(text)


@pytest.mark.parametrize(
    ("text", "kind", "percentile"),
    [
        ("minmax", "minmax", DEFAULT_PERCENTILE),
        ("percentile", "percentile", DEFAULT_PERCENTILE),
        ("percentile:99.9", "percentile", 99.9),
        ("percentile:100", "percentile", 100.0),
        ("entropy", "entropy", DEFAULT_PERCENTILE),
    ],
)
def test_an_observer_is_read(text: str, kind: str, percentile: float) -> None:
    observer = Observer.parse(text)
    assert (observer.kind, observer.percentile) == (kind, percentile)


@pytest.mark.parametrize(
    "text",
    ["", "max", "minmax:99", "mse:", "percentile:", "percentile:x", "percentile:50", "percentile:100.1", "percentile:nan"],
)
def test_any_other_observer_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match=r"Observer .* is not valid; give one of minmax, percentile"):
        Observer.parse(text)


@given(placements, observers)
def test_what_is_printed_is_read_back(placement: Placement, observer: Observer) -> None:
    assert Placement.parse(str(placement)) == placement
    assert Observer.parse(str(observer)) == observer


@given(every_setting)
def test_settings_come_back_from_a_recipe(settings: QuantSettings) -> None:
    assert QuantSettings.from_json(json.loads(json.dumps(settings.to_json()))) == settings


@pytest.mark.parametrize(
    "changes",
    [
        {"rounding": "up"},
        {"equalize": 1},
        {"degraded": "no"},
        {"include": "fc2"},
        {"exclude": [2]},
        {"placement": "Z"},
        {"observer": None},
        {"include": ["("]},
    ],
)
def test_a_recipe_with_another_value_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        QuantSettings.from_json(QuantSettings().to_json() | changes)


def test_a_recipe_with_other_keys_is_refused_and_they_are_named() -> None:
    data = QuantSettings().to_json()
    with pytest.raises(UsageError, match=r"do not have exactly .*: bits\."):
        QuantSettings.from_json(data | {"bits": 4})
    del data["observer"]
    with pytest.raises(UsageError, match=r": observer\."):
        QuantSettings.from_json(data)


@pytest.mark.parametrize("name", ["include", "exclude"])
def test_what_is_no_regular_expression_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match=r"'blocks\[' is not a valid regular expression"):
        QuantSettings(**{name: ("fc2", "blocks[")})  # type: ignore[arg-type]


def test_exclude_wins_over_include() -> None:
    settings = QuantSettings(include=(r"mlp", r"qkv"), exclude=(r"blocks\.1\.",))
    names = ["blocks.0.mlp.fc1", "blocks.0.attn.qkv", "blocks.0.attn.proj", "blocks.1.mlp.fc1"]
    assert [settings.wants(name) for name in names] == [True, True, False, False]
    assert QuantSettings().wants("anything")
