"""How often one may try to log in: per e-mail address and per client."""

from __future__ import annotations

from collections.abc import Callable

from pillion.core.errors import RateLimitError
from pillion.core.limits import Bucket

PER_MINUTE = 20
KEPT = 10_000


class LoginLimits:
    """Kept by this process alone. `clock`: seconds since the epoch."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._buckets: dict[tuple[str, str], Bucket] = {}

    def take(self, email: str, address: str) -> None:
        """Counts a try. Raises `RateLimitError` where it is one too many, whether or not there is such a member."""
        now = self._clock()
        found = [self._bucket(("email", email), now), self._bucket(("address", address), now)]
        for bucket in found:
            if bucket.left(now) < 1:
                raise RateLimitError(
                    "too many tries to log in; try again shortly.", retry_after=bucket.wait(1)
                )
        for bucket in found:
            bucket.take(1)

    def _bucket(self, key: tuple[str, str], now: float) -> Bucket:
        bucket = self._buckets.pop(key, None) or Bucket(PER_MINUTE, now)
        self._buckets[key] = bucket
        if len(self._buckets) > KEPT:
            del self._buckets[next(iter(self._buckets))]  # the one not used for longest
        return bucket
