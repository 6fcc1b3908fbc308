"""What control has to do with loads on demand: who may, who may not stay, what an end means, what is told of it."""

from __future__ import annotations

import asyncio

import msgspec
import pytest

from pillion.control import adapters, attachments, instances, loads, sessions
from pillion.control.context import Control
from pillion.control.keys import Principal
from pillion.control.loads import Load
from pillion.control.views import AttachmentView
from pillion.core import snapshot as wire
from pillion.core.names import engine_name
from pillion.core.permits import Permit, PermitRefusedError, opened
from pillion.core.replica import LoraSpec, Residency
from pillion.store.rows import Adapter
from tests.control.fakes import FakeAgent
from tests.control.world import World, holds, stopped, ticks, until

ON_DEMAND = LoraSpec(True, max_adapters=2, on_demand=True)


def name_of(world: World, row: Adapter, snapshot: wire.Snapshot) -> str:
    return next(a.engine_name or "" for a in snapshot.adapters if a.row_id == row.row_id)


def permit_of(agent: FakeAgent, row: Adapter, snapshot: wire.Snapshot) -> Permit:
    """As the agent opens it, with the key of its grant."""
    signed = next(a.permit for a in snapshot.adapters if a.row_id == row.row_id)
    terms = agent.grants[-1].on_demand
    assert signed is not None
    assert terms is not None
    return opened(signed, terms.key)


def brings(agent: FakeAgent, name: str) -> None:
    """It came by a permit."""
    agent.move(name, "loaded")
    agent.on_demand.add(name)
    agent.tell()


async def test_permits_are_for_those_whom_an_instance_takes(
    world: World, control: Control, who: Principal
) -> None:
    row = await world.adapter(control, who, region="local", rank=8)
    assert (await world.snapshot(control)).adapters[0].permit is None
    await world.launched(control, who)
    assert (await world.snapshot(control)).adapters[0].permit is None, "it does not load on demand"
    await world.launched(control, who, lora=ON_DEMAND)
    agent = next(a for a in world.fleets["local"].agents.values() if a.group.lora.on_demand)
    await holds(control, lambda: agent.grants and agent.grants[-1].on_demand)
    other = await world.account(control, "other")
    theirs = await world.adapter(control, other, "theirs")
    snapshot = await world.snapshot(control)
    permit = permit_of(agent, row, snapshot)
    assert (permit.account, permit.base, permit.region, permit.adapter_id) == (
        who.account,
        "tiny",
        "local",
        row.id,
    )
    assert (permit.rank, permit.size_bytes, permit.expires_at) == (8, 100, None)
    assert agent.grants[-1].on_demand.account == who.account  # type: ignore[union-attr]
    by_row = {a.row_id: a for a in snapshot.adapters}
    assert by_row[theirs.row_id].permit is None
    with_it = {i.id: i for i in snapshot.instances}
    assert [(i.on_demand, i.max_rank) for _, i in sorted(with_it.items())] == [(False, 0), (True, 64)]
    replicas = [r for i in snapshot.instances for r in i.replicas]
    assert sorted(r.agent_url is not None for r in replicas) == [False, True]
    assert control.pepper not in (agent.grants[-1].on_demand.key,)  # type: ignore[union-attr]
    try:
        opened(by_row[row.row_id].permit or b"", control.pepper)
    except PermitRefusedError:
        return
    raise AssertionError("what gateways know must not sign")


async def test_what_may_not_stay_is_dropped(world: World, control: Control, who: Principal) -> None:
    await world.launched(control, who, lora=ON_DEMAND)
    agent = world.fleets["local"].only
    kept, gone = await world.adapter(control, who, "kept"), await world.adapter(control, who, "gone")
    snapshot = await world.snapshot(control)
    names = [name_of(world, row, snapshot) for row in (kept, gone)]
    unknown = engine_name("adp_unknown", "0" * 64)
    for name in (*names, unknown):
        brings(agent, name)
    await holds(control, lambda: agent.grants[-1].drop == (unknown,))
    assert set(names) <= set(agent.rows)
    await adapters.delete(control, who, gone.id, force=False)
    await holds(control, lambda: gone.id not in agent.resident)
    assert names[0] in agent.rows
    await ticks(control)
    sent = len(agent.grants)
    await ticks(control)
    assert len(agent.grants) == sent, "it comes to rest"


