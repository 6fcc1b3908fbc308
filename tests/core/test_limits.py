"""Shares of limits, and buckets."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pillion.core.limits import FLOOR, Bucket, shares

DEMAND = st.dictionaries(st.text("abc", min_size=1, max_size=3), st.floats(0, 1e6), min_size=1, max_size=8)


@given(DEMAND)
def test_shares_sum_to_one_and_leave_nobody_out(demand: dict[str, float]) -> None:
    found = shares(demand)
    assert found.keys() == demand.keys()
    assert sum(found.values()) == pytest.approx(1)
    assert min(found.values()) >= FLOOR / len(demand) * 0.999


def test_who_is_asked_more_gets_more() -> None:
    found = shares({"a": 30.0, "b": 10.0})
    assert found["a"] > found["b"]
    assert shares({}) == {}


@given(st.integers(1, 10_000), st.lists(st.tuples(st.floats(0, 5), st.integers(0, 50)), max_size=60))
def test_never_more_than_the_limit_and_what_came_back(limit: int, steps: list[tuple[float, int]]) -> None:
    bucket, now, taken = Bucket(limit, 0.0), 0.0, 0
    for passed, wanted in steps:
        now += passed
        for _ in range(wanted):
            if bucket.left(now) >= 1:
                bucket.take(1)
                taken += 1
    assert taken <= limit + now * limit / 60 + 1e-6


def test_a_share_is_that_part_of_it() -> None:
    bucket = Bucket(60, 0.0)
    bucket.share(0.25, 0.0)
    assert bucket.left(0.0) == 15
    bucket.take(15)
    assert bucket.left(4.0) == pytest.approx(1)
    assert bucket.wait(2) == pytest.approx(4)
    bucket.share(1.0, 4.0)
    assert bucket.left(5.0) == pytest.approx(2)
