"""Who is cancelled while it waits for the end of another does end."""

import asyncio
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pillion.agent.endings import end
from pillion.agent.home import Home
from pillion.agent.supervisor import Supervisor
from tests.agent.conftest import QUICK
from tests.replicas import replica_spec


class Slow:
    """What takes its time once it is cancelled."""

    def __init__(self) -> None:
        self.begun, self.cancelled, self.may_end = (asyncio.Event() for _ in range(3))

    async def work(self, *_: Any) -> bool:
        self.begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            self.cancelled.set()
            await self.may_end.wait()
        return True


async def test_it_waits_for_all_and_for_their_failures() -> None:
    slow = Slow()
    tasks = [asyncio.create_task(slow.work()), asyncio.create_task(asyncio.sleep(0))]
    await slow.begun.wait()
    slow.may_end.set()
    await end(tasks)
    assert all(task.done() for task in tasks)
    await end([])


async def test_who_waits_for_ends_may_be_cancelled() -> None:
    slow = Slow()
    task = asyncio.create_task(slow.work())
    await slow.begun.wait()
    waiting = asyncio.create_task(end([task]))
    await slow.cancelled.wait()
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(waiting, 30)
    slow.may_end.set()
    await asyncio.wait({task})


async def test_a_supervisor_told_to_stop_while_its_engine_dies_stops(tmp_path: Path) -> None:
    """It starts no other."""
    slow, parts = Slow(), SimpleNamespace()
    made = Supervisor(Home(tmp_path), replica_spec(), *[parts] * 5, replace(QUICK, probe_s=0.0), parts)  # type: ignore[arg-type]
    process = SimpleNamespace(alive=lambda: not slow.begun.is_set(), exit_status=-9)
    client = SimpleNamespace(healthy=slow.work)
    watching = asyncio.create_task(made._watch(process, client))  # type: ignore[arg-type]
    await slow.cancelled.wait()
    watching.cancel()
    slow.may_end.set()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(watching, 30)
