"""Adapter versions: immutable, numbered from 1 in each adapter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import sqlalchemy as sa

from pillion.core.errors import NotFoundError
from pillion.core.replica import Failure
from pillion.store.rows import AdapterVersion
from pillion.store.session import Session, owned
from pillion.store.tables import adapter_versions, adapters


class Versions:
    def __init__(self, session: Session) -> None:
        self._session = session

    async def add(
        self,
        account: str,
        adapter_row_id: int,
        *,
        digest: str,
        rank: int,
        alpha: float,
        target_modules: Sequence[str],
        size_bytes: int,
        source: Mapping[str, Any],
        now: float,
        warnings: Sequence[str] = (),
    ) -> AdapterVersion:
        """The next version; it does not go live by this. Raises NotFoundError (no such adapter)."""
        number = await self._next(account, adapter_row_id)
        fields = {
            "adapter_row_id": adapter_row_id,
            "account_id": account,
            "version": number,
            "digest": digest,
            "rank": rank,
            "alpha": alpha,
            "target_modules": list(target_modules),
            "size_bytes": size_bytes,
            "warnings": list(warnings),
            "source": dict(source),
            "created_at": now,
        }
        statement = sa.insert(adapter_versions).values(**fields).returning(*adapter_versions.c)
        made = await self._session.one(statement, AdapterVersion)
        assert made is not None
        return made

    async def by_digest(self, account: str, adapter_row_id: int, digest: str) -> AdapterVersion | None:
        """The adapter's version of these bytes."""
        statement = self._of(account, adapter_row_id).where(adapter_versions.c.digest == digest)
        return await self._session.one(statement.order_by(adapter_versions.c.version), AdapterVersion)

    async def went_live(self, account: str, adapter_row_id: int, version: int, now: float) -> None:
        await self._update(account, adapter_row_id, version, live_at=now, error_code=None, error_message=None)

    async def failed(self, account: str, adapter_row_id: int, version: int, error: Failure | None) -> None:
        """Why it does not go live; None: it is tried anew."""
        code, message = (error.code, error.message) if error else (None, None)
        await self._update(account, adapter_row_id, version, error_code=code, error_message=message)

    async def failures(self, account: str, adapter_row_id: int) -> list[AdapterVersion]:
        """Those that did not go live when that was last tried."""
        statement = self._of(account, adapter_row_id).where(adapter_versions.c.error_code.is_not(None))
        return await self._session.all(statement.order_by(adapter_versions.c.version), AdapterVersion)

    async def get(self, account: str, adapter_row_id: int, version: int) -> AdapterVersion | None:
        statement = self._of(account, adapter_row_id).where(adapter_versions.c.version == version)
        return await self._session.one(statement, AdapterVersion)

    async def list(self, account: str, adapter_row_id: int) -> list[AdapterVersion]:
        """Oldest first."""
        statement = self._of(account, adapter_row_id).order_by(adapter_versions.c.version)
        return await self._session.all(statement, AdapterVersion)

    async def _next(self, account: str, adapter_row_id: int) -> int:
        adapter = sa.select(adapters.c.row_id).where(
            owned(adapters, account), adapters.c.row_id == adapter_row_id
        )
        if await self._session.value(adapter.with_for_update(key_share=True)) is None:
            raise NotFoundError(f"There is no adapter {adapter_row_id}.")
        last = sa.select(sa.func.max(adapter_versions.c.version)).where(
            owned(adapter_versions, account), adapter_versions.c.adapter_row_id == adapter_row_id
        )
        return (await self._session.value(last) or 0) + 1

    async def _update(self, account: str, adapter_row_id: int, version: int, **values: object) -> None:
        statement = sa.update(adapter_versions).where(
            owned(adapter_versions, account),
            adapter_versions.c.adapter_row_id == adapter_row_id,
            adapter_versions.c.version == version,
        )
        await self._session.run(statement.values(**values))

    def _of(self, account: str, adapter_row_id: int) -> sa.Select[Any]:
        return sa.select(adapter_versions).where(
            owned(adapter_versions, account), adapter_versions.c.adapter_row_id == adapter_row_id
        )
