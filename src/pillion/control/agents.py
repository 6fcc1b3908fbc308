"""Talking to agents: one long poll per replica for its facts, and grants sent to it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterable

import aiohttp
import msgspec
import structlog

from pillion.control.changes import Changes
from pillion.core.replica import Grant, Replica, ReplicaStatus
from pillion.core.spans import Carried

POLL_S = 20.0
RETRY_S = 0.25
GRANT_S = 10.0
SILENCE_S = 10.0  # an agent that died is started again long before

log = structlog.get_logger(__name__)


class AgentUnreachableError(Exception):
    """The agent did not answer, or refused."""


class Agents:
    """The facts: the last status of every replica whose agent answers, kept fresh by long polls."""

    def __init__(self, changes: Changes) -> None:
        self._changes = changes
        self._polls: dict[str, asyncio.Task[None]] = {}
        self._replicas: dict[str, Replica] = {}
        self._session: aiohttp.ClientSession | None = None
        self.facts: dict[str, ReplicaStatus] = {}
        self._last: dict[str, tuple[ReplicaStatus, float]] = {}

    def presumed(self) -> dict[str, ReplicaStatus]:
        """The facts, and of agents that fell silent a moment ago what they said last: their engines serve on.

        So it is until an agent that was started again has found the engine: before that it says nothing of it.
        """
        now = asyncio.get_running_loop().time()
        return self.facts | {id: status for id, (status, until) in self._last.items() if now < until}

    def follow(self, replicas: Iterable[Replica]) -> None:
        """Poll exactly these: those that are alive and have said where they listen."""
        replicas = list(replicas)
        self._last = {r.id: self._last[r.id] for r in replicas if r.id in self._last}
        wanted = {r.id: r for r in replicas if r.alive and r.agent_url}
        for replica_id in list(self._polls):
            if self._replicas.get(replica_id) != wanted.get(replica_id):
                self._polls.pop(replica_id).cancel()
                self._unheard(replica_id)
        self._replicas = wanted
        for replica_id, replica in wanted.items():
            if replica_id not in self._polls:
                self._polls[replica_id] = asyncio.create_task(self._poll(replica))

    async def close(self) -> None:
        for task in self._polls.values():
            task.cancel()
        await asyncio.gather(*self._polls.values(), return_exceptions=True)
        self._polls.clear()
        if self._session is not None:
            await self._session.close()

    async def grant(self, replica: Replica, grant: Grant, of: Carried) -> None:
        """Send a grant, as part of a trace. Raises `AgentUnreachableError`."""
        try:
            async with self._http().put(
                f"{replica.agent_url}/v1/grant",
                data=msgspec.json.encode(grant),
                headers={**_auth(replica), **of},
                timeout=aiohttp.ClientTimeout(total=GRANT_S),
            ) as answer:
                if answer.status != 200:
                    raise AgentUnreachableError(
                        f"{replica.id}: grant refused: {answer.status} {await answer.text()}"
                    )
        except (aiohttp.ClientError, TimeoutError) as error:
            raise AgentUnreachableError(f"{replica.id}: {error}") from error

    def _http(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))
        return self._session

    async def _poll(self, replica: Replica) -> None:
        while True:
            known = self.facts.get(replica.id)
            try:
                status = await self._status(replica, known)
            except (
                Exception
            ) as error:  # whatever it was: who is not heard is not routed to, and is asked again
                if known is not None:
                    log.warning("agent_unreachable", replica=replica.id, error=repr(error))
                    self._unheard(replica.id)
                await asyncio.sleep(RETRY_S)
                continue
            if status != known:
                self.facts[replica.id] = status
                if status.engine_epoch:
                    self._last.pop(replica.id, None)
                self._changes.nudge()

    def _unheard(self, replica: str) -> None:
        status = self.facts.pop(replica, None)
        if status is None:
            return
        if status.engine_epoch:
            self._last[replica] = (status, asyncio.get_running_loop().time() + SILENCE_S)
        self._changes.nudge()

    async def _status(self, replica: Replica, known: ReplicaStatus | None) -> ReplicaStatus:
        query = {"wait": str(POLL_S)}
        if known is not None:
            query |= {"epoch": known.agent_epoch, "revision": str(known.revision)}
        async with self._http().get(
            f"{replica.agent_url}/v1/status",
            params=query,
            headers=_auth(replica),
            timeout=aiohttp.ClientTimeout(total=POLL_S + 10),
        ) as answer:
            answer.raise_for_status()
            return msgspec.json.decode(await answer.read(), type=ReplicaStatus)


def _auth(replica: Replica) -> dict[str, str]:
    return {"authorization": f"Bearer {replica.agent_token}"}


@contextlib.asynccontextmanager
async def agents(changes: Changes) -> AsyncIterator[Agents]:
    following = Agents(changes)
    try:
        yield following
    finally:
        await following.close()
