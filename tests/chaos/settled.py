"""What is to hold once all faults are over: facts equal wishes, gateways know them, and what is ready is answered."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import sqlalchemy as sa

from pillion.control.plan import spec_of
from pillion.core.names import engine_name
from pillion.core.replica import Residency
from pillion.store import tables
from pillion.store.rows import Attachment, Instance, RoutedAdapter, SnapshotRows
from tests.chaos.country import BASE
from tests.chaos.nodes import Node

if TYPE_CHECKING:
    from tests.chaos.site import Site

# What engines go on refusing. Whatever else failed is to have passed.
LASTING = frozenset({"engine_refused", "adapter_ineffective"})


async def wrong(site: Site) -> list[str]:
    """What does not hold now."""
    rows = await site.books.snapshot_rows()
    found = {row.adapter.row_id: row for row in rows.adapters}
    told = await _told(site, "attachment_failed")
    there = {(found[a.adapter_row_id].adapter.id, a.instance_id) for a in rows.attachments}
    wrong = [f"{lost} was attached, and is not" for lost in sorted(site.kept - there)]
    for instance in rows.instances:
        wrong += _wrong_instance(site, instance)
    for row in rows.attachments:
        wrong += _wrong_attachment(row, found[row.adapter_row_id], told)
    wrong += [f"{r.adapter.id}: {r.adapter.wanted_version} is not live" for r in rows.adapters if r.wanted]
    for node, id in site.replicas:
        wrong += await _wrong_residents(site, node, id, _named(node, id, rows, found))
    return wrong or await _wrong_answers(site, rows, found)


async def _told(site: Site, kind: str) -> set[str]:
    """The subjects of such events."""
    async with site.books.read() as tx:
        statement = sa.select(tables.events.c.subject).where(tables.events.c.kind == kind)
        return set((await tx.everyone._session.run(statement)).scalars())


def _wrong_instance(site: Site, instance: Instance) -> list[str]:
    if instance.wanted != "running":
        return [f"instance {instance.id} is stopped and has {id}" for _, id in _of(site, instance.id)]
    found = Counter(node.region for node, id in _of(site, instance.id) if node.engines[id].well)
    if found != Counter(spec_of(instance).placement):
        return [f"instance {instance.id} has {dict(found)}, not {spec_of(instance).placement}"]
    return [] if instance.state == "running" else [f"instance {instance.id} is {instance.state}"]


def _of(site: Site, instance: int) -> list[tuple[Node, str]]:
    return [(n, id) for n, id in site.replicas if n.engines[id].spec.group.instance == instance]


def _named(
    node: Node, id: str, rows: SnapshotRows, found: dict[int, RoutedAdapter]
) -> tuple[set[str], set[str]]:
    """What it must have, and what it may."""
    must, may = set[str](), set[str]()
    for row in rows.attachments:
        adapter = found[row.adapter_row_id]
        here = row.instance_id == node.engines[id].spec.group.instance and row.state != "detaching"
        if here and adapter.adapter.region in (None, node.region):
            versions = [v for v in (adapter.live, adapter.canary) if v is not None]
            names = {engine_name(adapter.adapter.id, v.digest) for v in versions}
            may |= names
            must |= names if row.hold == "attached" or row.pinned else set()
    return must, may


async def _wrong_residents(site: Site, node: Node, id: str, named: tuple[set[str], set[str]]) -> list[str]:
    engine, life, (must, may) = node.engines[id], node.lives[id], named
    if life.agent is None or life.dead:
        return [f"{id} has no agent"]
    told: dict[str, Residency] = {row.engine_name: row for row in life.agent.board.status.adapters}
    may = may | {name for name, row in told.items() if row.on_demand}
    must = must - {name for name, row in told.items() if row.failure and row.failure.code in LASTING}
    held = {name for name in await engine.resident() if engine.holds(name)}
    known, wrong = site.gateway.residents().get(id), list[str]()
    if not must <= held <= may:
        wrong.append(f"{id} has {sorted(held)}; it must {sorted(must)}, it may {sorted(may)}")
    if known != held:
        wrong.append(f"the gateway knows of {id} {known}, it has {held}")
    return wrong


async def _wrong_answers(site: Site, rows: SnapshotRows, found: dict[int, RoutedAdapter]) -> list[str]:
    """Whatever is ready somewhere is answered."""
    ready = {a.adapter_row_id for a in rows.attachments if a.state == "ready" and a.hold == "attached"}
    owners = [who.account for who in site.accounts]
    wrong = []
    for row_id in sorted(ready):
        adapter = found[row_id].adapter
        account = owners.index(adapter.account_id)
        answer = await site.gateway.ask(site.keys[account], f"{BASE}:{adapter.name}")
        if answer.status != 200:
            wrong.append(f"{adapter.name} is ready, and answered is {answer.raw!r}")
    return wrong


def _wrong_attachment(row: Attachment, adapter: RoutedAdapter, told: set[str]) -> list[str]:
    """`told`: of what an event says that it failed."""
    where = f"{adapter.adapter.id} on {row.instance_id}"
    if row.state == "failed" and not (row.error_message and f"adapter:{adapter.adapter.id}" in told):
        return [f"{where} failed, and nothing says why"]
    if row.state == "failed" and row.error_code not in LASTING:
        return [f"{where} failed for what has passed: {row.error_code} {row.error_message}"]
    if row.replaces is not None:
        return [f"the move of {where} has not ended"]
    held = row.hold == "attached" or row.pinned
    if (held and row.state not in ("ready", "failed")) or row.state == "detaching":
        return [f"{where} is {row.state} ({row.ready} of {row.wanted})"]
    return []
