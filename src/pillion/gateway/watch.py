"""Replicas that take requests and fall silent: asked how they are, and what waits there goes on to another.

An agent gives an engine up when it misses several long probes, since to start it again costs all that it holds. To ask
another replica costs little, so a gateway does it sooner: where a request waits long for its first byte, the engine is asked
for its health; one that does not say a word is asked last from then on, until it does.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import aiohttp
import structlog

from pillion.core.snapshot import Replica
from pillion.gateway.balance import Balance

# A probe that took so much longer than it may says that this process was held up.
HELD_UP_S = 0.5
# Where nobody waits any more, it is asked again for so long.
KEPT_S = 60.0

log = structlog.get_logger(__name__)


@runtime_checkable
class Waiting(Protocol):
    """A request that a replica has or is to have."""

    def waits_for(self) -> Replica | None:
        """The replica whose first byte it waits for."""
        ...

    def silent(self) -> None:
        """That replica does not say a word: it goes to another where it may."""
        ...


class Health(Protocol):
    async def speaks(self, url: str) -> bool | None:
        """Whether the engine at `url` says anything in time; None where nobody is there."""
        ...


class HttpHealth:
    """`GET /health`, answered within `probe_s`: whatever it says, it speaks."""

    def __init__(self, session: aiohttp.ClientSession, probe_s: float) -> None:
        self._session, self._probe_s = session, probe_s

    async def speaks(self, url: str) -> bool | None:
        try:
            async with asyncio.timeout(self._probe_s), self._session.get(f"{url}/health"):
                return True
        except TimeoutError:
            return False
        except (aiohttp.ClientError, OSError):
            return None


@dataclass
class _Silent:
    """Since when (`timer`) nobody waits for it."""

    url: str
    left_at: float


class Watch:
    """`waiting`: the requests that wait now. `timer`: seconds that only grow. `counted` is told of who falls silent.

    An engine is asked when a request has waited for `silent_s`; `health` gives it up after `probe_s`.
    """

    def __init__(
        self,
        waiting: Callable[[], Iterator[Waiting]],
        health: Health,
        balance: Balance,
        timer: Callable[[], float],
        counted: Callable[[str], None],
        silent_s: float,
        probe_s: float,
    ) -> None:
        self._waiting, self._health, self._balance = waiting, health, balance
        self._timer, self._counted = timer, counted
        self._silent_s, self._probe_s = silent_s, probe_s
        self._since: dict[tuple[Waiting, str], float] = {}
        self._probes: dict[str, asyncio.Task[None]] = {}
        self._silent: dict[str, _Silent] = {}

    async def run(self) -> None:
        """Until cancelled."""
        try:
            while True:
                await asyncio.sleep(self._silent_s / 2)
                self.look()
        finally:
            for probe in list(self._probes.values()):
                probe.cancel()

    def look(self) -> None:
        """Has those asked whom somebody waits for too long, and those that were silent."""
        now, before = self._timer(), self._since
        self._since, late = {}, dict[str, str]()
        for request in self._waiting():
            replica = request.waits_for()
            if replica is None:
                continue
            key = request, replica.id
            since = self._since[key] = before.get(key, now)
            if now >= since + self._silent_s:
                late[replica.id] = replica.url
        for id, silent in list(self._silent.items()):
            if late.get(id) == silent.url:
                silent.left_at = now
            elif id in late or now >= silent.left_at + KEPT_S:
                del self._silent[id]  # another engine is in its place, or it is not asked any more
            else:
                late[id] = silent.url
        for id, url in late.items():
            if id not in self._probes:
                self._probes[id] = asyncio.get_running_loop().create_task(self._probe(id, url))

    async def _probe(self, id: str, url: str) -> None:
        began = self._timer()
        try:
            speaks = await self._health.speaks(url)
        finally:
            del self._probes[id]
        now = self._timer()
        if speaks is False and now < began + self._probe_s + HELD_UP_S:
            if id not in self._silent:
                log.warning("replica is silent", replica=id, url=url)
                self._counted("silent")
            self._silent.setdefault(id, _Silent(url, now))
            self._balance.silent(id)
            self._move(id)
        elif speaks is not False and self._silent.pop(id, None) is not None and speaks:
            self._balance.answered(id)
            log.info("replica speaks again", replica=id)

    def _move(self, id: str) -> None:
        for request in list(self._waiting()):
            replica = request.waits_for()
            if replica is not None and replica.id == id:
                request.silent()
