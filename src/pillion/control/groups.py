"""Process groups on their way to what is wanted, each by itself: a slow or broken one holds up no other."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import structlog

from pillion.control.changes import Changes
from pillion.core.replica import GroupSpec, Replica
from pillion.fleet.provisioner import Provisioner

log = structlog.get_logger(__name__)

OBSERVE_S = 5.0
PATIENCE_S = 1.0  # a region that hangs must not hold up the rest
BACKOFF_MAX_S = 60.0
STEADY_S = 30.0

Key = tuple[int, str]
Verb = Literal["apply", "delete"]


@dataclass
class _Backoff:
    failures: int = 0
    until: float = 0.0


class Groups:
    """The replicas of all regions as last seen, and what is being done about them. Keys are (instance, region).

    `changes` is notified when a move has ended, well or not.
    """

    def __init__(
        self, provisioners: Mapping[str, Provisioner], clock: Callable[[], float], changes: Changes
    ) -> None:
        self._provisioners = provisioners
        self._clock = clock
        self._changes = changes
        self._seen: dict[str, list[Replica]] = {}
        self._backoff: dict[tuple[Verb, Key], _Backoff] = {}
        self._moving: dict[Key, asyncio.Task[None]] = {}
        self._looking: dict[str, asyncio.Task[None]] = {}

    @property
    def unseen(self) -> set[str]:
        """Regions of which nothing is known: they have not answered yet."""
        return self._provisioners.keys() - self._seen.keys()

    @property
    def replicas(self) -> list[Replica]:
        return [replica for seen in self._seen.values() for replica in seen]

    @property
    def tries(self) -> dict[Key, float]:
        """When what did not hold is begun again, of those that are to be waited for (seconds since the epoch)."""
        now = self._clock()
        return {key: b.until for (verb, key), b in self._backoff.items() if verb == "apply" and b.until > now}

    async def observe(self) -> list[Replica]:
        """Look again; of a region that does not answer, what was seen last is taken to be still so."""
        for region in self._provisioners.keys() - self._looking.keys():
            self._looking[region] = asyncio.create_task(self._look(region))
        await asyncio.wait(self._looking.values(), timeout=PATIENCE_S if self._seen else OBSERVE_S)
        self._looking = {region: look for region, look in self._looking.items() if not look.done()}
        return self.replicas

    def move(self, wanted: Mapping[Key, GroupSpec]) -> None:
        """Begin what brings the groups to `wanted` and is not under way or waiting to be tried again."""
        present: dict[Key, list[Replica]] = {}
        for replica in self.replicas:
            present.setdefault((replica.instance, replica.region), []).append(replica)
        self._backoff = {
            (verb, key): b
            for (verb, key), b in self._backoff.items()
            if key in (wanted if verb == "apply" else present)
        }
        for key, group in wanted.items():
            if differs(group, present.get(key, ())):
                self._begin("apply", key, lambda group=group: self._apply(group))  # type: ignore[misc]
            else:
                self._settled(key)
        for key in present.keys() - wanted.keys():
            self._begin("delete", key, lambda key=key: self._delete(*key))  # type: ignore[misc]

    async def end_all(self) -> None:
        """Stop every replica and wait for them."""
        await asyncio.gather(*(self._look(region) for region in self._provisioners))
        keys = {(replica.instance, replica.region) for replica in self.replicas}
        await asyncio.gather(*(self._try(key, self._delete(*key)) for key in keys))

    async def close(self) -> None:
        """Let go of what is under way; another control, or the next start, goes on with it."""
        under_way = [*self._moving.values(), *self._looking.values()]
        for task in under_way:
            task.cancel()
        await asyncio.gather(*under_way, return_exceptions=True)

    async def _look(self, region: str) -> None:
        try:
            async with asyncio.timeout(OBSERVE_S):
                self._seen[region] = await self._provisioners[region].observe()
        except Exception:
            log.exception("region_not_observed", region=region)

    def _begin(self, verb: Verb, key: Key, work: Callable[[], Awaitable[None]]) -> None:
        """Then leave it time: longer each time that it did not hold."""
        backoff = self._backoff.setdefault((verb, key), _Backoff())
        if key in self._moving or backoff.until > self._clock():
            return
        backoff.failures += 1
        backoff.until = self._clock() + min(2.0 ** min(backoff.failures - 1, 30), BACKOFF_MAX_S)
        task = asyncio.create_task(self._try(key, work()))
        self._moving[key] = task
        task.add_done_callback(lambda _: self._ended(key))

    def _settled(self, key: Key) -> None:
        """What has held for a while has no failures behind it any more. One that dies at once, again and again, has."""
        backoff = self._backoff.get(("apply", key))
        if backoff is not None and backoff.until + STEADY_S <= self._clock():
            del self._backoff["apply", key]

    async def _try(self, key: Key, work: Awaitable[None]) -> None:
        try:
            await work
        except Exception:
            log.exception("group_not_moved", instance=key[0], region=key[1])

    def _ended(self, key: Key) -> None:
        del self._moving[key]
        self._changes.nudge()

    async def _apply(self, group: GroupSpec) -> None:
        provisioner = self._provisioners.get(group.region)
        if provisioner is None:
            log.error("region_unknown", region=group.region, instance=group.instance)
            return
        await provisioner.apply(group)

    async def _delete(self, instance: int, region: str) -> None:
        await self._provisioners[region].delete(instance, region)


def differs(group: GroupSpec, replicas: Iterable[Replica]) -> bool:
    found = list(replicas)
    return len(found) != group.replicas or any(not r.alive or r.generation != group.generation for r in found)
