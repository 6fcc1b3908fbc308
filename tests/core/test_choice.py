"""Rendezvous hashing with bounded loads."""

from __future__ import annotations

from collections import Counter
from math import ceil

from hypothesis import given
from hypothesis import strategies as st

from pillion.core.choice import BOUND, pick, rank

NAMES = st.lists(st.text("abcdef0123", min_size=1, max_size=6), min_size=1, max_size=12, unique=True)


def order(affinity: str, names: list[str]) -> tuple[str, ...]:
    return rank(affinity, names, lambda name: name)


@given(NAMES, st.text(max_size=100))
def test_an_order_of_all_that_does_not_depend_on_how_they_come(names: list[str], affinity: str) -> None:
    assert sorted(order(affinity, names)) == sorted(names)
    assert order(affinity, names) == order(affinity, names[::-1])


@given(NAMES, st.text(max_size=20))
def test_one_that_goes_moves_nobody_else(names: list[str], affinity: str) -> None:
    before = order(affinity, names)
    gone = before[0]
    assert order(affinity, [name for name in names if name != gone]) == before[1:]


def test_affinities_are_spread_evenly() -> None:
    names = [f"r{number}" for number in range(8)]
    first = Counter(order(f"acc/adp_{number}", names)[0] for number in range(4000))
    assert max(first.values()) < 1.2 * 500
    assert min(first.values()) > 0.8 * 500


@given(st.lists(st.integers(0, 11), max_size=400), st.integers(1, 12))
def test_none_takes_more_than_its_bound(asks: list[int], count: int) -> None:
    """Requests of a dozen affinities, none of which ends: the fullest has at most the bound's part."""
    names = [f"r{number}" for number in range(count)]
    load: Counter[str] = Counter()
    for ask in asks:
        ranked = order(f"a{ask}", names)
        load[ranked[pick(ranked, load, {})]] += 1
        assert max(load.values()) <= ceil(BOUND * sum(load.values()) / count)


@given(st.dictionaries(st.sampled_from("abc"), st.integers(0, 5)), st.text(max_size=5))
def test_the_first_that_has_room(load: dict[str, int], affinity: str) -> None:
    ranked = order(affinity, ["a", "b", "c"])
    part = ceil(BOUND * (sum(load.values()) + 1) / 3)
    assert pick(ranked, load, {}) == next(i for i, name in enumerate(ranked) if load.get(name, 0) < part)


def test_one_that_comes_back_gets_little_at_first() -> None:
    load: Counter[str] = Counter()
    for _ in range(100):
        load["ab"[pick("ab", load, {"a": 0.1})]] += 1
    assert 0 < load["a"] < 15
    assert pick("ab", {"a": 9, "b": 9}, {"a": 0.1, "b": 0.1}) in (0, 1)
