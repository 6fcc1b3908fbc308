"""How an engine that is busy is told from one that hangs."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from pillion.agent.command import timing as timing_of
from pillion.agent.home import Home
from pillion.agent.supervisor import Supervisor, Timing
from tests.replicas import replica_spec


class Busy:
    """An engine in a step that does not end: it says that it is well as long as it `is_well`, and not what it holds."""

    def __init__(self) -> None:
        self.is_well, self.looks, self.asked = True, 0, 0
        self.done = asyncio.Event()

    async def healthy(self, timeout_s: float) -> bool:
        self.looks += 1
        return self.is_well

    async def state(self) -> str:
        self.asked += 1
        await self.done.wait()
        return "state"


@pytest.mark.parametrize("well", [True, False])
async def test_a_long_step_is_no_hang_as_long_as_the_engine_is_well(tmp_path: Path, well: bool) -> None:
    engine, seen, parts = Busy(), list[str](), SimpleNamespace()
    board = SimpleNamespace(post=lambda **_: None)
    residents = SimpleNamespace(rows=dict, observe=lambda _, state: seen.append(state))
    timing = replace(Timing(), poll_s=0.001, probe_s=0.001, probe_timeout_s=30.0)
    given: list[Any] = [parts, parts, board, residents, parts, timing, parts]
    made = Supervisor(Home(tmp_path), replica_spec(), *given)
    process: Any = SimpleNamespace(alive=lambda: True)
    watching = asyncio.create_task(made._watch(process, engine))  # type: ignore[arg-type]
    async with asyncio.timeout(20):
        while engine.looks < 20:
            await asyncio.sleep(0)
        assert (engine.asked, watching.done()) == (1, False)
        if not well:
            engine.is_well = False
            assert (await watching).code == "engine_hung"
            return
        engine.done.set()
        while len(seen) < 2:
            await asyncio.sleep(0)
    watching.cancel()
    await asyncio.wait([watching])


def test_a_batch_may_take_longer_on_a_cpu() -> None:
    sim = replica_spec()
    on_cpu = msgspec.structs.replace(sim, group=msgspec.structs.replace(sim.group, engine="vllm"))
    on_gpu = msgspec.structs.replace(on_cpu, group=msgspec.structs.replace(on_cpu.group, gpu_type="H100"))
    assert timing_of(sim) == timing_of(on_gpu) == Timing()
    assert timing_of(on_cpu).probe_timeout_s * Timing().misses > 60
