"""One replica's agent, put together: its engine, its residents, its API."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import structlog
from aiohttp import web

from pillion.agent import processes
from pillion.agent.api import Keys, application, check_newer
from pillion.agent.backoff import Backoff
from pillion.agent.board import Board
from pillion.agent.endings import end
from pillion.agent.home import Home
from pillion.agent.loading import Loading
from pillion.agent.metrics import Metrics
from pillion.agent.permitted import Permitted
from pillion.agent.processes import Processes
from pillion.agent.residents import Fetch, Residents
from pillion.agent.supervisor import Supervisor, Timing
from pillion.agent.tidy import Tidy
from pillion.agent.traces import Traces
from pillion.core.errors import PillionError
from pillion.core.permits import Permit, PermitRefusedError, Terms, check, opened
from pillion.core.replica import AgentRecord, Grant, ReplicaSpec, Residency
from pillion.core.spans import Carried, NoSpans, Spans
from pillion.engines.driver import EngineDriver, Launch, slots

STOP_POLL_S = 0.05
DRAIN_GRACE_S = 15.0
LAST_LOOK_S = 0.2

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Parts:
    """What an agent is given: `epoch` names this life of it, `now` is in seconds since the epoch."""

    driver: EngineDriver
    launch: Callable[[int], Launch]
    fetch: Fetch
    epoch: str
    now: Callable[[], float]
    random: Callable[[], float]
    timing: Timing = field(default_factory=Timing)
    first_backoff_s: float = 0.5
    processes: Processes = processes
    spans: Spans = field(default_factory=NoSpans)


class Agent:
    """Serves the replica in `home`. The directory's lock is the caller's to hold."""

    def __init__(self, home: Home, spec: ReplicaSpec, parts: Parts) -> None:
        self._home, self._spec, self._now, self._spans = home, spec, parts.now, parts.spans
        self.board = Board(spec, parts.epoch, parts.now)
        self.metrics = Metrics(self.board)
        backoff = Backoff(parts.random, parts.first_backoff_s)
        self._permitted = Permitted(home)
        traces, loading = Traces(parts.spans, spec.id), Loading(parts.fetch)
        self._residents = Residents(
            slots(spec), loading, backoff, parts.now, self._publish, self._permitted, traces
        )
        self._supervisor = Supervisor(
            home,
            spec,
            parts.driver,
            parts.launch,
            self.board,
            self._residents,
            backoff,
            parts.timing,
            parts.processes,
        )
        self._tidy = Tidy(home, Path(spec.cache_dir), spec.cache_bytes, time.time)
        self._stopped = asyncio.Event()
        self._stopping: asyncio.Task[None] | None = None
        self._tasks: list[asyncio.Task[None]] = []

    async def run(self) -> None:
        """Until `stop` has ended the engine. Cancelled, it leaves the engine running, for the next agent."""
        known = self._home.read("grant.json", Grant)
        if known is not None:
            self._residents.resume(known)
        self._supervisor.adopt()
        runner = await self._listen()
        if self._stopping is None:  # a signal may have come before
            self._tasks = [
                asyncio.create_task(self._residents.run()),
                asyncio.create_task(self._permitted.run()),
                asyncio.create_task(self._tidy.run()),
                asyncio.create_task(self._supervisor.run()),
            ]
        stopped = asyncio.create_task(self._stopped.wait())
        try:
            done, _ = await asyncio.wait({stopped, *self._tasks}, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                if not task.cancelled():
                    task.result()  # none of them ends by itself: if one did, its error is ours
            await asyncio.sleep(LAST_LOOK_S)  # the answer to `stop`, and the last status, still go out
        finally:
            await _cancel([stopped, *self._tasks])
            await self._residents.detach()
            await runner.cleanup()

    async def stop(self, drain_s: float) -> None:
        """Drains for `drain_s` at most, ends the engine, and lets `run` return. Calls beside each other share it."""
        if self._stopping is None:
            self._stopping = asyncio.create_task(self._stop(drain_s))
        await asyncio.shield(self._stopping)

    def accept(self, grant: Grant, of: Carried) -> None:
        """Puts a grant in force, on disk first. Raises `PillionError` for one that is old or another's."""
        check_newer(grant, self._spec.id, self._residents.grant.version)
        self._home.write("grant.json", grant)
        self._residents.accept(grant, of)

    async def load(self, signed: bytes, of: Carried) -> float:
        """Loads on demand what a permit is for, where it is not there; milliseconds that took.

        Raises `PermitRefusedError`, and what `Residents.left` and `ask` do.
        """
        permit = self._permit(signed)
        told = {"pillion.replica": self._spec.id, "pillion.adapter": permit.adapter_id}
        span, error = self._spans.begin("ensure", of, told), "cancelled"
        try:
            await self._residents.left(permit.entry.engine_name)
            self._permit(signed)  # another grant may be in force by now
            took, error = await self._residents.ask(permit.entry, span.carried), ""
        except PillionError as failure:
            error = failure.code
            raise
        finally:
            span.end(error or None)
        return took

    def _permit(self, signed: bytes) -> Permit:
        """Raises `PermitRefusedError` where it is good for nothing under the grant in force."""
        group, grant = self._spec.group, self._residents.grant
        if grant.on_demand is None or not group.lora.on_demand:
            raise PermitRefusedError("this replica loads nothing on demand.")
        permit = opened(signed, grant.on_demand.key)
        terms = Terms(grant.on_demand.account, group.model.name, group.region, group.lora.max_rank)
        check(permit, terms, self._now())
        if permit.entry.engine_name in grant.drop:
            raise PermitRefusedError(f"{permit.adapter_id} may not be loaded here any more.")
        return permit

    async def _stop(self, drain_s: float) -> None:
        self.board.post(stage="stopping", ready=False, detail=f"draining for {drain_s:g} s at most")
        log.info("stopping", drain_s=drain_s)
        if drain_s > 0:
            await self._drain(drain_s)
        await _cancel(self._tasks)
        await self._residents.detach()
        await self._supervisor.stop()
        self.board.post(stage="stopped", engine_url=None, detail="")
        self._stopped.set()

    async def _drain(self, drain_s: float) -> None:
        deadline = asyncio.get_running_loop().time() + drain_s
        try:
            async with asyncio.timeout(drain_s + DRAIN_GRACE_S):
                await self._residents.drain(drain_s)
        except TimeoutError:
            log.error("drain_incomplete", adapters=len(self.board.status.adapters))
        while asyncio.get_running_loop().time() < deadline and not await self._supervisor.idle():  # noqa: ASYNC110
            await asyncio.sleep(STOP_POLL_S)

    def _publish(self, version: int, adapters: tuple[Residency, ...]) -> None:
        self.metrics.changed(self.board.status.adapters, adapters)
        self.board.post(grant_version=version, adapters=adapters)

    async def _listen(self) -> web.AppRunner:
        keys = Keys(self._spec.agent_token, self._spec.load_key)
        app = application(self.board, self._home, keys, self.accept, self.stop, self.load, self.metrics.text)
        runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=1.0)
        await runner.setup()
        site = web.TCPSite(runner, self._spec.host, 0)
        await site.start()
        port = runner.addresses[0][1]
        me = psutil.Process(os.getpid())
        url = f"http://{self._spec.host}:{port}"
        self._home.write("agent.json", AgentRecord(me.pid, me.create_time(), url, self._now()))
        log.info("agent_listens", url=url)
        return runner


async def _cancel(tasks: Iterable[asyncio.Task[Any]]) -> None:
    await end(task for task in tasks if task is not asyncio.current_task())
