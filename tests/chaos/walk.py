"""A control over real rows and fake replicas that things are done to and that things happen to, one after the other.

It may be killed after any commit and is then begun anew over the same database. What is said at the end, when everything is
whole again and quiet, is that facts equal wishes.
"""

from __future__ import annotations

import asyncio
import hashlib
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

from pillion.control import adapters, attachments, sessions
from pillion.control.context import Control
from pillion.control.keys import Principal
from pillion.control.plan import spec_of
from pillion.core.errors import PillionError, UnavailableError
from pillion.core.names import engine_name
from pillion.core.snapshot import Snapshot
from pillion.store.rows import Adapter, Attachment, Instance, RoutedAdapter, SnapshotRows
from pillion.store.transaction import Tx
from tests.control.fakes import AgentServer, FakeAgent, FakeFleet, agent_server
from tests.control.world import World, fleets

REGIONS = ("eu", "us", "asia")
STEP_S = 20.0
QUIET_S = 20.0
BACKOFF_S = 61.0


class Crash(BaseException):
    """Control is killed. Nothing of it runs on."""


class Walk:
    """Synchronous from outside: each call runs its own event loop until what was asked for is over."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._dir = tempfile.TemporaryDirectory()
        self._stack = AsyncExitStack()
        self._control_stack = AsyncExitStack()
        self._numbers = 0
        self._left: int | None = None
        self.crashed = False
        self.database_away = False
        self.kept: set[tuple[str, int]] = set()  # attached, acknowledged, and nothing said against it since
        self.restarts = 0
        self.control: Control
        self.accounts: list[Principal] = []
        self._patience = (attachments.DETACH_WAIT_S, adapters.DELETE_WAIT_S)
        attachments.DETACH_WAIT_S = sessions.DETACH_WAIT_S = adapters.DELETE_WAIT_S = 0.05  # type: ignore[misc]
        self.run(self._begin())

    def run(self, work: Awaitable[Any]) -> Any:
        async def within() -> Any:
            async with asyncio.timeout(QUIET_S + STEP_S):
                return await work

        return self._loop.run_until_complete(within())

    def close(self) -> None:
        self.run(self._end())
        self._loop.close()
        self._dir.cleanup()
        attachments.DETACH_WAIT_S = sessions.DETACH_WAIT_S = self._patience[0]
        adapters.DELETE_WAIT_S = self._patience[1]

    async def _begin(self) -> None:
        server: tuple[AgentServer, str] = await self._stack.enter_async_context(agent_server())
        self.world = World(Path(self._dir.name), fleets(*server, *REGIONS))
        await self._start()
        self.accounts = [await self.world.account(self.control, name) for name in ("alice", "bob")]

    async def _end(self) -> None:
        await self._control_stack.aclose()
        await self._stack.aclose()

    async def _start(self) -> None:
        self.crashed, self._left = False, None
        self._control_stack = AsyncExitStack()
        self.control = await self._control_stack.enter_async_context(self.world.control())
        real = self.control.db.transaction

        @asynccontextmanager
        async def transaction() -> AsyncIterator[Tx]:
            if self.crashed:
                raise Crash
            if self.database_away:
                raise UnavailableError("The database does not answer.", code="unavailable")
            async with real() as tx:
                yield tx
            if self._left is not None:
                self._left -= 1
                if self._left == 0:
                    self.crashed = True
                    self.control.controller.ticked.notify()  # nobody waits for one who is dead
                    raise Crash

        self.control.db.transaction = transaction  # type: ignore[method-assign]

    # What is done.

    def kill_after(self, commits: int) -> None:
        """Control dies after so many more commits, whoever makes them."""
        self._left = commits

    def restart(self) -> None:
        async def again() -> None:
            await self._control_stack.aclose()
            await self._start()

        self.restarts += 1
        self.run(again())

    def do(self, work: Callable[[], Awaitable[Any]]) -> Any:
        """What it gave; None where it was refused, or control died over it. Then control goes round once."""
        try:
            return self.run(self._step(work))
        except Crash:
            return None
        finally:
            if self.crashed:
                self.restart()

    async def _step(self, work: Callable[[], Awaitable[Any]]) -> Any:
        given = None
        try:
            given = await work()
        except UnavailableError:
            if not self.database_away:
                raise
        except PillionError as error:
            if error.status >= 500:
                raise
        await self.tick()
        return given

    async def tick(self) -> None:
        if self.crashed:
            raise Crash
        seen = self.control.controller.ticked.count
        self.control.changes.notify()
        await self.control.controller.ticked.wait(seen, 2.0)

    async def adapter(self, who: Principal, region: str | None) -> Adapter:
        self._numbers += 1
        return await self.world.adapter(self.control, who, f"a{self._numbers}", region=region)

    async def version(self, who: Principal, row: Adapter) -> int:
        """One more, of other bytes; not live."""
        self._numbers += 1
        async with self.control.db.transaction() as tx:
            made = await tx.versions.add(
                who.account,
                row.row_id,
                digest=hashlib.sha256(f"v{self._numbers}".encode()).hexdigest(),
                rank=4,
                alpha=8.0,
                target_modules=["q_proj"],
                size_bytes=100,
                source={},
                now=self.world.clock(),
            )
        return made.version

    # What there is.

    @property
    def agents(self) -> list[FakeAgent]:
        return [agent for fleet in self.world.fleets.values() for agent in fleet.agents.values()]

    def placed(self) -> list[tuple[str, str, int]]:
        """Account, adapter and instance of what is attached or loaded."""
        rows: SnapshotRows = self.run(self.control.db.snapshot_rows())
        found = {row.adapter.row_id: row.adapter.id for row in rows.adapters}
        return [(a.account_id, found[a.adapter_row_id], a.instance_id) for a in rows.attachments]

    def fleet_of(self, agent: FakeAgent) -> FakeFleet:
        return self.world.fleets[agent.replica.region]

    # What always holds.

    def check(self) -> None:
        for agent in self.agents:
            held = [row for row in agent.rows.values() if row.state in ("loading", "loaded", "evicting")]
            assert len(held) <= agent.group.lora.slots, f"{agent.replica.id} holds {len(held)}"
        if not self.database_away:
            self.run(self._check_snapshot())

    async def _check_snapshot(self) -> None:
        rows = await self.control.db.snapshot_rows()
        snapshot = await self.world.snapshot(self.control)
        owners = {instance.id: instance.account_id for instance in rows.instances}
        async with self.control.db.read() as tx:
            for adapter in snapshot.adapters:
                for instance in adapter.instances:
                    assert owners.get(instance, adapter.account) in (None, adapter.account)
                digests = {v.digest for v in await tx.versions.list(adapter.account, adapter.row_id)}
                names = {engine_name(adapter.id, digest) for digest in digests}
                assert adapter.engine_name is None or adapter.engine_name in names

    # What holds in the end.

    def quiet(self) -> None:
        """Everything is whole again. Raises AssertionError where facts do not come to equal wishes."""
        self.database_away = False
        self._left = None
        if self.crashed:
            self.restart()
        for fleet in self.world.fleets.values():
            fleet.apply_error = fleet.observe_error = fleet.delete_error = None
        self.run(self._until_settled())

    def wrong(self) -> list[str]:
        """Where facts do not equal wishes now."""
        return self.run(self._all_wrong())  # type: ignore[no-any-return]

    async def _all_wrong(self) -> list[str]:
        return list(self._wrong(await self.control.db.snapshot_rows(), await self._snapshot()))

    async def _until_settled(self) -> None:
        wrong: list[str] = ["nothing was looked at"]
        try:
            async with asyncio.timeout(QUIET_S):
                while wrong:
                    self.world.clock.ahead += BACKOFF_S
                    for agent in self.agents:
                        self._mend(agent)
                    await self.tick()
                    wrong = await self._all_wrong()
        except TimeoutError:
            raise AssertionError("facts do not equal wishes: " + "; ".join(wrong)) from None

    async def _snapshot(self) -> Snapshot:
        return await self.world.snapshot(self.control)

    def _mend(self, agent: FakeAgent) -> None:
        agent.hold = False
        if not agent.reachable and agent.replica.alive:
            agent.tell(reachable=True)
        if not agent.ready:
            agent.engine_is_back()
        elif agent.grants:
            agent.converge()

    def _wrong(self, rows: SnapshotRows, snapshot: Snapshot) -> Iterator[str]:
        found = {row.adapter.row_id: row for row in rows.adapters}
        for instance in rows.instances:
            yield from self._wrong_replicas(instance)
        for attachment in rows.attachments:
            yield from self._wrong_attachment(attachment, found[attachment.adapter_row_id])
        for row in rows.adapters:
            if row.adapter.wanted_version is not None:
                yield f"{row.adapter.id}: version {row.adapter.wanted_version} is not live yet"
        for agent in self.agents:
            yield from self._wrong_residents(agent, rows, found)
        there = {(found[a.adapter_row_id].adapter.id, a.instance_id) for a in rows.attachments}
        yield from (f"{lost} was attached, and is not" for lost in sorted(self.kept - there))
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
