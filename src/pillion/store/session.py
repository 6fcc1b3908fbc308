"""One connection inside one transaction, and the four things repositories do with it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection

Row = TypeVar("Row")
Fields = Mapping[str, Any]


class Session:
    """Runs statements. An `everyone` session's may cross accounts: they are marked, and tests watch."""

    def __init__(self, connection: AsyncConnection, *, everyone: bool = False) -> None:
        self._connection = connection
        self._options = {"everyone": everyone}

    @property
    def dialect(self) -> str:
        return self._connection.dialect.name

    async def run(self, statement: sa.Executable) -> sa.CursorResult[Any]:
        return await self._connection.execute(statement, execution_options=self._options)

    async def many(self, statement: sa.Executable, rows: Sequence[Fields]) -> None:
        """The same statement for each of the rows: compiled once, sent together."""
        await self._connection.execute(statement, rows, execution_options=self._options)

    async def all(self, statement: sa.Executable, row: type[Row]) -> list[Row]:
        return [row(**found) for found in (await self.run(statement)).mappings()]

    async def one(self, statement: sa.Executable, row: type[Row]) -> Row | None:
        found = (await self.run(statement)).mappings().first()
        return None if found is None else row(**found)

    async def value(self, statement: sa.Executable) -> Any:
        """The first column of the first row, or None."""
        return (await self.run(statement)).scalar()

    async def changed(self, statement: sa.Update | sa.Delete) -> bool:
        """Whether the statement touched any row."""
        return (await self.run(statement)).rowcount > 0

    async def add(
        self, table: sa.Table, fields: Fields, row: type[Row], *, unless: tuple[str, ...]
    ) -> Row | None:
        """Insert and return the row; None where one with the same `unless` columns is there already."""
        statement = self.insert(table).values(**fields).on_conflict_do_nothing(index_elements=unless)
        return await self.one(statement.returning(*table.c), row)

    def insert(self, table: sa.Table) -> postgresql.Insert:
        """An INSERT that knows ON CONFLICT, which both dialects spell the same."""
        if self.dialect == "postgresql":
            return postgresql.insert(table)
        return sqlite.insert(table)  # type: ignore[return-value]  # the same methods under another class

    @asynccontextmanager
    async def savepoint(self) -> AsyncIterator[None]:
        """An error inside undoes what is inside and leaves the transaction usable."""
        async with self._connection.begin_nested():
            yield


def owned(table: sa.Table, account: str | None) -> sa.ColumnElement[bool]:
    """The account's rows of a tenant table; None: the operator's own rows."""
    column = table.c.account_id
    return column.is_(None) if account is None else column == account
