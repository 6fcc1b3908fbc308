"""The controller moves facts towards wishes, with replicas that do what the test says."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest

from pillion.control import adapters, attachments, events, instances, loads
from pillion.control.context import Control
from pillion.control.controller import LEASE, LEASE_S
from pillion.control.groups import BACKOFF_MAX_S, STEADY_S
from pillion.control.instances import Launch
from pillion.control.keys import Principal
from pillion.control.loads import Load
from pillion.core import snapshot as wire
from pillion.core.errors import (
    AdapterInUseError,
    AlreadyAttachedError,
    InstanceAtCapacityError,
    InvalidRequestError,
    UnavailableError,
)
from pillion.core.replica import LoraSpec
from pillion.store.rows import Attachment
from pillion.store.transaction import Tx
from tests.control.fakes import AgentServer, FakeFleet
from tests.control.world import World, fleets, holds, stopped, ticks, until


async def row(control: Control, who: Principal, adapter: Any, instance: int) -> Attachment | None:
    async with control.db.read() as tx:
        return await tx.attachments.find(who.account, adapter.row_id, instance)


async def in_state(control: Control, who: Principal, adapter: Any, instance: int, state: str) -> Attachment:
    found = await until(
        control, lambda: row(control, who, adapter, instance), lambda r: r is not None and r.state == state
    )
    assert found is not None
    return found


async def gone(control: Control, who: Principal, adapter: Any, instance: int) -> None:
    await until(control, lambda: row(control, who, adapter, instance), lambda r: r is None)


class TestInstances:
    async def test_a_launch_becomes_processes_and_runs(
        self, world: World, control: Control, who: Principal
    ) -> None:
        made = await world.launched(control, who)
        fleet = world.fleets["local"]
        assert [g.replicas for g in fleet.applied] == [1]
        assert fleet.applied[0].instance == made.id
        assert [r.ready for r in made.replicas] == [True]

    async def test_it_shows_each_state_on_the_way(
        self, world: World, control: Control, who: Principal
    ) -> None:
        fleet = world.fleets["local"]
        fleet.ready_at_once = False
        made = await instances.launch(control, who, Launch("tiny"))
        assert made.state == "pending"
        await until(control, lambda: instances.get(control, who, made.id), lambda i: i.state == "starting")
        fleet.only.tell(stage="failed")
        await until(control, lambda: instances.get(control, who, made.id), lambda i: i.state == "failed")
        fleet.only.tell(stage="ready", ready=True)
        await until(control, lambda: instances.get(control, who, made.id), lambda i: i.state == "running")
        fleet.only.crash_engine()
        await until(control, lambda: instances.get(control, who, made.id), lambda i: i.state == "degraded")
        wanted = await instances.events_of(control, who, made.id)
        told = [e.kind for e in (await events.listing(control, who, wanted, None, 100)).data]
        kinds = [kind for kind in told if kind.startswith("instance_")]
        states = ["starting", "failed", "running", "degraded"]
        assert kinds == ["instance_launched", *(f"instance_{state}" for state in states)]

    async def test_stopping_ends_its_processes_and_its_attachments(
        self, world: World, control: Control, who: Principal
    ) -> None:
        fleet = world.fleets["local"]
        made, adapter = await world.launched(control, who), await world.adapter(control, who)
        await attachments.attach(control, who, made.id, adapter.id)
        await in_state(control, who, adapter, made.id, "ready")
        fleet.deletes.clear()
        view = await instances.stop(control, who, made.id)
        assert view.state == "stopping"
        assert (await world.snapshot(control)).instances == ()
        await holds(control, lambda: fleet.deleted == [made.id])
        assert (await instances.get(control, who, made.id)).state == "stopping"
        fleet.deletes.set()
        await until(control, lambda: instances.get(control, who, made.id), lambda i: i.state == "stopped")
        await gone(control, who, adapter, made.id)
        assert (await instances.get(control, who, made.id)).termination_reason == "stopped_by_owner"
        assert (await adapters.delete(control, who, adapter.id, force=False)).deleted

    async def test_what_nobody_wants_is_ended(self, world: World, control: Control, who: Principal) -> None:
        fleet = world.fleets["local"]
        made = await world.launched(control, who)
        group = fleet.applied[0]
        stray = type(group)(
            **{name: getattr(group, name) for name in group.__struct_fields__} | {"instance": 999}
        )
        fleet.make(stray)
        await holds(control, lambda: [a.replica.instance for a in fleet.agents.values()] == [made.id])
        assert fleet.deleted == [999]

    async def test_a_replica_that_died_is_replaced(
        self, world: World, control: Control, who: Principal
    ) -> None:
        fleet = world.fleets["local"]
        made = await world.launched(control, who)
        world.clock.ahead += 2 * STEADY_S
        await ticks(control)
        dead = fleet.only
        fleet.kill(dead)
        await holds(control, lambda: fleet.made == 2 and dead.replica.id not in fleet.agents)
        await until(control, lambda: instances.get(control, who, made.id), lambda i: i.state == "running")

    async def test_one_that_dies_at_once_is_tried_again_ever_more_slowly(
        self, world: World, control: Control, who: Principal
    ) -> None:
        fleet = world.fleets["local"]
        fleet.dies_at_once = True
        await instances.launch(control, who, Launch("tiny"))
        await holds(control, lambda: fleet.made == 1)
        for number, wait in enumerate((1, 2, 4, 8, 16, 32, BACKOFF_MAX_S, BACKOFF_MAX_S), 2):
            world.clock.ahead += wait * 0.8
            await ticks(control)
            assert fleet.made < number
            world.clock.ahead += wait * 0.4
            await holds(control, lambda number=number: fleet.made == number)

    async def test_a_launch_that_cannot_be_applied_holds_up_no_other(
        self, world: World, control: Control, who: Principal
    ) -> None:
        good = await world.launched(control, who)
        adapter = await world.adapter(control, who)
        fleet = world.fleets["local"]
        fleet.apply_error = OSError("no space left")
        bad = await instances.launch(control, who, Launch("tiny"))
        await holds(control, lambda: any(g.instance == bad.id for g in fleet.applied))
        await attachments.attach(control, who, good.id, adapter.id)
        await in_state(control, who, adapter, good.id, "ready")
        fleet.apply_error = None
        world.clock.ahead += BACKOFF_MAX_S
        await until(control, lambda: instances.get(control, who, bad.id), lambda i: i.state == "running")

    async def test_a_slow_end_holds_up_no_other(self, world: World, control: Control, who: Principal) -> None:
        fleet = world.fleets["local"]
        going, staying = await world.launched(control, who), await world.launched(control, who)
        fleet.deletes.clear()
        await instances.stop(control, who, going.id)
        await holds(control, lambda: fleet.deleted == [going.id])
        adapter = await world.adapter(control, who)
        await attachments.attach(control, who, staying.id, adapter.id)
        await in_state(control, who, adapter, staying.id, "ready")
        assert fleet.deleted == [going.id]
        fleet.deletes.set()
        await until(control, lambda: instances.get(control, who, going.id), lambda i: i.state == "stopped")

    async def test_an_end_that_fails_is_tried_again(
        self, world: World, control: Control, who: Principal
    ) -> None:
        fleet = world.fleets["local"]
        made = await world.launched(control, who)
        fleet.delete_error = OSError("no")
        await instances.stop(control, who, made.id)
        await holds(control, lambda: len(fleet.deleted) == 1)
        fleet.delete_error = None
        world.clock.ahead += BACKOFF_MAX_S
        await until(control, lambda: instances.get(control, who, made.id), lambda i: i.state == "stopped")

    async def test_a_region_that_does_not_answer_hides_neither_itself_nor_others(
        self, server: tuple[AgentServer, str], tmp_path: Any
    ) -> None:
        world = World(tmp_path, fleets(*server, "a", "b"))
        async with world.control() as control:
            who = await world.account(control)
            made = await world.launched(control, who)
            assert sorted(r.region for r in made.replicas) == ["a", "b"]
            world.fleets["a"].observe_error = OSError("timeout")
            await ticks(control)
            adapter = await world.adapter(control, who)
            await attachments.attach(control, who, made.id, adapter.id)
            view = await in_state(control, who, adapter, made.id, "ready")
            assert (view.ready, view.wanted) == (2, 2)
            assert [len(f.applied) for f in world.fleets.values()] == [1, 1]


class TestAttachments:
    async def test_attach_grant_loaded_ready_routable(
        self, world: World, control: Control, who: Principal
    ) -> None:
        fleet = world.fleets["local"]
        made, adapter = await world.launched(control, who), await world.adapter(control, who)
        fleet.only.hold = True
        view = await attachments.attach(control, who, made.id, adapter.name)
        assert (view.state, view.ready, view.wanted) == ("attaching", 0, 1)
        await holds(control, lambda: fleet.only.granted == {adapter.id})
        (routed,) = (await world.snapshot(control)).adapters
        (instance,) = (await world.snapshot(control)).instances
        assert routed.instances == (made.id,)
        assert instance.replicas[0].resident == frozenset()
        fleet.only.converge()
        await in_state(control, who, adapter, made.id, "ready")
        (instance,) = (await world.snapshot(control)).instances
        assert instance.replicas[0].resident == {routed.engine_name}
        wanted = await adapters.events_of(control, who, adapter.id)
        kinds = [e.kind for e in (await events.listing(control, who, wanted, None, 100)).data]
        assert kinds == ["attach_asked", "attachment_ready"]

    async def test_detach_ends_only_when_the_engine_has_proved_it(
        self, world: World, control: Control, who: Principal
    ) -> None:
        fleet = world.fleets["local"]
        made = await world.launched(control, who, slots=1)
        one, two = await world.adapter(control, who, "one"), await world.adapter(control, who, "two")
        await attachments.attach(control, who, made.id, one.id)
        await in_state(control, who, one, made.id, "ready")
        fleet.only.hold = True
        asked = asyncio.create_task(attachments.detach(control, who, made.id, one.id, force=False))
        await in_state(control, who, one, made.id, "detaching")
        await holds(control, lambda: fleet.only.granted == set())
        assert (await world.snapshot(control)).adapters[0].instances == ()
        for state in ("loaded", "evicting"):
            fleet.only.move(next(iter(fleet.only.rows)), state)
            fleet.only.tell()
            await ticks(control)
            assert await row(control, who, one, made.id) is not None
            with pytest.raises(InstanceAtCapacityError):
                await attachments.attach(control, who, made.id, two.id)
        assert not asked.done()
        fleet.only.converge()
        view, done = await asked
        assert (view.state, done) == ("detached", True)
        await attachments.attach(control, who, made.id, two.id)

    async def test_while_detaching_a_replica_that_is_not_heard_may_still_hold_it(
        self, world: World, control: Control, who: Principal
    ) -> None:
        fleet = world.fleets["local"]
        made, adapter = await world.launched(control, who), await world.adapter(control, who)
        await attachments.attach(control, who, made.id, adapter.id)
        await in_state(control, who, adapter, made.id, "ready")
        agent = fleet.only
        agent.tell(reachable=False)
        await holds(control, lambda: not control.agents.facts)
        async with control.db.transaction() as tx:
            await tx.attachments.mark_detaching(who.account, (await tx.attachments.list(who.account))[0].id)
        await ticks(control, 5)
        assert await row(control, who, adapter, made.id) is not None
        agent.tell(reachable=True)
        await gone(control, who, adapter, made.id)
        assert agent.granted == set()

    async def test_force_cuts_off_and_says_so_to_the_agent(
        self, world: World, control: Control, who: Principal
    ) -> None:
        made, adapter = await world.launched(control, who), await world.adapter(control, who)
        agent = world.fleets["local"].only
        await attachments.attach(control, who, made.id, adapter.id)
        await in_state(control, who, adapter, made.id, "ready")
        await attachments.detach(control, who, made.id, adapter.id, force=True)
        assert agent.granted == set()
        assert list(agent.grants[-1].leaving.values()) == [0.0]

    async def test_an_agent_that_is_not_reached_gets_its_grant_later(
        self, world: World, control: Control, who: Principal
    ) -> None:
        made, adapter = await world.launched(control, who), await world.adapter(control, who)
        agent = world.fleets["local"].only
        agent.tell(reachable=False)
        await until(control, lambda: instances.get(control, who, made.id), lambda i: i.state == "degraded")
        (presumed,) = (await world.snapshot(control)).instances[0].replicas  # its engine may well serve on
        assert presumed.ready
        await attachments.attach(control, who, made.id, adapter.id)
        await ticks(control)
        assert agent.granted == set()
        agent.tell(reachable=True)
        await in_state(control, who, adapter, made.id, "ready")

    async def test_an_agent_that_was_started_again_says_nothing_of_its_engine_before_it_has_found_it(
        self, world: World, control: Control, who: Principal
    ) -> None:
        made = await world.launched(control, who)
        agent, (replica,) = world.fleets["local"].only, control.agents.facts
        agent.tell(reachable=False)
        await holds(control, lambda: not control.agents.facts)
        agent.tell(reachable=True, ready=False, engine_epoch=0, stage="warming")
        await holds(control, lambda: replica in control.agents.facts)
        assert not control.agents.facts[replica].ready
        assert control.agents.presumed()[replica].ready
        await ticks(control)
        assert (await world.snapshot(control)).instances[0].replicas[0].ready
        agent.tell(ready=False, engine_epoch=2, stage="starting")
        await until(
            control, lambda: world.snapshot(control), lambda found: not found.instances[0].replicas[0].ready
        )
        assert (await instances.get(control, who, made.id)).state != "running"

    async def test_an_agent_that_forgot_its_grant_gets_it_again(
        self, world: World, control: Control, who: Principal
    ) -> None:
        made, adapter = await world.launched(control, who), await world.adapter(control, who)
        agent = world.fleets["local"].only
        await attachments.attach(control, who, made.id, adapter.id)
        await in_state(control, who, adapter, made.id, "ready")
        agent.restart()
        await holds(control, lambda: agent.granted == {adapter.id})

    async def test_after_a_crash_of_the_engine_nothing_is_routed_until_it_is_loaded_again(
        self, world: World, control: Control, who: Principal
    ) -> None:
        made, adapter = await world.launched(control, who), await world.adapter(control, who)
        agent = world.fleets["local"].only
        await attachments.attach(control, who, made.id, adapter.id)
        await in_state(control, who, adapter, made.id, "ready")
        agent.hold = True
        agent.crash_engine()
        await in_state(control, who, adapter, made.id, "attaching")
        (replica,) = (await world.snapshot(control)).instances[0].replicas
        assert (replica.ready, replica.resident) == (False, frozenset())
        agent.engine_is_back()
        await until(control, lambda: instances.get(control, who, made.id), lambda i: i.state == "running")
        (replica,) = (await world.snapshot(control)).instances[0].replicas
        assert (replica.ready, replica.resident) == (True, frozenset())
        assert (await in_state(control, who, adapter, made.id, "attaching")).ready == 0
        agent.converge()
        await in_state(control, who, adapter, made.id, "ready")

    async def test_k_of_n(self, world: World, control: Control, who: Principal) -> None:
        fleet = world.fleets["local"]
        made = await world.launched(control, who, replicas=2)
        adapter = await world.adapter(control, who)
        one, two = fleet.agents.values()
        two.hold = True
        await attachments.attach(control, who, made.id, adapter.id)
        found = await until(
            control, lambda: row(control, who, adapter, made.id), lambda r: r is not None and r.ready == 1
        )
        assert found is not None
        assert (found.state, found.wanted) == ("attaching", 2)
        two.converge()
        assert (await in_state(control, who, adapter, made.id, "ready")).ready == 2
        assert one.resident == two.resident == {adapter.id}

    async def test_an_adapter_of_a_region_goes_only_there(
        self, server: tuple[AgentServer, str], tmp_path: Any
    ) -> None:
        world = World(tmp_path, fleets(*server, "a", "b"))
        async with world.control() as control:
            who = await world.account(control)
            made = await world.launched(control, who)
            adapter = await world.adapter(control, who, region="b")
            view = await attachments.attach(control, who, made.id, adapter.id)
            assert view.wanted == 1
            await in_state(control, who, adapter, made.id, "ready")
            assert world.fleets["a"].only.granted == set()
            assert world.fleets["b"].only.granted == {adapter.id}

    async def test_a_new_replica_gets_what_is_attached(
        self, world: World, control: Control, who: Principal
    ) -> None:
        fleet = world.fleets["local"]
        made, adapter = await world.launched(control, who), await world.adapter(control, who)
        await attachments.attach(control, who, made.id, adapter.id)
        await in_state(control, who, adapter, made.id, "ready")
        world.clock.ahead += 2 * STEADY_S
        await ticks(control)
        fleet.kill(fleet.only)
        await holds(control, lambda: fleet.made == 2 and fleet.only.resident == {adapter.id})
        await in_state(control, who, adapter, made.id, "ready")

    async def test_attached_twice(self, world: World, control: Control, who: Principal) -> None:
        made, adapter = await world.launched(control, who), await world.adapter(control, who)
        await attachments.attach(control, who, made.id, adapter.id)
        with pytest.raises(AlreadyAttachedError):
            await attachments.attach(control, who, made.id, adapter.id)
        await in_state(control, who, adapter, made.id, "ready")
        with pytest.raises(AlreadyAttachedError):
            await attachments.attach(control, who, made.id, adapter.id)

    async def test_a_full_instance_refuses_and_keeps_what_it_has(
        self, world: World, control: Control, who: Principal
    ) -> None:
        made = await world.launched(control, who, slots=1)
        one, two = await world.adapter(control, who, "one"), await world.adapter(control, who, "two")
        await attachments.attach(control, who, made.id, one.id)
        with pytest.raises(InstanceAtCapacityError, match="model instance at capacity"):
            await attachments.attach(control, who, made.id, two.id)
        assert await row(control, who, two, made.id) is None
        await in_state(control, who, one, made.id, "ready")

    async def test_of_many_at_once_only_as_many_as_there_are_slots(
        self, world: World, control: Control, who: Principal
    ) -> None:
        made = await world.launched(control, who, slots=2)
        found = [await world.adapter(control, who, f"n{number}") for number in range(6)]
        answers = await asyncio.gather(
            *(attachments.attach(control, who, made.id, a.id) for a in found), return_exceptions=True
        )
        refused = [answer for answer in answers if isinstance(answer, InstanceAtCapacityError)]
        assert len(refused) == 4
        assert len((await attachments.of_instance(control, who, made.id)).data) == 2


class TestFailures:
    async def test_a_failure_is_told_and_tried_again_when_asked_for_again(
        self, world: World, control: Control, who: Principal
    ) -> None:
        made, adapter = await world.launched(control, who), await world.adapter(control, who)
        agent = world.fleets["local"].only
        agent.fails = {adapter.id}
        await attachments.attach(control, who, made.id, adapter.id)
        failed = await in_state(control, who, adapter, made.id, "failed")
        assert (failed.error_code, failed.error_message) == ("adapter_ineffective", "it changes nothing")
        assert (await world.snapshot(control)).adapters[0].instances == ()
        grants = len(agent.grants)
        await ticks(control)
        assert len(agent.grants) == grants
        agent.fails = set()
        again = await attachments.attach(control, who, made.id, adapter.id)
        assert (again.state, again.error) == ("attaching", None)
        await in_state(control, who, adapter, made.id, "ready")

    async def test_the_old_failure_is_not_told_while_it_is_tried_again(
        self, world: World, control: Control, who: Principal
    ) -> None:
        await world.launched(control, who)
        adapter = await world.adapter(control, who)
        agent = world.fleets["local"].only
        agent.fails = {adapter.id}
        page, done = await loads.load(control, who, adapter.id, Load())
        assert (page.data[0].state, done) == ("failed", False)
        agent.hold = True
        asked = asyncio.create_task(loads.load(control, who, adapter.id, Load()))
        name = next(iter(agent.rows))
        await holds(control, lambda: agent.grants[-1].retry == (name,))
        await ticks(control, 5)
        assert [g.retry for g in agent.grants].count((name,)) == 1
        assert not asked.done()
        agent.fails = set()
        agent.converge()
        page, done = await asked
        assert (page.data[0].state, done) == ("ready", True)

    async def test_one_that_fails_again_is_told_again(
        self, world: World, control: Control, who: Principal
    ) -> None:
        await world.launched(control, who)
        adapter = await world.adapter(control, who)
        world.fleets["local"].only.fails = {adapter.id}
        for _ in range(3):
            page, done = await loads.load(control, who, adapter.id, Load())
            assert (page.data[0].state, done) == ("failed", False)

    async def test_asked_for_again_at_another_control(
        self, world: World, control: Control, who: Principal
    ) -> None:
        made, adapter = await world.launched(control, who), await world.adapter(control, who)
        agent = world.fleets["local"].only
        agent.fails = {adapter.id}
        await attachments.attach(control, who, made.id, adapter.id)
        await in_state(control, who, adapter, made.id, "failed")
        agent.fails = set()
        async with world.control("two", run=False) as other:
            await attachments.attach(other, who, made.id, adapter.id)
        await in_state(control, who, adapter, made.id, "ready")


class TestLoads:
    async def test_a_load_answers_when_resident(self, world: World, control: Control, who: Principal) -> None:
        made, adapter = await world.launched(control, who), await world.adapter(control, who)
        page, done = await loads.load(control, who, adapter.id, Load(pin=True))
        assert done
        assert [(a.instance_id, a.state, a.attached, a.pinned) for a in page.data] == [
            (made.id, "ready", False, True)
        ]
        (entry,) = world.fleets["local"].only.grants[-1].entries
        assert (entry.hold, entry.pinned) == ("loaded", True)

    async def test_room_is_made_at_the_cost_of_the_oldest_unpinned_load(
        self, world: World, control: Control, who: Principal
    ) -> None:
        made = await world.launched(control, who, slots=2)
        names = ("pinned", "loose", "third", "fourth")
        pinned, loose, third, fourth = [await world.adapter(control, who, name) for name in names]
        await loads.load(control, who, pinned.id, Load(pin=True))
        await loads.load(control, who, loose.id, Load())
        await loads.load(control, who, third.id, Load(pin=True))
        await gone(control, who, loose, made.id)
        assert world.fleets["local"].only.resident == {pinned.id, third.id}
        with pytest.raises(InstanceAtCapacityError):
            await loads.load(control, who, fourth.id, Load())
        wanted = await adapters.events_of(control, who, loose.id)
        kinds = [e.kind for e in (await events.listing(control, who, wanted, None, 100)).data]
        assert kinds == ["load_asked", "attachment_ready", "evicted", "detached"]

    async def test_attaching_makes_room_too(self, world: World, control: Control, who: Principal) -> None:
        made = await world.launched(control, who, slots=1)
        loose, firm = await world.adapter(control, who, "loose"), await world.adapter(control, who, "firm")
        await loads.load(control, who, loose.id, Load())
        await attachments.attach(control, who, made.id, firm.id)
        await in_state(control, who, firm, made.id, "ready")
        await gone(control, who, loose, made.id)

    async def test_what_is_pinned_or_attached_is_never_evicted(
        self, world: World, control: Control, who: Principal
    ) -> None:
        made = await world.launched(control, who, slots=2)
        names = ("attached", "pinned", "late")
        attached, pinned, late = [await world.adapter(control, who, name) for name in names]
        await attachments.attach(control, who, made.id, attached.id)
        await loads.load(control, who, pinned.id, Load(pin=True))
        for refused in (
            loads.load(control, who, late.id, Load()),
            loads.load(control, who, late.id, Load(pin=True)),
            attachments.attach(control, who, made.id, late.id),
        ):
            with pytest.raises(InstanceAtCapacityError):
                await refused
        assert world.fleets["local"].only.granted == {attached.id, pinned.id}

    async def test_when_its_time_is_over_it_goes(
        self, world: World, control: Control, who: Principal
    ) -> None:
        made, adapter = await world.launched(control, who), await world.adapter(control, who)
        page, _ = await loads.load(control, who, adapter.id, Load(pin=True, ttl_seconds=100))
        assert page.data[0].expires_at is not None
        assert (await world.snapshot(control)).adapters[0].expires_at == page.data[0].expires_at
        world.clock.ahead += 101
        await gone(control, who, adapter, made.id)
        assert world.fleets["local"].only.granted == set()
        wanted = await adapters.events_of(control, who, adapter.id)
        kinds = [e.kind for e in (await events.listing(control, who, wanted, None, 100)).data]
        assert kinds[-2:] == ["attachment_expired", "detached"]

    async def test_gateways_know_of_its_end_before_the_load_is_answered(
        self, world: World, control: Control, who: Principal, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Control may be away when its time is over."""
        _, adapter = await world.launched(control, who), await world.adapter(control, who)
        told: list[float | None] = []

        async def acknowledged(version: int, timeout: float = 0.0) -> list[str]:
            known = wire.decode(await control.publisher.after(0, 0) or b"")
            told.extend(row.expires_at for row in known.adapters)
            return ["deaf"]

        monkeypatch.setattr(control.gateways, "acknowledged", acknowledged)
        page, _ = await loads.load(control, who, adapter.id, Load(ttl_seconds=100, wait=False))
        [view] = page.data
        assert view.unacknowledged == ["deaf"]
        assert told[-1] == view.expires_at is not None

    async def test_a_load_again_gives_it_more_time(
        self, world: World, control: Control, who: Principal
    ) -> None:
        made, adapter = await world.launched(control, who), await world.adapter(control, who)
        await loads.load(control, who, adapter.id, Load(ttl_seconds=100))
        await loads.load(control, who, adapter.id, Load(ttl_seconds=1000))
        world.clock.ahead += 101
        await ticks(control)
        assert (await in_state(control, who, adapter, made.id, "ready")).expires_at is not None
        assert world.fleets["local"].only.granted == {adapter.id}

    async def test_loading_what_is_attached_leaves_it_attached(
        self, world: World, control: Control, who: Principal
    ) -> None:
        made, adapter = await world.launched(control, who), await world.adapter(control, who)
        await attachments.attach(control, who, made.id, adapter.id)
        page, done = await loads.load(control, who, adapter.id, Load(ttl_seconds=1))
        assert (page.data[0].attached, page.data[0].expires_at, done) == (True, None, True)

    async def test_attaching_what_is_loaded_holds_it(
        self, world: World, control: Control, who: Principal
    ) -> None:
        made, adapter = await world.launched(control, who), await world.adapter(control, who)
        await loads.load(control, who, adapter.id, Load(ttl_seconds=100))
        view = await attachments.attach(control, who, made.id, adapter.id)
        assert (view.attached, view.expires_at) == (True, None)
        world.clock.ahead += 101
        await ticks(control)
        await in_state(control, who, adapter, made.id, "ready")

    async def test_unload_drops_the_pin_and_refuses_what_is_attached(
        self, world: World, control: Control, who: Principal
    ) -> None:
        made, adapter = await world.launched(control, who), await world.adapter(control, who)
        await loads.load(control, who, adapter.id, Load(pin=True))
        page, done = await loads.unload(control, who, adapter.id, None)
        assert done
        assert await row(control, who, adapter, made.id) is None
        assert page.data[0].instance_id == made.id
        await attachments.attach(control, who, made.id, adapter.id)
        with pytest.raises(AdapterInUseError):
            await loads.unload(control, who, adapter.id, [made.id])
        await in_state(control, who, adapter, made.id, "ready")

    async def test_all_backends_take_it_or_none(self, world: World, control: Control, who: Principal) -> None:
        roomy = await world.launched(control, who)
        full = await world.launched(control, who, slots=1)
        first, adapter = await world.adapter(control, who, "first"), await world.adapter(control, who)
        await attachments.attach(control, who, full.id, first.id)
        with pytest.raises(InstanceAtCapacityError):
            await loads.load(control, who, adapter.id, Load(backends=[roomy.id, full.id]))
        assert await row(control, who, adapter, roomy.id) is None

    async def test_loading_again_while_it_is_being_unloaded(
        self, world: World, control: Control, who: Principal
    ) -> None:
        made, adapter = await world.launched(control, who), await world.adapter(control, who)
        agent = world.fleets["local"].only
        await loads.load(control, who, adapter.id, Load())
        agent.hold = True
        asked = asyncio.create_task(loads.unload(control, who, adapter.id, None))
        await holds(control, lambda: agent.granted == set())
        again, _ = await loads.load(control, who, adapter.id, Load(wait=False))
        assert again.data[0].state == "attaching"
        agent.rows = {}
        agent.hold = False
        agent.converge()
        await in_state(control, who, adapter, made.id, "ready")
        await asked

    async def test_what_was_asked_for_again_is_not_deleted_by_what_was_seen_before(
        self, world: World, who: Principal, control: Control
    ) -> None:
        """The controller read `detaching`; before it wrote `gone`, a client loaded it anew."""
        made, adapter = await world.launched(control, who), await world.adapter(control, who)
        await loads.load(control, who, adapter.id, Load())
        controller = control.controller
        async with control.db.transaction() as tx:
            found = await tx.attachments.find(who.account, adapter.row_id, made.id)
            assert found is not None
            await tx.attachments.mark_detaching(who.account, found.id)
        await loads.load(control, who, adapter.id, Load(wait=False))
        async with control.db.transaction() as tx:
            stale = msgspec.structs.replace(found, state="detaching")
            assert not await controller._forget(tx, stale)
        await in_state(control, who, adapter, made.id, "ready")


