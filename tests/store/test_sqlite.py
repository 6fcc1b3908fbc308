"""The SQLite driver's cursor: a statement is one trip, and errors, rows and counts are as the library's."""

from __future__ import annotations

from pathlib import Path

import pytest
from sqlalchemy import insert
from sqlalchemy.exc import IntegrityError

from pillion.store.database import Database
from pillion.store.sqlite import connect
from pillion.store.tables import settings

TABLE = "CREATE TABLE things (id INTEGER PRIMARY KEY, name TEXT UNIQUE)"


async def test_rows_counts_and_errors(tmp_path: Path) -> None:
    connection = await connect(tmp_path / "a.db", 1.0)
    async with connection.cursor() as cursor:
        await cursor.execute(TABLE)
        assert cursor.description is None
        await cursor.executemany("INSERT INTO things (name) VALUES (?)", [("a",), ("b",), ("c",)])
        assert cursor.rowcount == 3
        await cursor.execute("INSERT INTO things (name) VALUES (?)", ("d",))
        assert cursor.lastrowid == 4
        await cursor.execute("SELECT name FROM things ORDER BY id")
        assert [column[0] for column in cursor.description] == ["name"]
        assert await cursor.fetchone() == ("a",)
        assert await cursor.fetchmany(2) == [("b",), ("c",)]
        assert list(await cursor.fetchall()) == [("d",)]
        assert await cursor.fetchone() is None
        with pytest.raises(Exception, match="UNIQUE"):
            await cursor.execute("INSERT INTO things (name) VALUES (?)", ("a",))
    await connection.close()


async def test_what_fails_is_rolled_back_and_the_next_is_not_in_its_way(tmp_path: Path) -> None:
    db = Database.open(f"sqlite:///{tmp_path / 'a.db'}")
    await db.migrate()

    async def twice() -> None:
        async with db.transaction() as tx:
            for _ in range(2):
                await tx.settings._session.run(insert(settings).values(name="a", value=b"0"))

    with pytest.raises(IntegrityError):
        await twice()
    async with db.transaction() as tx:
        assert await tx.settings.get_or_create("a", b"1") == b"1"
    async with db.read() as tx:
        assert await tx.settings.get("a") == b"1"
    await db.close()
