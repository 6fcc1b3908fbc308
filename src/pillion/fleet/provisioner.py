"""What a place that runs replicas can do. Level-triggered: say what is wanted, as often as you like."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Protocol

from pillion.core.replica import GroupSpec, Replica


class Provisioner(Protocol):
    async def apply(self, group: GroupSpec) -> None:
        """Creates what is missing, trims what is extra, replaces what is of another generation. Idempotent."""
        ...

    async def delete(self, instance: int, region: str) -> None:
        """Drains and ends all replicas of an instance in a region. What is not there is no error."""
        ...

    async def observe(self) -> list[Replica]:
        """All that is ours, alive or not; adopts after a restart."""
        ...

    def logs(self, replica: str, tail: int, *, follow: bool = False) -> AsyncIterator[str]:
        """The last `tail` lines of a replica's engine, and with `follow` each new one. Raises `NotFoundError`."""
        ...
