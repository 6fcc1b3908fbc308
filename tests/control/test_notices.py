"""What is noticed of replicas: by tables, and as events."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from pillion.control import events
from pillion.control.context import Control
from pillion.control.events import Wanted
from pillion.control.keys import Principal
from pillion.control.notices import Life, noticed, seen
from pillion.core.replica import Failure, ReplicaStatus
from tests.control.fakes import FakeFleet
from tests.control.things import replica, status
from tests.control.world import World, until

KILLED = Failure("engine_exited", "killed by signal 9")


def life(told: ReplicaStatus | None, **changes: Any) -> dict[str, Life]:
    return {"r1": Life(1, "a", changes.get("alive", True), changes.get("exit_reason"), told)}


def changed(told: ReplicaStatus, **changes: Any) -> ReplicaStatus:
    return msgspec.structs.replace(told, revision=told.revision + 1, **changes)


UP = status("r1")
DOWN = changed(UP, ready=False, stage="restarting", restarts=1, failure=KILLED)


@pytest.mark.parametrize(
    ("before", "now", "kinds"),
    [
        ({}, life(None), ["replica_added"]),
        ({}, life(UP), ["replica_added", "replica_ready"]),
        (life(None), life(UP), ["replica_ready"]),
        (life(UP), life(UP), []),
        (life(UP), life(changed(UP, grant_version=7)), []),
        (life(UP), life(DOWN), ["engine_down"]),
        (life(DOWN), life(changed(DOWN, stage="starting")), []),
        (life(DOWN), life(changed(DOWN, ready=True, stage="ready")), ["replica_ready"]),
        (life(DOWN), life(changed(DOWN, stage="failed", restarts=3)), ["engine_failed"]),
        (life(DOWN), life(changed(DOWN, restarts=2)), ["engine_down"]),
        (life(UP), life(changed(UP, restarts=1)), ["engine_down"]),
        (life(UP), life(changed(UP, agent_epoch="e2")), ["agent_restarted"]),
        (life(UP), life(UP, alive=False, exit_reason="signal 9"), ["agent_down"]),
        (life(UP, alive=False), life(changed(UP, agent_epoch="e2")), ["agent_restarted"]),
        (life(UP), {}, ["replica_removed"]),
    ],
)
def test_what_is_told(before: dict[str, Life], now: dict[str, Life], kinds: list[str]) -> None:
    assert [notice.kind for notice in noticed(before, now)] == kinds


def test_why_is_told_too() -> None:
    (notice,) = noticed(life(UP), life(DOWN))
    assert notice.detail == {"replica": "r1", "region": "a", "error": "killed by signal 9 (engine_exited)"}
    (notice,) = noticed(life(UP), life(UP, alive=False, exit_reason="signal 9"))
    assert notice.detail["error"] == "signal 9"


def test_a_silent_agent_has_said_what_it_said_last() -> None:
    now = seen([replica("r1")], {}, life(UP))
    assert now == life(UP)
    assert list(noticed(life(UP), now)) == []


async def kinds(control: Control, who: Principal) -> list[str]:
    page = await events.listing(control, who, Wanted(), None, 1000)
    return [event.kind for event in page.data if event.kind.startswith(("replica_", "agent_", "engine_"))]


async def test_they_are_events_of_the_instance(
    world: World, control: Control, who: Principal, fleet: FakeFleet
) -> None:
    made = await world.launched(control, who)
    await until(control, lambda: kinds(control, who), lambda k: k[-1:] == ["replica_ready"])
    fleet.only.crash_engine()
    await until(control, lambda: kinds(control, who), lambda k: k[-1:] == ["engine_down"])
    fleet.only.engine_is_back()
    await until(control, lambda: kinds(control, who), lambda k: k[-1:] == ["replica_ready"])
    fleet.kill(fleet.only)
    await until(control, lambda: kinds(control, who), lambda k: k[-1:] == ["agent_down"])
    world.clock.ahead += 60  # it is not begun anew at once
    told = await until(
        control, lambda: kinds(control, who), lambda k: k[-1:] == ["replica_ready"] and "agent_down" in k
    )
    assert told[:4] == ["replica_added", "replica_ready", "engine_down", "replica_ready"]
    assert told[4] == "agent_down"
    assert sorted(told[5:7]) == ["replica_added", "replica_removed"]
    page = await events.listing(control, who, Wanted(f"instance:{made.id}", ("agent_down",)), None, 10)
    assert len(page.data) == 1


async def test_the_next_control_tells_nothing_twice(world: World, who: Principal, control: Control) -> None:
    await world.launched(control, who)
    told = await until(control, lambda: kinds(control, who), lambda k: k[-1:] == ["replica_ready"])
    await control.controller.release()
    async with world.control("second") as second:
        world.clock.ahead += 60
        await until(second, lambda: _leads(second), bool)
        assert await kinds(second, who) == told


async def _leads(control: Control) -> bool:
    return control.controller._lease is not None