class TestLeases:
    async def test_only_one_of_two_controls_acts_and_the_other_takes_over(
        self, world: World, control: Control, who: Principal
    ) -> None:
        fleet = world.fleets["local"]
        await world.launched(control, who)
        async with world.control("two") as second:
            await ticks(second)
            applied = len(fleet.applied)
            assert second.controller._lease is None
            made = await instances.launch(second, who, Launch("tiny"))
            await until(second, lambda: instances.get(second, who, made.id), lambda i: i.state == "running")
            assert len(fleet.applied) == applied + 1
            # the first is cut off: its clock stands still, and the lease runs out
            token = control.controller._lease.token  # type: ignore[union-attr]
            world.clock.ahead += 2 * LEASE_S
            second.changes.notify()
            await until_leading(second, control)
            leader = second if second.controller._lease is not None else control
            assert leader.controller._lease.token > token or leader is control  # type: ignore[union-attr]

    async def test_the_next_acts_as_soon_as_the_lease_is_released(
        self, world: World, fleet: FakeFleet
    ) -> None:
        async with world.control("one") as first:
            who = await world.account(first)
            made = await world.launched(first, who)
            adapter = await world.adapter(first, who)
            await attachments.attach(first, who, made.id, adapter.id)
            await in_state(first, who, adapter, made.id, "ready")
            await first.controller.release()
            applied, version = len(fleet.applied), fleet.only.grants[-1].version
            first.controller._lease = None
            async with world.control("two") as second:
                second_leads = lambda: second.controller._lease is not None  # noqa: E731
                first_leads = lambda: first.controller._lease is not None  # noqa: E731
                await holds(second, lambda: second_leads() or first_leads())
            assert len(fleet.applied) == applied
            assert fleet.deleted == []
            assert fleet.only.grants[-1].version >= version

    async def test_what_a_stale_controller_writes_and_grants_is_refused(
        self, world: World, server: tuple[AgentServer, str], fleet: FakeFleet
    ) -> None:
        async with world.control("stale", run=False) as stale, world.control("fresh", run=False) as fresh:
            who = await world.account(stale)
            await stale.controller._tick()
            made = await instances.launch(stale, who, Launch("tiny", lora=LoraSpec(True)))
            await settle(stale)
            world.clock.ahead += LEASE_S + 1
            await settle(fresh)
            assert fresh.controller._lease is not None
            adapter = await world.adapter(stale, who)
            await attachments.attach(fresh, who, made.id, adapter.id)
            await settle(fresh)
            granted = fleet.only.grants[-1].version
            # the stale one believes that its lease is good for ever
            lease = stale.controller._lease
            assert lease is not None
            stale.controller._lease = type(lease)(lease.name, lease.holder, lease.token, world.clock() + 1000)
            before = await row(stale, who, adapter, made.id)
            fleet.only.tell(ready=False)  # something to write down
            await settle(stale)
            assert fleet.only.grants[-1].version == granted
            assert (await instances.get(stale, who, made.id)).state == "running"
            assert await row(stale, who, adapter, made.id) == before

    async def test_a_new_controller_adopts_what_runs_and_sends_nothing_but_the_grant(
        self, world: World, fleet: FakeFleet
    ) -> None:
        async with world.control("before") as first:
            who = await world.account(first)
            made = await world.launched(first, who)
            adapter = await world.adapter(first, who)
            await attachments.attach(first, who, made.id, adapter.id)
            await in_state(first, who, adapter, made.id, "ready")
            await first.controller.release()
        agent, applied, grants = fleet.only, list(fleet.applied), len(fleet.only.grants)
        entries, loaded = agent.grants[-1].entries, dict(agent.rows)
        async with world.control("after") as second:
            await holds(second, lambda: len(agent.grants) > grants)
            await ticks(second, 5)
            assert (await instances.get(second, who, made.id)).state == "running"
            assert (await in_state(second, who, adapter, made.id, "ready")).ready == 1
        assert fleet.applied == applied
        assert fleet.deleted == []
        assert fleet.only is agent
        assert [g.entries for g in agent.grants[grants:]] == [entries]
        assert agent.rows == loaded

    async def test_a_lease_of_which_nobody_knows_whether_it_is_committed_is_acquired_again(
        self, world: World, fleet: FakeFleet, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Else it acts under the lease, and its grants under the one before: agents refuse these for ever."""
        async with world.control("before", run=False) as first:
            who = await world.account(first)
            task = asyncio.create_task(first.controller.run())
            made = await world.launched(first, who)
            await attachments.attach(first, who, made.id, (await world.adapter(first, who, "one")).id)
            await holds(first, lambda: fleet.only.resident)
            await stopped(task)
            await first.controller.release()
        async with world.control("after", run=False) as second:
            adapter = await world.adapter(second, who, "two")
            await attachments.attach(second, who, made.id, adapter.id)
            transaction, lost = second.db.transaction, False

            @asynccontextmanager
            async def answer_lost() -> AsyncIterator[Tx]:
                nonlocal lost
                async with transaction() as tx:
                    acquire, acquired = tx.leases.acquire, False

                    async def noted(name: str, *rest: Any) -> Any:
                        nonlocal acquired
                        acquired = name == LEASE
                        return await acquire(name, *rest)

                    monkeypatch.setattr(tx.leases, "acquire", noted)
                    yield tx
                if acquired and not lost:
                    lost = True
                    raise ConnectionError("the connection broke after COMMIT")

            monkeypatch.setattr(second.db, "transaction", answer_lost)
            task = asyncio.create_task(second.controller.run())
            await in_state(second, who, adapter, made.id, "ready")
            await stopped(task)
            assert lost

    async def test_ending_all_stops_replicas_and_keeps_wishes(self, world: World, fleet: FakeFleet) -> None:
        async with world.control("before", run=False) as first:
            who = await world.account(first)
            task = asyncio.create_task(first.controller.run())
            made = await world.launched(first, who)
            await stopped(task)
            await first.controller.end_all()
            await first.controller.release()
        assert fleet.agents == {}
        async with world.control("after") as second:
            await holds(second, lambda: fleet.made == 2)
            await until(second, lambda: instances.get(second, who, made.id), lambda i: i.state == "running")


class TestDatabaseAway:
    async def test_the_controller_survives_and_goes_on_publishing_facts(
        self, world: World, control: Control, who: Principal, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        made = await world.launched(control, who)
        agent = world.fleets["local"].only
        begin = type(control.db).transaction

        def away(*_: Any) -> Any:
            raise UnavailableError("The database does not answer.", code="unavailable")

        with monkeypatch.context() as patch:
            for name in ("transaction", "read", "snapshot_rows"):
                patch.setattr(type(control.db), name, away)
            world.clock.ahead += 2 * LEASE_S
            await ticks(control)
            before = control.publisher.version
            agent.crash_engine()
            await holds(control, lambda: control.publisher.version > before)
            with pytest.raises(UnavailableError):
                await control.controller.published()
        assert type(control.db).transaction is begin
        agent.engine_is_back()
        await until(control, lambda: instances.get(control, who, made.id), lambda i: i.state == "running")
        adapter = await world.adapter(control, who)
        await attachments.attach(control, who, made.id, adapter.id)
        await in_state(control, who, adapter, made.id, "ready")


class TestDeleting:
    async def test_an_adapter_in_use_is_refused_and_with_force_drained_first(
        self, world: World, control: Control, who: Principal
    ) -> None:
        made, adapter = await world.launched(control, who), await world.adapter(control, who)
        agent = world.fleets["local"].only
        await attachments.attach(control, who, made.id, adapter.id)
        await in_state(control, who, adapter, made.id, "ready")
        with pytest.raises(AdapterInUseError):
            await adapters.delete(control, who, adapter.id, force=False)
        await in_state(control, who, adapter, made.id, "ready")
        agent.hold = True
        asked = asyncio.create_task(adapters.delete(control, who, adapter.id, force=True))
        await holds(control, lambda: agent.granted == set())
        assert not asked.done()
        agent.converge()
        assert (await asked).deleted
        assert agent.resident == set()

    async def test_an_attach_that_comes_between_keeps_the_adapter(
        self, world: World, control: Control, who: Principal
    ) -> None:
        made, adapter = await world.launched(control, who), await world.adapter(control, who)
        answers = await asyncio.gather(
            adapters.delete(control, who, adapter.id, force=False),
            attachments.attach(control, who, made.id, adapter.id),
            return_exceptions=True,
        )
        assert sum(isinstance(answer, Exception) for answer in answers) == 1
        async with control.db.read() as tx:
            left = await tx.adapters.list(who.account)
            uses = await tx.attachments.list(who.account)
        assert len(left) == len(uses)


async def test_what_cannot_be_attached_says_why(world: World, control: Control, who: Principal) -> None:
    made = await world.launched(control, who, lora=LoraSpec(True, max_rank=8))
    off = await world.launched(control, who, lora=LoraSpec())
    adapter = await world.adapter(control, who, rank=16)
    for instance, says in ((made, "rank too high"), (off, "LoRA off")):
        with pytest.raises(InvalidRequestError, match=says):
            await attachments.attach(control, who, instance.id, adapter.id)


async def settle(control: Control, rounds: int = 4) -> None:
    """Some ticks of a controller that does not run by itself."""
    for _ in range(rounds):
        seen = control.changes.count
        await control.controller._tick()
        await control.changes.wait(seen, 0.3)


async def until_leading(*controls: Control) -> None:
    async def leads() -> bool:
        return any(
            c.controller._lease is not None and c.controller._lease.expires_at > c.clock() for c in controls
        )

    await until(controls[0], leads, bool)


assert LEASE == "controller"
