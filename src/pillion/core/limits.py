"""Requests and tokens per minute, shared by gateways (SPEC §6). Pure."""

from __future__ import annotations

from collections.abc import Mapping

FLOOR = 0.1  # of an even share, so that a gateway with no requests yet can answer the first ones


def shares(demand: Mapping[str, float]) -> dict[str, float]:
    """Each gateway's part of a limit, in proportion to what was asked of it. They sum to 1; nobody's is zero."""
    total, count = sum(demand.values()), len(demand)
    if not count:
        return {}
    floor = FLOOR / count
    if total <= 0:
        return dict.fromkeys(demand, 1 / count)
    return {gateway: floor + (1 - FLOOR) * (asked / total) for gateway, asked in demand.items()}


class Bucket:
    """Tokens that come back at `per_minute`, up to a minute's worth. Times in seconds that only grow."""

    __slots__ = ("_at", "_left", "limit", "rate")

    def __init__(self, limit: int, now: float) -> None:
        self.limit = limit
        self.rate = limit / 60
        self._left, self._at = float(limit), now

    def left(self, now: float) -> float:
        """May be negative: what was used is known only afterwards."""
        passed = now - self._at
        if passed > 0.0:
            left, most = self._left + passed * self.rate, self.rate * 60.0
            self._left = left if left < most else most
            self._at = now
        return self._left

    def take(self, amount: float) -> None:
        self._left -= amount

    def wait(self, needed: float) -> float:
        """Seconds until `needed` are there."""
        missing = needed - self._left
        return max(0.0, missing / self.rate) if self.rate else 3600.0

    def share(self, part: float, now: float) -> None:
        """From now on this part of the limit is ours, in (0, 1]."""
        self.left(now)
        self.rate = self.limit * part / 60
        self._left = min(self._left, self.rate * 60)

    def level(self, left: float) -> None:
        """So much is left now."""
        self._left = left
