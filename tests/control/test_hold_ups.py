"""What hangs holds up no other, and what is not known is not taken for nothing."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from pillion.control import agents, attachments, groups
from pillion.control.attachments import detach
from pillion.control.changes import Changes
from pillion.control.context import Control
from pillion.control.keys import Principal
from pillion.core.errors import UnavailableError
from pillion.core.replica import GroupSpec, LoraSpec, ModelSpec
from tests.control.fakes import AgentServer, FakeFleet
from tests.control.test_controller import gone, in_state, row
from tests.control.world import World, fleets, holds, ticks


async def test_an_agent_that_takes_no_grant_holds_up_no_other(
    world: World, control: Control, who: Principal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its node is frozen: it says nothing either."""
    monkeypatch.setattr(agents, "GRANT_S", 3600.0)
    frozen, other = await world.launched(control, who), await world.launched(control, who)
    [agent] = [a for a in world.fleets["local"].agents.values() if a.replica.instance == frozen.id]
    one, two = await world.adapter(control, who, "one"), await world.adapter(control, who, "two")
    agent.awake.clear()
    await attachments.attach(control, who, frozen.id, one.id)
    await attachments.attach(control, who, other.id, two.id)
    await in_state(control, who, two, other.id, "ready")
    assert agent.grants[-1].entries == ()
    agent.awake.set()
    await in_state(control, who, one, frozen.id, "ready")
    assert len([grant for grant in agent.grants if grant.entries]) == 1


async def test_a_region_that_hangs_holds_up_no_other(
    server: tuple[AgentServer, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(tmp_path, fleets(*server, "a", "b"))
    async with world.control() as control:
        who = await world.account(control)
        made = await world.launched(control, who)
        monkeypatch.setattr(groups, "OBSERVE_S", 3600.0)
        world.fleets["a"].observes.clear()
        adapter = await world.adapter(control, who)
        await attachments.attach(control, who, made.id, adapter.id)
        view = await in_state(control, who, adapter, made.id, "ready")
        assert (view.ready, view.wanted) == (2, 2)


async def test_nothing_is_gone_from_a_region_that_a_control_has_not_seen_yet(
    server: tuple[AgentServer, str], tmp_path: Path
) -> None:
    world = World(tmp_path, fleets(*server, "a", "b"))
    async with world.control() as control:
        who = await world.account(control)
        made, adapter = await world.launched(control, who), await world.adapter(control, who)
        await attachments.attach(control, who, made.id, adapter.id)
        await in_state(control, who, adapter, made.id, "ready")
    away = world.fleets["a"]
    [there] = away.agents.values()
    there.hold, away.observe_error = True, OSError("timeout")
    async with world.control() as control:
        detaching = asyncio.create_task(detach(control, who, made.id, adapter.id, force=False))
        await in_state(control, who, adapter, made.id, "detaching")
        [other] = world.fleets["b"].agents.values()
        await holds(control, lambda: other.resident == set())
        await ticks(control)
        assert there.resident == {adapter.id}
        assert await row(control, who, adapter, made.id) is not None
        away.observe_error, there.hold = None, False
        await gone(control, who, adapter, made.id)
        assert there.resident == set()
        await detaching


class Broken(FakeFleet):
    async def apply(self, group: GroupSpec) -> None:
        self.applied.append(group)
        raise UnavailableError("no space left")


async def test_what_fails_for_days_is_still_tried() -> None:
    fleet, changes, now = Broken("local", ""), Changes(), 0.0
    trying = groups.Groups({"local": fleet}, lambda: now, changes)
    lora = LoraSpec(enabled=True)
    wanted = {(1, "local"): GroupSpec(1, "local", 1, ModelSpec("tiny", "path:/tiny"), "sim", lora)}
    for number in range(1, 1100):
        seen = changes.count
        trying.move(wanted)
        await changes.wait(seen, 10)
        assert len(fleet.applied) == number
        assert 0 < trying.tries[1, "local"] - now <= groups.BACKOFF_MAX_S
        now += groups.BACKOFF_MAX_S
