"""`pillion agent --replica-dir DIR`: the agent as a process."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import hashlib
import random
import secrets
import signal
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

from pillion.agent import processes
from pillion.agent.agent import Agent, Parts
from pillion.agent.home import AlreadyRunningError, Home
from pillion.agent.logs import bound
from pillion.agent.supervisor import Timing
from pillion.artifacts.fetch import fetch
from pillion.core.errors import PillionError
from pillion.core.replica import ReplicaSpec
from pillion.core.spans import NoSpans, Spans, TraceTo
from pillion.engines.driver import Launch, driver
from pillion.engines.environments import EngineEnvironments

# A batch on a CPU: thousands of tokens of prompts, at some hundred a second.
CPU_PROBE_S = 30.0
AGENT_LOG_BYTES = 4 * 1024 * 1024
FAILED, BUSY = 1, 75
SILENT = contextlib.nullcontext(NoSpans())

SpansTo = Callable[[TraceTo], AbstractContextManager[Spans]]


def run(directory: Path, spans_to: SpansTo = lambda _: SILENT) -> int:
    """Serves the replica in `directory` until it is stopped; the exit status.

    75 where another agent serves it. SIGTERM ends the engine too; an agent that is killed leaves it running,
    and the next one in this directory adopts it. `spans_to` a collector: until it is left.
    """
    home = Home(directory)
    try:
        spec = home.spec()
        with home.lock():
            bound(home.directory / "agent.log", AGENT_LOG_BYTES)
            with SILENT if spec.traces is None else spans_to(spec.traces) as spans:
                asyncio.run(_serve(home, spec, spans))
    except AlreadyRunningError as error:
        print(f"error: {error.message}", file=sys.stderr)
        return BUSY
    except PillionError as error:
        print(f"error: {error.message}", file=sys.stderr)
        return FAILED
    return 0


async def _serve(home: Home, spec: ReplicaSpec, spans: Spans) -> None:
    if home.is_ending():
        return await _end(home)
    engine = driver(spec.group.engine)
    agent = Agent(
        home,
        spec,
        Parts(
            driver=engine,
            launch=lambda port: _launch(home, spec, port),
            fetch=functools.partial(_fetch, spec),
            epoch=secrets.token_hex(8),
            now=time.time,
            random=random.random,
            timing=timing(spec),
            spans=spans,
        ),
    )
    ends: set[asyncio.Task[None]] = set()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(
            number, lambda: ends.add(asyncio.ensure_future(agent.stop(0.0)))
        )
    await agent.run()


def timing(spec: ReplicaSpec) -> Timing:
    """How long this replica's engine may be silent."""
    on_cpu = spec.group.gpu_type == "cpu" and spec.group.engine != "sim"
    return Timing(probe_timeout_s=CPU_PROBE_S) if on_cpu else Timing()


async def _end(home: Home) -> None:
    """An agent that died before it could end its engine left that to this one."""
    engine = processes.adopt(home)
    if engine is not None:
        await engine.end(Timing().stop_grace_s)
    home.remove("engine.json")


async def _fetch(spec: ReplicaSpec, digest: str) -> Path:
    return await fetch(spec.artifacts, digest, Path(spec.cache_dir))


def _launch(home: Home, spec: ReplicaSpec, port: int) -> Launch:
    python = engine_python(spec.group.engine, spec.group.gpu_type)
    if spec.group.engine != "sim":
        python = through(home.data_dir / "cache" / "engines", python)
    return driver(spec.group.engine).command(spec, port, python, home.data_dir)


def through(links: Path, python: Path) -> Path:
    """The same interpreter by a path under `links`: an engine's helpers show no arguments but that path."""
    environment = python.parent.parent.resolve()
    links.mkdir(parents=True, exist_ok=True)
    link = links / f"{environment.name}-{hashlib.sha256(str(environment).encode()).hexdigest()[:8]}"
    with contextlib.suppress(FileExistsError):  # by another agent of this node, or by this one before
        link.symlink_to(environment, target_is_directory=True)
    return link / "bin" / python.name


def engine_python(engine: str, gpu_type: str) -> Path:
    """The interpreter of an engine's environment on this node. Raises `EngineNotInstalledError`."""
    if engine == "sim":
        return Path(sys.executable)
    return EngineEnvironments().python(f"{engine}-cpu" if gpu_type == "cpu" else engine)
