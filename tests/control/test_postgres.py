"""The controller and the use cases on PostgreSQL, where transactions really run beside each other."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import pytest
import sqlalchemy as sa
from msgspec.structs import replace

from pillion.control import (
    accounts,
    adapters,
    attachments,
    flips,
    instances,
    loads,
    pools,
    sessions,
    versions,
)
from pillion.control.context import Control
from pillion.control.instances import Launch
from pillion.control.loads import Load
from pillion.core.catalogue import Pool
from pillion.core.errors import AdapterInUseError, ConflictError, InstanceAtCapacityError, NotFoundError
from pillion.core.replica import LoraSpec
from pillion.store.database import Database
from tests.control.test_versions import add, attached, become, states
from tests.control.world import World, until
from tests.postgres import Cluster, postgres

__all__ = ["postgres"]


@pytest.fixture
async def world(world: World, postgres: Cluster) -> AsyncIterator[World]:
    name = postgres.create()
    world.url = postgres.url(name)
    database = Database.open(world.url)
    await database.migrate()
    await database.close()
    yield world
    postgres.drop(name)


async def test_attach_detach_load_and_its_end(world: World) -> None:
    async with world.control() as control:
        who = await world.account(control)
        made, adapter = await world.launched(control, who), await world.adapter(control, who)
        await attachments.attach(control, who, made.id, adapter.id)
        await until(
            control,
            lambda: attachments.of_instance(control, who, made.id),
            lambda page: [a.state for a in page.data] == ["ready"],
        )
        _, done = await attachments.detach(control, who, made.id, adapter.id, force=False)
        assert done
        await loads.load(control, who, adapter.id, Load(ttl_seconds=60))
        world.clock.ahead += 61
        await until(
            control, lambda: attachments.of_instance(control, who, made.id), lambda page: page.data == []
        )
        assert (await adapters.delete(control, who, adapter.id, force=False)).deleted
        await instances.stop(control, who, made.id)
        await until(control, lambda: instances.get(control, who, made.id), lambda i: i.state == "stopped")


async def test_of_many_at_once_only_as_many_as_there_are_slots(world: World) -> None:
    async with world.control("one") as control, world.control("two") as other:
        who = await world.account(control)
        made = await world.launched(control, who, slots=2)
        found = [await world.adapter(control, who, f"n{number}") for number in range(8)]
        answers = await asyncio.gather(
            *(
                attachments.attach((control, other)[number % 2], who, made.id, adapter.id)
                for number, adapter in enumerate(found)
            ),
            return_exceptions=True,
        )
        assert sum(isinstance(answer, InstanceAtCapacityError) for answer in answers) == 6
        assert len((await attachments.of_instance(control, who, made.id)).data) == 2


async def test_loads_at_once_never_fill_more_slots_than_there_are(world: World) -> None:
    async with world.control("one") as control, world.control("two") as other:
        who = await world.account(control)
        made = await world.launched(control, who, slots=2)
        found = [await world.adapter(control, who, f"n{number}") for number in range(6)]
        await asyncio.gather(
            *(
                loads.load((control, other)[number % 2], who, adapter.id, Load(wait=False))
                for number, adapter in enumerate(found)
            )
        )
        page = await until(
            control,
            lambda: attachments.of_instance(control, who, made.id),
            lambda page: all(a.state == "ready" for a in page.data),
        )
        assert len(page.data) <= 2


async def test_loads_of_one_adapter_at_once_are_one_load(world: World) -> None:
    async with world.control("one") as control, world.control("two") as other:
        who = await world.account(control)
        await world.launched(control, who)
        adapter = await world.adapter(control, who)
        answers = await asyncio.gather(
            *(loads.load((control, other)[number % 2], who, adapter.id, Load()) for number in range(6))
        )
        assert {page.data[0].state for page, _ in answers} == {"ready"}
        (agent,) = world.fleets["local"].agents.values()
        assert agent.resident == {adapter.id}


async def test_a_flip_and_back(world: World) -> None:
    async with world.control() as control:
        who = await world.account(control)
        adapter, _ = await attached(world, control, who)
        await add(control, who, adapter)
        await become(control, who, adapter, "former", "live")
        view, done = await versions.rollback(control, who, adapter.id)
        assert (view.version, view.state, done) == (1, "live", True)


async def test_a_canary_and_an_attach_at_once_share_what_room_there_is(world: World) -> None:
    async with world.control("one") as control, world.control("two") as other:
        who = await world.account(control)
        made = await world.launched(control, who, slots=2)
        adapter, _ = await attached(world, control, who, "tried", made.id)
        await add(control, who, adapter, live=False)
        for number in range(6):
            beside = await world.adapter(control, who, f"n{number}")
            answers = await asyncio.gather(
                versions.set_canary(control, who, adapter.id, 2, 0.5),
                attachments.attach(other, who, made.id, beside.id),
                return_exceptions=True,
            )
            assert [isinstance(answer, InstanceAtCapacityError) for answer in answers].count(True) == 1, (
                answers
            )
            if isinstance(answers[0], BaseException):
                await attachments.detach(control, who, made.id, beside.id, force=True)
            else:
                await versions.end_canary(control, who, adapter.id)


async def test_a_canary_beside_attaching_its_adapter_elsewhere(world: World) -> None:
    """On an instance that has room for one of its two versions only."""
    async with world.control("one") as control, world.control("two") as other:
        who = await world.account(control)
        adapter, _ = await attached(world, control, who)
        small = await world.launched(control, who, slots=1)
        await add(control, who, adapter, live=False)
        answers = await asyncio.gather(
            versions.set_canary(control, who, adapter.id, 2, 0.5),
            attachments.attach(other, who, small.id, adapter.id),
            return_exceptions=True,
        )
        refused = [answer for answer in answers if isinstance(answer, BaseException)]
        assert [type(r) for r in refused] in ([InstanceAtCapacityError], [ConflictError]), answers


async def test_the_same_bytes_at_once_are_one_version(world: World) -> None:
    async with world.control("one") as control, world.control("two") as other:
        who = await world.account(control)
        adapter = await world.adapter(control, who)
        added = await asyncio.gather(*(add((control, other)[n % 2], who, adapter) for n in range(6)))
        assert sorted(new for _, new in added) == [False] * 5 + [True]
        assert await states(control, who, adapter) == ["former", "live"]


async def test_attach_beside_delete(world: World) -> None:
    async with world.control() as control:
        who = await world.account(control)
        made = await world.launched(control, who, slots=8)
        for number in range(5):
            adapter = await world.adapter(control, who, f"n{number}")
            answers = await asyncio.gather(
                attachments.attach(control, who, made.id, adapter.id),
                adapters.delete(control, who, adapter.id, force=False),
                return_exceptions=True,
            )
            refused = [answer for answer in answers if isinstance(answer, BaseException)]
            assert [type(r) for r in refused] in ([NotFoundError], [AdapterInUseError]), answers


async def test_a_session_ends_beside_the_end_of_its_loads(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What takes them in another order waits where all wait first: at the instances."""
    monkeypatch.setattr("pillion.control.sessions.DETACH_WAIT_S", 0.0)
    async with world.control(run=False) as control:
        who = await world.account(control)
        wish = Launch("tiny", replicas=1, lora=LoraSpec(enabled=True))
        made = [(await instances.launch(control, who, wish)).id for _ in range(2)]
        found = [await world.adapter(control, who, name) for name in ("one", "two")]
        for adapter in found:
            await loads.load(control, who, adapter.id, Load(made, session_key="s", wait=False))
        async with control.db.transaction() as tx:
            await tx.everyone.lock_instances(made)
            ending = asyncio.create_task(sessions.end(control, who, "s"))
            await waits_for_a_lock(control)
            for row in reversed(await tx.attachments.list(who.account)):
                await tx.attachments.mark_detaching(who.account, row.id)
            for adapter in reversed(found):
                await tx.adapters.ended(who.account, adapter.row_id, 1.0)
        page, _ = await ending
        assert {view.state for view in page.data} == {"detaching"}


