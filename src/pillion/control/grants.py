"""Grants on their way to agents: sent when they change, and again to whoever may have missed one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import structlog

from pillion.control.agents import Agents, AgentUnreachableError
from pillion.control.changes import Changes
from pillion.core.replica import Grant, GrantEntry, OnDemand, Replica
from pillion.core.spans import Carried

log = structlog.get_logger(__name__)

SEQUENCE_BITS = 32


@dataclass(frozen=True)
class Due:
    """What a replica is to be granted."""

    entries: tuple[GrantEntry, ...]
    drain_deadline_s: float
    leaving: dict[str, float]
    retry: tuple[str, ...] = ()
    on_demand: OnDemand | None = None
    drop: tuple[str, ...] = ()


class Grants:
    """Versions carry the lease's fencing token, so that agents refuse those of a controller that lost it."""

    def __init__(self, agents: Agents, changes: Changes) -> None:
        self._agents, self._changes = agents, changes
        self._origin: Carried = {}
        self._token = 0
        self._sequence = 0
        self._sent: dict[str, tuple[str, Due]] = {}

    def begin(self, token: int) -> None:
        """Under a new lease everything is sent anew."""
        self._token, self._sequence, self._sent = token, 0, {}

    async def send(self, replicas: Iterable[Replica], due: Callable[[Replica], Due | None]) -> set[str]:
        """Send what has changed to all whose agent was heard; the ids of those that took it.

        Where `due` is None the last grant stays in force.
        """
        self._origin = self._changes.origin()
        there = {replica.id: replica for replica in replicas}
        for gone in self._sent.keys() - there.keys():
            del self._sent[gone]
        sends = [self._send(replica, due(replica)) for replica in there.values()]
        return {replica for replica in await asyncio.gather(*sends) if replica is not None}

    async def _send(self, replica: Replica, due: Due | None) -> str | None:
        status = self._agents.facts.get(replica.id)
        if status is None or due is None:
            return None
        now = (status.agent_epoch, due)  # another life of the agent may have missed some
        if self._sent.get(replica.id) == now and not due.retry:
            return None
        self._sequence += 1
        version = (self._token << SEQUENCE_BITS) + self._sequence
        grant = Grant(
            replica.id,
            version,
            due.entries,
            due.drain_deadline_s,
            due.leaving,
            due.retry,
            due.on_demand,
            due.drop,
        )
        told: dict[str, str | int] = {"pillion.replica": replica.id, "pillion.grant": version}
        span = self._changes.spans.begin("grant", self._origin, told)
        try:
            await self._agents.grant(replica, grant, span.carried)
            span.end()
        except AgentUnreachableError as error:
            span.end("agent_unreachable")
            log.warning("grant_not_sent", replica=replica.id, error=str(error))
            self._sent.pop(replica.id, None)
            return None
        self._sent[replica.id] = (status.agent_epoch, replace(due, retry=()))
        return replica.id
