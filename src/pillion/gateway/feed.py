"""How snapshots come from control: a long poll whose `after` acknowledges what is applied (SPEC §5)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

import aiohttp
import msgspec
import structlog

from pillion.core import snapshot
from pillion.core.routing import Routes
from pillion.gateway.kept import KeptSnapshot
from pillion.gateway.knowledge import Knowledge

log = structlog.get_logger(__name__)

WAIT_S = 20
MAX_PAUSE_S = 2.0
HASTE_S = 0.25
SMALL = 2**18  # bytes that are read between two tokens


class FeedError(Exception):
    """Control could not be asked, or its answer made no sense."""


class Source(Protocol):
    async def poll(self, after: int, epoch: str) -> bytes | None:
        """A snapshot newer than version `after`, or a delta to it where it is of `epoch`; None where there was neither for
        a while. Raises `FeedError`.
        """
        ...


class ControlSource:
    """`GET {internal_url}/internal/v1/snapshot?gateway=&after=&epoch=&wait=`: 200 with msgpack, or 204."""

    def __init__(self, session: aiohttp.ClientSession, internal_url: str, token: str, gateway: str) -> None:
        self._session = session
        self._url = f"{internal_url.rstrip('/')}/internal/v1/snapshot"
        self._fields = {"authorization": f"Bearer {token}"}
        self._gateway = gateway

    async def poll(self, after: int, epoch: str) -> bytes | None:
        query = {"gateway": self._gateway, "after": str(after), "epoch": epoch, "wait": str(WAIT_S)}
        timeout = aiohttp.ClientTimeout(total=WAIT_S + 30, sock_connect=3)
        try:
            async with self._session.get(
                self._url, params=query, headers=self._fields, timeout=timeout
            ) as answer:
                if answer.status == 204:
                    return None
                if answer.status != 200:
                    raise FeedError(f"control answered {answer.status}")
                return await answer.read()
        except (aiohttp.ClientError, TimeoutError, ConnectionError) as error:
            raise FeedError(repr(error)) from error


class SnapshotFeed:
    """Keeps `Knowledge` at control's newest snapshot, and the disk after it.

    `clock`: seconds since the epoch. `random`: in [0, 1), spreads the polls of many gateways after an outage.
    """

    def __init__(
        self,
        source: Source,
        kept: KeptSnapshot,
        knowledge: Knowledge,
        clock: Callable[[], float],
        random: Callable[[], float],
    ) -> None:
        self._source = source
        self._kept = kept
        self._knowledge = knowledge
        self._clock = clock
        self._random = random
        self._whole_on_disk = True

    async def start(self) -> None:
        """Begins with the kept snapshot, if there is one that can be read."""
        try:
            found = await asyncio.to_thread(self._kept.read)
            if found is not None:
                data, deltas, confirmed_at = found
                routes = await _routes(data)
                for delta in map(_news, deltas):
                    if isinstance(delta, snapshot.Delta) and delta.since == routes.version:
                        routes = routes.patched(delta)
                # A clock set back must not make an old snapshot young.
                self._knowledge.apply(routes, min(confirmed_at, self._clock()))
        except (OSError, FeedError) as error:
            log.warning("kept snapshot not usable", error=str(error))

    async def run(self) -> None:
        """Polls until cancelled."""
        failures = 0
        while True:
            asked_at = self._clock()
            try:
                news = await self.step()
                failures = 0
                if not news and self._clock() - asked_at < HASTE_S:
                    # A control that is about to go does not let anyone wait; neither should we run in circles.
                    await asyncio.sleep(HASTE_S)
            except FeedError as error:
                if failures == 0:
                    log.warning("no snapshot from control", error=str(error), age_s=self._knowledge.age)
                failures += 1
                await asyncio.sleep(
                    min(MAX_PAUSE_S, 0.05 * 2 ** min(failures, 10)) * (0.5 + self._random() / 2)
                )

    async def step(self) -> bool:
        """One poll; whether it brought news. Applied before it is kept, kept before the next poll acknowledges it.

        What the disk lacks is not confirmed there: it must not look younger than it is. Then the next news are to be a whole
        snapshot, as to one of another epoch. Raises `FeedError`.
        """
        epoch = self._knowledge.epoch if self._whole_on_disk else ""
        data = await self._source.poll(self._knowledge.version, epoch)
        now = self._clock()
        if data is None:
            self._knowledge.confirm(now)
            if self._whole_on_disk:
                await self._keep(lambda: self._kept.confirm(now))
            return False
        news = _news(data) if len(data) < SMALL else await asyncio.to_thread(_news, data)
        if isinstance(news, snapshot.Delta):
            self._knowledge.apply(self._patched(news), now)
            if self._whole_on_disk:
                await self._keep(lambda: self._keep_delta(data, now))
            return True
        routes = await asyncio.to_thread(Routes, news)
        if routes.version < self._knowledge.version:
            raise FeedError(f"control sent version {routes.version} after {self._knowledge.version}")
        self._knowledge.apply(routes, now)
        await self._keep(lambda: self._kept.write(data, now))
        return True

    def _patched(self, delta: snapshot.Delta) -> Routes:
        try:
            return self._knowledge.newest().patched(delta)
        except ValueError as error:
            raise FeedError(str(error)) from error

    def _keep_delta(self, data: bytes, now: float) -> None:
        """Now and then all of them become one whole snapshot again."""
        if not self._kept.append(data, now) or (found := self._kept.read()) is None:
            return
        whole = snapshot.decode(found[0])
        for delta in map(snapshot.decode_news, found[1]):
            if isinstance(delta, snapshot.Delta) and delta.since == whole.version:
                whole = snapshot.patched(whole, delta)
        self._kept.write(snapshot.encode(whole), now)

    async def _keep(self, write: Callable[[], None]) -> None:
        """A full disk must not stop what is served now; it is told, and tried again with the next whole snapshot."""
        self._whole_on_disk = False
        try:
            await asyncio.to_thread(write)
            self._whole_on_disk = True
        except (OSError, ValueError) as error:  # msgspec's are of what was damaged meanwhile
            log.error("snapshot not kept on disk", error=str(error))


def _news(data: bytes) -> snapshot.Snapshot | snapshot.Delta:
    try:
        return snapshot.decode_news(data)
    except (msgspec.DecodeError, msgspec.ValidationError) as error:
        raise FeedError(f"news that cannot be read: {error}") from error


async def _routes(data: bytes) -> Routes:
    """In a thread: a large snapshot takes longer than a token may wait."""
    try:
        return await asyncio.to_thread(lambda: Routes(snapshot.decode(data)))
    except (msgspec.DecodeError, msgspec.ValidationError) as error:
        raise FeedError(f"a snapshot that cannot be read: {error}") from error
