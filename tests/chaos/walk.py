"""A control over fake agents, for what is asked of it a thousand times: agents that do at once what they are granted."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pillion.control.plan import spec_of
from pillion.core.names import engine_name
from pillion.core.snapshot import Snapshot
from pillion.store.rows import Adapter, Attachment, Instance, RoutedAdapter, SnapshotRows
from tests.chaos.lives import REGIONS, Lives
from tests.control.fakes import AgentServer, FakeAgent, agent_server
from tests.control.world import World, fleets


class Walk(Lives):
    def __init__(self) -> None:
        self._numbers = 0
        super().__init__()

    async def _found(self) -> World:
        server: tuple[AgentServer, str] = await self._stack.enter_async_context(agent_server())
        return World(self.root, fleets(*server, *REGIONS))

    async def adapter(self, who: Any, region: str | None) -> Adapter:
        self._numbers += 1
        return await self.world.adapter(self.control, who, f"a{self._numbers}", region=region)

    @property
    def agents(self) -> list[FakeAgent]:
        return [agent for fleet in self.world.fleets.values() for agent in fleet.agents.values()]

    def placed(self) -> list[tuple[str, str, int]]:
        """Account, adapter and instance of what is attached or loaded."""
        rows: SnapshotRows = self.run(self.control.db.snapshot_rows())
        found = {row.adapter.row_id: row.adapter.id for row in rows.adapters}
        return [(a.account_id, found[a.adapter_row_id], a.instance_id) for a in rows.attachments]

    async def nudge(self) -> None:
        for agent in self.agents:
            if agent.grants:
                agent.converge()

    async def all_wrong(self) -> list[str]:
        snapshot = await self.world.snapshot(self.control)
        return list(self._wrong(await self.control.db.snapshot_rows(), snapshot))

    def _wrong(self, rows: SnapshotRows, snapshot: Snapshot) -> Iterator[str]:
        found = {row.adapter.row_id: row for row in rows.adapters}
        for instance in rows.instances:
            yield from self._wrong_replicas(instance)
        for attachment in rows.attachments:
            yield from self._wrong_attachment(attachment, found[attachment.adapter_row_id])
        for agent in self.agents:
            yield from self._wrong_residents(agent, rows, found)
        told = {replica.id: replica.resident for i in snapshot.instances for replica in i.replicas}
        for agent in self.agents:
            loaded = {name for name, row in agent.rows.items() if row.state == "loaded"}
            if told.get(agent.replica.id) != loaded:
                yield f"gateways know of {agent.replica.id} {told.get(agent.replica.id)}, it has {loaded}"

    def _wrong_replicas(self, instance: Instance) -> Iterator[str]:
        here = [a.replica for a in self.agents if a.replica.instance == instance.id and a.replica.alive]
        if instance.wanted != "running":
            if here:
                yield f"instance {instance.id} is stopped and has {len(here)} replicas"
            return
        for region, count in spec_of(instance).placement.items():
            there = sum(replica.region == region for replica in here)
            if there != count:
                yield f"instance {instance.id} has {there} of {count} replicas in {region}"
        if instance.state != "running":
            yield f"instance {instance.id} is {instance.state}"

    def _wrong_attachment(self, row: Attachment, adapter: RoutedAdapter) -> Iterator[str]:
        if row.state not in ("ready", "failed"):
            yield f"{adapter.adapter.id} on {row.instance_id} is {row.state} ({row.ready} of {row.wanted})"
        if row.state == "failed" and not row.error_message:
            yield f"{adapter.adapter.id} on {row.instance_id} failed, and nothing says why"
        if row.replaces is not None:
            yield f"the move of {adapter.adapter.id} to {row.instance_id} has not ended"

    def _wrong_residents(
        self, agent: FakeAgent, rows: SnapshotRows, found: dict[int, RoutedAdapter]
    ) -> Iterator[str]:
        wanted = set()
        for row in rows.attachments:
            adapter = found[row.adapter_row_id]
            here = row.instance_id == agent.replica.instance
            if here and adapter.adapter.region in (None, agent.replica.region):
                versions = [v for v in (adapter.live, adapter.canary) if v is not None]
                wanted |= {engine_name(adapter.adapter.id, v.digest) for v in versions}
        failed = {name for name, row in agent.rows.items() if row.state == "failed"}
        loaded = {name for name, row in agent.rows.items() if row.state == "loaded"}
        if loaded != wanted - failed:
            yield f"{agent.replica.id} has {sorted(loaded)}, and should {sorted(wanted - failed)}"
