"""Which of the replicas that may answer is asked, and how often a request may move (SPEC §4, §5)."""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager

from pillion.core.routing import Candidate, Route


class Balance:
    """Requests in flight and late failures per replica, as this gateway saw them.

    `clock` gives seconds that only grow. A replica that failed is asked last for `cooldown_s`.
    """

    def __init__(self, clock: Callable[[], float], cooldown_s: float = 5.0) -> None:
        self._clock = clock
        self._cooldown_s = cooldown_s
        self._in_flight: Counter[str] = Counter()
        self._failed_at: dict[str, float] = {}

    def choose(self, route: Route, excluded: Collection[str] = ()) -> Candidate | None:
        """The best candidate that is not excluded: one that did not fail of late, the account's own before a pool's,
        the least busy; among equals always the same one for the same model, for its caches' sake.
        """
        left = [candidate for candidate in route.candidates if candidate.replica.id not in excluded]
        if len(left) < 2:
            return left[0] if left else None
        wanted = f"{route.account}/{route.adapter.id if route.adapter else route.base}/"

        def cost(candidate: Candidate) -> tuple[bool, int, int, int]:
            replica = candidate.replica.id
            affinity = zlib.crc32(f"{wanted}{replica}".encode())
            return self._failed_lately(replica), candidate.tier, self._in_flight[replica], affinity

        return min(left, key=cost)

    def begin(self, replica: str) -> None:
        """One request more in flight."""
        self._in_flight[replica] += 1

    def end(self, replica: str) -> None:
        """One less."""
        self._in_flight[replica] -= 1
        if not self._in_flight[replica]:
            del self._in_flight[replica]

    @contextmanager
    def holding(self, replica: str) -> Iterator[None]:
        """Counts one request in flight."""
        self.begin(replica)
        try:
            yield
        finally:
            self.end(replica)

    def in_flight(self, replica: str) -> int:
        return self._in_flight[replica]

    def failed(self, replica: str) -> None:
        now = self._clock()
        self._failed_at = {r: at for r, at in self._failed_at.items() if now - at < self._cooldown_s}
        self._failed_at[replica] = now

    def _failed_lately(self, replica: str) -> bool:
        at = self._failed_at.get(replica)
        return at is not None and self._clock() - at < self._cooldown_s


class RetryBudget:
    """At most `share` of requests may be sent a second time, with a small reserve for quiet hours."""

    def __init__(self, share: float = 0.1, reserve: float = 10.0) -> None:
        self._share = share
        self._reserve = reserve
        self._tokens = reserve

    def earn(self) -> None:
        """One more request has come."""
        self._tokens = min(self._reserve, self._tokens + self._share)

    def spend(self) -> bool:
        """Whether one may be sent again."""
        # A hair below 1: ten earnings of 0.1 must buy one retry in binary arithmetic too.
        if self._tokens < 1.0 - 1e-9:
            return False
        self._tokens -= 1.0
        return True
