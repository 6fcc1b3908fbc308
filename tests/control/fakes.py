"""Replicas that are told what to be: a provisioner without processes, and agents behind one real HTTP server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import msgspec
from aiohttp import web
from aiohttp.test_utils import TestServer

from pillion.control.groups import differs
from pillion.core.errors import NotFoundError
from pillion.core.replica import (
    Failure,
    Grant,
    GroupSpec,
    Replica,
    ReplicaStatus,
    Residency,
    ResidencyState,
)


def _set() -> asyncio.Event:
    event = asyncio.Event()
    event.set()
    return event


@dataclass
class FakeAgent:
    """One agent with its engine. By itself it does what it is granted at once; `hold` makes it wait to be told.

    `fails`: adapter ids, or engine names, that cannot be loaded. While it is not `awake` it answers nothing.
    """

    replica: Replica
    group: GroupSpec
    now: float
    ready: bool = True
    reachable: bool = True
    hold: bool = False
    fails: set[str] = field(default_factory=set)
    grants: list[Grant] = field(default_factory=list)
    rows: dict[str, Residency] = field(default_factory=dict)
    on_demand: set[str] = field(default_factory=set)
    epoch: int = 1
    engine_epoch: int = 1
    revision: int = 1
    stage: str = "ready"
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    awake: asyncio.Event = field(default_factory=_set)

    @property
    def granted(self) -> set[str]:
        """Adapter ids of the last grant."""
        return {entry.adapter_id for entry in self.grants[-1].entries} if self.grants else set()

    @property
    def resident(self) -> set[str]:
        return {name.partition("@")[0] for name, row in self.rows.items() if row.state == "loaded"}

    def status(self) -> ReplicaStatus:
        return ReplicaStatus(
            replica=self.replica.id,
            instance=self.replica.instance,
            region=self.replica.region,
            agent_epoch=f"epoch-{self.epoch}",
            revision=self.revision,
            engine_epoch=self.engine_epoch,
            stage=self.stage,  # type: ignore[arg-type]
            stage_since=self.now,
            detail="",
            engine_url=f"http://engine/{self.replica.id}",
            ready=self.ready,
            grant_version=self.grants[-1].version if self.grants else 0,
            slots=self.group.lora.slots,
            adapters=tuple(
                msgspec.structs.replace(self.rows[name], on_demand=name in self.on_demand)
                for name in sorted(self.rows)
            ),
            engine={"version": "fake"},
        )

    def tell(self, **changes: Any) -> None:
        """Change facts and let those who poll hear of it."""
        for name, value in changes.items():
            setattr(self, name, value)
        self.revision += 1
        self.changed.set()
        self.changed = asyncio.Event()

    def accept(self, grant: Grant) -> None:
        self.grants.append(grant)
        if not self.hold:
            self.converge()

    def converge(self) -> None:
        """Load and unload as the last grant says."""
        grant = self.grants[-1]
        wanted = {entry.engine_name for entry in grant.entries}
        self.on_demand -= wanted.union(grant.drop)
        for name in list(self.rows):
            if name not in wanted | self.on_demand:
                del self.rows[name]
        for name in sorted(wanted):
            row = self.rows.get(name)
            if row is None or (row.state in ("failed", "registered") and name in grant.retry):
                if len(self.rows) >= self.group.lora.slots:
                    continue
                bad = name in self.fails or name.partition("@")[0] in self.fails
                self.move(name, "failed" if bad else "loaded")
        self.tell()

    def move(self, name: str, state: ResidencyState) -> None:
        self.now += 1
        failure = Failure("adapter_ineffective", "it changes nothing") if state == "failed" else None
        self.rows[name] = Residency(name, state, self.now, failure)

    def crash_engine(self) -> None:
        """The engine starts again, empty."""
        self.rows = {}
        self.tell(ready=False, engine_epoch=self.engine_epoch + 1, stage="restarting")

    def engine_is_back(self) -> None:
        self.tell(ready=True, stage="ready")
        if self.grants and not self.hold:
            self.converge()

    def restart(self) -> None:
        """Another life of the agent beside the same engine: it has forgotten its grants."""
        self.grants = []
        self.tell(epoch=self.epoch + 1)


class FakeFleet:
    """A provisioner for one region. `agents` are those that are there; knobs make it slow, broken or silent."""

    def __init__(self, region: str, url: str, now: float = 0.0) -> None:
        self.region = region
        self.url = url
        self.now = now
        self.agents: dict[str, FakeAgent] = {}
        self.applied: list[GroupSpec] = []
        self.deleted: list[int] = []
        self.made = 0
        self.ready_at_once = True
        self.dies_at_once = False
        self.apply_error: Exception | None = None
        self.delete_error: Exception | None = None
        self.observe_error: Exception | None = None
        self.deletes, self.observes = _set(), _set()

    async def apply(self, group: GroupSpec) -> None:
        self.applied.append(group)
        if self.apply_error is not None:
            raise self.apply_error
        mine = [a for a in self.agents.values() if a.replica.instance == group.instance]
        if not differs(group, [a.replica for a in mine]):
            return
        for dead in [a for a in mine if not a.replica.alive]:
            del self.agents[dead.replica.id]
        for _ in range(group.replicas - len([a for a in mine if a.replica.alive])):
            self.make(group)

    def make(self, group: GroupSpec) -> FakeAgent:
        self.made += 1
        id = f"r{group.instance}-{self.region}-{self.made}"
        replica = Replica(
            id=id,
            instance=group.instance,
            region=self.region,
            alive=not self.dies_at_once,
            agent_url=f"{self.url}/{id}",
            agent_token=f"token-{id}",
            infer_key=f"infer-{id}",
            started_at=self.now,
            generation=group.generation,
        )
        agent = FakeAgent(replica, group, self.now, ready=self.ready_at_once)
        if not self.ready_at_once:
            agent.stage = "starting"
        self.agents[id] = agent
        return agent

    async def delete(self, instance: int, region: str) -> None:
        self.deleted.append(instance)
        if self.delete_error is not None:
            raise self.delete_error
        await self.deletes.wait()
        for id in [id for id, a in self.agents.items() if a.replica.instance == instance]:
            del self.agents[id]

    async def observe(self) -> list[Replica]:
        if self.observe_error is not None:
            raise self.observe_error
        await self.observes.wait()
        return [agent.replica for agent in self.agents.values()]

    async def logs(self, replica: str, tail: int, *, follow: bool = False) -> AsyncIterator[str]:
        if replica not in self.agents:
            raise NotFoundError(f"there is no replica {replica!r}.")
        for number in range(min(tail, 3)):
            yield f"{replica} line {number}\n"

    def kill(self, agent: FakeAgent) -> None:
        """The agent's process is gone."""
        agent.replica = msgspec.structs.replace(agent.replica, alive=False, agent_url=None)
        agent.tell(reachable=False)

    @property
    def only(self) -> FakeAgent:
        (agent,) = self.agents.values()
        return agent


