"""Over thousands of operations nothing grows with their number: rows, files, processes' tasks, objects, memory, metrics."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import sqlalchemy as sa

from pillion.agent.home import Home
from pillion.agent.tidy import Tidy
from pillion.control import (
    adapters,
    attachments,
    instances,
    keys,
    leftovers,
    loads,
    metrics,
    sessions,
    versions,
)
from pillion.control.instances import Launch
from pillion.control.loads import Load
from pillion.core import snapshot as wire
from pillion.core.errors import AdapterInUseError
from pillion.core.replica import LoraSpec
from pillion.fleet.local import KEPT_LOGS
from pillion.store import tables
from tests.chaos.country import BASE, SLOTS
from tests.chaos.site import Site

FULL = bool(os.environ.get("PILLION_TEST_FULL"))
OPERATIONS = 10_000 if FULL else 120
TTL_S = 50.0
DAY_S = 86400.0
CACHE_BYTES = 20_000  # a few adapters
DEADLINE_S = 60.0
# What an account is to find for ever, of what was stopped, revoked or used.
HISTORY = {"instances", "api_keys", "runs", "usage_events", "usage_hours"}


class Life(Site):
    """Adapters come, are served in every way there is, and go."""

    def __init__(self) -> None:
        super().__init__()
        self.operations = 0
        self.home, self.other = (self.run(self.launched(on_demand)).id for on_demand in (False, True))
        self.quiet()

    async def launched(self, on_demand: bool = False) -> Any:
        lora = LoraSpec(True, max_adapters=SLOTS, on_demand=on_demand)
        wish = Launch(BASE, regions=["eu"], replicas=1, lora=lora)
        return await instances.launch(self.control, self.accounts[0], wish)

    async def until(self, model: str, status: int, version: int | None = None) -> None:
        """It is answered so."""
        end = time.monotonic() + DEADLINE_S
        while True:
            seen = self.control.controller.ticked.count
            answer = await self.gateway.ask(self.keys[0], model)
            self.operations += 1
            found = answer.headers.get("x-pillion-adapter-version")
            if answer.status == status and (version is None or found == str(version)):
                return
            assert time.monotonic() < end, f"{model}: {answer}"
            self.control.changes.notify()
            await self.control.controller.ticked.wait(seen, 0.5)

    async def deleted(self, adapter: str) -> None:
        """It may be draining yet."""
        end = time.monotonic() + DEADLINE_S
        while True:
            seen = self.control.controller.ticked.count
            with contextlib.suppress(AdapterInUseError):
                await adapters.delete(self.control, self.accounts[0], adapter, True)
                return
            assert time.monotonic() < end, f"{adapter} is in use"
            await self.control.controller.ticked.wait(seen, 0.5)

    async def one_life(self) -> None:
        who = self.accounts[0]
        row = await self.register(0, None)
        model = f"{BASE}:{row.name}"
        await attachments.attach(self.control, who, self.home, row.id)
        await self.until(model, 200, 1)
        await versions.go_live(self.control, who, row.id, await self.version(row))
        await self.until(model, 200, 2)
        await versions.rollback(self.control, who, row.id)
        await self.until(model, 200, 1)
        await attachments.detach(self.control, who, self.home, row.id, force=True)
        await self.until(model, 200)  # on demand
        await loads.load(
            self.control, who, row.id, Load([self.home], True, TTL_S, f"s{row.row_id}", wait=False)
        )
        await self.until(model, 200)
        if row.row_id % 2:
            self.clock.ahead += TTL_S + 2
            await self.until(model, 404)
        else:
            await sessions.end(self.control, who, f"s{row.row_id}")
        await self.deleted(row.id)
        key = await keys.create(self.control, who, "k", ["inference"])
        await keys.revoke(self.control, who, key.id)
        self.operations += 11

    async def one_accident(self) -> None:
        """An instance comes and goes, an engine and an agent die, the gateway begins anew."""
        made = await self.launched()
        await self.until(f"{BASE}:{made.id}", 200)
        await instances.stop(self.control, self.accounts[0], made.id)
        node, id = self.replicas[0]
        node.kill_engine(id)
        node.kill_agent(id)
        await self.restart_gateway()
        await self.until(BASE, 200)
        self.operations += 5

    async def tidied(self) -> None:
        """What is done once an hour or a minute, some days later."""
        self.clock.ahead += 2 * DAY_S
        await leftovers.clear(self.control)
        await leftovers.forget(self.control, leftovers.Keep(DAY_S, DAY_S, DAY_S))
        for node, id in self.replicas:
            home = Home(node._root / id)
            Tidy(home, node.cache, CACHE_BYTES, lambda: time.time() + DAY_S).look()
            node.forget()

    async def measured(self) -> dict[str, float]:
        await self.tidied()
        await asyncio.sleep(0.3)  # what was let go of ends
        gc.collect()
        async with self.books.read() as tx:
            rows = {
                f"rows of {table.name}": float(
                    await tx.everyone._session.value(sa.select(sa.func.count()).select_from(table)) or 0
                )
                for table in tables.metadata.sorted_tables
                if table.name not in HISTORY
            }
        whole = self.control.publisher._latest
        assert whole is not None
        return rows | {
            "files": float(sum(1 for path in self.root.rglob("*") if path.is_file())),
            "copies of adapters": float(sum(1 for n in self.nodes.values() for _ in n.cache.glob("*/"))),
            "tasks": float(len(asyncio.all_tasks())),
            "open files": float(len(list(Path("/proc/self/fd").iterdir()))),
            "objects": float(len(gc.get_objects())),
            "bytes of the snapshot": float(len(wire.encode(whole))),
            "series of the gateway": float(self.gateway.app._metrics.text().count(b"\n")),
            "series of control": float((await metrics.page(self.control)).count(b"\n")),
            "series of agents": float(
                max(
                    life.agent.metrics.text().count(b"\n")
                    for n in self.nodes.values()
                    for life in n.lives.values()
                    if life.agent
                )
            ),
            "MiB": psutil.Process().memory_info().rss / 2**20,
        }

    async def live(self, operations: int) -> None:
        end, lives = self.operations + operations, 0
        while self.operations < end:
            await self.one_life()
            lives += 1
            if lives % 8 == 0:
                await self.one_accident()
        await self.one_accident()


@pytest.fixture
def life() -> Iterator[Life]:
    made = Life()
    try:
        yield made
    finally:
        made.close()


# By how much each may be more, for each operation.
SLACK = {"objects": 2.0, "MiB": 0.004}
# And for all of them: what comes and goes is not always there at the same moment.
NOISE = {
    "files": 60 + KEPT_LOGS,
    "copies of adapters": 12,
    "tasks": 12,
    "open files": 20,
    "objects": 20_000,
    "MiB": 30,
}
NOISE |= {"bytes of the snapshot": 300, "series of the gateway": 40, "series of control": 20}


@pytest.mark.timeout(1800)
def test_nothing_grows_with_the_number_of_operations(life: Life) -> None:
    began = time.monotonic()
    life._patience_s = 1700.0
    life.run(life.live(OPERATIONS // 3))
    before, did = life.run(life.measured()), life.operations
    life.run(life.live(OPERATIONS - did))
    after, did = life.run(life.measured()), life.operations - did
    grown = {what: after[what] - before[what] for what in before}
    print(f"{life.operations} operations in {time.monotonic() - began:.0f} s; {dict(life.counts)}")
    print({what: (before[what], after[what]) for what in before})
    most = {what: NOISE.get(what, 10) + SLACK.get(what, 0) * did for what in grown}
    assert {what: (before[what], after[what]) for what in grown if grown[what] > most[what]} == {}
    life.check()
