import asyncio
import contextlib
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from pillion.agent.agent import Agent, Parts
from pillion.agent.home import EngineRecord, Home
from pillion.agent.processes import identity
from pillion.agent.supervisor import Timing
from pillion.core.replica import AgentRecord, ReplicaSpec
from pillion.engines.driver import driver
from tests.replicas import AgentClient, Node, http

QUICK = Timing(
    poll_s=0.02,
    probe_s=0.05,
    health_timeout_s=0.5,
    probe_timeout_s=0.5,
    misses=2,
    stop_grace_s=5,
    steady_s=3600,
)
Serving = Callable[..., AbstractAsyncContextManager[AgentClient]]


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


def home_of(node: Node, spec: ReplicaSpec) -> Home:
    directory = node.data_dir / "replicas" / spec.id
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "spec.json").write_bytes(msgspec.json.encode(spec))
    return Home(directory)


@pytest.fixture
def serving(node: Node) -> Serving:
    """An agent in this event loop, with a sim as a process. Left, the engine runs on unless `keep` is false."""

    @asynccontextmanager
    async def serve(
        *, timing: Timing = QUICK, keep: bool = False, **changes: Any
    ) -> AsyncIterator[AgentClient]:
        spec = node.spec(**changes)
        home = home_of(node, spec)
        engine = driver("sim")
        parts = Parts(
            driver=engine,
            launch=lambda port: engine.command(spec, port, Path(sys.executable), node.data_dir),
            fetch=node.fetch,
            epoch=os.urandom(4).hex(),
            now=time.time,
            random=lambda: 0.0,
            timing=timing,
            first_backoff_s=0.05,
        )
        home.remove("agent.json")
        agent = Agent(home, spec, parts)
        running = asyncio.create_task(agent.run())
        try:
            async with http() as session, asyncio.timeout(60):
                yield AgentClient(session, await _url(home, running), spec)
        finally:
            running.cancel()
            try:
                with contextlib.suppress(asyncio.CancelledError):
                    await running
            finally:
                if not keep:
                    end_engine(home)

    return serve


def end_engine(home: Home) -> None:
    record = home.read("engine.json", EngineRecord)
    if record is not None and identity(record.pid) == record.identity:
        os.kill(record.pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(record.pid, 0)


async def _url(home: Home, running: "asyncio.Task[None]") -> str:
    while not running.done():
        record = home.read("agent.json", AgentRecord)
        if record is not None:
            return record.url
        await asyncio.sleep(0.01)
    running.result()
    raise AssertionError("the agent ended")
