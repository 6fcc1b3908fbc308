"""Flips and canaries, from wishes and facts: how far they are, whose turn it is, and that all come through."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from random import Random
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pillion.control import flips, plan
from pillion.control.flips import Fleet, Spread, look, spread, stuck
from pillion.core.names import engine_name
from pillion.core.replica import Failure, GrantEntry, LoraSpec, Replica, Residency
from pillion.core.residency import Load, Table, Unload
from pillion.core.residency import plan as residency_plan
from pillion.store.rows import RoutedAdapter, VersionBytes
from tests.control.things import NOW, adapter, attachment, instance, replica, spec, status

PASSING = Failure("artifact_missing", "not there now")
LASTING = Failure("adapter_ineffective", "it changes nothing")


def version(number: int, row_id: int = 1) -> VersionBytes:
    return VersionBytes(number, f"{row_id:032x}{number:032x}", 8, 100)


def flipping(row_id: int = 1, wanted: int | None = 2, canary: int | None = None, **row: Any) -> RoutedAdapter:
    """Live is version 1."""
    row.setdefault("wanted_at", NOW + row_id if wanted else None)
    made = adapter(
        row_id, digest=version(1, row_id).digest, wanted_version=wanted, canary_version=canary, **row
    )
    return msgspec.structs.replace(
        made,
        wanted=version(wanted, row_id) if wanted else None,
        canary=version(canary, row_id) if canary else None,
    )


def held(number: int, state: Any = "loaded", row_id: int = 1, **more: Any) -> Residency:
    return Residency(engine_name(f"adp_{row_id}", version(number, row_id).digest), state, NOW, **more)


def fleet(*statuses: Any, attachments: Any = None, instances: Any = None, replicas: Any = None) -> Fleet:
    instances = instances or [instance()]
    return Fleet(
        {row.id: row for row in instances},
        [attachment()] if attachments is None else attachments,
        replicas or [replica(s.replica, instance=s.instance, region=s.region) for s in statuses],
        {s.replica: s for s in statuses},
    )


def how(found: Fleet, of: RoutedAdapter | None = None) -> Spread:
    of = of or flipping()
    assert of.wanted is not None
    return spread(of.adapter, of.live, of.wanted, found)


class TestSpread:
    def test_all_running_replicas_must_have_it(self) -> None:
        one, other = status("r1", held(1), held(2)), status("r2", held(1), held(2, "loading"))
        assert how(fleet(one, other)) == Spread(1, 2)
        other = status("r2", held(1), held(2))
        assert how(fleet(one, other)) == Spread(2, 2)

    def test_one_that_does_not_run_is_not_waited_for(self) -> None:
        down, silent = status("r2", ready=False), replica("r3")
        found = fleet(status("r1", held(2)), down, replicas=[replica("r1"), replica("r2"), silent])
        assert how(found) == Spread(1, 1)

    def test_where_nothing_runs_it_waits(self) -> None:
        found = fleet(status("r1", ready=False), instances=[instance(spec=spec({"a": 3}))])
        assert how(found) == Spread(0, 3)
        assert not how(found).complete

    def test_one_instance_that_is_down_is_not_waited_for_where_another_runs(self) -> None:
        found = fleet(
            status("r1", held(1), held(2)),
            attachments=[attachment(1), attachment(2, instance=2)],
            instances=[instance(1), instance(2)],
        )
        assert how(found).complete

    @pytest.mark.parametrize("nowhere", [[], [attachment(state="detaching")], [attachment(instance=9)]])
    def test_held_nowhere_it_is_everywhere_it_must_be(self, nowhere: Any) -> None:
        assert how(fleet(status("r1", held(1)), attachments=nowhere)) == Spread(0, 0)

    def test_a_load_needs_it_only_where_the_live_one_is(self) -> None:
        loose = [attachment(hold="loaded")]
        assert how(fleet(status("r1"), status("r2"), attachments=loose)) == Spread(0, 0)
        assert how(fleet(status("r1", held(1)), status("r2"), attachments=loose)) == Spread(0, 1)
        pinned = [attachment(hold="loaded", pinned=True)]
        assert how(fleet(status("r1"), status("r2"), attachments=pinned)) == Spread(0, 2)

    def test_only_the_adapters_region_counts(self) -> None:
        away = status("r2", held(1), region="b")
        found = fleet(status("r1", held(2)), away, instances=[instance(spec=spec({"a": 1, "b": 1}))])
        assert how(found, flipping(region="a")).complete
        assert not how(found).complete

    def test_a_failure_that_may_pass_and_one_that_does_not(self) -> None:
        trying = held(2, "failed", failure=PASSING, retry_at=NOW + 1)
        given_up = held(2, "failed", failure=LASTING)
        assert how(fleet(status("r1", trying))) == Spread(0, 1, PASSING, False)
        assert how(fleet(status("r1", trying), status("r2", given_up))) == Spread(0, 2, LASTING, True)


def turns(adapters: list[RoutedAdapter], found: Fleet) -> list[int]:
    return sorted(flips.in_turn(look(adapters, found)))


def full(*row_ids: int, slots: int, **more: Any) -> Fleet:
    """One instance that holds these."""
    rows = [held(1, row_id=row_id) for row_id in row_ids]
    here = [attachment(n, adapter=n) for n in row_ids]
    lora = LoraSpec(enabled=True, max_adapters=slots)
    return fleet(status("r1", *rows), attachments=here, instances=[instance(spec=spec(lora=lora))], **more)


class TestTurns:
    def test_on_a_full_engine_one_at_a_time_the_first_first(self) -> None:
        everyone = [flipping(n) for n in (1, 2, 3)]
        assert turns(everyone, full(1, 2, 3, slots=3)) == [1]
        later = [flipping(1, wanted_at=NOW + 9), *everyone[1:]]
        assert turns(later, full(1, 2, 3, slots=3)) == [2]

    def test_with_room_to_spare_several(self) -> None:
        assert turns([flipping(n) for n in (1, 2, 3)], full(1, 2, 3, slots=4)) == [1, 2]

    def test_a_canary_takes_room_and_its_own_flip_takes_none(self) -> None:
        tried = flipping(3, wanted=None, canary=2)
        assert turns([flipping(1), flipping(2), tried], full(1, 2, 3, slots=4)) == [1]
        promoted = flipping(3, canary=2)
        assert turns([flipping(1), flipping(2), promoted], full(1, 2, 3, slots=4)) == [1, 3]

    def test_an_instance_that_is_down_holds_up_nobody(self) -> None:
        lora = LoraSpec(enabled=True, max_adapters=2)
        found = fleet(
            status("r1", held(1, row_id=1), held(1, row_id=2)),
            attachments=[
                attachment(1, adapter=1),
                attachment(2, adapter=2),
                attachment(3, adapter=1, instance=2),
                attachment(4, adapter=3, instance=2),
            ],
            instances=[instance(n, spec=spec(lora=lora)) for n in (1, 2)],
        )
        assert turns([flipping(1), flipping(2), flipping(3)], found) == [1, 3]
        assert turns([flipping(3), flipping(2)], found) == [2, 3]

    def test_one_that_keeps_failing_goes_last_if_others_wait(self) -> None:
        trying = held(2, "failed", failure=PASSING, retry_at=NOW + 1)
        found = full(1, 2, slots=2)
        found.facts["r1"] = msgspec.structs.replace(  # type: ignore[index]
            found.facts["r1"], adapters=(*found.facts["r1"].adapters, trying)
        )
        (first, _) = both = look([flipping(1), flipping(2)], found)
        assert stuck(both, NOW + 1 + flips.TURN_S) == [first]
        assert stuck(both, NOW + flips.TURN_S) == []  # its turn is not over
        assert stuck(look([flipping(1)], found), NOW + 99) == []  # nobody waits


class TestWhatIsMade:
    def test_only_in_turn_and_complete(self) -> None:
        (flip,) = look([flipping()], fleet(status("r1", held(1), held(2))))
        assert flip.made
        (flip,) = look([flipping()], fleet(status("r1", held(1))))
        assert not flip.made
        (flip,) = look([flipping(wanted=None, canary=2)], fleet(status("r1", held(1), held(2))))
        assert not flip.made
        assert not flip.failed

    def test_a_failure_anywhere_ends_it(self) -> None:
        bad = held(2, "failed", failure=LASTING)
        (flip,) = look([flipping()], fleet(status("r1", held(1), held(2)), status("r2", held(1), bad)))
        assert flip.failed
        assert not flip.made


class TestEntries:
    def names(self, of: RoutedAdapter, turn: tuple[int, ...] = ()) -> set[str]:
        found = plan.entries("a", [attachment()], {1: of}, turn)
        assert len({entry.engine_name for entry in found}) == len(found)
        return {entry.digest[-1] for entry in found}

    def test_the_next_version_is_granted_in_its_turn(self) -> None:
        assert self.names(flipping()) == {"1"}
        assert self.names(flipping(), (1,)) == {"1", "2"}
        assert self.names(flipping(canary=3), (1,)) == {"1", "2", "3"}
        assert self.names(flipping(canary=2), (1,)) == {"1", "2"}

    def test_what_was_replaced_has_time_and_what_is_detached_has_its_own(self) -> None:
        rows = [held(1), held(2), held(3)]
        adapters = {1: flipping(wanted=None)}
        entries = plan.entries("a", [attachment()], adapters)
        assert plan.leaving([attachment()], adapters, rows, entries, 300.0) == {
            held(2).engine_name: 300.0,
            held(3).engine_name: 300.0,
        }
        going = [attachment(state="detaching", drain_deadline_s=0.0)]
        found = plan.leaving(going, adapters, rows, (), 300.0)
        assert set(found.values()) == {0.0}
        assert len(found) == 3
        assert plan.strands([attachment()], adapters, rows, entries)
        assert not plan.strands(going, adapters, rows, ())


@dataclass
class Engine:
    """A replica's agent and engine: the real residency plan, one action at a time."""

    replica: Replica
    slots: int
    table: Table = field(default_factory=Table)
    entries: tuple[GrantEntry, ...] = ()

    def step(self) -> bool:
        """Do one thing of what is to be done; whether there was any."""
        actions = residency_plan(self.table.rows, self.entries, self.slots, NOW)
        for action in actions:
            if isinstance(action, Load):
                self.table.begin_load(action.entry.engine_name, NOW)
                self.table.loaded(action.entry.engine_name, NOW, None, 1.0)
            else:
                assert isinstance(action, Unload)
                self.table.begin_unload(action.engine_name, NOW)
                self.table.unloaded(action.engine_name, NOW)
            assert self.table.occupied() <= self.slots
            return True
        return False

    def status(self) -> Any:
        rows = (row for row in self.table.rows.values() if row.state != "registered")
        return status(self.replica.id, *rows, instance=self.replica.instance)


