"""Converges the adapters in one engine to the last grant and to what is asked for, also while control is away."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import structlog

from pillion.agent.asks import LASTING_S, Asks, LoadFailedError
from pillion.agent.backoff import Backoff
from pillion.agent.demand import Interest
from pillion.agent.loading import Engine, Loaded, Loading, failure_of
from pillion.agent.permitted import Permitted
from pillion.agent.traces import Traces
from pillion.core.errors import NoRoomError, UnavailableError
from pillion.core.replica import Grant, GrantEntry, Residency
from pillion.core.residency import Action, Evict, Load, Refuse, Table, evictable, expired, plan
from pillion.core.spans import Carried
from pillion.engines.client import EngineError, EngineState, Requests

Fetch = Callable[[str], Awaitable[Path]]
# So long who asks for what is leaving waits for control, which alone lets it come back.
LEAVING_S = 60.0
log = structlog.get_logger(__name__)


@dataclass
class _Trials:
    """Failures in a row of one version that may pass, and when it is tried again (seconds since the epoch)."""

    count: int
    due: float


@dataclass
class _Attached:
    """The engine that is up now, and what is being done with it."""

    engine: Engine
    tasks: dict[str, asyncio.Task[None]] = field(default_factory=dict)
    draining: dict[str, float] = field(default_factory=dict)


class Residents:
    """The residency of one replica. `publish` is told of every change; `now` in seconds since the epoch."""

    def __init__(
        self,
        slots: int,
        loading: Loading,
        backoff: Backoff,
        now: Callable[[], float],
        publish: Callable[[int, tuple[Residency, ...]], None],
        permitted: Permitted,
        traces: Traces,
    ) -> None:
        self._slots, self._loading, self._backoff = slots, loading, backoff
        self._now, self._publish, self._permitted = now, publish, permitted
        self._traces = traces
        self._asks, self._interest = Asks(backoff, now), Interest(slots)
        self._looking: asyncio.Task[None] | None = None
        self._granting = asyncio.Event()
        self._grant = Grant("", 0, ())
        self._last_drain_s: float | None = None
        self._table = Table()
        self._trials: dict[str, _Trials] = {}
        self._asked: set[str] = set()
        self._attached: _Attached | None = None
        self._wake = asyncio.Event()
        self._broke: BaseException | None = None

    @property
    def grant(self) -> Grant:
        return self._grant

    def resume(self, grant: Grant) -> None:
        """The grant that was in force when the agent before this one ended."""
        self._grant = grant
        self._wake.set()

    def accept(self, grant: Grant, of: Carried) -> None:
        """Takes a grant as the one to converge to. Failures it names in `retry` are forgotten.

        Loads that are new in it are asked for: room is made for them once.
        """
        if self._last_drain_s is not None:  # this replica is about to end
            grant = _emptied(grant, self._last_drain_s)
        before = {entry.engine_name for entry in self._grant.entries}
        after = {entry.engine_name for entry in grant.entries}
        self._traces.asked((before ^ after).union(grant.retry), of)
        self._grant = grant
        self._granting.set()
        self._granting = asyncio.Event()
        self._asked |= {entry.engine_name for entry in grant.entries if evictable(entry)} - before
        self._asked |= set(grant.retry)
        self._permitted.drop(self._granted())
        self._permitted.drop(grant.drop)
        if grant.on_demand is None:
            self._permitted.clear()
        for name in grant.retry:
            self._trials.pop(name, None)
        draining = self._draining()
        for name in draining:
            if grant.drain_s(name) < draining[name]:
                draining[name] = grant.drain_s(name)
                self._do(f"{name} in {draining[name]:g} s", self._take_out(name, draining[name]))
        self._wake.set()

    async def left(self, name: str) -> None:
        """Waits while it is leaving: control waits until it is gone before it may come back.

        Raises `UnavailableError` where that takes long.
        """
        try:
            async with asyncio.timeout(LEAVING_S):
                while name in self._grant.leaving:
                    await self._granting.wait()
        except TimeoutError as error:
            raise UnavailableError("it is leaving this replica.", retry_after=2.0) from error

    async def ask(self, entry: GrantEntry, of: Carried) -> float:
        """Loads it, where it is not there; milliseconds that took, 0.0 where it was there. All who ask share one load.

        Raises `UnavailableError` (the engine is not up), `NoRoomError`, `LoadFailedError`.
        """
        name = entry.engine_name
        row = self._table.rows.get(name)
        if row is not None and row.state == "failed" and row.failure is not None:
            due = self._trials[name].due - self._now() if name in self._trials else LASTING_S
            raise LoadFailedError(row.failure.message, code=row.failure.code, retry_after=max(0.0, due))
        self._asks.check(name)
        if not self._here(name) and self._table.occupied() >= self._slots - 1:
            await self._look()
        if self._attached is None:
            raise _not_up()
        if name not in self._granted():
            self._permitted.add(entry)
        if self._here(name):
            return 0.0
        if name not in self._asks.names:
            self._traces.asked([name], of)
        self._wake.set()
        return await self._asks.wait(name)

    def attach(self, engine: Engine, state: EngineState) -> None:
        """An engine is up, and holds what `state` says.

        What is open there was proved before and stays as it is. What is closed was being loaded or drained when the
        agent before this one died: if it is wanted it is loaded again, which costs the engine nothing.
        """
        wanted = self._wanted()
        failed = (row for row in self._table.rows.values() if row.state == "failed")
        held = (a.name for a in state.adapters if a.resident and (a.open or a.name not in wanted))
        self._table = Table([*failed, *(Residency(name, "loaded", self._now()) for name in held)])
        self._attached = _Attached(engine)
        self._show()  # before it is told that the engine is up: nothing of the one before is there
        self._wake.set()

    async def detach(self) -> None:
        """The engine is gone, and all that it held."""
        attached, self._attached = self._attached, None
        if attached is not None:
            tasks = list(attached.tasks.values())
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        self._table.engine_lost(self._now())
        self._asks.refuse_all(_not_up())
        for name in self._trials:  # what failed may well have failed because the engine was about to
            self._table.forget(name)
        self._trials.clear()
        self._show()

    def observe(self, before: dict[str, Residency], state: EngineState) -> None:
        """Corrects the table by what the engine said. `before`: `rows()` from before it was asked.

        Versions that moved in the meantime are left out. One that the engine lost is loaded again; one that it holds
        and should not is taken out.
        """
        held = {adapter.name: adapter for adapter in state.adapters}
        for name, row in before.items():
            if self._table.rows.get(name) is not row or row.state != "loaded":
                continue
            adapter = held.get(name)
            if adapter is None or not (adapter.open and adapter.resident):
                log.error("adapter_lost", adapter=name)
                self._table.begin_unload(name, self._now())
                self._table.unloaded(name, self._now())
        for name in held:
            now = self._table.rows.get(name)
            if now is before.get(name) and (now is None or now.state in ("failed", "registered")):
                self._do(name, self._take_out(name, 0.0))
        self._counted({a.name: Requests(a.inflight, a.requests) for a in state.adapters})
        self._wake.set()

    def rows(self) -> dict[str, Residency]:
        return dict(self._table.rows)

    async def run(self) -> None:
        """Converges until cancelled: at every change, and when something expires or is to be tried again.

        Raises what a load or unload broke with: what is in the engine is not known then, and the next agent asks it.
        """
        while True:
            self._wake.clear()
            if self._broke is not None:
                raise self._broke
            self._converge()
            due = self._next_due()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(None if due is None else max(0.0, due - self._now())):
                    await self._wake.wait()

    async def drain(self, deadline_s: float) -> None:
        """Unloads everything, for good: requests in flight finish, up to `deadline_s`."""
        self._last_drain_s = deadline_s
        self._grant = _emptied(self._grant, deadline_s)
        self._permitted.clear()
        self._wake.set()
        while self._attached is not None and self._table.occupied():
            tasks = list(self._attached.tasks.values())
            await (asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED) if tasks else asyncio.sleep(0.01))
            self._wake.set()

    def _entries(self) -> tuple[GrantEntry, ...]:
        return *self._grant.entries, *self._permitted.entries

    def _granted(self) -> set[str]:
        return {entry.engine_name for entry in self._grant.entries if not expired(entry, self._now())}

    def _wanted(self) -> set[str]:
        return {entry.engine_name for entry in self._entries() if not expired(entry, self._now())}

    def _here(self, name: str) -> bool:
        row = self._table.rows.get(name)
        return row is not None and row.state == "loaded" and name in self._wanted()

    def _next_due(self) -> float | None:
        expiries = [entry.expires_at for entry in self._entries() if entry.expires_at is not None]
        ahead = [at for at in expiries if at > self._now()]
        return min([*ahead, *(trial.due for trial in self._trials.values())], default=None)

    def _converge(self) -> None:
        if self._attached is None:
            self._show()
            return
        now, entries = self._now(), self._entries()
        sizes = {entry.engine_name: entry.size_bytes for entry in entries}
        actions = plan(
            self._table.rows,
            entries,
            self._slots,
            now,
            {name for name, trial in self._trials.items() if trial.due <= now},
            asked=self._asked.union(self._asks.names),
            in_flight=self._interest.busy,
            value=lambda row: self._interest.worth(row.engine_name, sizes[row.engine_name]),
        )
        for action in actions:
            self._act(action, now)
        self._forget()
        self._show()

    def _act(self, action: Action, now: float) -> None:
        name = action.entry.engine_name if isinstance(action, Load) else action.engine_name
        if isinstance(action, Refuse):
            self._permitted.drop([name])
            self._asks.refuse(name, NoRoomError("every slot here is held or in use now.", retry_after=1.0))
        elif name in self._running():
            return
        elif isinstance(action, Load):
            self._asked.discard(name)
            self._table.begin_load(name, now)
            self._do(name, self._traced("load", name, partial(self._load, action.entry)))
        elif isinstance(action, Evict):
            self._table.begin_unload(name, now)
            self._do(name, self._traced("evict", name, partial(self._evict, name)))
        else:
            self._table.begin_unload(name, now)
            self._do(name, self._traced("unload", name, partial(self._unload, name)))

    def _forget(self) -> None:
        """Drops what is no longer wanted and takes no slot, and the asks and retries that have no object any more.

        A load that is wanted and for which there was no room is told as `registered`.
        """
        wanted, rows = self._wanted(), self._table.rows
        self._asked = {
            n for n in self._asked & wanted if n not in rows or rows[n].state in ("registered", "failed")
        }
        for name in [n for n in self._asks.names if n not in wanted and n not in self._running()]:
            self._asks.refuse(name, UnavailableError("it may not be loaded here any more."))
        for entry in self._grant.entries:
            if evictable(entry) and entry.engine_name in wanted - self._asked:
                self._table.register(entry.engine_name, self._now())
        for name, row in self.rows().items():
            if name not in wanted and row.state in ("registered", "failed"):
                self._table.forget(name)
        failed = {name for name, row in self._table.rows.items() if row.state == "failed"}
        for name in [name for name in self._trials if name not in failed and name not in self._running()]:
            del self._trials[name]
        for name, trial in list(self._trials.items()):
            if name in failed and trial.due <= self._now():
                del self._trials[name]  # it waits for a slot now, and what it failed for may have passed
                self._table.waits(name, self._now())

    def _running(self) -> set[str]:
        return set(self._attached.tasks) if self._attached else set()

    def _do(self, name: str, work: Coroutine[Any, Any, None]) -> None:
        attached = self._attached
        if attached is None or name in attached.tasks:
            work.close()
            return
        task = asyncio.create_task(work)
        attached.tasks[name] = task
        task.add_done_callback(lambda task: self._done(attached, name, task))

    def _done(self, attached: _Attached, name: str, task: asyncio.Task[None]) -> None:
        attached.tasks.pop(name, None)
        if not task.cancelled():
            self._broke = task.exception() or self._broke
        self._wake.set()

    async def _traced(self, what: str, name: str, work: Callable[[], Awaitable[None]]) -> None:
        def error() -> str | None:
            row = self._table.rows.get(name)
            return row.failure.code if row is not None and row.failure is not None else None

        await self._traces.around(what, name, work, error)

    async def _load(self, entry: GrantEntry) -> None:
        name = entry.engine_name
        outcome = await self._loading.load(self._engine(), name, entry.digest)
        if isinstance(outcome, Loaded):
            self._trials.pop(name, None)
            self._table.loaded(name, self._now(), outcome.proof, outcome.load_ms)
            self._interest.loaded(entry.size_bytes, outcome.load_ms)
            self._asks.loaded(name, outcome.load_ms)
            log.info("adapter_loaded", adapter=name, load_ms=outcome.load_ms)
            return
        failure, lasting = outcome
        log.error("adapter_failed", adapter=name, code=failure.code, error=failure.message, lasting=lasting)
        self._table.failed(name, self._now(), failure)
        self._asks.failed(name, failure, lasting)
        if name in self._permitted:  # it is tried again when it is asked for again
            self._permitted.drop([name])
        elif lasting:
            self._trials.pop(name, None)
        else:
            count = self._trials[name].count + 1 if name in self._trials else 1
            self._trials[name] = _Trials(count, self._now() + self._backoff.delay(count))

    async def _unload(self, name: str) -> None:
        """Until it is proved gone. While it is not, the slot is not free."""
        failures, draining = 0, self._draining()
        while not await self._gone(name, draining.setdefault(name, self._grant.drain_s(name))):
            failures += 1
            await asyncio.sleep(self._backoff.delay(failures))
        del draining[name]
        self._left(name)
        log.info("adapter_unloaded", adapter=name)

    async def _evict(self, name: str) -> None:
        try:
            gone = await self._engine().client.evict(name)
        except EngineError:
            await self._unload(name)  # where it is not, or until it is proved gone
            return
        if not gone:
            self._table.kept(name, self._now())
            self._interest.busy |= {name}
            if self._here(name):
                self._asks.loaded(name, 0.0)  # who asked while it was to go would wait for a load
            return
        self._left(name)
        log.info("adapter_evicted", adapter=name)

    def _left(self, name: str) -> None:
        self._table.unloaded(name, self._now())
        self._interest.forget([name])
        if name not in self._asks.names:
            self._permitted.drop([name])

    async def _take_out(self, name: str, deadline_s: float) -> None:
        """What is not to be there, or is being drained and has less time now."""
        await self._gone(name, deadline_s)

    async def _gone(self, name: str, deadline_s: float) -> bool:
        try:
            await self._engine().client.unload(name, deadline_s)
        except EngineError as error:
            if error.code != "not_found":
                log.error("unload_failed", adapter=name, error=failure_of(error, name).message)
                return False
        return True

    async def _look(self) -> None:
        """What the gate counted until now. Those who look at the same time share it."""
        if self._looking is None or self._looking.done():
            self._looking = asyncio.create_task(self._count())
        await asyncio.shield(self._looking)

    async def _count(self) -> None:
        if self._attached is None:
            return
        try:
            self._counted(await self._attached.engine.client.requests())
        except EngineError as error:
            log.warning("requests_unknown", error=error.message)

    def _counted(self, requests: dict[str, Requests]) -> None:
        for name in self._interest.counted(requests):
            row = self._table.rows.get(name)
            if row is not None and row.state == "loaded":
                self._table.used(name, self._now())

    def _draining(self) -> dict[str, float]:
        return self._attached.draining if self._attached else {}

    def _engine(self) -> Engine:
        if self._attached is None:
            raise asyncio.CancelledError
        return self._attached.engine

    def _show(self) -> None:
        self._publish(self._grant.version, tuple(self._told(name) for name in sorted(self._table.rows)))

    def _told(self, name: str) -> Residency:
        row, trial = self._table.rows[name], self._trials.get(name)
        if name in self._permitted:
            return msgspec.structs.replace(row, on_demand=True)
        if row.state != "failed" or trial is None:
            return row
        return msgspec.structs.replace(row, retry_at=trial.due)


def _emptied(grant: Grant, drain_s: float) -> Grant:
    return Grant(grant.replica, grant.version, (), drain_s)


def _not_up() -> UnavailableError:
    return UnavailableError("the engine of this replica is not up.", retry_after=2.0)
