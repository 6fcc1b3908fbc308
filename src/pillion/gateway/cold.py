"""Loads on demand: a replica's agent is asked to load what a request is for, once for all requests that wait (SPEC §4)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Protocol

import aiohttp
import msgspec
import structlog

from pillion.core.errors import PillionError, UnavailableError
from pillion.core.routing import Candidate, Route, adapter_loading, may_load
from pillion.core.spans import Carried
from pillion.gateway.knowledge import Knowledge

LOAD_S = 120.0
# A snapshot confirmed so long after this gateway saw something knows it too.
LAG_S = 3.0
KEPT = 10_000
MAX_ANSWER = 64 * 2**10

log = structlog.get_logger(__name__)


class Outcome(Enum):
    """What came of asking a replica. `THERE`: nothing had to be loaded."""

    LOADED = "loaded"
    THERE = "there"
    FULL = "full"
    FAILED = "failed"
    AWAY = "away"
    LATE = "late"


@dataclass(frozen=True)
class Asked:
    """`error`: why it failed, as the agent put it."""

    outcome: Outcome
    error: PillionError | None = None


Done = Callable[[Asked], None]


class Loads(Protocol):
    async def load(self, url: str, load_key: str, permit: bytes, of: Carried) -> Asked:
        """Asks the agent at `url`, as part of a trace; as long as that takes."""
        ...


class AgentLoads:
    """`POST {agent_url}/v1/load` with the permit as its body."""

    def __init__(self, session: aiohttp.ClientSession) -> None:
        self._session = session

    async def load(self, url: str, load_key: str, permit: bytes, of: Carried) -> Asked:
        timeout = aiohttp.ClientTimeout(total=LOAD_S, sock_connect=3)
        fields = {"authorization": f"Bearer {load_key}", **of}
        try:
            async with self._session.post(
                f"{url}/v1/load", data=permit, headers=fields, timeout=timeout
            ) as answer:
                return _read(
                    answer.status, answer.headers.get("retry-after"), await answer.content.read(MAX_ANSWER)
                )
        except (aiohttp.ClientError, TimeoutError, ConnectionError, msgspec.MsgspecError) as error:
            log.warning("agent not reached for a load", url=url, error=repr(error))
            return Asked(Outcome.AWAY)


@dataclass(eq=False)
class Waiter:
    """One request that waits for a load."""

    _loading: _Loading
    done: Done
    timer: asyncio.TimerHandle | None = None

    def cancel(self) -> None:
        """It left. The load goes on: others may wait for it, or come."""
        self._loading.waiters.discard(self)
        if self.timer is not None:
            self.timer.cancel()

    def settle(self, asked: Asked) -> None:
        if self in self._loading.waiters:
            self.cancel()
            self.done(asked)


@dataclass(eq=False)
class _Loading:
    waiters: set[Waiter] = field(default_factory=set)
    task: asyncio.Task[None] | None = None


@dataclass
class _Seen:
    """Where a version is by this gateway's own account, which goes before the snapshot's for a while."""

    at: float
    where: dict[str, bool] = field(default_factory=dict)
    routes: dict[int, tuple[Route, Route]] = field(default_factory=dict)


class Cold:
    """One ask per replica and version at a time. `clock`: seconds since the epoch; `counted` is told of every ask's end."""

    def __init__(
        self,
        loads: Loads,
        knowledge: Knowledge,
        clock: Callable[[], float],
        counted: Callable[[str], None],
        wait_s: float,
    ) -> None:
        self._loads, self._knowledge, self._clock = loads, knowledge, clock
        self._counted, self.wait_s = counted, wait_s
        self._loading: dict[tuple[str, str], _Loading] = {}
        self._seen: dict[str, _Seen] = {}

    def route(self, route: Route) -> Route:
        """The same with what was seen since the snapshot: the identical one as long as nothing else is seen."""
        seen = self._seen.get(route.upstream_name) if self._seen and route.adapter is not None else None
        if seen is None:
            return route
        if seen.at + LAG_S < self._knowledge.confirmed_at:
            del self._seen[route.upstream_name]
            return route
        kept = seen.routes.get(id(route))
        if kept is None:
            kept = seen.routes[id(route)] = route, _corrected(route, seen.where)
        return kept[1]

    def under_way(self, route: Route, candidate: Candidate) -> bool:
        """Whether it is being loaded there."""
        return (candidate.replica.id, route.upstream_name) in self._loading

    def load(
        self, route: Route, candidate: Candidate, left_s: float, done: Done, of: Carried | None = None
    ) -> Waiter:
        """Has it loaded there, or waits with those who do, for `left_s` at most. `done` is called later, once.

        `of`: the trace of who asks, which the load is a part of where it begins.
        """
        key = candidate.replica.id, route.upstream_name
        loading = self._loading.get(key)
        if loading is None:
            loading = self._loading[key] = _Loading()
            loading.task = asyncio.get_running_loop().create_task(
                self._ask(loading, key, route, candidate, of or {})
            )
        waiter = Waiter(loading, done)
        waiter.timer = asyncio.get_running_loop().call_later(
            max(0.0, left_s), lambda: waiter.settle(Asked(Outcome.LATE))
        )
        loading.waiters.add(waiter)
        return waiter

    def absent(self, replica: str, route: Route) -> None:
        """An engine said that it does not have it."""
        self._see(replica, route.upstream_name, there=False)

    async def close(self) -> None:
        """Who waits hears no more of it: another would be asked."""
        for loading in self._loading.values():
            loading.waiters.clear()
        tasks = [loading.task for loading in self._loading.values() if loading.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _ask(
        self, loading: _Loading, key: tuple[str, str], route: Route, candidate: Candidate, of: Carried
    ) -> None:
        asked = Asked(Outcome.AWAY)
        try:
            replica, adapter = candidate.replica, route.adapter
            if adapter is not None and adapter.permit is not None and replica.agent_url is not None:
                asked = await self._loads.load(replica.agent_url, replica.load_key, adapter.permit, of)
        finally:
            del self._loading[key]
            self._counted(asked.outcome.value)
            if asked.outcome in (Outcome.LOADED, Outcome.THERE):
                self._see(*key, there=True)
            loop = asyncio.get_running_loop()
            for waiter in loading.waiters:
                loop.call_soon(waiter.settle, asked)

    def _see(self, replica: str, name: str, *, there: bool) -> None:
        if len(self._seen) >= KEPT:
            del self._seen[next(iter(self._seen))]
        seen = self._seen.setdefault(name, _Seen(0.0))
        seen.at = self._clock()
        if seen.where.get(replica) != there:
            seen.where[replica] = there
            seen.routes.clear()


def failed(route: Route, error: PillionError | None) -> UnavailableError:
    """What a client is told of a load that came to nothing."""
    if error is None or route.adapter is None:
        return UnavailableError(f"'{route.echo}' could not be loaded. Try again shortly.")
    message = error.message.replace(route.upstream_name, route.adapter.name)
    return UnavailableError(
        f"The adapter '{route.adapter.name}' could not be loaded: {message}",
        code=error.code,
        retry_after=error.retry_after or 1.0,
    )


def late(route: Route) -> UnavailableError:
    """It did not come in time; it may yet."""
    return UnavailableError("Try again shortly.") if route.adapter is None else adapter_loading(route.adapter)


def _corrected(route: Route, where: dict[str, bool]) -> Route:
    adapter = route.adapter
    assert adapter is not None

    def correct(candidate: Candidate) -> Candidate:
        there = where.get(candidate.replica.id, candidate.resident)
        if there == candidate.resident or not (there or may_load(candidate, adapter)):
            return candidate
        return replace(candidate, resident=there)

    found = sorted(map(correct, route.candidates), key=lambda c: (c.tier, not c.resident))
    return replace(route, candidates=tuple(found))


class _Error(msgspec.Struct):
    message: str = ""
    code: str = "load_failed"


class _Answer(msgspec.Struct):
    load_ms: float = 0.0
    error: _Error | None = None


def _read(status: int, retry_after: str | None, raw: bytes) -> Asked:
    """Raises `msgspec.MsgspecError`."""
    answer = msgspec.json.decode(raw, type=_Answer)
    if status == 200:
        return Asked(Outcome.LOADED if answer.load_ms else Outcome.THERE)
    error = answer.error or _Error()
    if error.code == "instance_at_capacity":
        return Asked(Outcome.FULL)
    if status != 502:
        log.warning("agent does not load", status=status, error=error.message)
        return Asked(Outcome.AWAY)
    after = float(retry_after) if retry_after and retry_after.isdigit() else None
    return Asked(Outcome.FAILED, PillionError(error.message, code=error.code, retry_after=after))