class Town:
    """A few instances of two replicas, adapters on some of them, and a control whose grants arrive when they do."""

    def __init__(self, slots: int, placed: dict[int, set[int]]) -> None:
        lora = LoraSpec(enabled=True, max_adapters=slots)
        used = sorted(set().union(*placed.values()))
        self.instances = [instance(n, spec=spec({"a": 2}, lora=lora)) for n in used]
        self.engines = [Engine(replica(f"r{n}-{k}", instance=n), slots + 1) for n in used for k in (1, 2)]
        numbers = itertools.count(1)
        self.attachments = [
            attachment(next(numbers), adapter=row, instance=n) for row, there in placed.items() for n in there
        ]
        self.adapters = {row: flipping(row) for row in placed}
        for engine in self.engines:
            self.grant(engine, turn=False)
            while engine.step():
                pass

    def look(self) -> list[flips.Flip]:
        statuses = [engine.status() for engine in self.engines]
        found = fleet(*statuses, attachments=self.attachments, instances=self.instances)
        return look(self.adapters.values(), found)

    def grant(self, engine: Engine, *, turn: bool = True) -> None:
        here = [a for a in self.attachments if a.instance_id == engine.replica.instance]
        turns = flips.in_turn(self.look()) if turn else frozenset()
        engine.entries = plan.entries("a", here, self.adapters, turns)

    def settle(self) -> None:
        for flip in self.look():
            if flip.made:
                row = flip.adapter
                self.adapters[row.adapter.row_id] = RoutedAdapter(row.adapter, row.labels, row.wanted)

    def check(self) -> None:
        """Every live version is on every replica that is to serve it."""
        for engine in self.engines:
            for a in self.attachments:
                if a.instance_id == engine.replica.instance:
                    name = plan.name_of(self.adapters[a.adapter_row_id])
                    assert name is not None
                    assert engine.table.rows[name].state == "loaded"


