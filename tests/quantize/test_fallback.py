"""The search for the layers that stay float: it meets the budget, and no single one of them could go back."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from vitexport.quantize.fallback import fewest_float, most_sensitive_first

COSTS = st.lists(st.integers(0, 20), min_size=1, max_size=9)


def test_ranking_starts_with_the_noisiest_layer() -> None:
    assert most_sensitive_first({"a": 40.0, "b": 12.5, "c": 30.0, "d": 30.0}) == ("b", "c", "d", "a")


@given(COSTS, st.integers(0, 60), st.randoms())
def test_budget_is_met_and_the_set_is_minimal(costs: list[int], budget: int, random: object) -> None:
    """Each quantized layer costs something; the ranking is any order, as a proxy may be wrong."""
    names = [f"layer{index}" for index in range(len(costs))]
    cost = dict(zip(names, costs, strict=True))
    ranking = list(names)
    random.shuffle(ranking)  # type: ignore[attr-defined]
    seen = set()

    def accept(stay_float: frozenset[str]) -> bool:
        seen.add(stay_float)
        return sum(cost[name] for name in names if name not in stay_float) <= budget

    found = fewest_float(ranking, accept)
    if found is None:
        assert cost[ranking[-1]] > budget
        return
    assert accept(found)
    assert all(not accept(found - {name}) for name in found)
    assert len(seen) <= 2 ** len(names)


@given(st.sets(st.frozensets(st.sampled_from("abcde")), min_size=1))
def test_any_test_of_the_budget_gives_a_set_that_it_accepts_and_that_is_minimal(accepted: set[frozenset[str]]) -> None:
    """Even one that is not monotone: a layer more in float may, by chance, be worse."""
    found = fewest_float("abcde", accepted.__contains__)
    if found is not None:
        assert found in accepted
        assert all(found - {name} not in accepted for name in found)


def test_nothing_goes_back_if_the_whole_meets_the_budget() -> None:
    calls: list[frozenset[str]] = []

    def accept(stay: frozenset[str]) -> bool:
        calls.append(stay)
        return True

    assert fewest_float(["a", "b"], accept) == frozenset()
    assert calls == [frozenset()]


def test_one_bad_layer_is_found_wherever_the_proxy_ranks_it() -> None:
    names = [f"layer{index}" for index in range(48)]
    for bad in itertools.chain(names[:2], names[20:22], names[45:47]):
        tests: list[frozenset[str]] = []

        def accept(stay: frozenset[str], bad: str = bad, tests: list[frozenset[str]] = tests) -> bool:
            tests.append(stay)
            return bad in stay

        assert fewest_float(names, accept) == frozenset({bad})
        assert len(tests) < 2 * len(names)
