"""What every request used, put down before an engine is asked and before the answer's last byte (SPEC §5)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import structlog

from pillion.core.errors import UnavailableError
from pillion.core.routing import Candidate, Route
from pillion.core.snapshot import Key
from pillion.core.usage import LOST, Incident, Told, Used
from pillion.gateway import accounting
from pillion.gateway.spool import Spool, SpoolFullError

log = structlog.get_logger(__name__)

SYNC_S = 0.025  # on the disk within 50 ms


class Meter(accounting.Meter):
    """`told` is called when there is something on the disk to report, `access` with each request at its end.

    Make it inside a running loop.
    """

    def __init__(
        self,
        spool: Spool,
        clock: Callable[[], float],
        told: Callable[[], None],
        access: Callable[[Used], None] | None = None,
    ) -> None:
        self._access = access
        self._spool = spool
        self._clock = clock
        self._told = told
        self._loop = asyncio.get_running_loop()
        self._syncing: asyncio.Task[None] | None = None
        self._dirty = False
        self.failed = 0

    def admit(self, key: Key, route: Route, candidate: Candidate, request_id: str, now: float) -> Ticket:
        """Raises `UnavailableError`."""
        ticket = Ticket(self, key, route, candidate, request_id, now)
        try:
            ticket.number = self._spool.open(ticket.used(0, LOST, 0.0))
        except (OSError, SpoolFullError) as error:
            log.error("usage cannot be put down", error=str(error))
            raise UnavailableError(  # what cannot be put down must not be used
                "This gateway cannot keep account of requests now. Try again shortly.",
                code="metering_unavailable",
                retry_after=5.0,
            ) from error
        self._sync_soon()
        return ticket

    def incident(self, kind: str, key: Key, route: Route, detail: str) -> None:
        adapter, name = (None, None) if (a := route.adapter) is None else (a.id, a.engine_name)
        self._tell(Incident(self.next(), self._clock(), kind, key.account, adapter, detail, name))

    def known(self, number: int, prompt: int | None, cached: int | None, completion: int | None) -> None:
        try:
            self._spool.known(number, prompt, cached, completion)
        except OSError as error:
            self._not_put_down(error)
        self._sync_soon()

    def next(self) -> int:
        """The sequence of what is told next."""
        return self._spool.last + 1

    def close(self, used: Used, number: int) -> None:
        self._tell(used, number)
        if self._access is not None:
            self._access(used)

    async def settled(self) -> None:
        """All that was put down is on the disk."""
        while self._syncing is not None:
            await asyncio.wait({self._syncing})

    def _tell(self, told: Told, number: int = 0) -> None:
        """What was admitted is never refused at its end: the next process tells it as lost, with what was known."""
        try:
            self._spool.tell(told, number)
        except OSError as error:
            self._not_put_down(error)
        self._sync_soon()

    def _not_put_down(self, error: OSError) -> None:
        self.failed += 1
        log.error("usage not put down", error=str(error))

    def _sync_soon(self) -> None:
        self._dirty = True
        if self._syncing is None:
            self._syncing = self._loop.create_task(self._sync())

    async def _sync(self) -> None:
        try:
            while self._dirty:
                await asyncio.sleep(SYNC_S)
                self._dirty = False
                syncing = self._spool.syncing()
                await asyncio.to_thread(syncing.run)
                self._spool.synced(syncing)
                self._told()
        except OSError as error:
            log.error("usage not on the disk", error=str(error))
        finally:
            self._syncing = None


def told_in_log(used: Used) -> None:
    """The access log."""
    log.info(
        "request",
        request_id=used.request_id,
        account=used.account,
        key=used.key,
        model=used.model,
        base=used.base,
        adapter=used.adapter,
        version=used.version,
        instance=used.instance,
        replica=used.replica,
        region=used.region,
        status=used.status,
        prompt_tokens=used.prompt_tokens,
        cached_tokens=used.cached_tokens,
        completion_tokens=used.completion_tokens,
        ttft_ms=None if used.ttft_ms is None else round(used.ttft_ms, 3),
        duration_ms=round(used.duration_ms, 3),
        cold=used.cold,
    )


class Ticket(accounting.Ticket):
    """One request's account. `number`: under which the spool has it."""

    __slots__ = (
        "_account",
        "_adapter",
        "_at",
        "_base",
        "_cached",
        "_cold",
        "_completion",
        "_first_at",
        "_instance",
        "_key",
        "_meter",
        "_model",
        "_prompt",
        "_region",
        "_replica",
        "_request_id",
        "_version",
        "number",
    )

    def __init__(
        self, meter: Meter, key: Key, route: Route, candidate: Candidate, request_id: str, now: float
    ) -> None:
        self._meter = meter
        self.number = 0
        self._at = now
        self._account: str = key.account
        self._key: str = key.id
        self._adapter: str | None = None if route.adapter is None else route.adapter.id
        self._model: str = route.echo
        self._base: str = route.base
        self._request_id = request_id
        self._prompt: int | None = None
        self._cached: int | None = None
        self._completion: int | None = None
        self._first_at: float | None = None
        self._cold = False
        self.served_by(route, candidate)

    def served_by(self, route: Route, candidate: Candidate) -> None:
        self._version: int | None = None if route.adapter is None else route.adapter.version
        self._instance: int = candidate.instance.id
        self._replica: str = candidate.replica.id
        self._region: str = candidate.replica.region

    def cold(self) -> None:
        self._cold = True

    def tokens(self, prompt: int | None, cached: int | None, completion: int | None) -> None:
        self._prompt, self._cached, self._completion = prompt, cached, completion

    def keep(self, prompt: int | None, cached: int | None, completion: int | None) -> None:
        self._meter.known(self.number, prompt, cached, completion)

    def first_byte(self, now: float) -> None:
        self._first_at = now

    def done(self, status: int, now: float) -> None:
        self._meter.close(self.used(self._meter.next(), str(status), (now - self._at) * 1000), self.number)

    def used(self, seq: int, status: str, duration_ms: float) -> Used:
        """It as an event."""
        ttft_ms = None if self._first_at is None else (self._first_at - self._at) * 1000
        return Used(
            seq, self._at, self._account, self._key, self._adapter, self._version, self._model, self._base,
            self._instance, self._replica, self._region, self._request_id, self._prompt, self._cached,
            self._completion, status, ttft_ms, duration_ms, self._cold,
        )  # fmt: skip