class AgentServer:
    """All fake agents behind one server, each under `/<replica id>`."""

    def __init__(self) -> None:
        self.fleets: list[FakeFleet] = []
        self.refused = 0

    def app(self) -> web.Application:
        app = web.Application()
        app.router.add_get("/{replica}/v1/status", self._status)
        app.router.add_put("/{replica}/v1/grant", self._grant)
        return app

    def _agent(self, request: web.Request) -> FakeAgent:
        id = request.match_info["replica"]
        agent = next((f.agents[id] for f in self.fleets if id in f.agents), None)
        if agent is None or not agent.reachable:
            raise web.HTTPServiceUnavailable
        if request.headers.get("authorization") != f"Bearer token-{id}":
            raise web.HTTPUnauthorized
        return agent

    async def _status(self, request: web.Request) -> web.Response:
        agent = self._agent(request)
        wait = float(request.query.get("wait", "0"))
        asked = (request.query.get("epoch"), int(request.query.get("revision", "0")))
        try:
            async with asyncio.timeout(wait):
                while asked == (f"epoch-{agent.epoch}", agent.revision):
                    await agent.changed.wait()
        except TimeoutError:
            pass
        await agent.awake.wait()
        self._agent(request)
        return web.Response(body=msgspec.json.encode(agent.status()))

    async def _grant(self, request: web.Request) -> web.Response:
        agent = self._agent(request)
        grant = msgspec.json.decode(await request.read(), type=Grant)
        await agent.awake.wait()
        if agent.grants and grant.version <= agent.grants[-1].version:
            self.refused += 1
            raise web.HTTPConflict
        agent.accept(grant)
        return web.json_response({})


@asynccontextmanager
async def agent_server() -> AsyncIterator[tuple[AgentServer, str]]:
    served = AgentServer()
    server = TestServer(served.app())
    await server.start_server()
    try:
        yield served, str(server.make_url("")).rstrip("/")
    finally:
        await server.close()
