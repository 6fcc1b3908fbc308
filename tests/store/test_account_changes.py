"""Which accounts changed: no write to what snapshots are made of goes untold."""

from __future__ import annotations

import pytest
import sqlalchemy as sa

from pillion.store.account_changes import KEPT_S
from pillion.store.database import Database
from pillion.store.tables import metadata
from tests.store.conftest import NOW, two_accounts
from tests.store.test_adapters import MODEL, adapter, version

# The tables that `Everyone.snapshot_rows` reads, and a column of each that can be written to.
READ = {
    "accounts": "name",
    "adapter_labels": "created_at",
    "adapter_versions": "size_bytes",
    "adapters": "region",
    "api_keys": "name",
    "attachments": "ready",
    "instances": "state",
    "registered_models": "kind",
}


async def filled(database: Database) -> None:
    async with database.transaction() as tx:
        await two_accounts(tx)
        await tx.keys.create(
            "acc_a", "key_1", lookup="L1", digest="d", name="n", scopes=["inference"], now=NOW
        )
        await tx.models.create("acc_a", name="m", **MODEL)
        one = await adapter(tx, "one")
        await version(tx, one)
        kept = await tx.instances.create("acc_a", model="base", spec={}, now=NOW)
        await tx.attachments.create(
            "acc_a",
            adapter_row_id=one.row_id,
            instance_id=kept.id,
            hold="loaded",
            capacity=2,
            wanted=1,
            now=NOW,
        )


async def mark(database: Database) -> int:
    async with database.read() as tx:
        return await tx.changes.mark()


async def since(database: Database, mark: int) -> set[str | None]:
    async with database.read() as tx:
        return await tx.changes.since(mark)


async def quiet(database: Database) -> int:
    """A mark after which nothing is told: in PostgreSQL the last transaction is, until there is another."""
    async with database.transaction() as tx:
        await tx.settings.get_or_create("any", b"thing")
    return await mark(database)


@pytest.mark.parametrize("table", READ)
async def test_each_update_is_told(database: Database, table: str) -> None:
    await filled(database)
    before = await quiet(database)
    assert await since(database, before) == set()
    owner = "id" if table == "accounts" else "account_id"
    column = metadata.tables[table].c[READ[table]]
    async with database.transaction() as tx:
        statement = sa.update(metadata.tables[table]).values({column: column})
        await tx.everyone._session.run(statement.where(metadata.tables[table].c[owner] == "acc_a"))
    assert await since(database, before) == {"acc_a"}


@pytest.mark.parametrize("table", sorted(READ.keys() - {"accounts"}))
async def test_what_is_made_and_what_is_deleted_is_told(database: Database, table: str) -> None:
    before = await quiet(database)
    await filled(database)
    async with database.transaction() as tx:
        told = sa.text("SELECT count(*) FROM account_changes WHERE account_id = 'acc_a'")
        assert await tx.everyone._session.value(told) >= len(READ)
    assert "acc_a" in await since(database, before)
    before = await quiet(database)
    async with database.transaction() as tx:
        await tx.everyone._session.run(sa.delete(metadata.tables["attachments"]))
        await tx.everyone._session.run(sa.delete(metadata.tables[table]))
    assert "acc_a" in await since(database, before)


async def test_the_operators_own(database: Database) -> None:
    before = await quiet(database)
    async with database.transaction() as tx:
        await tx.instances.create(None, model="base", spec={}, now=NOW)
    assert await since(database, before) == {None}


async def test_what_is_committed_late_is_told(database: Database, dialect: str) -> None:
    if dialect == "sqlite":
        return  # one writes at a time
    await filled(database)
    begun = await quiet(database)
    async with database.transaction() as late:
        await late.keys.revoke("acc_a", "key_1", NOW)
        async with database.transaction() as soon:
            await soon.models.create("acc_b", name="m", **MODEL)
        between = await mark(database)
        assert await since(database, begun) == {"acc_b"}
    assert "acc_a" in await since(database, between)


async def test_old_ones_are_forgotten(database: Database) -> None:
    before = await mark(database)
    await filled(database)
    async with database.transaction() as tx:
        await tx.changes.forget(NOW)
    assert await since(database, before)
    async with database.transaction() as tx:
        at = await tx.everyone._session.value(sa.text("SELECT max(at) FROM account_changes"))
        await tx.changes.forget(at + KEPT_S + 1)
    assert await since(database, before) == set()
