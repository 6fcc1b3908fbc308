"""Keeps one engine running: starts or adopts it, waits until it answers, watches it, starts it again."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from dataclasses import dataclass

import structlog

from pillion.agent.backoff import Backoff
from pillion.agent.board import Board
from pillion.agent.endings import end
from pillion.agent.home import EngineRecord, Home
from pillion.agent.loading import Engine
from pillion.agent.logs import NewLines, bound, tail
from pillion.agent.processes import Process, Processes, free_port
from pillion.agent.proof import Prover
from pillion.agent.residents import Residents
from pillion.core.errors import PillionError
from pillion.core.replica import Failure, ReplicaSpec
from pillion.engines.client import EngineClient, EngineError, EngineState
from pillion.engines.driver import EngineDriver, Launch

HUNG = "engine_hung"
_ERROR = re.compile(r"(?:^|\s)(?:[\w.]*(?:Error|Exception)|error): ")

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Timing:
    """All in seconds. An engine that misses `misses` probes in a row hangs: it did not answer for its health within
    `health_timeout_s`, or did not say what it holds within `probe_timeout_s`, which may take as long as a batch: its health
    is asked for meanwhile.

    `steady_s`: an engine that ran as long as this before it died is started again without delay. After
    `patience` starts in a row that came to nothing the stage is `failed`; it is still tried, at the longest
    delay.
    """

    poll_s: float = 0.1
    probe_s: float = 2.0
    health_timeout_s: float = 3.0
    probe_timeout_s: float = 5.0
    misses: int = 3
    start_timeout_s: float = 3600.0
    stop_grace_s: float = 10.0
    steady_s: float = 30.0
    patience: int = 3


class Supervisor:
    """`launch` says how to start the engine on a port, `processes` starts it."""

    def __init__(
        self,
        home: Home,
        spec: ReplicaSpec,
        driver: EngineDriver,
        launch: Callable[[int], Launch],
        board: Board,
        residents: Residents,
        backoff: Backoff,
        timing: Timing,
        processes: Processes,
    ) -> None:
        self._home, self._spec, self._driver, self._launch = home, spec, driver, launch
        self._board, self._residents, self._backoff, self._timing = board, residents, backoff, timing
        self._processes = processes
        self._process: Process | None = None
        self._client: EngineClient | None = None

    def adopt(self) -> None:
        """Takes the engine that an agent before this one left running as ours, to watch or to end. Before all else."""
        self._process = self._processes.adopt(self._home)

    async def run(self) -> None:
        """Until cancelled. The engine then runs on: `stop` ends it."""
        failures = 0
        adopted = self._process is not None
        while True:
            started = asyncio.get_running_loop().time()
            failure = await self._live(adopted)
            adopted = False
            ran = asyncio.get_running_loop().time() - started
            failures = 1 if ran > self._timing.steady_s else failures + 1
            self._fell(failure, failures)
            await self._residents.detach()
            # One that hangs would not end by itself, or with an error for each request, which another could answer.
            await self._end(0.0 if failure.code == HUNG else self._timing.stop_grace_s)
            await asyncio.sleep(0 if ran > self._timing.steady_s else self._backoff.delay(failures))

    async def stop(self) -> None:
        """Ends the engine. Call it when `run` has been cancelled."""
        await self._end(self._timing.stop_grace_s)
        self._home.remove("engine.json")

    async def idle(self) -> bool:
        """Whether nothing is in flight in the engine; an engine that is not up has nothing in flight."""
        if self._client is None or not self._board.status.ready:
            return True
        try:
            return (await self._client.state()).base.inflight == 0
        except EngineError:
            return True

    async def _live(self, adopted: bool) -> Failure:
        """One life of an engine, to its end: why it ended."""
        try:
            process = self._process if adopted else self._start()
            if process is None:
                raise RuntimeError("there is no engine to adopt")
        except (PillionError, OSError) as error:
            return Failure(
                error.code if isinstance(error, PillionError) else "engine_start_failed", str(error)
            )
        self._process = process
        client = EngineClient(f"http://{self._spec.host}:{process.record.port}", self._spec.engine_key)
        self._client = client
        try:
            async with asyncio.timeout(self._timing.start_timeout_s):
                failure = await self._come_up(process, client)
            return failure or await self._watch(process, client)
        except TimeoutError:
            return Failure("engine_start_timeout", f"not up after {self._timing.start_timeout_s:g} s")
        finally:
            self._client = None
            await client.close()

    def _start(self) -> Process:
        before = self._home.read("engine.json", EngineRecord)
        epoch = before.epoch + 1 if before else 1
        port = free_port(self._spec.host)
        launch = self._launch(port)
        self._bound_log()
        process = self._processes.start(launch, self._home, port, epoch)
        log.info("engine_started", pid=process.record.pid, port=port, epoch=epoch)
        self._board.post(stage="starting", engine_epoch=epoch, detail="the engine's process was started")
        return process

    async def _come_up(self, process: Process, client: EngineClient) -> Failure | None:
        """Waits for health and warms the base up. Only the gate of our own engine takes our key: no other will do."""
        new = NewLines(self._home.engine_log, from_end=True)
        while not await client.healthy(self._timing.health_timeout_s):
            self._read_stages(new)
            if not process.alive():
                return self._exited(process)
            await asyncio.sleep(self._timing.poll_s)
        try:
            state = await client.state()
            prover = Prover(client, state.base.name)
            if self._board.status.slots:
                self._board.post(stage="warming", detail="measuring the base's own noise")
                await prover.baseline()
        except EngineError as error:
            return Failure(error.code, error.message) if process.alive() else self._exited(process)
        self._residents.attach(Engine(client, prover), state)
        self._board.post(
            stage="ready",
            ready=True,
            detail="",
            failure=None,
            engine_epoch=process.record.epoch,
            engine_url=client.url,
            engine=_facts(state, process),
        )
        log.info("engine_ready", url=client.url, epoch=process.record.epoch)
        return None

    async def _watch(self, process: Process, client: EngineClient) -> Failure:
        loop, missed = asyncio.get_running_loop(), 0
        due = loop.time() + self._timing.probe_s
        probe = asyncio.create_task(self._probe(client, due))
        try:
            while True:
                await asyncio.wait({probe}, timeout=self._timing.poll_s)
                if not process.alive():
                    return self._exited(process)
                if not probe.done():
                    continue
                missed = 0 if probe.result() else missed + 1
                if missed >= self._timing.misses:
                    return Failure(HUNG, f"the engine missed {missed} health probes in a row")
                told = f"it missed {missed} of {self._timing.misses} health probes in a row" if missed else ""
                self._board.post(detail=told)
                self._bound_log()
                due = max(loop.time(), due + self._timing.probe_s)
                probe = asyncio.create_task(self._probe(client, due))
        finally:
            await end([probe])

    async def _probe(self, client: EngineClient, due: float) -> bool:
        """When it is due by the loop's clock, asks how the engine is and what it holds."""
        await asyncio.sleep(due - asyncio.get_running_loop().time())
        if not await client.healthy(self._timing.health_timeout_s):
            return False
        before, asking = self._residents.rows(), asyncio.ensure_future(client.state())
        try:
            async with asyncio.timeout(self._timing.probe_timeout_s):
                while not (await asyncio.wait({asking}, timeout=self._timing.probe_s))[0]:
                    if not await client.healthy(self._timing.health_timeout_s):
                        return False
            state = asking.result()
        except (EngineError, TimeoutError) as error:
            log.error("engine_state_unknown", error=str(error))
            return False
        finally:
            await end([asking])
        self._residents.observe(before, state)
        return True

    def _bound_log(self) -> None:
        """A disk that is full ends neither the engine nor its agent."""
        try:
            bound(self._home.engine_log)
        except OSError as error:
            log.error("log_not_bounded", error=str(error))

    def _read_stages(self, new: NewLines) -> None:
        for line in new.read():
            stage = self._driver.stage(line)
            if stage is not None:
                self._board.post(stage=stage, detail=line.strip()[-200:])

    def _fell(self, failure: Failure, failures: int) -> None:
        hopeless = failures >= self._timing.patience
        log.error("engine_down", code=failure.code, error=failure.message, failures=failures)
        self._board.post(
            stage="failed" if hopeless else "restarting",
            ready=False,
            engine_url=None,
            detail=failure.message,
            failure=failure,
            restarts=self._board.status.restarts + 1,
        )

    def _exited(self, process: Process) -> Failure:
        status = process.exit_status
        if status is not None and status < 0:  # it had no time for last words
            return Failure("engine_exited", f"the engine was killed by signal {-status}")
        how = "ended" if status is None else f"exited with {status}"
        said = _last_words(tail(self._home.engine_log, 200))
        return Failure("engine_exited", f"the engine {how}" + (f": {said}" if said else ""))

    async def _end(self, grace_s: float) -> None:
        if self._process is not None:
            await self._process.end(grace_s)
        self._process = None  # not before: whoever is cancelled here leaves the rest to `stop`


def _facts(state: EngineState, process: Process) -> dict[str, object]:
    return {
        "name": state.engine,
        "version": state.engine_version,
        "max_requests": state.max_requests,
        "lora": state.plugin.lora,
        "reason": state.plugin.reason,
        "plugin_version": state.plugin.version,
        "pid": process.record.pid,
    }


def _last_words(lines: list[str]) -> str:
    """The last error the log speaks of, else its last line."""
    errors = [line for line in lines if _ERROR.search(line)]
    last = (errors or [line for line in lines if line.strip()] or [""])[-1]
    return last.strip()[-300:]