async def test_another_live_version_drops_the_one_before_once_gateways_know_it(
    world: World, control: Control, who: Principal, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def soon(version: int, timeout: float = 0.0) -> list[str]:
        return control.gateways.behind(version)

    monkeypatch.setattr(control.gateways, "acknowledged", soon)
    await world.launched(control, who, lora=ON_DEMAND)
    agent = world.fleets["local"].only
    row = await world.adapter(control, who)
    before = name_of(world, row, await world.snapshot(control))
    brings(agent, before)
    await ticks(control)
    assert before in agent.rows
    monkeypatch.setattr(control.controller, "_settled_at", 0.0)
    control.gateways.heard("slow", control.publisher.version)
    async with control.db.transaction() as tx:
        await tx.versions.add(
            who.account,
            row.row_id,
            digest="f" * 64,
            rank=4,
            alpha=8.0,
            target_modules=["q_proj"],
            size_bytes=100,
            source={},
            now=world.clock(),
        )
        await tx.adapters.set_live(who.account, row.row_id, 2)
    control.changes.notify()
    await ticks(control, 4)
    assert before in agent.rows
    control.gateways.heard("slow", control.publisher.version)
    await holds(control, lambda: before not in agent.rows)
    assert permit_of(agent, row, await world.snapshot(control)).digest == "f" * 64


async def test_what_ended_stays_ended_until_it_is_loaded_anew(
    world: World, control: Control, who: Principal
) -> None:
    await world.launched(control, who, lora=ON_DEMAND)
    agent = world.fleets["local"].only
    row = await world.adapter(control, who)
    await loads.load(control, who, row.id, Load(ttl_seconds=60))
    end = world.clock() + 60
    snapshot = await world.snapshot(control)
    assert snapshot.adapters[0].expires_at == end
    assert permit_of(agent, row, snapshot).expires_at == end
    world.clock.ahead += 61
    await holds(control, lambda: not agent.resident)
    await ticks(control)
    assert (await world.snapshot(control)).adapters[0].expires_at == end
    name = name_of(world, row, snapshot)
    brings(agent, name)  # by a gateway that has not heard
    await holds(control, lambda: name not in agent.rows)
    await loads.load(control, who, row.id, Load())
    assert (await world.snapshot(control)).adapters[0].expires_at is None


@pytest.mark.parametrize("leaves", ["evicted", "stopped"])
async def test_what_leaves_before_its_time_is_over_keeps_it(
    world: World, control: Control, who: Principal, leaves: str
) -> None:
    """Else it would be loaded on demand for ever."""
    made = await world.launched(control, who, lora=LoraSpec(True, max_adapters=1, on_demand=True))
    row, other = await world.adapter(control, who, "row"), await world.adapter(control, who, "other")
    await loads.load(control, who, row.id, Load([made.id], ttl_seconds=60))
    end = world.clock() + 60
    if leaves == "evicted":
        await loads.load(control, who, other.id, Load([made.id]))
    else:
        await instances.stop(control, who, made.id)
        await world.launched(control, who, lora=ON_DEMAND)
    await until(control, lambda: adapters.get(control, who, row.id), lambda a: not a.attachments)
    snapshot = await world.snapshot(control)
    (found,) = [a for a in snapshot.adapters if a.row_id == row.row_id]
    assert found.expires_at == end
    assert permit_of(world.fleets["local"].only, row, snapshot).expires_at == end
    await loads.load(control, who, row.id, Load(wait=False))
    (found,) = [a for a in (await world.snapshot(control)).adapters if a.row_id == row.row_id]
    assert found.expires_at is None


async def test_the_end_of_a_session_is_an_end(world: World, control: Control, who: Principal) -> None:
    await world.launched(control, who, lora=ON_DEMAND)
    row = await world.adapter(control, who)
    await loads.load(control, who, row.id, Load(session_key="talk"))
    await sessions.end(control, who, "talk")
    assert (await world.snapshot(control)).adapters[0].expires_at == world.clock()


async def test_an_evicted_load_says_so_and_comes_back_when_it_is_loaded_again(
    world: World, control: Control, who: Principal
) -> None:
    await world.launched(control, who)
    agent = world.fleets["local"].only
    row = await world.adapter(control, who)
    _, ready = await loads.load(control, who, row.id, Load())
    assert ready
    name = next(iter(agent.rows))
    agent.rows[name] = Residency(name, "registered", agent.now + 1)
    agent.tell()

    def state() -> str:
        return control.controller._wishes.attachments[0].state

    await holds(control, lambda: state() == "registered")
    assert (await world.snapshot(control)).adapters[0].instances == (), (
        "so that the answer is 404, not loading"
    )
    view = (await loads.status(control, who)).data[0]
    assert [(a.adapter_id, a.state) for a in view.adapters] == [(row.id, "registered")]
    _, ready = await loads.load(control, who, row.id, Load())
    assert ready
    assert any(name in grant.retry for grant in agent.grants)


@pytest.mark.parametrize("pin", [False, True])
async def test_a_load_evicted_from_some_replicas_is_ready_again_once_all_have_it(
    world: World, control: Control, who: Principal, pin: bool
) -> None:
    made = await world.launched(control, who, replicas=2)
    row = await world.adapter(control, who)
    await loads.load(control, who, row.id, Load())
    agent = next(iter(world.fleets["local"].agents.values()))
    (name,) = agent.rows
    agent.hold = True
    agent.rows[name] = Residency(name, "registered", agent.now + 1)
    agent.tell()
    await until(control, lambda: one(control, who, made.id), lambda a: (a.state, a.ready) == ("ready", 1))
    page, ready = await loads.load(control, who, row.id, Load(pin=pin, wait=False))
    assert (page.data[0].state, ready) == ("attaching", False), (
        "on one of two replicas it is not resident on all"
    )
    await holds(control, lambda: any(name in grant.retry for grant in agent.grants))
    agent.hold = False
    agent.converge()
    _, ready = await loads.load(control, who, row.id, Load(pin=pin))
    assert ready


async def test_a_load_whose_time_is_over_is_ready_again_once_it_is_resident_again(
    world: World,
) -> None:
    """Its agent lets go of it at its end, perhaps before control has written that down."""
    async with world.control("beside", run=False) as control:
        who = await world.account(control, "other")
        task = asyncio.create_task(control.controller.run())
        await world.launched(control, who)
        row = await world.adapter(control, who)
        _, ready = await loads.load(control, who, row.id, Load(ttl_seconds=60))
        assert ready
        await stopped(task)
        world.clock.ahead += 61
        agent = world.fleets["local"].only
        agent.rows.clear()
        agent.tell()
        page, ready = await loads.load(control, who, row.id, Load(ttl_seconds=60, wait=False))
        assert (page.data[0].state, page.data[0].ready) == ("attaching", 0)


async def one(control: Control, who: Principal, instance: int) -> AttachmentView:
    return (await attachments.of_instance(control, who, instance)).data[0]


async def test_status_shows_what_came_on_demand_and_on_a_pool_only_ones_own(
    world: World, control: Control, who: Principal
) -> None:
    await world.launched(control, who, lora=ON_DEMAND)
    agent = world.fleets["local"].only
    mine = await world.adapter(control, who, rank=8)
    name = name_of(world, mine, await world.snapshot(control))
    agent.rows[name] = msgspec.structs.replace(Residency(name, "loaded", 1.0), last_used=5.0)
    agent.on_demand.add(name)
    agent.tell()
    await ticks(control)
    found = (await loads.status(control, who)).data[0]
    assert (found.slots, found.used, found.free) == (2, 1, 1)
    shown = found.adapters[0]
    assert (shown.adapter_id, shown.state, shown.pinned, shown.rank, shown.last_used, shown.on_demand) == (
        mine.id,
        "loaded",
        False,
        8,
        5.0,
        True,
    )


async def test_an_attachment_goes_before_what_came_on_demand(
    world: World, control: Control, who: Principal
) -> None:
    """Control counts wishes alone: what came on demand makes room at the agent."""
    made = await world.launched(control, who, lora=ON_DEMAND)
    agent = world.fleets["local"].only
    rows = [await world.adapter(control, who, f"a{n}") for n in range(3)]
    snapshot = await world.snapshot(control)
    for row in rows[:2]:
        brings(agent, name_of(world, row, snapshot))
    await ticks(control)
    view = await attachments.attach(control, who, made.id, rows[2].id)
    assert view.state == "attaching"
    await holds(control, lambda: rows[2].id in agent.resident)
