"""The audit log: who asked for what, and what came of it. Rows are written when it begins and closed once, when it ends."""

from __future__ import annotations

import sqlalchemy as sa

from pillion.store.events import paged
from pillion.store.rows import AuditRecord
from pillion.store.session import Session, owned
from pillion.store.tables import audit


class Audit:
    def __init__(self, session: Session) -> None:
        self._session = session

    async def begin(
        self, account: str, *, at: float, key_id: str, action: str, subject: str, request_id: str | None
    ) -> int:
        """The id of a row without an outcome."""
        fields = {"account_id": account, "at": at, "key_id": key_id, "action": action, "subject": subject}
        statement = sa.insert(audit).values(**fields, request_id=request_id).returning(audit.c.id)
        return int(await self._session.value(statement))

    async def end(
        self, account: str, id: int, *, status: int, error: str | None = None, made: str | None = None
    ) -> bool:
        """False, and nothing done, where it has an outcome already."""
        statement = sa.update(audit).where(owned(audit, account), audit.c.id == id, audit.c.status.is_(None))
        return await self._session.changed(statement.values(status=status, error=error, made=made))

    async def list(
        self, account: str, *, after: int = 0, limit: int = 100, action: str | None = None
    ) -> list[AuditRecord]:
        """Newest first."""
        statement = sa.select(audit).where(owned(audit, account))
        if action is not None:
            statement = statement.where(audit.c.action == action)
        return await self._session.all(
            paged(statement, audit.c.id, after=after, limit=limit, newest=True), AuditRecord
        )
