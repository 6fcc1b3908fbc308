"""The lint finds what it should; and nothing but `store.everyone` is let off."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

import pillion.store
from pillion.store.database import Database
from pillion.store.tables import TENANT_TABLES, accounts, adapters, instances, metadata, settings
from tests.store.conftest import two_accounts
from tests.store.scope import UnscopedError, unscoped

mine = adapters.c.account_id == "acc_a"
theirs = adapters.c.account_id == "acc_b"


@pytest.mark.parametrize(
    "statement",
    [
        sa.select(adapters).where(mine),
        sa.select(adapters).where(mine, adapters.c.name == "x"),
        sa.select(adapters).where(sa.or_(mine, theirs)),
        sa.select(sa.select(adapters.c.row_id).where(mine).exists()),
        sa.select(instances).where(sa.or_(instances.c.account_id == "a", instances.c.account_id.is_(None))),
        sa.update(adapters).where(mine).values(state="failed"),
        sa.delete(adapters).where(mine),
        sa.insert(adapters).values(account_id="acc_a"),
        sa.insert(adapters).values([{"account_id": "acc_a"}, {"account_id": "acc_b"}]),
        sa.select(accounts),
        sa.select(settings),
    ],
)
def test_scoped_statements_pass(statement: Any) -> None:
    assert unscoped(statement) == set()


@pytest.mark.parametrize(
    "statement",
    [
        sa.select(adapters),
        sa.select(adapters.c.account_id),
        sa.select(adapters).where(adapters.c.name == "acc_a"),
        sa.select(adapters).where(sa.or_(mine, adapters.c.name == "x")),
        sa.select(adapters).where(adapters.c.account_id != "acc_a"),
        sa.select(adapters).where(adapters.c.account_id == adapters.c.account_id),
        sa.select(adapters).where(adapters.c.account_id.is_not(None)),
        sa.select(adapters).where(~mine),
        sa.select(sa.func.count()).select_from(adapters),
        sa.select(sa.select(adapters.c.row_id).exists()),
        sa.select(accounts).join(adapters, adapters.c.account_id == accounts.c.id),
        sa.update(adapters).values(state="failed"),
        sa.delete(adapters).where(adapters.c.row_id == 1),
        sa.insert(adapters).values(name="x"),
        sa.text("DELETE FROM adapters"),
    ],
)
def test_unscoped_statements_are_found(statement: Any) -> None:
    assert unscoped(statement) == {"adapters"}


async def test_the_watch_is_on(database: Database) -> None:
    async with database.transaction() as tx:
        await two_accounts(tx)
        with pytest.raises(UnscopedError, match="adapters"):
            await tx.adapters._session.run(sa.select(adapters))


def test_all_tables_but_the_installations_own_are_tenants() -> None:
    installations = {"accounts", "settings", "leases", "usage_spools", "prices", "gateways"}
    assert set(metadata.tables) - TENANT_TABLES == installations


def test_only_everyone_is_let_off() -> None:
    folder = Path(pillion.store.__file__).parent
    marking = {path.name for path in folder.rglob("*.py") if "everyone=True" in path.read_text()}
    assert marking == {"transaction.py", "everyone.py"}  # where it is made, and the docstring that says so
