"""What the agent says of its replica, and those who wait to hear of a change."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import msgspec

from pillion.core.replica import ReplicaSpec, ReplicaStatus
from pillion.engines.driver import slots


class Board:
    """The status, whose revision grows with every change. `epoch` names this life of the agent."""

    def __init__(self, spec: ReplicaSpec, epoch: str, now: Callable[[], float]) -> None:
        self._now = now
        self._changed = asyncio.Event()
        self.status = ReplicaStatus(
            replica=spec.id,
            instance=spec.group.instance,
            region=spec.group.region,
            agent_epoch=epoch,
            revision=1,
            engine_epoch=0,
            stage="starting",
            stage_since=now(),
            detail="",
            engine_url=None,
            ready=False,
            grant_version=0,
            slots=slots(spec),
            adapters=(),
            engine={},
        )

    def post(self, **changes: Any) -> None:
        """Sets fields of the status. What changes nothing wakes nobody."""
        if "stage" in changes and changes["stage"] != self.status.stage:
            changes["stage_since"] = self._now()
        if all(getattr(self.status, name) == value for name, value in changes.items()):
            return
        self.status = msgspec.structs.replace(self.status, revision=self.status.revision + 1, **changes)
        self._changed.set()
        self._changed = asyncio.Event()

    async def wait(self, epoch: str | None, revision: int, timeout_s: float) -> ReplicaStatus:
        """The status: at once if `epoch` and `revision` are not the present ones, else at the next change."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while epoch == self.status.agent_epoch and revision >= self.status.revision:
                    await self._changed.wait()
        return self.status