PLACED = st.dictionaries(st.integers(1, 5), st.sets(st.integers(1, 3), min_size=1), min_size=1)


@settings(deadline=None)
@given(placed=PLACED, slots=st.integers(1, 3), seed=st.integers(0, 2**32))
def test_all_flips_come_through_whatever_the_order_and_the_live_version_never_lacks(
    placed: dict[int, set[int]], slots: int, seed: int
) -> None:
    for n in (1, 2, 3):  # no more than there is room for
        for row in sorted(row for row, there in placed.items() if n in there)[slots:]:
            placed[row].discard(n)
    placed = {row: there for row, there in placed.items() if there}
    town, random = Town(slots, placed), Random(seed)
    moves: list[Any] = [lambda e: e.step(), lambda e: town.grant(e), lambda _: town.settle()]
    for _ in range(400):
        random.choice(moves)(random.choice(town.engines))
        town.check()
    for _ in range(12 * len(placed)):  # whatever happened: from here on everyone gets to act
        town.settle()
        for engine in town.engines:
            town.grant(engine)
            while engine.step():
                town.check()
    assert all(found.wanted is None for found in town.adapters.values())
    for engine in town.engines:
        wanted = {entry.engine_name for entry in engine.entries}
        assert {name for name, row in engine.table.rows.items() if row.state == "loaded"} == wanted
