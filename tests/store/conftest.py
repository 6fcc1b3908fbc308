"""Every test here that asks for `database` runs on SQLite and on PostgreSQL, and its statements are watched."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import sqlalchemy as sa

from pillion.store.database import Database
from pillion.store.tables import metadata
from pillion.store.transaction import Tx
from tests.postgres import Cluster, postgres
from tests.store.scope import refuse_unscoped

__all__ = ["postgres"]

NOW = 1_700_000_000.0


@pytest.fixture(autouse=True)
def watched() -> Iterator[None]:
    sa.event.listen(sa.Engine, "before_execute", refuse_unscoped)
    yield
    sa.event.remove(sa.Engine, "before_execute", refuse_unscoped)


@dataclass
class Templates:
    """Migrated once per test process. The file is copied for each test, the database emptied after it."""

    sqlite: Path | None = None
    postgres: str | None = None


@pytest.fixture(scope="session")
def templates() -> Templates:
    return Templates()


@pytest.fixture(params=["sqlite", "postgresql"])
def dialect(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def empty_url(dialect: str, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A database without tables."""
    if dialect == "sqlite":
        yield f"sqlite:///{tmp_path}/empty.db"
        return
    cluster: Cluster = request.getfixturevalue("postgres")
    name = cluster.create()
    yield cluster.url(name)
    cluster.drop(name)


@pytest.fixture
async def url(
    dialect: str,
    templates: Templates,
    request: pytest.FixtureRequest,
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> AsyncIterator[str]:
    """A migrated database."""
    if dialect == "sqlite":
        if templates.sqlite is None:
            templates.sqlite = tmp_path_factory.mktemp("template") / "template.db"
            await _migrate(f"sqlite:///{templates.sqlite}")
        shutil.copy(templates.sqlite, tmp_path / "test.db")
        yield f"sqlite:///{tmp_path}/test.db"
        return
    cluster: Cluster = request.getfixturevalue("postgres")
    if templates.postgres is None:
        templates.postgres = cluster.url(cluster.create())
        await _migrate(templates.postgres)
    yield templates.postgres
    await _empty(templates.postgres)


@pytest.fixture
async def database(url: str) -> AsyncIterator[Database]:
    opened = Database.open(url)
    yield opened
    await opened.close()


@pytest.fixture
async def tx(database: Database) -> AsyncIterator[Tx]:
    """A write transaction with the accounts `acc_a` and `acc_b`."""
    async with database.transaction() as tx:
        await two_accounts(tx)
        yield tx


async def two_accounts(tx: Tx) -> None:
    await tx.accounts.create("acc_a", name="a", now=NOW)
    await tx.accounts.create("acc_b", name="b", now=NOW, tier="reserved", local_only=True)


async def _empty(url: str) -> None:
    """A new database each time would take 300 ms."""
    database = Database.open(url)
    async with database._write.begin() as connection:
        # Without triggers: the ledger's refuse.
        await connection.exec_driver_sql("SET session_replication_role = replica")
        for table in reversed(metadata.sorted_tables):
            await connection.exec_driver_sql(f"DELETE FROM {table.name}")
        await connection.exec_driver_sql("SET session_replication_role = origin")
    await database.close()


async def _migrate(url: str) -> None:
    database = Database.open(url)
    await database.migrate()
    await database.close()
