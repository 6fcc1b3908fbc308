"""Whose rows changed since a mark, so that not everything need be read again. Triggers put it down (migration 0009)."""

from __future__ import annotations

import sqlalchemy as sa

from pillion.store.session import Session
from pillion.store.tables import account_changes

# What nobody who keeps a copy may need any more: such copies are read anew long before.
KEPT_S = 3600.0


class AccountChanges:
    """`session` is one that crosses accounts. Accounts are by id; None stands for the operator's own rows.

    A mark is of one transaction that sees one consistent state (`Database.read`). In SQLite it is the last change
    seen. In PostgreSQL changes become visible in another order than they are made in, so there it is the oldest
    transaction that was not over: what it and later ones changed is told again.
    """

    def __init__(self, session: Session) -> None:
        self._session = session

    async def mark(self) -> int:
        """Of what this transaction sees."""
        if self._session.dialect == "postgresql":
            oldest = sa.text("SELECT pg_snapshot_xmin(pg_current_snapshot())::text::bigint")
            return int(await self._session.value(oldest))
        return int(
            await self._session.value(sa.select(sa.func.coalesce(sa.func.max(account_changes.c.id), 0)))
        )

    async def since(self, mark: int) -> set[str | None]:
        changed = (
            account_changes.c.xid >= mark
            if self._session.dialect == "postgresql"
            else account_changes.c.id > mark
        )
        statement = sa.select(account_changes.c.account_id).where(changed).distinct()
        return set((await self._session.run(statement)).scalars())

    async def forget(self, now: float) -> None:
        """What is older than `KEPT_S`."""
        await self._session.run(sa.delete(account_changes).where(account_changes.c.at < now - KEPT_S))
