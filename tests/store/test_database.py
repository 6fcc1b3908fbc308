"""Transactions, consistent reads, and what a user sees where there is no database."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from sqlalchemy.exc import DBAPIError

from pillion.core.errors import InvalidRequestError, StorageFullError, UnavailableError
from pillion.store.database import Database
from tests.postgres import Cluster
from tests.store.conftest import NOW, two_accounts


@pytest.mark.parametrize(
    "url",
    ["", "nonsense", "mysql://h/d", "sqlite://", "sqlite:///:memory:", "http://example.org", "sqlite:///"],
)
def test_a_url_that_is_no_database_of_ours_is_refused(url: str) -> None:
    with pytest.raises(InvalidRequestError, match=r"sqlite:///<path of a file> or postgresql://"):
        Database.open(url)


async def test_an_error_undoes_the_transaction(database: Database) -> None:

    async def fail() -> None:
        async with database.transaction() as tx:
            await two_accounts(tx)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await fail()
    async with database.read() as tx:
        assert await tx.accounts.count() == 0


async def test_a_cancelled_transaction_is_undone_and_leaves_the_database_usable(database: Database) -> None:
    inside = asyncio.Event()

    async def hang() -> None:
        async with database.transaction() as tx:
            await two_accounts(tx)
            inside.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(hang())
    await inside.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    async with database.transaction() as tx:
        assert await tx.accounts.count() == 0


async def test_a_read_cannot_write(database: Database) -> None:
    async with database.read() as tx:
        with pytest.raises(DBAPIError, match=r"read.?only"):
            await two_accounts(tx)


async def test_a_read_is_one_view(database: Database) -> None:
    async with database.read() as reading:
        assert await reading.accounts.count() == 0
        async with database.transaction() as writing:
            await two_accounts(writing)
        assert await reading.accounts.count() == 0
    async with database.read() as reading:
        assert await reading.accounts.count() == 2


async def test_writers_queue(database: Database) -> None:
    async def add(number: int) -> None:
        async with database.transaction() as tx:
            await tx.accounts.create(f"acc_{number}", name=f"n{number}", now=NOW)

    await asyncio.gather(*(add(number) for number in range(30)))
    async with database.read() as tx:
        assert await tx.accounts.count() == 30


async def test_text_that_databases_dislike(database: Database) -> None:
    async with database.transaction() as tx:
        await two_accounts(tx)
        await tx.events.append("acc_a", at=NOW, kind="k", subject="a\x00b\ud800c", detail={"x\x00": "\ud800"})
        assert await tx.accounts.by_name("\x00") is None
        (event,) = await tx.events.list("acc_a")
    assert (event.subject, event.detail) == ("a\ufffdb?c", {"x\x00": "\ud800"})


async def test_a_full_disk_keeps_nothing(tmp_path: Path) -> None:
    database = Database.open(f"sqlite:///{tmp_path}/x.db")
    await database.migrate()
    async with database._write.connect() as connection:  # the one that writes
        await connection.exec_driver_sql("PRAGMA max_page_count=1")  # as it is: no page more

    async def many() -> None:
        async with database.transaction() as tx:
            for number in range(1000):
                await tx.accounts.create(f"acc_{number}", name=f"name-{number}" + "x" * 500, now=NOW)

    with pytest.raises(StorageFullError, match="The disk of the database is full: nothing was kept"):
        await many()
    async with database.read() as tx:
        assert await tx.accounts.count() == 0
    await database.close()


async def test_postgres_that_is_away(tmp_path: Path) -> None:
    database = Database.open(f"postgresql://postgres@/d?host={tmp_path}")
    with pytest.raises(UnavailableError, match="The database does not answer"):
        async with database.transaction():
            pass
    with pytest.raises(UnavailableError, match="The database does not answer"):
        await database.snapshot_rows()
    await database.close()


async def test_a_postgres_database_that_is_not_there(postgres: Cluster) -> None:
    database = Database.open(postgres.url("nowhere"))
    with pytest.raises(UnavailableError, match=r'database "nowhere" does not exist'):
        await database.migrate()
    await database.close()


async def test_a_connection_that_broke_is_replaced(postgres: Cluster) -> None:
    name = postgres.create()
    database = Database.open(postgres.url(name))
    await database.migrate()
    postgres.drop(name)  # ends its connections
    with pytest.raises(UnavailableError):
        await database.migrate()
    await database.close()


async def test_a_sqlite_file_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "x.db").write_bytes(b"not a database" * 100)
    database = Database.open(f"sqlite:///{tmp_path}/x.db")
    with pytest.raises(UnavailableError, match="file is not a database"):
        await database.migrate()
    await database.close()


async def test_sqlite_makes_its_folder(tmp_path: Path) -> None:
    database = Database.open(f"sqlite:///{tmp_path}/a/b/c.db")
    await database.migrate()
    await database.close()
    assert (tmp_path / "a/b/c.db").exists()
