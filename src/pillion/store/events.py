"""Events: what controllers did, and who asked for it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import sqlalchemy as sa

from pillion.store.rows import Event
from pillion.store.session import Session, owned
from pillion.store.tables import events


class Events:
    def __init__(self, session: Session) -> None:
        self._session = session

    async def append(
        self,
        account: str | None,
        *,
        at: float,
        kind: str,
        subject: str,
        detail: Mapping[str, Any] | None = None,
    ) -> Event:
        fields = {
            "account_id": account,
            "at": at,
            "kind": kind,
            "subject": subject,
            "detail": dict(detail or {}),
        }
        made = await self._session.one(sa.insert(events).values(**fields).returning(*events.c), Event)
        assert made is not None
        return made

    async def list(
        self,
        account: str | None,
        *,
        after: int = 0,
        limit: int = 100,
        subject: str | None = None,
        kinds: Collection[str] = (),
        newest: bool = False,
    ) -> list[Event]:
        """Oldest first, or `newest` first. Account None: the operator's own; all of everyone's are `everyone`'s."""
        statement = sa.select(events).where(owned(events, account))
        return await self._session.all(
            chosen(statement, after=after, limit=limit, subject=subject, kinds=kinds, newest=newest), Event
        )


def chosen(
    statement: sa.Select[Any],
    *,
    after: int,
    limit: int,
    subject: str | None,
    kinds: Collection[str],
    newest: bool,
) -> sa.Select[Any]:
    """What comes after the event `after` (0: from the beginning) in the order that is asked for."""
    if subject is not None:
        statement = statement.where(events.c.subject == subject)
    if kinds:
        statement = statement.where(events.c.kind.in_(kinds))
    return paged(statement, events.c.id, after=after, limit=limit, newest=newest)


def paged(
    statement: sa.Select[Any], id: sa.Column[int], *, after: int, limit: int, newest: bool
) -> sa.Select[Any]:
    """A page by growing id, or by falling one. `after` 0 is before the first."""
    if after:
        statement = statement.where(id < after if newest else id > after)
    return statement.order_by(id.desc() if newest else id).limit(limit)
