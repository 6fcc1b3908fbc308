"""What every request used, put down before an engine is asked and before the answer's last byte (SPEC §5)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import msgspec
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
        adapter = route.adapter
        used = Used(
            0,
            now,
            key.account,
            key.id,
            None if adapter is None else adapter.id,
            None if adapter is None else adapter.version,
            route.echo,
            route.base,
            candidate.instance.id,
            candidate.replica.id,
            candidate.replica.region,
            request_id,
            None,
            None,
            None,
            LOST,
            None,
            0.0,
            False,
        )
        try:
            number = self._spool.open(used)
        except (OSError, SpoolFullError) as error:
            log.error("usage cannot be put down", error=str(error))
            raise UnavailableError(  # what cannot be put down must not be used
                "This gateway cannot keep account of requests now. Try again shortly.",
                code="metering_unavailable",
                retry_after=5.0,
            ) from error
        self._sync_soon()
        return Ticket(self, used, number)

    def incident(self, kind: str, key: Key, route: Route, detail: str) -> None:
        adapter = None if route.adapter is None else route.adapter.id
        self._tell(Incident(self.next(), self._clock(), kind, key.account, adapter, detail))

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
    """One request's account."""

    __slots__ = ("_cold", "_first_at", "_meter", "_number", "_tokens", "_used")

    def __init__(self, meter: Meter, used: Used, number: int) -> None:
        self._meter = meter
        self._used = used
        self._number = number
        self._tokens: tuple[int | None, int | None, int | None] = (None, None, None)
        self._first_at: float | None = None
        self._cold = False

    def served_by(self, route: Route, candidate: Candidate) -> None:
        replica = candidate.replica
        self._used = msgspec.structs.replace(
            self._used,
            version=route.version,
            instance=candidate.instance.id,
            replica=replica.id,
            region=replica.region,
        )

    def cold(self) -> None:
        self._cold = True

    def tokens(self, prompt: int | None, cached: int | None, completion: int | None) -> None:
        self._tokens = prompt, cached, completion

    def keep(self, prompt: int | None, cached: int | None, completion: int | None) -> None:
        self._meter.known(self._number, prompt, cached, completion)

    def first_byte(self, now: float) -> None:
        self._first_at = now

    def done(self, status: int, now: float) -> None:
        used, first = self._used, self._first_at
        prompt, cached, completion = self._tokens
        self._meter.close(
            Used(
                self._meter.next(), used.at, used.account, used.key, used.adapter, used.version, used.model, used.base,
                used.instance, used.replica, used.region, used.request_id, prompt, cached, completion,
                str(status), None if first is None else (first - used.at) * 1000, (now - used.at) * 1000, self._cold,
            ),
            self._number,
        )  # fmt: skip
