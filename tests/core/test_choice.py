"""Rendezvous hashing with bounded loads."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from math import ceil

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pillion.core.choice import BOUND, CROWD, SLACK, Load, Ranking, pick, rank

NAMES = st.lists(st.text("abcdef0123", min_size=1, max_size=6), min_size=1, max_size=12, unique=True)


def load(
    in_flight: Mapping[str, int] = {},
    recent: Mapping[str, float] = {},
    share: Mapping[str, float] = {},
    one: float = 1.0,
) -> Load:
    return Load(in_flight, recent, one, share)


def order(affinity: str, names: list[str]) -> tuple[str, ...]:
    return rank(affinity, names, lambda name: name)


@given(NAMES, st.text(max_size=100))
def test_an_order_of_all_that_does_not_depend_on_how_they_come(names: list[str], affinity: str) -> None:
    assert sorted(order(affinity, names)) == sorted(names)
    assert order(affinity, names) == order(affinity, names[::-1])


@given(st.integers(0, 300), st.integers(0, 400), st.text(max_size=20), st.integers(0, 10**6))
def test_the_first_of_an_order_are_those_of_the_whole(
    replicas: int, count: int, affinity: str, seed: int
) -> None:
    names = [f"{seed}-{number}" for number in range(replicas)]
    found = [names[index] for index in Ranking(names).first(affinity, count)]
    assert tuple(found) == order(affinity, names)[:count]


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
    busy: Counter[str] = Counter()
    for ask in asks:
        ranked = order(f"a{ask}", names)
        busy[ranked[pick(ranked, count, load(busy))]] += 1
        assert max(busy.values()) <= ceil(BOUND * sum(busy.values()) / count)


@given(st.lists(st.integers(0, 11), max_size=400), st.integers(1, 12), st.floats(1e-9, 1e9))
def test_none_is_given_more_than_its_bound_over_time(asks: list[int], count: int, one: float) -> None:
    """The same where each request ends before the next comes."""
    names = [f"r{number}" for number in range(count)]
    recent: Counter[str] = Counter()
    for ask in asks:
        ranked = order(f"a{ask}", names)
        known = {name: number * one for name, number in recent.items()}
        recent[ranked[pick(ranked, count, load(recent=known, one=one))]] += 1
        assert max(recent.values()) < BOUND * (sum(recent.values()) + 1) / count + SLACK + 1


@given(st.dictionaries(st.sampled_from("abc"), st.integers(0, 5)), st.text(max_size=5))
def test_the_first_that_has_room(busy: dict[str, int], affinity: str) -> None:
    ranked = order(affinity, ["a", "b", "c"])
    part = ceil(BOUND * (sum(busy.values()) + 1) / 3)
    assert pick(ranked, 3, load(busy)) == next(i for i, name in enumerate(ranked) if busy.get(name, 0) < part)


@pytest.mark.parametrize(
    ("warm", "known", "expected"),
    [
        pytest.param(1, load(), 0, id="where it is"),
        pytest.param(1, load({"a": CROWD - 1}), 0, id="busy for now: not worth a load"),
        pytest.param(2, load({"a": CROWD - 1}), 1, id="busy for now: another has it"),
        pytest.param(1, load({"a": CROWD}), 1, id="crowded: loaded elsewhere"),
        pytest.param(1, load({"a": 39, "b": 20, "c": 20, "d": 20}), 0, id="crowded is twice the mean"),
        pytest.param(1, load({"a": 70, "b": 20, "c": 20, "d": 20}), 1, id="and it is"),
        pytest.param(1, load(recent={"a": 100, "b": 90, "c": 90, "d": 90}), 0, id="within the bound"),
        pytest.param(1, load(recent={"a": 190, "b": 110, "c": 90, "d": 90}), 1, id="too much placed there"),
        pytest.param(1, load(recent={"a": 190, "b": 140, "c": 90, "d": 90}), 2, id="there neither"),
        pytest.param(
            2, load(recent={"a": 190, "b": 140, "c": 90, "d": 90}), 1, id="who has it may take more"
        ),
        pytest.param(
            2, load({"a": 3}, {"a": 10, "b": 99}), 1, id="slow now, and who had more has nothing to do"
        ),
        pytest.param(2, load({"a": 3, "b": 1}, {"a": 10, "b": 99}), 0, id="not so slow as that"),
        pytest.param(0, load(), 0, id="nowhere: where it would be warm next"),
        pytest.param(0, load({"a": 1}, {"a": 1}), 0, id="little traffic moves nobody"),
        pytest.param(0, load(recent={"a": 120, "b": 100, "c": 90, "d": 90}), 1, id="above the mean"),
        pytest.param(0, load(dict.fromkeys("abcd", 9), {"a": 9}), 0, id="all busy alike"),
        pytest.param(0, load({"a": 99, "b": 9, "c": 8, "d": 9}), 1, id="crowded ones last"),
        pytest.param(1, load(share={"a": 0.1}), 0, id="back, and idle"),
        pytest.param(1, load({"a": 1}, share={"a": 0.1}), 1, id="back, and at work"),
    ],
)
def test_who_has_it_or_would_next(warm: int, known: Load, expected: int) -> None:
    assert pick("abcd", warm, known) == expected


@given(
    st.integers(1, 8),
    st.integers(0, 8),
    *[st.dictionaries(st.sampled_from("abcdefgh"), kind) for kind in (st.integers(0, 30), st.floats(0, 500))],
    st.dictionaries(st.sampled_from("abcdefgh"), st.floats(0.1, 1.0)),
)
def test_there_is_always_one(
    count: int, warm: int, busy: dict[str, int], recent: dict[str, float], share: dict[str, float]
) -> None:
    assert 0 <= pick("abcdefgh"[:count], min(warm, count), load(busy, recent, share)) < count


def test_one_that_comes_back_gets_little_at_first() -> None:
    busy: Counter[str] = Counter()
    for _ in range(100):
        busy["ab"[pick("ab", 2, load(busy, share={"a": 0.1}))]] += 1
    assert 0 < busy["a"] < 15
    assert pick("ab", 2, load({"a": 9, "b": 9}, share={"a": 0.1, "b": 0.1})) in (0, 1)


@pytest.mark.parametrize("askers", [4, 8, 64])
@pytest.mark.parametrize("ranked", ["ab", "ba"])
def test_one_that_does_not_answer_does_not_draw_in_all_who_ask(askers: int, ranked: str) -> None:
    """Each asks again as soon as it is answered, which a never does: most requests of late were the other's."""
    recent = Counter({"a": 100, "b": 100})
    stuck = 0
    for _ in range(2000):
        assert stuck < askers
        chosen = ranked[pick(ranked, 2, load({"a": stuck, "b": askers - stuck - 1}, recent))]
        recent[chosen] += 1
        stuck += chosen == "a"
