"""Invites to an account, as digests of their tokens. Finding one by its token is `everyone`'s."""

from __future__ import annotations

from collections.abc import Collection

import sqlalchemy as sa

from pillion.core.permissions import Role
from pillion.store.rows import Invite
from pillion.store.session import Session, owned
from pillion.store.tables import invites


class Invites:
    def __init__(self, session: Session) -> None:
        self._session = session

    async def create(
        self,
        account: str,
        id: str,
        *,
        email: str,
        role: Role,
        digest: str,
        by: str,
        now: float,
        expires_at: float,
        member: str | None = None,
    ) -> Invite:
        statement = self._session.insert(invites).values(
            id=id,
            account_id=account,
            email=email,
            role=role,
            digest=digest,
            member_id=member,
            created_by=by,
            created_at=now,
            expires_at=expires_at,
        )
        made = await self._session.one(statement.returning(*invites.c), Invite)
        assert made is not None
        return made

    async def list(self, account: str) -> list[Invite]:
        """Those not accepted, oldest first, also where they are over."""
        statement = sa.select(invites).where(owned(invites, account), invites.c.accepted_at.is_(None))
        return await self._session.all(statement.order_by(invites.c.created_at, invites.c.id), Invite)

    async def accept(self, account: str, id: str, now: float) -> bool:
        """False where somebody was first."""
        statement = sa.update(invites).values(accepted_at=now)
        return await self._session.changed(
            statement.where(owned(invites, account), invites.c.id == id, invites.c.accepted_at.is_(None))
        )

    async def delete(self, account: str, id: str) -> bool:
        """False where there is none that waits."""
        statement = sa.delete(invites).where(owned(invites, account), invites.c.id == id)
        return await self._session.changed(statement.where(invites.c.accepted_at.is_(None)))

    async def withdraw(self, account: str, by: Collection[str]) -> tuple[str, ...]:
        """Those that wait and that any of these made; which they were."""
        statement = sa.delete(invites).where(owned(invites, account), invites.c.accepted_at.is_(None))
        statement = statement.where(invites.c.created_by.in_(by))
        return tuple((await self._session.run(statement.returning(invites.c.id))).scalars())

    async def clear(self, account: str) -> None:
        await self._session.run(sa.delete(invites).where(owned(invites, account)))
