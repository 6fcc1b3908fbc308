"""Billing with a clock that is set, replicas that are told what to be, and a database that dies when it is told to."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import msgspec

from pillion.control import instances, wallets
from pillion.control.billing import Billing
from pillion.control.context import Control
from pillion.control.controller import LEASE
from pillion.control.instances import Launch
from pillion.control.keys import Principal
from pillion.control.runs import RunLog
from pillion.control.views import InstanceView
from pillion.core.replica import LoraSpec, Replica, ReplicaStatus
from pillion.store.database import Database
from pillion.store.rows import Instance
from pillion.store.transaction import Tx
from tests.control import things
from tests.control.world import World

HOUR = 3600.0
DAY = 24 * HOUR
RATE = 3_600_000  # a millisecond of one costs 1


class DiedError(BaseException):
    """The process ends here."""


class Mortal:
    """A database whose user dies at its `at`-th write from now on, before it is committed or after."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self.writes = 0
        self.at: int | None = None
        self.after = False

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Tx]:
        self.writes += 1
        dies = self.writes == self.at
        async with self._db.transaction() as tx:
            yield tx
            if dies and not self.after:
                raise DiedError
        if dies:
            raise DiedError

    def __getattr__(self, name: str) -> Any:
        return getattr(self._db, name)


@dataclasses.dataclass
class Machine:
    """A replica as it really is. `truth`: the stretches in which it was ready."""

    replica: Replica
    ready: bool
    since: float
    truth: list[list[float]] = dataclasses.field(default_factory=list)

    def be(self, ready: bool, now: float) -> None:
        if ready == self.ready:
            return
        self.ready, self.since = ready, now
        if ready:
            self.truth.append([now, now])

    def pass_until(self, now: float) -> None:
        if self.ready:
            self.truth[-1][1] = now


class Office:
    """One control's billing. `away`: nobody looks, settles or stops anything, while replicas run on."""

    def __init__(self, world: World, control: Control) -> None:
        self.world, self.control = world, control
        self.db = Mortal(control.db)
        control.db = self.db  # type: ignore[assignment]
        self.machines: dict[int, list[Machine]] = {}
        self.all_ever: list[Machine] = []
        self.away = False
        self.bill(True)
        self.restart()

    def bill(self, on: bool) -> None:
        self.control.settings = dataclasses.replace(self.control.settings, billing=on)

    def restart(self) -> None:
        """The process begins anew, with nothing in its memory."""
        self.runs = RunLog(self.control, LEASE)
        self.billing = Billing(self.control, "one")

    @property
    def now(self) -> float:
        return self.world.clock()

    async def price(self, hourly: int, at: float | None = None, region: str = "") -> None:
        async with self.control.db.transaction() as tx:
            at_ms = round((self.now if at is None else at) * 1000)
            await tx.prices.add(
                "gpu_hour",
                "cpu",
                region=region,
                hourly=hourly,
                effective_ms=at_ms,
                source="test",
                now=self.now,
            )

    async def topup(self, who: Principal, amount: int, key: str | None = None) -> None:
        await wallets.credit(self.control, who, who.account, "topup", amount, key)

    async def launch(self, who: Principal, replicas: int = 1, *, ready: bool = True) -> InstanceView:
        wish = Launch("tiny", replicas=replicas, lora=LoraSpec())
        made = await instances.launch(self.control, who, wish)
        self.machines[made.id] = [
            Machine(things.replica(f"i{made.id}r{n}", instance=made.id, region="local"), False, self.now)
            for n in range(replicas)
        ]
        self.all_ever += self.machines[made.id]
        for machine in self.machines[made.id]:
            machine.be(ready, self.now)
        return made

    async def stop(self, who: Principal, id: int) -> None:
        async with self.control.db.transaction() as tx:
            await tx.instances.stop(who.account, id, self.now, reason="stopped_by_owner")

    async def wait(self, seconds: float, step: float = HOUR) -> None:
        """Time passes; every `step` control looks and settles, unless it is away."""
        end = self.now + seconds
        while (left := end - self.now) > 1e-6:
            self.world.clock.ahead += min(step, left)
            await self.look()

    async def look(self) -> None:
        for machine in self._all():
            machine.pass_until(self.now)
        if self.away:
            return
        await self.record()
        await self.billing.step()
        await self._kill()

    async def record(self) -> None:
        async with self.control.db.transaction() as tx:
            lease = await tx.leases.acquire(LEASE, "one", self.now, 1e9)
            rows = {row.id: row for row in await tx.everyone.wanted_instances()}
        assert lease is not None
        replicas = [machine.replica for machine in self._all()]
        facts = {machine.replica.id: _status(machine) for machine in self._all()}
        await self.runs.record(lease, rows, replicas, facts)

    async def close(self) -> None:
        """Everything is stopped, settled and posted."""
        async with self.control.db.transaction() as tx:
            for row in await tx.everyone.wanted_instances():
                await tx.instances.stop(row.account_id, row.id, self.now, reason="stopped_by_owner")
        self.world.clock.ahead += HOUR
        await self.billing.step()

    async def instance(self, who: Principal, id: int) -> Instance:
        async with self.control.db.read() as tx:
            found = await tx.instances.get(who.account, id)
        assert found is not None
        return found

    async def balances(self, who: Principal) -> tuple[int, int]:
        async with self.control.db.read() as tx:
            wallet = await tx.ledger.wallet(who.account)
        return wallet.available, wallet.held

    async def entries(self, who: Principal) -> list[tuple[str, int]]:
        """Kinds and amounts, the operator's loss as `loss`."""
        async with self.control.db.read() as tx:
            found = await tx.ledger.list(who.account, limit=10_000)
        return [(entry.kind, entry.amount) for entry in found]

    async def _kill(self) -> None:
        """Replicas of what is to stop end."""
        async with self.control.db.read() as tx:
            wanted = {row.id for row in await tx.everyone.wanted_instances()}
        for id in [id for id in self.machines if id not in wanted]:
            for machine in self.machines.pop(id):
                machine.be(False, self.now)

    def _all(self) -> list[Machine]:
        return [machine for machines in self.machines.values() for machine in machines]


def _status(machine: Machine) -> ReplicaStatus:
    status = things.status(machine.replica.id, ready=machine.ready)
    return msgspec.structs.replace(
        status, instance=machine.replica.instance, region="local", stage_since=machine.since
    )
