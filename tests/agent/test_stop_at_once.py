"""SIGTERM that comes before the agent listens."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from pillion.agent.agent import Agent, Parts
from pillion.agent.home import EngineRecord
from pillion.engines.driver import Launch
from tests.agent.conftest import QUICK, home_of
from tests.replicas import Node


class Engine:
    exit_status = None

    def __init__(self, pid: int) -> None:
        self.record, self.running = EngineRecord(pid, str(pid), 9, 1), True

    def alive(self) -> bool:
        return self.running

    async def end(self, grace_s: float) -> None:
        self.running = False


class Machine:
    """Where one engine of the agent before this one runs."""

    def __init__(self) -> None:
        self.engines = [Engine(1)]

    def adopt(self, home: Any) -> Engine | None:
        return self.engines[0] if home.read("engine.json", EngineRecord) else None

    def start(self, launch: Any, home: Any, port: int, epoch: int) -> Engine:
        self.engines.append(Engine(2))
        home.write("engine.json", self.engines[-1].record)
        return self.engines[-1]


async def test_leaves_no_engine(node: Node, tmp_path: Path) -> None:
    machine, spec = Machine(), node.spec()
    home = home_of(node, spec)
    home.write("engine.json", machine.engines[0].record)
    parts = Parts(
        driver=SimpleNamespace(stage=lambda line: None),
        launch=lambda port: Launch((), {}),
        fetch=node.fetch,
        epoch="1",
        now=time.time,
        random=lambda: 0.0,
        timing=QUICK,
        processes=machine,
    )
    agent = Agent(home, spec, parts)
    running = asyncio.create_task(agent.run())
    stopping = asyncio.create_task(agent.stop(0.0))
    async with asyncio.timeout(10):
        await asyncio.gather(running, stopping)
    assert [engine.running for engine in machine.engines] == [False]
    assert home.read("engine.json", EngineRecord) is None
