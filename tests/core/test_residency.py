"""Residency: the table's transitions, the plan by cases, and the two together under any order of events."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from pillion.core.replica import Failure, GrantEntry, Residency, ResidencyState
from pillion.core.residency import (
    OCCUPYING,
    PATIENCE_S,
    Evict,
    IllegalTransitionError,
    Load,
    Refuse,
    Table,
    evictable,
    expired,
    plan,
    unserved,
    victims,
)

BAD = Failure("engine_refused", "no")


def attached(name: str, **rest: object) -> GrantEntry:
    return GrantEntry(name, name.partition("@")[0], name.partition("@")[2], 4, 100, **rest)  # type: ignore[arg-type]


def owned(account: str, name: str) -> GrantEntry:
    return loaded(name, account=account)


def loaded(name: str, **rest: object) -> GrantEntry:
    return attached(name, hold="loaded", **rest)


def rows(**states: ResidencyState) -> dict[str, Residency]:
    """`a1="loaded"` is version 1 of adapter a."""
    names = {name: f"{name[0]}@{name[1]}" for name in states}
    return {names[key]: Residency(names[key], state, 0.0) for key, state in states.items()}


A, B, C, A2 = "a@1", "b@1", "c@1", "a@2"


@pytest.mark.parametrize(
    ("residency", "entries", "slots", "expected"),
    [
        pytest.param({}, [], 3, [], id="nothing"),
        pytest.param({}, [attached(A)], 3, ["+a@1"], id="load"),
        pytest.param(rows(a1="registered"), [attached(A)], 3, ["+a@1"], id="load again"),
        pytest.param(rows(a1="loading"), [attached(A)], 3, [], id="busy loading"),
        pytest.param(rows(a1="loading"), [], 3, [], id="busy loading, no longer wanted"),
        pytest.param(rows(a1="evicting"), [attached(A)], 3, [], id="busy evicting"),
        pytest.param(rows(a1="loaded"), [attached(A)], 3, [], id="content"),
        pytest.param(rows(a1="loaded"), [], 3, ["-a@1"], id="not granted"),
        pytest.param(rows(a1="loaded"), [loaded(A, expires_at=10.0)], 3, ["-a@1"], id="expired"),
        pytest.param({}, [attached(A, expires_at=10.0)], 3, [], id="expired before it was loaded"),
        pytest.param({}, [attached(A, expires_at=10.5)], 3, ["+a@1"], id="not yet expired"),
        pytest.param(rows(a1="failed"), [attached(A)], 3, [], id="failed is not tried again"),
        pytest.param(rows(a1="failed"), [], 3, [], id="failed and not granted"),
        pytest.param({}, [attached(A), attached(B), attached(C)], 3, ["+a@1", "+b@1"], id="surge slot kept"),
        pytest.param(
            rows(a1="loaded", b1="loaded"), [attached(A), attached(B), attached(A2)], 3, ["+a@2"], id="flip"
        ),
        pytest.param(
            rows(a1="loaded", b1="loaded"), [attached(B), attached(A2)], 3, ["-a@1", "+a@2"], id="swap"
        ),
        pytest.param(
            rows(a1="loaded", b1="loaded", c1="registered"),
            [attached(A), attached(B), attached(C), attached(A2), attached("b@2")],
            3,
            ["+a@2"],
            id="one flip at a time",
        ),
        pytest.param(
            rows(a1="loaded", b1="loaded"), [attached(A), attached(C)], 3, ["-b@1"], id="unload before load"
        ),
        pytest.param(
            rows(a1="loaded", b1="evicting"), [attached(A), attached(C)], 3, [], id="wait for the slot"
        ),
        pytest.param(
            rows(a1="loaded", b1="loaded"), [loaded(A), loaded(B), attached(C)], 3, ["-a@1"], id="make room"
        ),
        pytest.param(
            rows(a1="loaded", b1="loaded"),
            [loaded(A), loaded(B), loaded(C, pinned=True)],
            3,
            ["-a@1"],
            id="for a pin",
        ),
        pytest.param(
            rows(a1="loaded", b1="loaded"), [loaded(A), loaded(B), loaded(C)], 3, [], id="loads wait"
        ),
        pytest.param(
            rows(a1="loaded", b1="loaded"),
            [loaded(A, pinned=True), attached(B), attached(C)],
            3,
            [],
            id="held ones are never evicted",
        ),
        pytest.param(
            rows(a1="loaded", b1="evicting"), [loaded(A), attached(C)], 3, [], id="room is on its way"
        ),
        pytest.param({}, [loaded(A), loaded(B), attached(C)], 3, ["+c@1", "+a@1"], id="held ones first"),
        pytest.param({}, [attached(A)], 1, [], id="no slot at all"),
    ],
)
def test_plan(
    residency: dict[str, Residency], entries: list[GrantEntry], slots: int, expected: list[str]
) -> None:
    actions = plan(residency, entries, slots, now=10.0)
    assert [
        f"+{a.entry.engine_name}" if isinstance(a, Load) else f"-{a.engine_name}" for a in actions
    ] == expected


def test_a_failure_is_tried_again_when_asked() -> None:
    assert plan(rows(a1="failed"), [attached(A)], 3, 0.0, retry=[A]) == [Load(attached(A))]


def test_the_least_valuable_goes_and_none_with_requests() -> None:
    residency = rows(a1="loaded", b1="loaded")
    entries = [loaded(A), loaded(B), attached(C)]
    worth = {A: 2.0, B: 1.0}
    assert plan(residency, entries, 3, 10.0, value=lambda row: worth[row.engine_name]) == [Evict(B)]
    assert plan(residency, entries, 3, 10.0, in_flight={A}) == [Evict(B)]
    assert plan(residency, entries, 3, 10.0, in_flight={A, B}) == []
    used = residency | {A: Residency(A, "loaded", 0.0, last_used=5.0)}
    assert victims(used, entries) == [B, A]


@pytest.mark.parametrize(
    ("residency", "entries", "in_flight", "expected"),
    [
        pytest.param({}, [loaded(C)], [], [Load(loaded(C))], id="there is room"),
        pytest.param(
            rows(a1="loaded", b1="loaded"), [loaded(A), loaded(B), loaded(C)], [], [Evict(A)], id="make room"
        ),
        pytest.param(
            rows(a1="loaded", b1="loaded"),
            [attached(A), loaded(B), loaded(C)],
            [B],
            [Refuse(C)],
            id="held, and in flight",
        ),
        pytest.param(
            rows(a1="loaded", b1="evicting"), [loaded(A), loaded(C)], [], [], id="room is on its way"
        ),
        pytest.param(
            rows(a1="loaded", b1="evicting"), [loaded(A), loaded(C)], [B], [Evict(A)], id="on a slow one"
        ),
        pytest.param(
            rows(a1="loaded", b1="evicting"), [attached(A), loaded(C)], [B], [], id="a slow one is waited for"
        ),
        pytest.param(
            rows(a1="loaded"), [loaded(A), attached(B), loaded("d@1"), loaded(C)], [], None, id="held first"
        ),
        pytest.param(rows(c1="failed"), [loaded(C)], [], [Load(loaded(C))], id="failed before"),
        pytest.param(
            rows(c1="evicting", a1="loaded"),
            [loaded(C), loaded(A)],
            [],
            [],
            id="on its way out: then it comes back",
        ),
    ],
)
def test_what_is_asked_for_pushes_out_the_least_valuable_or_is_refused(
    residency: dict[str, Residency],
    entries: list[GrantEntry],
    in_flight: list[str],
    expected: list[object] | None,
) -> None:
    actions = plan(residency, entries, 3, 10.0, asked={C}, in_flight=in_flight)
    assert actions == ([Evict(A), Load(attached(B))] if expected is None else expected)


def test_a_flood_of_cold_adapters_pushes_out_its_own() -> None:
    residency = {name: Residency(name, "loaded", 0.0, last_used=5.0) for name in (A, B)}
    entries = [owned("modest", A), owned("flood", B), owned("flood", C)]
    worth = {A: 1.0, B: 9.0}
    assert plan(residency, entries, 3, 10.0, asked={C}, value=lambda row: worth[row.engine_name]) == [
        Evict(B)
    ]
    assert plan(residency, entries, 3, 10.0, asked={C}, in_flight={B}) == [Refuse(C)]
    entries[1] = owned("modest", B)
    assert plan(residency, entries, 3, 10.0, asked={C}, value=lambda row: worth[row.engine_name]) == [
        Evict(A)
    ]


def test_who_has_less_comes_first() -> None:
    entries = [owned("flood", A), owned("flood", B), owned("modest", C)]
    residency = {A: Residency(A, "loaded", 0.0, last_used=5.0)}
    assert plan(residency, entries, 3, 10.0, asked={B, C}, in_flight={A}) == [Load(entries[2]), Refuse(B)]


def test_none_goes_before_it_served_what_it_was_loaded_for() -> None:
    fresh = Residency(A, "loaded", 5.0, last_used=4.0)
    entries, others = [loaded(A), attached(B), loaded(C)], rows(b1="loaded")
    assert plan(others | {A: fresh}, entries, 3, 6.0, asked={C}) == [Refuse(C)]
    served = Residency(A, "loaded", 5.0, last_used=5.5)
    assert plan(others | {A: served}, entries, 3, 6.0, asked={C}) == [Evict(A)]
    assert plan(others | {A: fresh}, entries, 3, 5.0 + PATIENCE_S, asked={C}) == [Evict(A)]
    assert plan(others | {A: fresh}, [loaded(A), attached(B), attached(C)], 3, 6.0) == [Evict(A)]


def test_an_eviction_that_a_request_forestalled() -> None:
    table = Table([Residency(A, "loaded", 0.0, load_ms=7.0)])
    table.begin_unload(A, 1.0)
    row = table.kept(A, 2.0)
    assert (row.state, row.last_used, row.load_ms) == ("loaded", 2.0, 7.0)
    assert not unserved(row, 2.0)


def test_a_life() -> None:
    table = Table()
    table.begin_load(A, 1.0)
    assert table.rows[A].state == "loading"
    assert table.loaded(A, 2.0, None, 1000.0).load_ms == 1000.0
    table.used(A, 3.0)
    table.used(A, 2.5)
    assert table.rows[A].last_used == 3.0
    table.begin_unload(A, 4.0)
    assert table.occupied() == 1
    assert table.unloaded(A, 5.0).state == "registered"
    assert table.occupied() == 0
    table.begin_load(A, 6.0)
    assert table.failed(A, 7.0, BAD).failure == BAD
    assert table.begin_load(A, 8.0).failure is None


def test_illegal_transitions_raise_and_change_nothing() -> None:
    table = Table([Residency(A, "loaded", 0.0), Residency(B, "failed", 0.0, BAD)])
    before = dict(table.rows)
    for wrong in (
        lambda: table.begin_load(A, 1.0),
        lambda: table.loaded(A, 1.0, None, 1.0),
        lambda: table.failed(A, 1.0, BAD),
        lambda: table.unloaded(A, 1.0),
        lambda: table.begin_unload(B, 1.0),
        lambda: table.loaded(B, 1.0, None, 1.0),
        lambda: table.begin_unload(C, 1.0),
        lambda: table.forget(A),
    ):
        with pytest.raises(IllegalTransitionError):
            wrong()
    assert dict(table.rows) == before
    table.forget(B)
    table.forget(C)
    assert list(table.rows) == [A]


def test_a_lost_engine_holds_nothing_but_failures_stay() -> None:
    table = Table(rows(a1="loaded", b1="loading", c1="evicting", d1="failed").values())
    table.engine_lost(9.0)
    assert {row.state for name, row in table.rows.items() if name != "d@1"} == {"registered"}
    assert table.rows["d@1"].state == "failed"


names = st.builds(
    lambda adapter, version: f"{adapter}@{version}", st.sampled_from("abcdef"), st.integers(1, 2)
)
grants = st.lists(
    st.builds(
        attached,
        names,
        hold=st.sampled_from(["attached", "loaded"]),
        pinned=st.booleans(),
        expires_at=st.none() | st.floats(0, 50),
        account=st.sampled_from(["", "one", "two"]),
    ),
    max_size=8,
    unique_by=lambda entry: entry.engine_name,
)


class Replica(RuleBasedStateMachine):
    """An engine with four slots whose loads and unloads take their time and may fail, under changing grants."""

    slots = 4

    def __init__(self) -> None:
        super().__init__()
        self.table = Table()
        self.grant: list[GrantEntry] = []
        self.now = 0.0
        self.busy: set[str] = set()
        self.asked: set[str] = set()

    def apply_plan(self) -> int:
        actions = plan(
            self.table.rows, self.grant, self.slots, self.now, asked=self.asked, in_flight=self.busy
        )
        held = {entry.engine_name: entry for entry in self.grant if not expired(entry, self.now)}
        for action in actions:
            if isinstance(action, Load):
                self.asked.discard(action.entry.engine_name)
                self.table.begin_load(action.entry.engine_name, self.now)
            elif isinstance(action, Refuse):
                assert self.table.occupied() >= self.slots - 1, "refused only where there is no room"
                self.asked.remove(action.engine_name)
            else:
                assert isinstance(action, Evict) == (action.engine_name in held)
                if isinstance(action, Evict):
                    assert evictable(held[action.engine_name]), "attached and pinned ones are never evicted"
                    assert action.engine_name not in self.busy, "nor those with requests in flight"
                    row = self.table.rows[action.engine_name]
                    waits = [
                        n
                        for n, e in held.items()
                        if not evictable(e) and self.state_of(n) in (None, "registered")
                    ]
                    assert waits or not unserved(row, self.now), "nor those that have yet to serve"
                self.table.begin_unload(action.engine_name, self.now)
            assert self.table.occupied() <= self.slots, "a load takes a slot that is free already"
        return len(actions)

    def state_of(self, name: str) -> str | None:
        row = self.table.rows.get(name)
        return None if row is None else row.state

    def settle(self, state: ResidencyState) -> None:
        for name in [name for name, row in self.table.rows.items() if row.state == state]:
            if state == "loading":
                self.table.loaded(name, self.now, None, 1.0)
            else:
                self.table.unloaded(name, self.now)

    @rule(grant=grants)
    def granted(self, grant: list[GrantEntry]) -> None:
        self.grant = grant

    @rule(seconds=st.floats(0, 10))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def planned(self) -> None:
        self.apply_plan()

    @rule(which=names)
    def asked_for(self, which: str) -> None:
        self.asked.add(which)

    @rule(which=names)
    def used(self, which: str) -> None:
        if which in self.table.rows:
            self.table.used(which, self.now)

    @rule(which=names, busy=st.booleans())
    def requests(self, which: str, busy: bool) -> None:
        (self.busy.add if busy else self.busy.discard)(which)

    @precondition(lambda self: any(row.state == "loading" for row in self.table.rows.values()))
    @rule(data=st.data(), good=st.booleans())
    def load_ends(self, data: st.DataObject, good: bool) -> None:
        name = data.draw(st.sampled_from([n for n, row in self.table.rows.items() if row.state == "loading"]))
        if good:
            self.table.loaded(name, self.now, None, 1.0)
        else:
            self.table.failed(name, self.now, BAD)

    @precondition(lambda self: any(row.state == "evicting" for row in self.table.rows.values()))
    @rule(data=st.data())
    def unload_ends(self, data: st.DataObject) -> None:
        evicting = [name for name, row in self.table.rows.items() if row.state == "evicting"]
        name = data.draw(st.sampled_from(evicting))
        (self.table.kept if name in self.busy else self.table.unloaded)(name, self.now)

    @rule()
    def engine_dies(self) -> None:
        self.table.engine_lost(self.now)

    @rule()
    def left_alone_it_converges(self) -> None:
        """With time standing still and every load good, plans come to an end, with as much held as can be."""
        self.busy.clear()
        self.asked.clear()
        for _ in range(40):
            acted = self.apply_plan()
            moving = any(row.state in ("loading", "evicting") for row in self.table.rows.values())
            self.settle("loading")
            self.settle("evicting")
            if not acted and not moving:
                break
        else:
            raise AssertionError("the plan does not come to rest")
        wanted = [entry for entry in self.grant if not expired(entry, self.now)]
        resident = {name for name, row in self.table.rows.items() if row.state == "loaded"}
        assert resident <= {entry.engine_name for entry in wanted}
        failed = {name for name, row in self.table.rows.items() if row.state == "failed"}
        missing = [e for e in wanted if e.engine_name not in resident | failed]
        assert not missing or len(resident) >= self.slots - 1, "a slot is left free only if all are served"
        if any(not evictable(entry) for entry in missing):
            assert not any(evictable(e) for e in wanted if e.engine_name in resident), "held ones come first"

    @invariant()
    def never_over_capacity(self) -> None:
        assert sum(row.state in OCCUPYING for row in self.table.rows.values()) <= self.slots


TestReplica = Replica.TestCase
TestReplica.settings = settings(max_examples=50, stateful_step_count=25, deadline=None)
