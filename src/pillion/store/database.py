"""The database: SQLite (WAL) in a file, or PostgreSQL. The same code and the same tests on both."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from alembic.util.exc import CommandError
from msgspec.structs import replace
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from pillion.core.errors import ConflictError, InvalidRequestError, StorageFullError, UnavailableError
from pillion.store.migrations import upgrade
from pillion.store.rows import SnapshotRows
from pillion.store.sqlite import connect
from pillion.store.transaction import Tx

WAIT_S = 10.0  # for a connection, and in SQLite for another process's write
READERS = 4


class Database:
    """Writes go through `transaction`, reads through `read`. In SQLite writers queue for one connection."""

    def __init__(self, write: AsyncEngine, read: AsyncEngine) -> None:
        self._write = write
        self._read = read

    @classmethod
    def open(cls, url: str) -> Database:
        """`sqlite:///<path>` or `postgresql://…`. Connects at first use. Raises InvalidRequestError."""
        parsed = _parse(url)
        if parsed.drivername == "sqlite+aiosqlite":
            return cls(*_sqlite(parsed))
        return cls(*_postgres(parsed))

    async def migrate(self) -> None:
        """Bring the tables up to date. Processes that do so at once wait for each other; all end well.

        Raises ConflictError where a newer Pillion has been here, UnavailableError as `transaction`.
        """
        async with _begin(self._write) as connection:
            if connection.dialect.name == "postgresql":
                # One number for all installations in a database cluster is enough: locks are per database.
                await connection.execute(sa.text("SELECT pg_advisory_xact_lock(4820183)"))
            try:
                await connection.run_sync(upgrade)
            except CommandError as error:
                raise ConflictError(
                    f"The database was made by another version of Pillion ({error}); start that one or a newer one."
                ) from error

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Tx]:
        """For writes: commits at the end, rolls back on an error. No network call inside.

        Raises UnavailableError where there is no connection to be had, StorageFullError where there is no room: nothing
        was done then.
        """
        async with _begin(self._write) as connection:
            yield Tx(connection)

    @asynccontextmanager
    async def read(self) -> AsyncIterator[Tx]:
        """One consistent view, in which writes fail. Raises UnavailableError as `transaction`."""
        async with _begin(self._read) as connection:
            yield Tx(connection)

    async def snapshot_rows(self) -> SnapshotRows:
        """All that a routing snapshot needs, in one consistent read."""
        async with self.read() as tx:
            return replace(await tx.everyone.snapshot_rows(), prices=await tx.prices.all())

    async def close(self) -> None:
        await self._write.dispose()
        await self._read.dispose()


@asynccontextmanager
async def _begin(engine: AsyncEngine) -> AsyncIterator[AsyncConnection]:
    try:
        async with AsyncExitStack() as stack:
            try:
                connection = await stack.enter_async_context(engine.begin())
            except (OSError, DBAPIError, PoolTimeoutError) as error:
                raise _unavailable(error) from error
            yield connection
    except DBAPIError as error:
        if _is_full(error):
            raise StorageFullError("the database") from error
        raise


def _is_full(error: DBAPIError) -> bool:
    """Whether the database found no room on its disk."""
    sqlite, postgres = getattr(error.orig, "sqlite_errorcode", None), getattr(error.orig, "sqlstate", None)
    return sqlite == sqlite3.SQLITE_FULL or postgres == "53100"


def _unavailable(error: Exception) -> UnavailableError:
    cause = getattr(error, "orig", None) or error
    return UnavailableError(
        f"The database does not answer ({type(cause).__name__}: {cause}).", code="unavailable"
    )


def _parse(url: str) -> sa.URL:
    try:
        parsed = sa.make_url(url)
    except sa.exc.ArgumentError:
        parsed = sa.URL.create("unknown")
    kind = parsed.drivername.partition("+")[0]
    if kind == "sqlite" and parsed.database not in (None, "", ":memory:"):
        return parsed.set(drivername="sqlite+aiosqlite")
    if kind in ("postgresql", "postgres"):
        return parsed.set(drivername="postgresql+asyncpg")
    raise InvalidRequestError(
        "database.url is not a database Pillion knows; give sqlite:///<path of a file> or "
        "postgresql://user:password@host/database.",
        param="database.url",
    )


def _sqlite(url: sa.URL) -> tuple[AsyncEngine, AsyncEngine]:
    path = Path(url.database or "")
    path.parent.mkdir(parents=True, exist_ok=True)
    options: dict[str, Any] = {
        "max_overflow": 0,
        "pool_timeout": WAIT_S,
        "async_creator": lambda: connect(path, WAIT_S),
    }
    write = create_async_engine(url, pool_size=1, **options)
    read = create_async_engine(url, pool_size=READERS, **options)
    _on_connect(write, ())
    _on_connect(read, ("PRAGMA query_only=ON",))
    # IMMEDIATE takes the write lock at once: who reads first cannot fail when it comes to write.
    sa.event.listen(write.sync_engine, "begin", lambda c: c.exec_driver_sql("BEGIN IMMEDIATE"))
    sa.event.listen(read.sync_engine, "begin", lambda c: c.exec_driver_sql("BEGIN"))
    return write, read


def _on_connect(engine: AsyncEngine, extra: tuple[str, ...]) -> None:
    pragmas = (
        "PRAGMA journal_mode=WAL",
        "PRAGMA foreign_keys=ON",
        *extra,
    )

    def connected(connection: Any, _record: object) -> None:
        cursor = connection.cursor()
        for pragma in pragmas:
            cursor.execute(pragma)
        cursor.close()

    sa.event.listen(engine.sync_engine, "connect", connected)


def _postgres(url: sa.URL) -> tuple[AsyncEngine, AsyncEngine]:
    timeout = {"timeout": WAIT_S}
    try:
        write = create_async_engine(url, pool_pre_ping=True, pool_timeout=WAIT_S, connect_args=timeout)
    except ModuleNotFoundError as error:
        raise InvalidRequestError(
            "PostgreSQL needs the asyncpg package: install pillion[postgres].", param="database.url"
        ) from error
    return write, write.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
