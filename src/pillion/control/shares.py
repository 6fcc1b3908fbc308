"""Each gateway's share of the limits of keys, by what was asked of it lately, and what all have taken of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from pillion.core.limits import Bucket, shares
from pillion.core.usage import Demand, Share, Shares, Taken

MEMORY = 0.7  # of the demand before, at each report
FORGOTTEN_S = 10.0


class _Limit:
    """Of one key. `demand`: by gateway, and when it was told."""

    def __init__(self, first: Taken, now: float) -> None:
        self.bucket = Bucket(first.limit, now)
        self.bucket.level(first.left + first.taken)
        self.demand: dict[str, tuple[float, float]] = {}

    def told(self, gateway: str, told: Taken, now: float) -> None:
        before, _ = self.demand.get(gateway, (0.0, now))
        self.demand[gateway] = (MEMORY * before + (1 - MEMORY) * told.asked, now)
        self.bucket.left(now)
        self.bucket.take(told.taken)

    def share(self, gateway: str, now: float) -> Share | None:
        """None where it asked for nothing of late."""
        for other in [g for g, (_, at) in self.demand.items() if now - at > FORGOTTEN_S]:
            del self.demand[other]
        if gateway not in self.demand:
            return None
        parts = shares({g: amount for g, (amount, _) in self.demand.items()})
        return Share(parts[gateway], self.bucket.left(now))

    def idle(self, now: float) -> bool:
        return not self.demand and self.bucket.left(now) >= self.bucket.limit


class LimitShares:
    """What gateways said. In memory: after a restart they say again within a second what is left, as far as they know."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._requests: dict[str, _Limit] = {}
        self._tokens: dict[str, _Limit] = {}

    def told(self, demand: Demand) -> Shares:
        """Takes a gateway's demand; its shares of all keys that it has asked for lately."""
        gateway, now = demand.gateway, self._clock()
        return Shares(
            _told(self._requests, demand.requests, gateway, now),
            _told(self._tokens, demand.tokens, gateway, now),
        )


def _told(
    limits: dict[str, _Limit], demand: Mapping[str, Taken], gateway: str, now: float
) -> dict[str, Share]:
    """By key; of one kind."""
    for key, told in demand.items():
        limit = limits.get(key)
        if limit is None or limit.bucket.limit != told.limit:
            limit = limits[key] = _Limit(told, now)
        limit.told(gateway, told, now)
    found = {}
    for key, limit in list(limits.items()):
        share = limit.share(gateway, now)
        if share is not None:
            found[key] = share
        elif limit.idle(now):
            del limits[key]
    return found
