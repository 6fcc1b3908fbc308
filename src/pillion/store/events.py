"""Events: what controllers did, and who did what."""

from __future__ import annotations

from collections.abc import Mapping
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
        self, account: str | None, *, after: int = 0, limit: int = 100, subject: str | None = None
    ) -> list[Event]:
        """Oldest first. Account None: the operator's own; all of everyone's are `everyone`'s."""
        statement = sa.select(events).where(owned(events, account), events.c.id > after)
        if subject is not None:
            statement = statement.where(events.c.subject == subject)
        return await self._session.all(statement.order_by(events.c.id).limit(limit), Event)
