"""Moves: served at the target before the source lets go, whatever dies in between."""

from __future__ import annotations

import asyncio

import pytest

from pillion.control import attachments, instances, loads, moves
from pillion.control.context import Control
from pillion.control.keys import Principal
from pillion.control.loads import Load
from pillion.core.errors import (
    AlreadyAttachedError,
    BaseMismatchError,
    ConflictError,
    InstanceAtCapacityError,
    InvalidRequestError,
    NotFoundError,
)
from pillion.store.rows import Adapter
from tests.control.fakes import FakeAgent
from tests.control.test_controller import gone, in_state, row
from tests.control.world import World, holds, stopped, ticks


async def attached(world: World, control: Control, who: Principal) -> tuple[Adapter, int, int]:
    """An adapter, the instance it is ready on, and another."""
    first, second = await world.launched(control, who), await world.launched(control, who)
    adapter = await world.adapter(control, who)
    await attachments.attach(control, who, first.id, adapter.id)
    await in_state(control, who, adapter, first.id, "ready")
    return adapter, first.id, second.id


def agent_of(world: World, instance: int) -> FakeAgent:
    (found,) = [a for a in world.fleets["local"].agents.values() if a.replica.instance == instance]
    return found


async def on_its_way(world: World, control: Control, who: Principal) -> tuple[Adapter, int, int]:
    """As `attached`, and it is being moved: the target loads it once it `goes_on`."""
    adapter, source, target = await attached(world, control, who)
    agent_of(world, target).hold = True
    await moves.move(control, who, adapter.id, source, target)
    return adapter, source, target


def goes_on(world: World, instance: int) -> None:
    agent_of(world, instance).hold = False
    agent_of(world, instance).converge()


async def kinds(control: Control, who: Principal, adapter: Adapter) -> list[str]:
    async with control.db.read() as tx:
        return [e.kind for e in await tx.events.list(who.account, subject=f"adapter:{adapter.id}")]


async def test_the_source_lets_go_only_when_the_target_serves(
    world: World, control: Control, who: Principal
) -> None:
    adapter, source, target = await attached(world, control, who)
    agent_of(world, target).hold = True
    view = await moves.move(control, who, adapter.name, source, target)
    assert (view.instance_id, view.state) == (target, "attaching")
    await holds(control, lambda: agent_of(world, target).granted == {adapter.id})
    await ticks(control, 5)
    kept = await row(control, who, adapter, source)
    assert kept is not None
    assert kept.state == "ready"
    goes_on(world, target)
    await gone(control, who, adapter, source)
    (routed,) = (await world.snapshot(control)).adapters
    assert routed.instances == (target,)
    assert await kinds(control, who, adapter) == [
        "attach_asked", "attachment_ready", "attach_asked", "move_asked", "attachment_ready", "moved", "detached",
    ]  # fmt: skip


async def test_one_that_fails_there_stays_where_it_was(
    world: World, control: Control, who: Principal
) -> None:
    adapter, source, target = await attached(world, control, who)
    agent_of(world, target).fails = {adapter.id}
    await moves.move(control, who, adapter.id, source, target)
    await gone(control, who, adapter, target)
    kept = await row(control, who, adapter, source)
    assert kept is not None
    assert kept.state == "ready"
    assert "move_failed" in await kinds(control, who, adapter)


async def test_to_where_it_is_loaded_already(world: World, control: Control, who: Principal) -> None:
    adapter, source, target = await attached(world, control, who)
    await loads.load(control, who, adapter.id, Load(backends=[target]))
    await moves.move(control, who, adapter.id, source, target)
    await gone(control, who, adapter, source)
    held = await row(control, who, adapter, target)
    assert held is not None
    assert (held.hold, held.state, held.replaces) == ("attached", "ready", None)


async def test_another_control_ends_what_one_began(world: World, who: Principal) -> None:
    async with world.control("first", run=False) as first:
        task = asyncio.create_task(first.controller.run())
        adapter, source, target = await attached(world, first, who)
        agent_of(world, target).hold = True
        await moves.move(first, who, adapter.id, source, target)
        await stopped(task)
        await first.controller.release()
    agent_of(world, target).hold = False
    async with world.control("second") as second:
        await gone(second, who, adapter, source)
        await in_state(second, who, adapter, target, "ready")


