"""Requests and tokens per minute of each key, this gateway's share of them."""

from __future__ import annotations

from collections.abc import Mapping
from math import ceil

from pillion.core.errors import PillionError, RateLimitError
from pillion.core.limits import Bucket
from pillion.core.snapshot import Key
from pillion.core.usage import Demand, Shares
from pillion.gateway.http import Fields

OPEN_AFTER_S = 10.0
IDLE_S = 120.0
_LINES = b"x-ratelimit-limit-%b: %%d\r\nx-ratelimit-remaining-%b: %%d\r\nx-ratelimit-reset-%b: %%dms\r\n"
_REQUESTS, _TOKENS = (_LINES % (name, name, name) for name in (b"requests", b"tokens"))


class _Buckets:
    __slots__ = ("asked", "key", "requests", "spent", "tokens", "used_at")

    def __init__(self, key: Key, now: float) -> None:
        self.key = key
        self.requests = None if key.requests_per_minute is None else Bucket(key.requests_per_minute, now)
        self.tokens = None if key.tokens_per_minute is None else Bucket(key.tokens_per_minute, now)
        self.asked = self.spent = 0.0
        self.used_at = now

    def fit(self, key: Key) -> bool:
        if key is self.key:
            return True
        self.key, mine = key, (self.requests and self.requests.limit, self.tokens and self.tokens.limit)
        return mine == (key.requests_per_minute, key.tokens_per_minute)


class LimitReachedError(RateLimitError):
    """`fields`: the headers that tell of the key's limits."""

    def __init__(self, fields: Mapping[str, str], message: str, *, retry_after: float) -> None:
        super().__init__(message, retry_after=retry_after)
        self._fields = fields

    def headers(self) -> dict[str, str]:
        return {**super().headers(), **self._fields}


class KeyLimits:
    """Implements `RateLimits`. Control tells the shares; where it is away, each gateway takes the whole limit."""

    def __init__(self, now: float) -> None:
        self._buckets: dict[str, _Buckets] = {}
        self._heard_at = now

    def check(self, key: Key, now: float) -> PillionError | None:
        if key.requests_per_minute is None and key.tokens_per_minute is None:
            return None
        own = self._of(key, now)
        own.asked += 1
        for name, bucket in (("requests", own.requests), ("tokens", own.tokens)):
            if bucket is not None and bucket.left(now) < 1:
                return LimitReachedError(
                    dict(self.fields(key, now)),
                    f"This API key's limit of {bucket.limit} {name} per minute is reached. Try again shortly.",
                    retry_after=bucket.wait(1),
                )
        if own.requests is not None:
            own.requests.take(1)
        return None

    def spent(self, key: Key, tokens: int, now: float) -> None:
        if key.tokens_per_minute is None:
            return
        own = self._of(key, now)
        own.spent += tokens
        if own.tokens is not None:
            own.tokens.left(now)
            own.tokens.take(tokens)

    def fields(self, key: Key, now: float) -> Fields:
        if key.requests_per_minute is None and key.tokens_per_minute is None:
            return ()
        return [tuple(line.split(": ", 1)) for line in self.lines(key, now).decode().splitlines()]  # type: ignore[misc]

    def lines(self, key: Key, now: float) -> bytes:
        if key.requests_per_minute is None and key.tokens_per_minute is None:
            return b""
        own = self._of(key, now)
        requests = b"" if own.requests is None else _lines(_REQUESTS, own.requests, now)
        return requests if own.tokens is None else requests + _lines(_TOKENS, own.tokens, now)

    def demand(self, gateway: str, now: float) -> Demand:
        """What was asked since the last time; what is idle is forgotten."""
        found = Demand(gateway, {}, {})
        for key, own in list(self._buckets.items()):
            if own.asked or own.spent:
                found.requests[key], found.tokens[key] = own.asked, own.spent
                own.asked = own.spent = 0.0
            elif now - own.used_at > IDLE_S:
                del self._buckets[key]
        return found

    def shared(self, shares: Shares, now: float) -> None:
        """Control has spoken."""
        self._heard_at = now
        for key, own in self._buckets.items():
            if own.requests is not None:
                own.requests.share(shares.requests.get(key, 1.0), now)
            if own.tokens is not None:
                own.tokens.share(shares.tokens.get(key, 1.0), now)

    def rested(self, now: float) -> None:
        """Nothing was asked that is limited, so there was nothing to hear."""
        self._heard_at = now

    def unheard(self, now: float) -> bool:
        """Whether control is away for so long that limits are not shared any more: each of them is open now."""
        if now - self._heard_at < OPEN_AFTER_S:
            return False
        for own in self._buckets.values():
            for bucket in (own.requests, own.tokens):
                if bucket is not None:
                    bucket.share(1.0, now)
        return True

    def _of(self, key: Key, now: float) -> _Buckets:
        own = self._buckets.get(key.id)
        if own is None or not own.fit(key):
            own = self._buckets[key.id] = _Buckets(key, now)
        own.used_at = now
        return own


def _lines(text: bytes, bucket: Bucket, now: float) -> bytes:
    left = bucket.left(now)
    reset = 0 if left >= bucket.limit else ceil(bucket.wait(bucket.rate * 60) * 1000)
    return text % (bucket.limit, max(0, int(left)), reset)
