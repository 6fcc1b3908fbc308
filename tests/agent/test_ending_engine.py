"""An engine that is being ended when its agent is told to stop."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path
from types import SimpleNamespace

from pillion.agent.home import EngineRecord, Home
from pillion.agent.supervisor import Supervisor
from tests.agent.conftest import QUICK
from tests.replicas import replica_spec


class Stubborn:
    """A process that takes no notice of being asked to end, only of being made to, in the second call."""

    record, exit_status = EngineRecord(1, "1", 1, 1), None

    def __init__(self) -> None:
        self.ending, self.gone = asyncio.Event(), False

    def alive(self) -> bool:
        return not self.gone

    async def end(self, grace_s: float) -> None:
        if not self.ending.is_set():
            self.ending.set()
            await asyncio.Event().wait()
        self.gone = True


async def test_it_is_ended_all_the_same(tmp_path: Path) -> None:
    """Nobody would know of it any more."""
    parts, engine = SimpleNamespace(), Stubborn()
    made = Supervisor(Home(tmp_path), replica_spec(), *[parts] * 5, QUICK, parts)  # type: ignore[arg-type]
    made._process = engine
    ending = asyncio.create_task(made._end(10.0))
    await engine.ending.wait()
    ending.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await ending
    await made.stop()
    assert engine.gone
