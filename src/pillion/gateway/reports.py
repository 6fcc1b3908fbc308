"""Usage on its way to control, and this gateway's shares of limits on their way back."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol, TypeVar

import aiohttp
import msgspec
import structlog

from pillion.core.budgets import Ask, Given
from pillion.core.usage import Demand, Mark, Report, Shares
from pillion.gateway.limits import KeyLimits
from pillion.gateway.spool import Spool

log = structlog.get_logger(__name__)

BATCH = 500
EVERY_S = 1.0
PAUSE_S = 0.25  # a report costs what several requests cost, however little is in it
MAX_PAUSE_S = 5.0
CALL_S = 30.0


Answer = TypeVar("Answer", Mark, Shares, Given)


class UntoldError(Exception):
    """Control could not be told, or its answer made no sense."""


class Ledger(Protocol):
    """Control's side."""

    async def report(self, report: Report) -> Mark:
        """Raises `UntoldError`."""
        ...

    async def demand(self, demand: Demand) -> Shares:
        """Raises `UntoldError`."""
        ...


class ControlLedger:
    """`POST {internal_url}/internal/v1/usage` and `/internal/v1/limits`, msgpack both ways."""

    def __init__(self, session: aiohttp.ClientSession, internal_url: str, token: str) -> None:
        self._session = session
        self._url = f"{internal_url.rstrip('/')}/internal/v1"
        self._fields = {"authorization": f"Bearer {token}", "content-type": "application/msgpack"}

    async def report(self, report: Report) -> Mark:
        return await self._post("usage", report, Mark)

    async def demand(self, demand: Demand) -> Shares:
        return await self._post("limits", demand, Shares)

    async def lease(self, ask: Ask) -> Given:
        """A slice of an account's balance. Raises `UntoldError`."""
        return await self._post("budgets", ask, Given)

    async def _post(self, path: str, body: msgspec.Struct, answer: type[Answer]) -> Answer:
        data = msgspec.msgpack.encode(body)
        try:
            async with (
                asyncio.timeout(CALL_S),
                self._session.post(f"{self._url}/{path}", data=data, headers=self._fields) as got,
            ):
                if got.status != 200:
                    raise UntoldError(f"control answered {got.status}")
                return msgspec.msgpack.decode(await got.read(), type=answer)
        except (aiohttp.ClientError, TimeoutError, ConnectionError, msgspec.MsgspecError) as error:
            raise UntoldError(repr(error)) from error


class Reports:
    """Tells control what the spools hold until it has all; `told`: there is more. Orphans go once they are empty."""

    def __init__(
        self,
        ledger: Ledger,
        own: Spool,
        orphans: list[Spool],
        clock: Callable[[], float],
        random: Callable[[], float],
    ) -> None:
        self._ledger = ledger
        self._own = own
        self._orphans = orphans
        self._clock = clock
        self._random = random
        self._marks: dict[str, int] = {}
        self._more = asyncio.Event()
        self.untold_since: float | None = None
        self.damaged = sum(spool.damaged for spool in (own, *orphans))

    def told(self) -> None:
        self._more.set()

    @property
    def behind(self) -> int:
        """How many events control does not have yet, of this process's own."""
        return self._own.last - self._marks.get(self._own.id, self._own.oldest - 1)

    async def run(self) -> None:
        """Until cancelled."""
        failures = 0
        while True:
            self._more.clear()
            try:
                await self.flush()
                failures, self.untold_since = 0, None
                await self._more.wait()
                await asyncio.sleep(PAUSE_S)
            except (UntoldError, OSError) as error:
                if not failures:
                    log.warning("usage not reported", error=str(error), behind=self.behind)
                    self.untold_since = self._clock()
                failures += 1
                await asyncio.sleep(
                    min(MAX_PAUSE_S, 0.1 * 2 ** min(failures, 10)) * (0.5 + self._random() / 2)
                )

    async def flush(self) -> None:
        """Tell all that is on the disk. Raises `UntoldError`, `OSError`."""
        await self._flush(self._own)  # first: whatever is wrong with an orphan, this goes on
        for orphan in list(self._orphans):
            await self._flush(orphan)
            self._orphans.remove(orphan)
            try:
                orphan.remove()
            except OSError as error:  # all of it is told; what is left of it is nobody's any more
                log.error("log of usage not removed", spool=orphan.id, error=str(error))

    async def _flush(self, spool: Spool) -> None:
        while (mark := self._marks.get(spool.id)) is None or (told := spool.after(mark, BATCH)):
            # The first time control is only asked how far it is.
            batch, oldest = () if mark is None else tuple(told), spool.oldest
            if mark is not None and batch[0].seq > mark + 1:  # the log was damaged there
                log.error("usage missing", spool=spool.id, first=mark + 1, last=batch[0].seq - 1)
                oldest = batch[0].seq
            has = (await self._ledger.report(Report(spool.id, oldest, batch))).mark
            if mark is None and spool.overtake(has):
                self.damaged += 1
            self._marks[spool.id] = has
            spool.taken(has)


class Sharing:
    """Tells control what was asked of limited keys, once a second, and takes the shares."""

    def __init__(self, ledger: Ledger, limits: KeyLimits, gateway: str, clock: Callable[[], float]) -> None:
        self._ledger, self._limits, self._gateway, self._clock = ledger, limits, gateway, clock
        self.open = False
        self._away = False

    async def run(self) -> None:
        while True:
            await asyncio.sleep(EVERY_S)
            await self.step()

    async def step(self) -> None:
        demand = self._limits.demand(self._gateway, self._clock())
        if demand.requests or demand.tokens or self._away:
            try:
                self._limits.shared(await self._ledger.demand(demand), self._clock())
                self._away = False
            except UntoldError:
                self._away = True
        else:
            self._limits.rested(self._clock())
        self.open = self._limits.unheard(self._clock())
