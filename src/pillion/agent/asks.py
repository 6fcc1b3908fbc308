"""Who waits for a load on demand, and which loads lately came to nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection
from dataclasses import dataclass

from pillion.agent.backoff import Backoff
from pillion.core.errors import PillionError
from pillion.core.replica import Failure

# What the same bytes would meet again is not tried again for so long.
LASTING_S = 600.0
KEPT = 4096


class LoadFailedError(PillionError):
    """The load came to nothing: its failure's code. `retry_after`: seconds until it would be tried again."""

    status = 502


@dataclass(frozen=True)
class _Failed:
    failure: Failure
    count: int
    until: float


class Asks:
    """One load for all who wait for it. `now` in seconds since the epoch."""

    def __init__(self, backoff: Backoff, now: Callable[[], float]) -> None:
        self._backoff, self._now = backoff, now
        self._waiting: dict[str, asyncio.Future[float]] = {}
        self._failed: dict[str, _Failed] = {}

    @property
    def names(self) -> Collection[str]:
        return self._waiting.keys()

    async def wait(self, name: str) -> float:
        """Milliseconds that the load took. Raises what it ended with; one that leaves does not disturb the others."""
        waiting = self._waiting.get(name)
        if waiting is None:
            waiting = self._waiting[name] = asyncio.get_running_loop().create_future()
        return await asyncio.shield(waiting)

    def check(self, name: str) -> None:
        """Raises `LoadFailedError` where a load failed and is not to be tried again yet."""
        failed = self._failed.get(name)
        if failed is not None and failed.until > self._now():
            raise _error(failed.failure, failed.until - self._now())

    def loaded(self, name: str, ms: float) -> None:
        self._failed.pop(name, None)
        waiting = self._waiting.pop(name, None)
        if waiting is not None:
            waiting.set_result(ms)

    def failed(self, name: str, failure: Failure, lasting: bool) -> None:
        before = self._failed.pop(name, None)
        count = before.count + 1 if before else 1
        delay = LASTING_S if lasting else self._backoff.delay(count)
        while len(self._failed) >= KEPT:
            del self._failed[next(iter(self._failed))]
        self._failed[name] = _Failed(failure, count, self._now() + delay)
        self.refuse(name, _error(failure, delay))

    def refuse(self, name: str, error: PillionError) -> None:
        """Nothing was tried."""
        waiting = self._waiting.pop(name, None)
        if waiting is not None:
            waiting.set_exception(error)
            waiting.exception()  # retrieved: all who waited may have left

    def refuse_all(self, error: PillionError) -> None:
        for name in list(self._waiting):
            self.refuse(name, error)


def _error(failure: Failure, left_s: float) -> LoadFailedError:
    return LoadFailedError(failure.message, code=failure.code, retry_after=left_s)
