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
PATIENCE_S = 0.5  # an agent that hangs must not hold up the rest


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
        self._sending: dict[str, asyncio.Task[Due | None]] = {}

    async def begin(self, token: int) -> None:
        """Under a new lease everything is sent anew."""
        await self.close()
        self._token, self._sequence, self._sent = token, 0, {}

    async def send(self, replicas: Iterable[Replica], due: Callable[[Replica], Due | None]) -> dict[str, Due]:
        """Send what has changed to all whose agent was heard; what was taken since this was last called, by replica.

        Where `due` is None the last grant stays in force. An agent that does not answer is sent no other meanwhile.
        """
        self._origin = self._changes.origin()
        there = {replica.id: replica for replica in replicas}
        for gone in self._sent.keys() - there.keys():
            del self._sent[gone]
        for id, replica in there.items():
            if id not in self._sending and (new := self._new(replica, due(replica))) is not None:
                self._sending[id] = asyncio.create_task(self._send(replica, *new))
        if self._sending:
            await asyncio.wait(self._sending.values(), timeout=PATIENCE_S)
        over = {id: sending for id, sending in self._sending.items() if sending.done()}
        self._sending = {id: sending for id, sending in self._sending.items() if id not in over}
        return {id: taken for id, sending in over.items() if (taken := sending.result()) is not None}

    async def close(self) -> None:
        """Let go of what is under way."""
        sending, self._sending = list(self._sending.values()), {}
        for task in sending:
            task.cancel()
        await asyncio.gather(*sending, return_exceptions=True)

    def _new(self, replica: Replica, due: Due | None) -> tuple[str, Due] | None:
        """What its agent has not been sent, and in which life it is: another may have missed some."""
        status = self._agents.facts.get(replica.id)
        if status is None or due is None:
            return None
        now = (status.agent_epoch, due)
        return None if self._sent.get(replica.id) == now and not due.retry else now

    async def _send(self, replica: Replica, epoch: str, due: Due) -> Due | None:
        """What was taken."""
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
        span, failed = self._changes.spans.begin("grant", self._origin, told), "cancelled"
        try:
            await self._agents.grant(replica, grant, span.carried)
            failed = ""
        except AgentUnreachableError as error:
            failed = "agent_unreachable"
            log.warning("grant_not_sent", replica=replica.id, error=str(error))
            self._sent.pop(replica.id, None)
            return None
        finally:
            span.end(failed or None)
        self._sent[replica.id] = (epoch, replace(due, retry=()))
        return due
