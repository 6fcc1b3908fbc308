"""API keys, as keyed digests. Finding one by its lookup id or listing all is `everyone`'s."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa

from pillion.store.rows import ApiKey
from pillion.store.session import Session, owned
from pillion.store.tables import api_keys


class Keys:
    def __init__(self, session: Session) -> None:
        self._session = session

    async def create(
        self,
        account: str,
        id: str,
        *,
        lookup: str,
        digest: str,
        name: str,
        scopes: Sequence[str],
        now: float,
        expires_at: float | None = None,
        requests_per_minute: int | None = None,
        tokens_per_minute: int | None = None,
        allow: Sequence[str] = (),
        spend_limit: int | None = None,
        by: str | None = None,
    ) -> ApiKey:
        """Raises sqlalchemy's IntegrityError where `id` or `lookup` is taken: they are random."""
        fields = {"id": id, "account_id": account, "lookup": lookup, "digest": digest, "name": name}
        statement = self._session.insert(api_keys).values(
            **fields,
            scopes=list(scopes),
            created_at=now,
            expires_at=expires_at,
            requests_per_minute=requests_per_minute,
            tokens_per_minute=tokens_per_minute,
            allow=list(allow) or None,
            spend_limit=spend_limit,
            created_by=by,
        )
        made = await self._session.one(statement.returning(*api_keys.c), ApiKey)
        assert made is not None
        return made

    async def get(self, account: str, id: str) -> ApiKey | None:
        statement = sa.select(api_keys).where(owned(api_keys, account), api_keys.c.id == id)
        return await self._session.one(statement, ApiKey)

    async def list(self, account: str) -> list[ApiKey]:
        """Revoked ones too, oldest first."""
        statement = sa.select(api_keys).where(owned(api_keys, account))
        return await self._session.all(statement.order_by(api_keys.c.created_at, api_keys.c.id), ApiKey)

    async def update(self, account: str, id: str, **values: Any) -> ApiKey | None:
        """Of `name` and its terms. None where there is no such key or it was revoked."""
        statement = sa.update(api_keys).values(**values)
        statement = statement.where(owned(api_keys, account), api_keys.c.id == id)
        statement = statement.where(api_keys.c.revoked_at.is_(None))
        return await self._session.one(statement.returning(*api_keys.c), ApiKey)

    async def revoke_all(self, account: str, now: float, *, by: str | None = None) -> tuple[str, ...]:
        """Those that are good, or those that the member `by` made; which they were."""
        statement = sa.update(api_keys).values(revoked_at=now).where(owned(api_keys, account))
        statement = statement.where(api_keys.c.revoked_at.is_(None))
        if by is not None:
            statement = statement.where(api_keys.c.created_by == by)
        return tuple((await self._session.run(statement.returning(api_keys.c.id))).scalars())

    async def revoke(self, account: str, id: str, now: float) -> bool:
        """False where there is no such key or it was revoked before."""
        statement = sa.update(api_keys).values(revoked_at=now)
        return await self._session.changed(
            statement.where(owned(api_keys, account), api_keys.c.id == id, api_keys.c.revoked_at.is_(None))
        )
