"""Browsers that are logged in, as digests of their cookies. Finding one by its cookie is `everyone`'s."""

from __future__ import annotations

import sqlalchemy as sa

from pillion.store.session import Session, owned
from pillion.store.tables import logins


class Logins:
    def __init__(self, session: Session) -> None:
        self._session = session

    async def create(
        self,
        account: str,
        digest: str,
        *,
        now: float,
        expires_at: float,
        member: str | None = None,
        key: str | None = None,
    ) -> None:
        await self._session.run(
            self._session.insert(logins).values(
                digest=digest,
                account_id=account,
                member_id=member,
                key_id=key,
                created_at=now,
                expires_at=expires_at,
            )
        )

    async def end(self, account: str, digest: str) -> bool:
        return await self._session.changed(
            sa.delete(logins).where(owned(logins, account), logins.c.digest == digest)
        )

    async def end_all(self, account: str, *, member: str | None = None, but: str = "") -> None:
        """Of a member, or of the account; `but` the one with this digest."""
        statement = sa.delete(logins).where(owned(logins, account), logins.c.digest != but)
        if member is not None:
            statement = statement.where(logins.c.member_id == member)
        await self._session.run(statement)