@pytest.mark.parametrize("end", ["unload", "session"])
async def test_what_is_attached_meanwhile_is_not_unloaded(
    world: World, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    monkeypatch.setattr("pillion.control.attachments.DETACH_WAIT_S", 0.0)
    monkeypatch.setattr("pillion.control.sessions.DETACH_WAIT_S", 0.0)
    async with world.control(run=False) as control:
        who = await world.account(control)
        made = await instances.launch(control, who, Launch("tiny", replicas=1, lora=LoraSpec(enabled=True)))
        adapter = await world.adapter(control, who)
        await loads.load(control, who, adapter.id, Load([made.id], session_key="s", wait=False))
        async with control.db.transaction() as tx:
            instance = await tx.instances.get(who.account, made.id)
            assert instance is not None
            await attachments.attach_in(control, tx, who, adapter, instance)
            ending = asyncio.create_task(
                loads.unload(control, who, adapter.id, None)
                if end == "unload"
                else sessions.end(control, who, "s")
            )
            await waits_for_a_lock(control)
        with pytest.raises(AdapterInUseError if end == "unload" else NotFoundError):
            await ending
        async with control.db.read() as tx:
            (row,) = await tx.attachments.list(who.account)
        assert (row.hold, row.state) == ("attached", "attaching")


async def test_flips_end_beside_a_session(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both lock several adapters: in the order of their rows, not in that of the line."""
    monkeypatch.setattr("pillion.control.sessions.DETACH_WAIT_S", 0.0)
    async with world.control(run=False) as control:
        who = await world.account(control)
        await control.controller._tick()
        found = [await world.adapter(control, who, name) for name in ("one", "two")]
        for adapter in reversed(found):
            async with control.db.transaction() as tx:
                await tx.adapters.want(who.account, adapter.row_id, 1, world.clock())
            world.clock.ahead += 1
        async with control.db.read() as tx:
            line = await tx.everyone.routed_adapters()
        nowhere = flips.Fleet({}, [], [], {})
        control.controller._flips = flips.look(line, nowhere)
        assert [flip.adapter.adapter.name for flip in control.controller._flips] == ["two", "one"]
        async with control.db.transaction() as tx:
            await tx.adapters.lock(who.account, found[0].row_id)
            settling = asyncio.create_task(control.controller._settle_flips())
            await waits_for_a_lock(control)
            await tx.adapters.lock(who.account, found[1].row_id)
        await settling


async def waits_for_a_lock(control: Control) -> None:
    waiting = sa.text("SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'")
    async with asyncio.timeout(60):
        while True:
            async with control.db.read() as tx:
                if await tx.everyone._session.value(waiting):
                    return
            await asyncio.sleep(0.01)


async def test_two_first_starts_at_once_make_one_account(world: World) -> None:
    async with world.control("one", run=False) as one, world.control("two", run=False) as two:
        found = await asyncio.gather(*(accounts.bootstrap(c, None, lambda _: None) for c in (one, two)))
        assert sum(key is not None for key in found) == 1


async def test_two_controls_launch_once(world: World) -> None:
    fleet = world.fleets["local"]
    async with world.control("one") as one, world.control("two") as two:
        who = await world.account(one)
        made = await instances.launch(two, who, Launch("tiny"))
        await until(two, lambda: instances.get(two, who, made.id), lambda i: i.state == "running")
        assert fleet.made == 1


async def test_controls_that_start_at_once_launch_a_pool_once(world: World) -> None:
    world.catalogue = replace(world.catalogue, pools=(Pool("tiny", 1, max_adapters=2),))
    async with AsyncExitStack() as stack:
        controls = [await stack.enter_async_context(world.control(f"c{n}", run=False)) for n in range(6)]
        await asyncio.gather(*map(pools.ensure, controls))
        async with controls[0].db.read() as tx:
            found = await tx.instances.list(None, limit=100)
        assert [instance.model for instance in found] == ["tiny"]
