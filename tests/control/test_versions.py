"""Versions through a whole control: they go live by themselves, or say why not, whatever dies in between."""

from __future__ import annotations

import asyncio
import hashlib
from typing import Any

import pytest

from pillion.artifacts.receive import Stored
from pillion.control import adapters, attachments, loads, lookup, versions
from pillion.control.context import Control
from pillion.control.controller import LEASE_S
from pillion.control.keys import Principal
from pillion.control.loads import Load
from pillion.control.views import VersionView
from pillion.core.adapters.verify import Verified
from pillion.core.errors import (
    ConflictError,
    InstanceAtCapacityError,
    InvalidRequestError,
    NotFoundError,
)
from pillion.core.names import engine_name
from pillion.core.replica import LoraSpec
from pillion.store.rows import Adapter
from tests.control.fakes import FakeAgent
from tests.control.test_controller import in_state
from tests.control.test_moves import agent_of, kinds
from tests.control.world import World, holds, stopped, ticks, until


def digest_of(adapter: Adapter, text: str) -> str:
    """`text` names bytes; version 1 of every adapter has `1`."""
    given = adapter.name if text == "1" else f"{adapter.name} {text}"
    return hashlib.sha256(given.encode()).hexdigest()


def name_of(adapter: Adapter, text: str) -> str:
    return engine_name(adapter.id, digest_of(adapter, text))


async def add(
    control: Control, who: Principal, adapter: Adapter, text: str = "2", *, live: bool = True, rank: int = 4
) -> tuple[VersionView, bool]:
    verified = Verified(rank, 8.0, False, ("q_proj",), b"", (), ())
    async with control.db.transaction() as tx:
        row = await lookup.adapter(tx, who, adapter.id)
        stored = Stored(digest_of(adapter, text), 100, verified)
        made = await versions.add(control, tx, who, row, stored, {"test": text}, live)
    control.changes.notify()
    return made


async def states(control: Control, who: Principal, adapter: Adapter) -> list[str]:
    return [view.state for view in (await versions.listing(control, who, adapter.id)).data]


async def become(control: Control, who: Principal, adapter: Adapter, *wanted: str) -> None:
    await until(control, lambda: states(control, who, adapter), lambda found: found == list(wanted))


async def attached(
    world: World, control: Control, who: Principal, name: str = "mine", instance: int = 0
) -> tuple[Adapter, int]:
    """An adapter with version 1 on an instance, of room for three unless there is one."""
    instance = instance or (await world.launched(control, who)).id
    adapter = await world.adapter(control, who, name)
    await attachments.attach(control, who, instance, adapter.id)
    await in_state(control, who, adapter, instance, "ready")
    return adapter, instance


async def live_routed(world: World, control: Control, adapter: Adapter) -> str | None:
    (found,) = [a for a in (await world.snapshot(control)).adapters if a.id == adapter.id]
    return found.engine_name


