"""Requests and tokens per minute of each key, this gateway's share of them."""

from __future__ import annotations

from collections.abc import Mapping
from math import ceil

from pillion.core.errors import PillionError, RateLimitError
from pillion.core.limits import Bucket
from pillion.core.snapshot import Key
from pillion.core.usage import Demand, Share, Shares, Taken
from pillion.gateway.accounting import RateLimits
from pillion.gateway.http import Fields

OPEN_AFTER_S = 10.0
IDLE_S = 120.0


class _Buckets:
    __slots__ = ("asked", "key", "requests", "spent", "taken", "tokens", "used_at")

    def __init__(self, key: Key, now: float) -> None:
        self.key = key
        self.requests = None if key.requests_per_minute is None else Bucket(key.requests_per_minute, now)
        self.tokens = None if key.tokens_per_minute is None else Bucket(key.tokens_per_minute, now)
        self.asked = self.taken = self.spent = 0.0
        self.used_at = now

    def fit(self, key: Key) -> bool:
        if key is self.key:
            return True
        self.key, mine = key, (self.requests and self.requests.limit, self.tokens and self.tokens.limit)
        return mine == (key.requests_per_minute, key.tokens_per_minute)

    def full(self, now: float) -> bool:
        """Whether a new one would have no more. Tokens may be owed for long: what an answer costs is known at its end."""
        return self.tokens is None or self.tokens.left(now) >= self.tokens.rate * 60.0


class LimitReachedError(RateLimitError):
    """`fields`: the headers that tell of the key's limits."""

    def __init__(self, fields: Mapping[str, str], message: str, *, retry_after: float) -> None:
        super().__init__(message, retry_after=retry_after)
        self._fields = fields

    def headers(self) -> dict[str, str]:
        return {**super().headers(), **self._fields}


class KeyLimits(RateLimits):
    """Control tells the shares; where it is away, each gateway takes the whole limit."""

    def __init__(self, now: float) -> None:
        self._buckets: dict[str, _Buckets] = {}
        self._heard_at = now

    def check(self, key: Key, now: float) -> PillionError | None:
        if key.requests_per_minute is None and key.tokens_per_minute is None:
            return None
        own = self._of(key, now)
        own.asked += 1.0
        requests, tokens = own.requests, own.tokens
        if requests is not None and requests.left(now) < 1.0:
            return self._reached(key, "requests", requests, now)
        if tokens is not None and tokens.left(now) < 1.0:
            return self._reached(key, "tokens", tokens, now)
        own.taken += 1.0
        if requests is not None:
            requests.take(1.0)
        return None

    def spent(self, key: Key, tokens: int, now: float) -> None:
        if key.tokens_per_minute is None:
            return
        own = self._of(key, now)
        own.spent += tokens
        if own.tokens is not None:
            own.tokens.left(now)
            own.tokens.take(float(tokens))

    def fields(self, key: Key, now: float) -> Fields:
        if key.requests_per_minute is None and key.tokens_per_minute is None:
            return ()
        return [tuple(line.split(": ", 1)) for line in self.lines(key, now).decode().splitlines()]  # type: ignore[misc]

    def lines(self, key: Key, now: float) -> bytes:
        if key.requests_per_minute is None and key.tokens_per_minute is None:
            return b""
        own = self._of(key, now)
        text = "" if own.requests is None else _lines("requests", own.requests, now)
        if own.tokens is not None:
            text += _lines("tokens", own.tokens, now)
        return text.encode()

    def demand(self, gateway: str, now: float) -> Demand:
        """What was asked and taken since the last time; what is idle is forgotten."""
        found = Demand(gateway, {}, {})
        for key, own in list(self._buckets.items()):
            if own.asked or own.spent:
                if own.requests is not None:
                    found.requests[key] = _told(own.asked, own.taken, own.requests, now)
                if own.tokens is not None:
                    found.tokens[key] = _told(own.spent, own.spent, own.tokens, now)
                own.asked = own.taken = own.spent = 0.0
            elif now - own.used_at > IDLE_S and own.full(now):
                del self._buckets[key]
        return found

    def shared(self, shares: Shares, now: float) -> None:
        """Control has spoken. Of what it does not speak nothing was used of late, here or since then."""
        self._heard_at = now
        for key, own in self._buckets.items():
            if own.requests is not None:
                _take(own.requests, shares.requests.get(key), own.taken, now)
            if own.tokens is not None:
                _take(own.tokens, shares.tokens.get(key), own.spent, now)

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

    def _reached(self, key: Key, what: str, bucket: Bucket, now: float) -> LimitReachedError:
        return LimitReachedError(
            dict(self.fields(key, now)),
            f"This API key's limit of {bucket.limit} {what} per minute is reached. Try again shortly.",
            retry_after=bucket.wait(1),
        )

    def _of(self, key: Key, now: float) -> _Buckets:
        own = self._buckets.get(key.id)
        if own is None or not own.fit(key):
            own = self._buckets[key.id] = _Buckets(key, now)
        own.used_at = now
        return own


def _told(asked: float, taken: float, bucket: Bucket, now: float) -> Taken:
    return Taken(asked, taken, bucket.limit, bucket.left(now))


def _take(bucket: Bucket, share: Share | None, since: float, now: float) -> None:
    """`since`: taken since control was told."""
    if share is None:
        bucket.share(1.0, now)
        return
    bucket.share(share.part, now)
    whole = share.left if share.left > 0.0 else share.left * share.part  # what is owed is owed by all
    bucket.level(min(bucket.left(now), whole - since))


def _lines(name: str, bucket: Bucket, now: float) -> str:
    left, whole = bucket.left(now), bucket.limit
    reset = 0 if left >= whole else ceil(bucket.wait(bucket.rate * 60.0) * 1000.0)
    return (
        f"x-ratelimit-limit-{name}: {whole}\r\nx-ratelimit-remaining-{name}: {max(0, int(left))}\r\n"
        f"x-ratelimit-reset-{name}: {reset}ms\r\n"
    )
