"""What a routing snapshot is made of."""

from __future__ import annotations

from typing import Any

from pillion.store.database import Database
from pillion.store.rows import SnapshotRows, VersionBytes
from tests.store.conftest import NOW, two_accounts
from tests.store.test_adapters import MODEL, adapter, version


async def test_an_empty_snapshot(database: Database) -> None:
    assert await database.snapshot_rows() == SnapshotRows([], [], [], [], [])


async def test_snapshot_rows(database: Database) -> None:
    async with database.transaction() as tx:
        await two_accounts(tx)
        fields: dict[str, Any] = {"digest": "d", "name": "n", "scopes": ["inference"], "now": NOW}
        key = await tx.keys.create("acc_a", "key_1", lookup="L1", **fields)
        await tx.keys.create("acc_a", "key_2", lookup="L2", **fields)
        await tx.keys.revoke("acc_a", "key_2", NOW)
        model = await tx.models.create("acc_b", name="m", **MODEL)
        one, two = await adapter(tx, "one"), await adapter(tx, "two", "acc_b")
        await version(tx, one)
        await version(tx, one, "d2")
        await version(tx, two)
        await tx.adapters.set_live("acc_a", one.row_id, 2)
        await tx.adapters.rename("acc_a", one.row_id, "uno", NOW + 1)
        kept = await tx.instances.create(None, model="base", spec={}, now=NOW)
        stopped = await tx.instances.create("acc_a", model="base", spec={}, now=NOW)
        held, gone = [
            await tx.attachments.create(
                account,
                adapter_row_id=row_id,
                instance_id=kept.id,
                hold="loaded",
                capacity=2,
                wanted=1,
                now=NOW,
            )
            for account, row_id in (("acc_a", one.row_id), ("acc_b", two.row_id))
        ]
        await tx.attachments.mark_detaching("acc_b", gone.id)
        await tx.instances.stop("acc_a", stopped.id, NOW)

    found = await database.snapshot_rows()
    assert (found.keys, found.models) == ([key], [model])
    assert [(a.id, a.state) for a in found.attachments] == [(held.id, "attaching"), (gone.id, "detaching")]
    assert [(i.id, i.wanted) for i in found.instances] == [(kept.id, "running"), (stopped.id, "stopped")]
    first, second = found.adapters
    assert (first.labels, first.live) == (("uno", "one"), VersionBytes(2, "d2", 8, 2**40))
    assert (first.adapter.id, first.adapter.live_version) == (one.id, 2)
    assert (second.adapter, second.labels, second.live) == (two, ("two",), None)
