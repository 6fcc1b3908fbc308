"""Gateways that joined control by a one-time token, and tokens that wait for one. They are the operator's."""

from __future__ import annotations

import sqlalchemy as sa

from pillion.store.rows import JoinedGateway
from pillion.store.session import Session
from pillion.store.tables import gateways


class JoinedGateways:
    def __init__(self, session: Session) -> None:
        self._session = session

    async def invite(
        self, id: str, *, name: str, token: str, by: str, now: float, expires_at: float
    ) -> JoinedGateway:
        values = {"id": id, "name": name, "token": token, "created_by": by, "created_at": now}
        statement = sa.insert(gateways).values(**values, expires_at=expires_at)
        made = await self._session.one(statement.returning(*gateways.c), JoinedGateway)
        assert made is not None
        return made

    async def list(self) -> list[JoinedGateway]:
        """Oldest first."""
        statement = sa.select(gateways).order_by(gateways.c.created_at, gateways.c.id)
        return await self._session.all(statement, JoinedGateway)

    async def join(self, token: str, credential: str, now: float) -> JoinedGateway | None:
        """Whose token this is, with its credential from now on. Said again by the same one, it is the same; None for
        all others.
        """
        fresh = gateways.c.credential.is_(None) & (gateways.c.expires_at > now)
        statement = (
            sa.update(gateways)
            .values(credential=credential, joined_at=sa.func.coalesce(gateways.c.joined_at, now))
            .where(gateways.c.token == token, gateways.c.revoked_at.is_(None))
            .where(fresh | (gateways.c.credential == credential))
        )
        return await self._session.one(statement.returning(*gateways.c), JoinedGateway)

    async def joined(self, credential: str) -> bool:
        statement = sa.select(gateways.c.id).where(
            gateways.c.credential == credential, gateways.c.revoked_at.is_(None)
        )
        return await self._session.value(statement) is not None

    async def revoke(self, id: str, now: float) -> bool:
        """False where there is none, or it was revoked before."""
        statement = sa.update(gateways).values(revoked_at=now)
        return await self._session.changed(
            statement.where(gateways.c.id == id, gateways.c.revoked_at.is_(None))
        )
