"""Slots shared between accounts: the level by cases, and that no flood takes from who is within its part."""

from __future__ import annotations

from collections import Counter
from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pillion.core.sharing import KEPT, Claim, Place, level, victim

FLOOD, MODEST, OTHER = Claim("flood"), Claim("modest"), Claim("other")


def places(claim: Claim, *worth: float, free: bool = True, recent: bool = True) -> list[Place]:
    return [Place(f"{claim.account}-{n}", claim, w, free, recent) for n, w in enumerate(worth)]


@pytest.mark.parametrize(
    ("counts", "slots", "expected"),
    [
        ({"a": 3, "b": 4}, 8, inf),
        ({"a": 1, "b": 9}, 8, 7.0),
        ({"a": 9, "b": 9}, 8, 4.0),
        ({"a": 9, "double": 9}, 9, 3.0),
        ({"a": 1, "double": 9}, 7, 3.0),
        ({"a": 1, "b": 1, "c": 1}, 2, 2 / 3),
        ({"a": 9, "b": 9, "keeps": 4}, 8, 2.0),
        ({"a": 9, "b": 9, "keeps": 1}, 8, 3.5),
        ({"keeps": 4}, 3, 0.0),
        ({"keeps": 5, "a": 1}, 3, 0.0),
        ({}, 2, inf),
    ],
)
def test_level(counts: dict[str, int], slots: int, expected: float) -> None:
    known = {"double": Claim("double", 2, 0), "keeps": Claim("keeps", 1, 4)}
    claims = {known.get(account, Claim(account, 1, 0)): count for account, count in counts.items()}
    assert level(claims, slots) == pytest.approx(expected)


def test_a_flood_makes_room_for_itself() -> None:
    there = places(FLOOD, 9.0, 8.0, 7.0) + places(MODEST, 0.1)
    assert victim(there, FLOOD, 4) == there[2]


def test_the_least_of_a_flood_goes_for_who_has_less() -> None:
    there = places(FLOOD, 9.0, 8.0, 7.0, 6.0, 5.0) + places(MODEST, 0.1)
    assert victim(there, MODEST, 6) == there[4]
    assert victim(there, OTHER, 6) == there[4]


def test_a_flood_that_is_busy_with_all_it_has_takes_nobodys() -> None:
    there = places(FLOOD, 9.0, 8.0, 7.0, free=False) + places(MODEST, 0.1)
    assert victim(there, FLOOD, 4) is None


def test_what_was_not_used_of_late_is_anybodys() -> None:
    there = places(FLOOD, 9.0, 8.0, 7.0) + places(MODEST, 0.1, recent=False)
    assert victim(there, FLOOD, 4) == there[3]


def test_beyond_its_part_demand_decides() -> None:
    there = places(FLOOD, 9.0, 8.0, 7.0) + places(OTHER, 3.0, 2.0, 1.0)
    assert victim(there, FLOOD, 4) == there[5]


def test_reserved_slots_are_kept_by_who_has_more_than_its_part() -> None:
    keeps = Claim("keeps", reserved=3)
    there = places(keeps, 0.3, 0.2, 0.1) + places(MODEST, 1.0)
    assert victim(there, MODEST, 4) == there[3]
    assert victim(there, OTHER, 4) == there[2], "nothing else is left for one who has nothing"
    there = places(keeps, 0.3, 0.2, 0.1) + places(FLOOD, 1.0, 2.0)
    assert victim(there, OTHER, 5) == there[3]


def test_more_accounts_than_slots() -> None:
    there = [*places(FLOOD, 2.0), *places(MODEST, 1.0)]
    assert victim(there, OTHER, 2) == there[1]
    assert victim(there, FLOOD, 2) == there[0]


def test_of_one_account_the_least_valuable_goes_whatever_is_recent() -> None:
    there = [*places(FLOOD, 3.0, 4.0, recent=False), *places(FLOOD, 1.0)]
    assert victim(there, FLOOD, 3) == there[2]


claims = st.sampled_from([Claim("a"), Claim("b"), Claim("c", 2, 4), Claim("d", 2, 0), Claim("e")])
held = st.lists(st.builds(Place, st.uuids().map(str), claims, st.floats(0, 9), st.booleans(), st.booleans()))


@given(held, claims, st.integers(1, 20))
def test_whatever_is_there(there: list[Place], claim: Claim, slots: int) -> None:
    found = victim(there, claim, slots)
    own = [place for place in there if place.claim == claim]
    if found is None:
        assert not [place for place in own if place.free], "one's own may always go"
        return
    assert found.free
    if found.claim == claim:
        return
    if found.recent:
        theirs = sum(place.recent for place in there if place.claim == found.claim)
        as_much = theirs * claim.weight >= (len(own) + 1) * found.claim.weight
        assert theirs > found.claim.reserved or (as_much and len(own) < claim.reserved)


@given(st.lists(st.sampled_from("abcde"), max_size=200), st.integers(10, 40))
def test_who_stays_within_its_part_loses_nothing(asks: list[str], slots: int) -> None:
    """Five accounts ask for one new adapter after the other; whoever has no more than its part never shrinks."""
    part = int(KEPT * slots / 5)
    there: list[Place] = []
    for number, account in enumerate(asks):
        claim = Claim(account, reserved=0)
        before = Counter(place.claim.account for place in there)
        if len(there) == slots:
            gone = victim(there, claim, slots)
            assert gone is not None
            there.remove(gone)
            assert gone.claim == claim or before[gone.claim.account] > part
        there.append(Place(str(number), claim, float(number), free=True))
    counts = Counter(place.claim.account for place in there)
    for account in set(asks):
        assert counts[account] >= min(asks.count(account), part)
