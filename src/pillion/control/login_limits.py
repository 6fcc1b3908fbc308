"""How often one may try to log in: per e-mail address and per client."""

from __future__ import annotations

from collections.abc import Callable

from pillion.core.errors import RateLimitError
from pillion.core.limits import Bucket

PER_MINUTE = 20
KEPT = 10_000


class TooManyTriesError(RateLimitError):
    """`first`: of its minute; those after it are no news."""

    def __init__(self, *, retry_after: float, first: bool) -> None:
        super().__init__("too many tries to log in; try again shortly.", retry_after=retry_after)
        self.first = first


class LoginLimits:
    """Kept by this process alone. `clock`: seconds since the epoch."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._buckets: dict[tuple[str, str], Bucket] = {}
        self._news: dict[tuple[str, str], Bucket] = {}

    def take(self, email: str | None, address: str | None) -> None:
        """Counts a try for each of the two that is not None. Raises `TooManyTriesError` where it is one too many, whether
        or not there is such a member.
        """
        now = self._clock()
        told = {"email": email, "address": address}
        keys = [(name, value) for name, value in told.items() if value is not None]
        found = [_of(self._buckets, key, PER_MINUTE, now) for key in keys]
        for key, bucket in zip(keys, found, strict=True):
            if bucket.left(now) < 1:
                news = _of(self._news, key, 1, now)
                first = news.left(now) >= 1
                if first:
                    news.take(1)
                raise TooManyTriesError(retry_after=bucket.wait(1), first=first)
        for bucket in found:
            bucket.take(1)


def _of(buckets: dict[tuple[str, str], Bucket], key: tuple[str, str], per_minute: int, now: float) -> Bucket:
    bucket = buckets.pop(key, None) or Bucket(per_minute, now)
    buckets[key] = bucket
    if len(buckets) > KEPT:
        del buckets[next(iter(buckets))]  # the one not used for longest
    return bucket
