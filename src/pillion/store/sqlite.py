"""SQLite's driver with one trip to its thread for a statement, where the library makes four: all of a small one's time."""

from __future__ import annotations

import sqlite3
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import aiosqlite

_CHUNK = 64


async def connect(path: Path, wait_s: float) -> aiosqlite.Connection:
    """In autocommit mode: who begins a transaction says so. Others' writes are waited for `wait_s` at most."""

    def open_() -> sqlite3.Connection:
        return sqlite3.connect(path, timeout=wait_s, isolation_level=None, check_same_thread=False)

    connection = Connection(open_, _CHUNK)
    connection._thread.daemon = True  # what is forgotten must not keep the process alive
    return await connection


class Connection(aiosqlite.Connection):
    def cursor(self) -> Cursor:  # type: ignore[override]  # its user enters it, and needs no more
        return Cursor(self._execute, lambda: self._conn)

    async def commit(self) -> None:
        if self._conn.in_transaction:
            await super().commit()

    async def rollback(self) -> None:
        if self._conn.in_transaction:
            await super().rollback()


class Cursor:
    """All rows of a statement are fetched with it."""

    arraysize = 1

    def __init__(self, execute: Callable[..., Any], connection: Callable[[], sqlite3.Connection]) -> None:
        self._execute, self._connection = execute, connection
        self._rows: deque[Any] = deque()
        self.description: Any = None
        self.rowcount = -1
        self.lastrowid: int | None = None

    async def __aenter__(self) -> Cursor:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def execute(self, operation: str, parameters: Sequence[Any] = ()) -> Cursor:
        return await self._run(lambda cursor: cursor.execute(operation, parameters))

    async def executemany(self, operation: str, parameters: Iterable[Sequence[Any]]) -> Cursor:
        return await self._run(lambda cursor: cursor.executemany(operation, parameters))

    async def fetchone(self) -> Any:
        return self._rows.popleft() if self._rows else None

    async def fetchmany(self, size: int | None = None) -> Sequence[Any]:
        return [self._rows.popleft() for _ in range(min(size or self.arraysize, len(self._rows)))]

    async def fetchall(self) -> Sequence[Any]:
        rows, self._rows = self._rows, deque()
        return rows

    async def close(self) -> None:
        self._rows.clear()

    async def _run(self, work: Callable[[sqlite3.Cursor], Any]) -> Cursor:
        def there() -> tuple[Any, int, int | None, list[Any]]:
            cursor = self._connection().cursor()
            try:
                work(cursor)
                rows = cursor.fetchall() if cursor.description else []
                return cursor.description, cursor.rowcount, cursor.lastrowid, rows
            finally:
                cursor.close()

        self.description, self.rowcount, self.lastrowid, rows = await self._execute(there)
        self._rows = deque(rows)
        return self
