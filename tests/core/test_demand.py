"""Demand that fades, what loads cost, and what the two do for residency: scans pass by, nothing thrashes."""

from __future__ import annotations

import os
import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pillion.core.demand import HALF_LIFE_PER_SLOT, Demand, LoadCosts, worth
from pillion.core.replica import GrantEntry, Residency
from pillion.core.residency import PATIENCE_S, Table, unserved, victims

COLD = 10_000 if os.environ.get("PILLION_TEST_FULL") else 1_000
ASKS = st.lists(st.tuples(st.sampled_from("abcde"), st.floats(0, 1e5), st.floats(0.01, 100)), max_size=60)


@given(ASKS, st.floats(0.5, 1e4))
def test_it_is_the_sum_of_what_each_counts_now(
    asks: list[tuple[str, float, float]], half_life: float
) -> None:
    asks.sort(key=lambda ask: ask[1])
    demand = Demand(half_life)
    for ask in asks:
        demand.seen(*ask)
    for name in "abcde":
        expected = sum(n * 2.0 ** (-(asks[-1][1] - at) / half_life) for who, at, n in asks if who == name)
        assert demand.of(name) == pytest.approx(expected, rel=1e-6, abs=1e-6)


@given(ASKS, st.floats(0, 1e6), st.floats(0.5, 1e4))
def test_time_alone_changes_no_order(
    asks: list[tuple[str, float, float]], later: float, half_life: float
) -> None:
    demand = Demand(half_life)
    for name, _, count in asks:
        demand.seen(name, 0.0, count)
    before = sorted("abcde", key=demand.of)
    demand.seen("other", later)
    values = [demand.of(name) for name in before]
    assert values == sorted(values)


def test_a_clock_that_goes_back_stands_still() -> None:
    demand = Demand(1.0)
    demand.seen("a", 10.0)
    demand.seen("b", 3.0)
    assert demand.of("a") == demand.of("b") == 1.0


def test_those_in_least_demand_are_forgotten() -> None:
    demand = Demand(1e6, kept=100)
    for number in range(1000):
        demand.seen("warm", number, 2.0)
        demand.seen(f"cold-{number}", number)
        assert len(demand) <= 100
    assert demand.of("warm") > 1990
    demand.seen("now", 1e9)
    assert len(demand) == 1


def test_costs_before_any_load_are_all_the_same() -> None:
    assert LoadCosts().ms(0) == LoadCosts().ms(10**9) > 0


@given(st.floats(0, 500), st.floats(0, 50), st.lists(st.integers(0, 500_000_000), min_size=2, max_size=50))
def test_costs_are_on_the_line_that_was_measured(fixed: float, per_mb: float, sizes: list[int]) -> None:
    costs = LoadCosts()
    for size in sizes:
        costs.measured(size, fixed + per_mb * size / 1e6)
    if max(sizes) - min(sizes) > 1_000_000:
        for size in sizes:
            expected = fixed + per_mb * size / 1e6
            mean = fixed + per_mb * sum(sizes) / len(sizes) / 1e6
            assert costs.ms(size) == pytest.approx(expected, rel=0.01, abs=0.01) or expected < 0.2 * mean


@given(
    st.lists(st.tuples(st.integers(0, 10**9), st.floats(0.1, 1e5)), min_size=1, max_size=50),
    st.lists(st.integers(0, 10**9), min_size=2, max_size=2),
)
def test_costs_are_sane_whatever_was_measured(loads: list[tuple[int, float]], sizes: list[int]) -> None:
    costs = LoadCosts()
    for load in loads:
        costs.measured(*load)
    less, more = (costs.ms(size) for size in sorted(sizes))
    assert 0 < less <= more


def test_worth_is_demand_times_cost() -> None:
    demand, costs = Demand(100.0), LoadCosts()
    costs.measured(1_000_000, 10.0)
    costs.measured(100_000_000, 500.0)
    for name, count in (("big", 2.0), ("small", 5.0), ("smaller", 300.0)):
        demand.seen(name, 0.0, count)
    sizes = {"big": 100_000_000, "small": 1_000_000, "smaller": 1_000_000}
    assert sorted(sizes, key=lambda n: worth(demand, costs, n, sizes[n])) == ["small", "big", "smaller"]


class OneReplica:
    """Requests one after the other, each served before the next comes unless it is `held`."""

    def __init__(self, slots: int) -> None:
        self.slots, self.now = slots, 0.0
        self.table, self.entries = Table(), dict[str, GrantEntry]()
        self.demand, self.costs = Demand(HALF_LIFE_PER_SLOT * slots), LoadCosts()
        self.evicted: list[Residency] = []

    def ask(self, name: str, served: bool = True) -> bool:
        """Whether it was resident, or could be loaded."""
        self.now += 1.0
        self.demand.seen(name, self.now)
        if name not in self.entries and not self.load(name):
            return False
        if served:
            self.table.used(name, self.now)
        return True

    def load(self, name: str) -> bool:
        while len(self.entries) >= self.slots:
            rows = self.table.rows
            owed = {n for n in self.entries if unserved(rows[n], self.now)}
            found = victims(rows, self.entries.values(), owed, lambda row: self.worth(row.engine_name))
            if not found:
                return False
            self.evicted.append(rows[found[0]])
            del self.entries[found[0]]
            self.table.begin_unload(found[0], self.now)
            self.table.unloaded(found[0], self.now)
        self.entries[name] = GrantEntry(name, name, "", 8, 1000, hold="loaded")
        self.table.begin_load(name, self.now)
        self.table.loaded(name, self.now, None, 10.0)
        self.costs.measured(1000, 10.0)
        return True

    def worth(self, name: str) -> float:
        return worth(self.demand, self.costs, name, 1000)


def test_a_scan_over_cold_adapters_does_not_throw_out_the_warm_ones() -> None:
    replica = OneReplica(slots=16)
    warm = [f"warm-{number}" for number in range(14)]
    for _ in range(10):
        for name in warm:
            replica.ask(name)
    for number in range(COLD):
        assert replica.ask(f"cold-{number}")
        replica.ask(warm[number % len(warm)])
    assert not {row.engine_name for row in replica.evicted} & set(warm)
    assert len(replica.evicted) >= COLD - 2


def test_what_was_warm_and_is_no_more_goes() -> None:
    replica = OneReplica(slots=4)
    for names in (["a", "b", "c"], ["d", "e", "f"]):
        for number in range(1000):
            replica.ask(names[number % 3])
    assert {"d", "e", "f"} <= set(replica.entries)


@given(st.lists(st.tuples(st.sampled_from("abcdefgh"), st.booleans()), max_size=80))
def test_none_goes_before_it_has_served_what_it_was_loaded_for(asks: list[tuple[str, bool]]) -> None:
    replica = OneReplica(slots=3)
    for name, served in asks:
        replica.ask(name, served)
        for row in replica.evicted:
            assert (
                row.last_used is not None and row.last_used >= row.since
            ) or replica.now >= row.since + PATIENCE_S
        assert len(replica.entries) <= 3


def test_it_keeps_what_a_better_choice_would() -> None:
    """Zipf's law: nearly as many hits as if it had been known from the start who will be asked for most."""
    rng = random.Random(5)
    names = rng.choices([f"a{rank}" for rank in range(200)], [1 / (rank + 1) for rank in range(200)], k=6000)
    best = {name for name, _ in Counter(names).most_common(15)}
    replica, hits = OneReplica(slots=16), 0
    for name in names:
        hits += name in replica.entries
        replica.ask(name)
    assert hits > 0.93 * sum(name in best for name in names)
