"""Input: layers by their sensitivity, and a test of the budget; output: the few layers that have to stay float."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence


def most_sensitive_first(decibels: Mapping[str, float]) -> tuple[str, ...]:
    """Modules by an SQNR, lowest first: an estimate of their order that `fewest_float` confirms by measurement."""
    return tuple(sorted(decibels, key=lambda module: (decibels[module], module)))


def fewest_float(ranking: Sequence[str], accept: Callable[[frozenset[str]], bool]) -> frozenset[str] | None:
    """Modules that stay float so that `accept` is met, such that none of them could be quantized again.

    The most sensitive go first, as many as the ranking needs; then each of them is tried again by measurement, the least
    sensitive first, until no single one can go back.

    Args:
        ranking: Every quantized module, most sensitive first.
        accept: Whether a build in which these modules stay float meets the budget.

    Returns:
        None if the budget is not met even with one quantized layer left.
    """
    least = _fewest_of_ranking(ranking, accept)
    if least is None:
        return None
    chosen = set(ranking[:least])
    changed = True
    while changed:
        changed = False
        for module in sorted(chosen, key=ranking.index, reverse=True):
            if accept(frozenset(chosen - {module})):
                chosen.remove(module)
                changed = True
    return frozenset(chosen)


def _fewest_of_ranking(ranking: Sequence[str], accept: Callable[[frozenset[str]], bool]) -> int | None:
    """How many of the first modules have to stay float, found by doubling and halving."""
    most = len(ranking) - 1
    low, high = -1, 0
    while not accept(frozenset(ranking[:high])):
        if high >= most:
            return None
        low, high = high, min(max(2 * high, 1), most)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if accept(frozenset(ranking[:middle])) else (middle, high)
    return high