async def test_a_target_that_is_detached_meanwhile_leaves_the_source(
    world: World, control: Control, who: Principal
) -> None:
    adapter, source, target = await on_its_way(world, control, who)
    agent_of(world, target).hold = False
    await attachments.detach(control, who, target, adapter.id, force=True)
    await gone(control, who, adapter, target)
    await in_state(control, who, adapter, source, "ready")


async def test_a_target_that_is_stopped_meanwhile_leaves_the_source(
    world: World, control: Control, who: Principal
) -> None:
    adapter, source, target = await attached(world, control, who)
    agent_of(world, target).hold = True
    world.fleets["local"].deletes.clear()  # its replica drains yet, and loads what it was told to before
    await moves.move(control, who, adapter.id, source, target)
    await holds(control, lambda: agent_of(world, target).granted == {adapter.id})
    await instances.stop(control, who, target)
    goes_on(world, target)
    await ticks(control, 5)
    world.fleets["local"].deletes.set()
    await gone(control, who, adapter, target)
    await in_state(control, who, adapter, source, "ready")
    assert "move_failed" in await kinds(control, who, adapter)


async def test_a_target_that_was_detached_and_is_loaded_again_leaves_the_source(
    world: World, control: Control, who: Principal
) -> None:
    adapter, source, target = await on_its_way(world, control, who)
    async with control.db.transaction() as tx:  # as `attachments.detach` does, which would wait for its end
        there = await tx.attachments.find(who.account, adapter.row_id, target)
        assert there is not None
        await tx.attachments.mark_detaching(who.account, there.id)
    await loads.load(control, who, adapter.id, Load(backends=[target], wait=False))
    goes_on(world, target)
    await in_state(control, who, adapter, target, "ready")
    await ticks(control, 3)
    await in_state(control, who, adapter, source, "ready")


async def test_a_source_that_was_detached_and_is_attached_again_stays(
    world: World, control: Control, who: Principal
) -> None:
    adapter, source, target = await on_its_way(world, control, who)
    await attachments.detach(control, who, source, adapter.id, force=True)
    await attachments.attach(control, who, source, adapter.id)
    goes_on(world, target)
    await in_state(control, who, adapter, target, "ready")
    await ticks(control, 3)
    await in_state(control, who, adapter, source, "ready")


async def test_what_is_on_its_way_is_not_moved_on(world: World, control: Control, who: Principal) -> None:
    """It would stay where it came from."""
    adapter, source, target = await on_its_way(world, control, who)
    third = await world.launched(control, who)
    with pytest.raises(ConflictError, match="on its way"):
        await moves.move(control, who, adapter.id, target, third.id)
    goes_on(world, target)
    await gone(control, who, adapter, source)
    await moves.move(control, who, adapter.id, target, third.id)
    await gone(control, who, adapter, target)


async def test_what_cannot_be_moved(world: World, control: Control, who: Principal) -> None:
    adapter, source, target = await attached(world, control, who)
    other = await world.launched(control, who, model="other")
    full = await world.launched(control, who, slots=1)
    await attachments.attach(control, who, full.id, (await world.adapter(control, who, "second")).id)
    stranger = await world.account(control, "stranger")

    async def refused(kind: type[Exception], by: Principal, begin: int, end: int) -> None:
        with pytest.raises(kind):
            await moves.move(control, by, adapter.id, begin, end)

    await refused(InvalidRequestError, who, source, source)
    await refused(NotFoundError, who, target, source)
    await refused(NotFoundError, who, source, 999)
    await refused(NotFoundError, stranger, source, target)
    await refused(BaseMismatchError, who, source, other.id)
    await refused(InstanceAtCapacityError, who, source, full.id)
    await attachments.attach(control, who, target, adapter.id)
    await refused(AlreadyAttachedError, who, source, target)
    agent_of(world, source).hold = True
    async with control.db.transaction() as tx:
        (there, _) = await tx.attachments.list(who.account, adapter_row_id=adapter.row_id)
        await tx.attachments.mark_detaching(who.account, there.id)
    await refused(ConflictError, who, source, target)
