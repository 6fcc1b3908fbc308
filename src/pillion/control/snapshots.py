"""Routing snapshots: built from wishes and facts, published to gateways, acknowledged by their next poll."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from pillion.control.changes import Changes
from pillion.core import snapshot as wire

ACKNOWLEDGE_S = 2.0
KEPT_DELTAS = 200
GATEWAY_FORGOTTEN_S = 45.0  # longer than a long poll, in which nothing is heard, may take


@dataclass
class _Gateway:
    version: int
    seen_at: float


class Gateways:
    """Which gateways are connected and which version each has applied."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._known: dict[str, _Gateway] = {}
        self._acknowledged = Changes()

    def heard(self, gateway: str, version: int) -> None:
        """A gateway polls after `version`: it has applied it."""
        self._known[gateway] = _Gateway(version, self._clock())
        self._acknowledged.notify()

    def left(self, gateway: str) -> None:
        self._known.pop(gateway, None)
        self._acknowledged.notify()

    @property
    def known(self) -> int:
        """How many are connected."""
        self._forget()
        return len(self._known)

    def behind(self, version: int) -> list[str]:
        self._forget()
        return sorted(name for name, g in self._known.items() if g.version < version)

    def _forget(self) -> None:
        now = self._clock()
        for name in [n for n, g in self._known.items() if now - g.seen_at > GATEWAY_FORGOTTEN_S]:
            del self._known[name]

    async def acknowledged(self, version: int, timeout: float = ACKNOWLEDGE_S) -> list[str]:
        """Wait until every connected gateway has `version`; the names of those that have not after `timeout` s."""
        deadline = asyncio.get_running_loop().time() + timeout
        while behind := self.behind(version):
            seen = self._acknowledged.count
            left = deadline - asyncio.get_running_loop().time()
            if left <= 0:
                return behind
            await self._acknowledged.wait(seen, left)
        return []


class Publisher:
    """The latest snapshot, and how it came to be from the ones before. Equal content keeps its version; versions grow
    over restarts too, being milliseconds.
    """

    def __init__(self, pepper: bytes, clock: Callable[[], float], epoch: str = "") -> None:
        self._pepper = pepper
        self._epoch = epoch
        self._clock = clock
        self._published = Changes()
        self._closed = False
        self._latest: wire.Content | None = None
        self._made_at = 0.0
        self._encoded: bytes | None = None
        self._deltas: dict[int, bytes] = {}
        self.version = 0

    def publish(self, content: wire.Content) -> int:
        """The version that holds this content: a new one where it differs from the last."""
        now = self._clock()
        version = max(self.version + 1, int(now * 1000))
        last, self._latest = self._latest, content
        if last is not None:
            delta = wire.difference(last, content, self.version, version, now)
            if delta.empty:
                return self.version
            self._keep(delta)
        self._publish(version, now)
        return version

    async def after(self, version: int, wait: float, epoch: str | None = None) -> bytes | None:
        """What a gateway at `version` needs next, encoded: a delta, or the newest snapshot where it is too far behind.

        `epoch` is of the gateway's snapshot. None where there is nothing newer within `wait` seconds.
        """
        deadline = asyncio.get_running_loop().time() + wait
        self._overtake(version, epoch)
        while self.version <= version and not self._closed:
            seen = self._published.count
            left = deadline - asyncio.get_running_loop().time()
            if left <= 0:
                return None
            await self._published.wait(seen, left)
        if self._closed:
            return None
        return (self._deltas.get(version) if epoch == self._epoch else None) or self._whole()

    def close(self) -> None:
        """Let those who wait go: nothing more is published."""
        self._closed = True
        self._published.notify()

    def _overtake(self, version: int, epoch: str | None) -> None:
        """A gateway may have a version of a control whose clock was ahead of ours: what is newest must count as newer."""
        another = bool(epoch) and epoch != self._epoch
        if self._latest is not None and (version > self.version or (another and version == self.version)):
            now = self._clock()
            self._keep(wire.difference(self._latest, self._latest, self.version, version + 1, now))
            self._publish(version + 1, now)

    def _keep(self, delta: wire.Delta) -> None:
        self._deltas[delta.since] = wire.encode(delta)
        while len(self._deltas) > KEPT_DELTAS:
            del self._deltas[next(iter(self._deltas))]

    def _publish(self, version: int, now: float) -> None:
        self.version, self._made_at, self._encoded = version, now, None
        self._published.notify()

    def _whole(self) -> bytes:
        if self._encoded is None:
            assert self._latest is not None
            self._encoded = wire.encode(
                wire.whole(self._latest, self.version, self._made_at, self._pepper, self._epoch)
            )
        return self._encoded