class TestGoingLive:
    async def test_held_nowhere_it_is_live_at_once(
        self, world: World, control: Control, who: Principal
    ) -> None:
        adapter = await world.adapter(control, who)
        view, new = await add(control, who, adapter)
        assert (view.version, view.state, view.live, new) == (2, "live", True, True)
        assert await states(control, who, adapter) == ["former", "live"]
        assert await kinds(control, who, adapter) == ["version_added", "live_asked", "version_live"]

    async def test_it_goes_live_when_all_replicas_have_it_and_only_then_the_old_one_leaves(
        self, world: World, control: Control, who: Principal
    ) -> None:
        made = await world.launched(control, who, replicas=2)
        adapter, _ = await attached(world, control, who, instance=made.id)
        one, other = agents = list(world.fleets["local"].agents.values())
        other.hold = True
        view, _ = await add(control, who, adapter)
        assert (view.state, view.ready, view.wanted) == ("going_live", 0, 2)
        both = {name_of(adapter, "1"), name_of(adapter, "2")}
        await holds(control, lambda: all(both == names(agent) for agent in agents))
        await holds(control, lambda: set(one.rows) == both)
        await ticks(control, 4)
        (_, view) = (await versions.listing(control, who, adapter.id)).data
        assert (view.state, view.ready, view.wanted) == ("going_live", 1, 2)
        assert await live_routed(world, control, adapter) == name_of(adapter, "1")
        shown = await adapters.get(control, who, adapter.id)
        assert (shown.version, shown.wanted_version) == (1, 2)
        other.hold = False
        other.converge()
        await become(control, who, adapter, "former", "live")
        await holds(control, lambda: all(names(agent) == {name_of(adapter, "2")} for agent in agents))
        await in_state(control, who, adapter, made.id, "ready")
        shown = await adapters.get(control, who, adapter.id)
        assert (shown.version, shown.previous_version, shown.wanted_version) == (2, 1, None)
        replaced = [grant.leaving.get(name_of(adapter, "1")) for grant in one.grants]
        assert 300.0 in replaced

    async def test_the_old_one_is_granted_until_gateways_have_acknowledged(
        self, world: World, control: Control, who: Principal
    ) -> None:
        adapter, instance = await attached(world, control, who)
        agent = agent_of(world, instance)
        control.gateways.heard("slow", control.publisher.version)
        await add(control, who, adapter)
        await become(control, who, adapter, "former", "live")
        assert name_of(adapter, "1") in names(agent)
        assert await live_routed(world, control, adapter) == name_of(adapter, "2")
        control.gateways.heard("slow", control.publisher.version)
        await holds(control, lambda: names(agent) == {name_of(adapter, "2")})

    async def test_a_gateway_that_is_slow_is_waited_for_and_others_meanwhile_not(
        self, world: World, control: Control, who: Principal, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Longer than a client who made it live waits for its answer."""

        async def soon(version: int, timeout: float = 0.0) -> list[str]:
            return control.gateways.behind(version)

        adapter, instance = await attached(world, control, who)
        agent = agent_of(world, instance)
        monkeypatch.setattr(control.gateways, "acknowledged", soon)
        monkeypatch.setattr(control.controller, "_settled_at", 0.0)
        control.gateways.heard("slow", control.publisher.version)
        await add(control, who, adapter)
        await become(control, who, adapter, "former", "live")
        await attached(world, control, who, "other", (await world.launched(control, who)).id)
        await ticks(control)
        assert name_of(adapter, "1") in names(agent)
        control.gateways.heard("slow", control.publisher.version)
        await holds(control, lambda: names(agent) == {name_of(adapter, "2")})

    async def test_kept_back_until_it_is_asked_for(
        self, world: World, control: Control, who: Principal
    ) -> None:
        adapter, instance = await attached(world, control, who)
        await add(control, who, adapter, live=False)
        await ticks(control)
        assert await states(control, who, adapter) == ["live", "kept_back"]
        assert names(agent_of(world, instance)) == {name_of(adapter, "1")}
        view, done = await versions.go_live(control, who, adapter.name, 2)
        assert (view.state, done) == ("live", True)
        assert await live_routed(world, control, adapter) == name_of(adapter, "2")

    async def test_gateways_that_do_not_know_are_named(
        self, world: World, control: Control, who: Principal, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("pillion.control.snapshots.ACKNOWLEDGE_S", 0.05)
        adapter = await world.adapter(control, who)
        await add(control, who, adapter, live=False)
        control.gateways.heard("deaf", 1)

        async def soon(version: int, timeout: float = 0.05) -> list[str]:
            return control.gateways.behind(version)

        monkeypatch.setattr(control.gateways, "acknowledged", soon)
        view, done = await versions.go_live(control, who, adapter.id, 2)
        assert (view.live, view.unacknowledged, done) == (True, ["deaf"], False)

    async def test_the_same_bytes_are_the_same_version(
        self, world: World, control: Control, who: Principal
    ) -> None:
        adapter, _ = await attached(world, control, who)
        await add(control, who, adapter, "2")
        await become(control, who, adapter, "former", "live")
        view, new = await add(control, who, adapter, "1", live=False)
        assert (view.version, view.state, new) == (1, "former", False)
        assert "these are the bytes of version 1" in view.warnings[0]
        view, new = await add(control, who, adapter, "1")
        assert (view.version, view.state, new) == (1, "going_live", False)
        await become(control, who, adapter, "live", "former")

    async def test_what_is_going_live_gives_way_to_what_comes_after(
        self, world: World, control: Control, who: Principal
    ) -> None:
        adapter, instance = await attached(world, control, who)
        agent = agent_of(world, instance)
        agent.hold = True
        await add(control, who, adapter, "2")
        await holds(control, lambda: name_of(adapter, "2") in names(agent))
        await add(control, who, adapter, "3")
        await holds(control, lambda: names(agent) == {name_of(adapter, "1"), name_of(adapter, "3")})
        agent.hold = False
        agent.converge()
        await become(control, who, adapter, "former", "kept_back", "live")

    async def test_the_last_detach_lets_it_go_live(
        self, world: World, control: Control, who: Principal
    ) -> None:
        adapter, instance = await attached(world, control, who)
        agent_of(world, instance).hold = True
        await add(control, who, adapter)
        await ticks(control)
        assert await states(control, who, adapter) == ["live", "going_live"]
        async with control.db.transaction() as tx:
            (there,) = await tx.attachments.list(who.account)
            await tx.attachments.mark_detaching(who.account, there.id)
        control.changes.notify()
        await become(control, who, adapter, "former", "live")

    async def test_attaching_elsewhere_goes_on_meanwhile(
        self, world: World, control: Control, who: Principal
    ) -> None:
        adapter, instance = await attached(world, control, who)
        other = await world.launched(control, who)
        agent_of(world, instance).hold = True
        await add(control, who, adapter)
        await attachments.attach(control, who, other.id, adapter.id)
        await in_state(control, who, adapter, other.id, "ready")
        second = await world.adapter(control, who, "second")
        await attachments.attach(control, who, instance, second.id)
        agent_of(world, instance).hold = False
        agent_of(world, instance).converge()
        await become(control, who, adapter, "former", "live")
        await in_state(control, who, second, instance, "ready")
        await in_state(control, who, adapter, other.id, "ready")

    async def test_a_replica_that_starts_again_in_the_middle(
        self, world: World, control: Control, who: Principal
    ) -> None:
        adapter, instance = await attached(world, control, who)
        agent = agent_of(world, instance)
        agent.hold = True
        await add(control, who, adapter)
        await holds(control, lambda: name_of(adapter, "2") in names(agent))
        agent.crash_engine()
        agent.restart()
        await ticks(control)
        assert await states(control, who, adapter) == ["live", "going_live"]
        agent.hold = False
        agent.engine_is_back()
        await become(control, who, adapter, "former", "live")
        await in_state(control, who, adapter, instance, "ready")

    async def test_a_load_that_is_not_pinned_flips_too(
        self, world: World, control: Control, who: Principal
    ) -> None:
        made, adapter = await world.launched(control, who), await world.adapter(control, who)
        await loads.load(control, who, adapter.id, Load([made.id]))
        agent = agent_of(world, made.id)
        await add(control, who, adapter)
        await become(control, who, adapter, "former", "live")
        await holds(control, lambda: set(agent.rows) == {name_of(adapter, "2")})

    @pytest.mark.parametrize("slots", [1, 3])
    async def test_many_on_a_full_engine_come_through_one_after_another(
        self, world: World, control: Control, who: Principal, slots: int
    ) -> None:
        made = await world.launched(control, who, slots=slots, replicas=2)
        found = [(await attached(world, control, who, f"a{n}", made.id))[0] for n in range(slots)]
        most = [0, 0]
        for adapter in found:
            await add(control, who, adapter)
        agents = list(world.fleets["local"].agents.values())

        async def look() -> list[list[str]]:
            for n, agent in enumerate(agents):
                most[n] = max(most[n], len(agent.rows))
            return [await states(control, who, adapter) for adapter in found]

        await until(control, look, lambda all: all == [["former", "live"]] * slots)
        assert max(most) <= slots + 1
        wanted = {name_of(adapter, "2") for adapter in found}
        await holds(control, lambda: all(set(agent.rows) == wanted for agent in agents))


class TestFailing:
    async def test_what_fails_does_not_go_live_and_says_why(
        self, world: World, control: Control, who: Principal
    ) -> None:
        adapter, instance = await attached(world, control, who)
        agent = agent_of(world, instance)
        agent.fails = {name_of(adapter, "2")}
        await add(control, who, adapter)
        await become(control, who, adapter, "live", "failed")
        view = (await versions.listing(control, who, adapter.id)).data[1]
        assert view.error is not None
        assert view.error.code == "adapter_ineffective"
        shown = await adapters.get(control, who, adapter.id)
        assert shown.warnings == [
            "version 2 did not go live: it changes nothing (adapter_ineffective)",
        ]
        assert (shown.version, shown.wanted_version) == (1, None)
        assert (await in_state(control, who, adapter, instance, "ready")).error_code is None
        await holds(control, lambda: names(agent) == {name_of(adapter, "1")})
        assert "version_failed" in await kinds(control, who, adapter)

    async def test_asked_for_again_it_is_tried_again(
        self, world: World, control: Control, who: Principal
    ) -> None:
        adapter, instance = await attached(world, control, who)
        agent = agent_of(world, instance)
        agent.fails = {name_of(adapter, "2")}
        await add(control, who, adapter)
        await become(control, who, adapter, "live", "failed")
        view, done = await versions.go_live(control, who, adapter.id, 2)
        assert (view.state, done) == ("failed", False)
        agent.fails = set()
        view, done = await versions.go_live(control, who, adapter.id, 2)
        assert (view.state, view.error, done) == ("live", None, True)
        assert (await adapters.get(control, who, adapter.id)).warnings == []

    async def test_a_stale_failure_does_not_fail_a_new_try(
        self, world: World, control: Control, who: Principal
    ) -> None:
        """The agent still tells of the failure when the version is asked for again."""
        adapter, instance = await attached(world, control, who)
        agent = agent_of(world, instance)
        agent.fails = {name_of(adapter, "2")}
        await add(control, who, adapter)
        await holds(control, lambda: agent.rows.get(name_of(adapter, "2")) is not None)
        agent.hold = True
        await become(control, who, adapter, "live", "failed")
        agent.fails = set()
        asking = asyncio.create_task(versions.go_live(control, who, adapter.id, 2))
        await holds(control, lambda: any(name_of(adapter, "2") in g.retry for g in agent.grants))
        assert agent.rows[name_of(adapter, "2")].state == "failed"
        agent.hold = False
        agent.converge()
        view, done = await asking
        assert (view.state, done) == ("live", True)

    async def test_a_failed_flip_frees_the_surge_slot(
        self, world: World, control: Control, who: Principal
    ) -> None:
        made = await world.launched(control, who, slots=2)
        first, _ = await attached(world, control, who, "first", made.id)
        second, _ = await attached(world, control, who, "second", made.id)
        agent_of(world, made.id).fails = {name_of(first, "2")}
        await add(control, who, first)
        await add(control, who, second)
        await become(control, who, second, "former", "live")
        await become(control, who, first, "live", "failed")


class TestRollback:
    async def test_there_and_back(self, world: World, control: Control, who: Principal) -> None:
        adapter, instance = await attached(world, control, who)
        with pytest.raises(ConflictError, match="no version that was live before"):
            await versions.rollback(control, who, adapter.id)
        await add(control, who, adapter)
        await become(control, who, adapter, "former", "live")
        view, done = await versions.rollback(control, who, adapter.id)
        assert (view.version, view.state, done) == (1, "live", True)
        await holds(control, lambda: set(agent_of(world, instance).rows) == {name_of(adapter, "1")})
        view, done = await versions.rollback(control, who, adapter.id)
        assert (view.version, done) == (2, True)

    async def test_it_calls_off_what_is_going_live(
        self, world: World, control: Control, who: Principal
    ) -> None:
        adapter, instance = await attached(world, control, who)
        agent = agent_of(world, instance)
        await add(control, who, adapter, "2")
        await become(control, who, adapter, "former", "live")
        await holds(control, lambda: set(agent.rows) == {name_of(adapter, "2")})
        agent.hold = True
        await add(control, who, adapter, "3")
        await holds(control, lambda: name_of(adapter, "3") in names(agent))
        view, done = await versions.rollback(control, who, adapter.id)
        assert (view.version, done) == (2, True)
        await holds(control, lambda: names(agent) == {name_of(adapter, "2")})
        assert await states(control, who, adapter) == ["former", "live", "kept_back"]


class TestCanary:
    async def test_it_holds_a_slot_and_gets_its_share(
        self, world: World, control: Control, who: Principal
    ) -> None:
        adapter, instance = await attached(world, control, who)
        await add(control, who, adapter, live=False)
        view, done = await versions.set_canary(control, who, adapter.id, 2, 0.25)
        assert (view.state, view.share) == ("canary", 0.25)
        both = {name_of(adapter, "1"), name_of(adapter, "2")}
        await holds(control, lambda: set(agent_of(world, instance).rows) == both)
        (found,) = (await world.snapshot(control)).adapters
        assert found.canary is not None
        assert (found.version, found.canary.version, found.canary.share) == (1, 2, 0.25)
        assert found.canary.engine_name == name_of(adapter, "2")
        view, done = await versions.set_canary(control, who, adapter.id, 2, 0.5)
        assert (view.share, view.ready, view.wanted, done) == (0.5, 1, 1, True)
        (status,) = (await loads.status(control, who)).data
        assert (status.slots, status.used, status.free) == (3, 2, 1)
        await attachments.attach(control, who, instance, (await world.adapter(control, who, "b")).id)
        with pytest.raises(InstanceAtCapacityError):
            await attachments.attach(control, who, instance, (await world.adapter(control, who, "c")).id)
        shown = await adapters.get(control, who, adapter.id)
        assert shown.canary is not None
        assert (shown.canary.version, shown.canary.share) == (2, 0.5)

    async def test_without_a_free_slot_there_is_none(
        self, world: World, control: Control, who: Principal
    ) -> None:
        made = await world.launched(control, who, slots=2)
        adapter, _ = await attached(world, control, who, "one", made.id)
        await attached(world, control, who, "two", made.id)
        await add(control, who, adapter, live=False)
        with pytest.raises(InstanceAtCapacityError):
            await versions.set_canary(control, who, adapter.id, 2, 0.25)
        assert await states(control, who, adapter) == ["live", "kept_back"]
        single = await world.launched(control, who, slots=1)
        alone, _ = await attached(world, control, who, "three", single.id)
        await add(control, who, alone, live=False)
        with pytest.raises(
            InstanceAtCapacityError, match="0 of 1 slots of instance 2 are held, and it needs 2"
        ):
            await versions.set_canary(control, who, alone.id, 2, 0.25)

    async def test_a_load_gives_way_to_it_and_it_takes_two_slots_elsewhere(
        self, world: World, control: Control, who: Principal
    ) -> None:
        made = await world.launched(control, who, slots=2)
        adapter, _ = await attached(world, control, who, "one", made.id)
        loose = await world.adapter(control, who, "loose")
        await loads.load(control, who, loose.id, Load([made.id]))
        await add(control, who, adapter, live=False)
        await versions.set_canary(control, who, adapter.id, 2, 0.25)
        wanted = {name_of(adapter, "1"), name_of(adapter, "2")}
        await holds(control, lambda: set(agent_of(world, made.id).rows) == wanted)
        small = await world.launched(control, who, slots=1)
        with pytest.raises(InstanceAtCapacityError):
            await attachments.attach(control, who, small.id, adapter.id)

    async def test_its_end_leaves_the_live_version_alone(
        self, world: World, control: Control, who: Principal
    ) -> None:
        adapter, instance = await attached(world, control, who)
        await add(control, who, adapter, live=False)
        await versions.set_canary(control, who, adapter.id, 2, 1.0)
        view = await versions.end_canary(control, who, adapter.id)
        assert (view.version, view.state, view.share) == (2, "kept_back", None)
        await holds(control, lambda: set(agent_of(world, instance).rows) == {name_of(adapter, "1")})
        with pytest.raises(NotFoundError, match="no canary"):
            await versions.end_canary(control, who, adapter.id)

    async def test_it_goes_live_in_the_slot_it_has(
        self, world: World, control: Control, who: Principal
    ) -> None:
        made = await world.launched(control, who, slots=2)
        adapter, _ = await attached(world, control, who, instance=made.id)
        await add(control, who, adapter, live=False)
        await versions.set_canary(control, who, adapter.id, 2, 0.1)
        view, done = await versions.go_live(control, who, adapter.id, 2)
        assert (view.state, view.share, done) == ("live", None, True)
        assert (await adapters.get(control, who, adapter.id)).canary is None
        await holds(control, lambda: set(agent_of(world, made.id).rows) == {name_of(adapter, "2")})

    async def test_one_that_fails_is_taken_away(self, world: World, control: Control, who: Principal) -> None:
        adapter, instance = await attached(world, control, who)
        agent_of(world, instance).fails = {name_of(adapter, "2")}
        await add(control, who, adapter, live=False)
        await versions.set_canary(control, who, adapter.id, 2, 0.1)
        await become(control, who, adapter, "live", "failed")
        assert "canary_failed" in await kinds(control, who, adapter)

    async def test_what_is_refused(self, world: World, control: Control, who: Principal) -> None:
        nowhere = await world.adapter(control, who, "nowhere")
        await add(control, who, nowhere, live=False)
        with pytest.raises(ConflictError, match="on no instance"):
            await versions.set_canary(control, who, nowhere.id, 2, 0.1)
        adapter, instance = await attached(world, control, who)
        with pytest.raises(InvalidRequestError, match="is the live one"):
            await versions.set_canary(control, who, adapter.id, 1, 0.1)
        with pytest.raises(NotFoundError, match="no version 7"):
            await versions.set_canary(control, who, adapter.id, 7, 0.1)
        agent_of(world, instance).hold = True
        await add(control, who, adapter)
        with pytest.raises(ConflictError, match="going live"):
            await versions.set_canary(control, who, adapter.id, 2, 0.1)


async def test_a_rank_that_an_instance_does_not_take_is_refused_whole(
    world: World, control: Control, who: Principal
) -> None:
    made = await world.launched(control, who, lora=LoraSpec(True, max_adapters=2, max_rank=8))
    adapter, _ = await attached(world, control, who, instance=made.id)
    with pytest.raises(InvalidRequestError, match="rank 16"):
        await add(control, who, adapter, rank=16)
    assert await states(control, who, adapter) == ["live"]
    await add(control, who, adapter, rank=16, live=False)
    with pytest.raises(InvalidRequestError, match="rank 16"):
        await versions.go_live(control, who, adapter.id, 2)


async def test_versions_are_their_owners(world: World, control: Control, who: Principal) -> None:
    stranger = await world.account(control, "stranger")
    adapter = await world.adapter(control, who)
    asks: list[Any] = [
        versions.listing(control, stranger, adapter.id),
        versions.go_live(control, stranger, adapter.id, 1),
        versions.rollback(control, stranger, adapter.id),
        versions.set_canary(control, stranger, adapter.id, 1, 0.5),
        versions.end_canary(control, stranger, adapter.id),
    ]
    for ask in asks:
        with pytest.raises(NotFoundError, match="you have no adapter"):
            await ask


async def test_deleting_an_adapter_in_the_middle_of_a_flip(
    world: World, control: Control, who: Principal
) -> None:
    adapter, instance = await attached(world, control, who)
    agent = agent_of(world, instance)
    agent.hold = True
    await add(control, who, adapter)
    await holds(control, lambda: name_of(adapter, "2") in names(agent))
    agent.hold = False
    deleting = asyncio.create_task(adapters.delete(control, who, adapter.id, force=True))
    await deleting
    await holds(control, lambda: agent.rows == {})


@pytest.mark.parametrize("kill", ["asked", "granted", "loaded", "live", "told", "gone"])
async def test_control_may_die_at_any_step_of_a_flip(world: World, kill: str) -> None:
    """The one that comes after brings it to its end; what gateways may ask for is there all the while."""
    async with world.control("one", run=False) as first:
        running = asyncio.create_task(first.controller.run())
        who = await world.account(first)
        adapter, instance = await attached(world, first, who)
        agent = agent_of(world, instance)
        await _until_killed(first, who, adapter, agent, kill, running)
    world.clock.ahead += LEASE_S + 1  # nobody let the lease go
    async with world.control("two") as second:
        watching = _watch(agent, name_of(adapter, "1"), name_of(adapter, "2"))
        if kill in ("live", "told"):  # gateways had no time to hear of this control
            await ticks(second, 3)
            assert name_of(adapter, "1") in agent.rows
        await become(second, who, adapter, "former", "live")
        await holds(second, lambda: set(agent.rows) == {name_of(adapter, "2")})
        assert not watching.done()
        await stopped(watching)
        assert (await kinds(second, who, adapter)).count("version_live") == 1


async def _until_killed(
    control: Control, who: Principal, adapter: Adapter, agent: FakeAgent, kill: str, running: Any
) -> None:
    """Begin a flip and end the controller at that step of it."""
    new, here = name_of(adapter, "2"), asyncio.Event()
    controller, send = control.controller, control.controller._grants.send

    async def never(*_: Any) -> Any:
        here.set()
        await asyncio.Event().wait()

    async def until_told(*given: Any) -> set[str]:
        told = any(new in names for _, names in controller._routed.values())
        return await (never() if told else send(*given))

    if kill == "live":
        control.gateways.acknowledged = never  # type: ignore[method-assign]
    if kill == "told":
        controller._grants.send = until_told  # type: ignore[method-assign]
    if kill == "asked":
        await stopped(running)
    agent.hold = kill in ("granted", "loaded")
    await add(control, who, adapter)
    if agent.hold:
        await holds(control, lambda: new in names(agent))
    if kill in ("live", "told"):
        await asyncio.wait_for(here.wait(), 20)
    if kill == "gone":
        await become(control, who, adapter, "former", "live")
    await stopped(running)
    agent.hold = False
    if kill == "loaded":
        agent.converge()


def _watch(agent: FakeAgent, old: str, new: str) -> asyncio.Task[None]:
    """Ends when the agent has neither."""

    async def watch() -> None:
        while {old, new} & set(agent.rows):
            await agent.changed.wait()

    return asyncio.create_task(watch())


def names(agent: FakeAgent) -> set[str]:
    """Engine names of the last grant."""
    return {entry.engine_name for entry in agent.grants[-1].entries} if agent.grants else set()
