"""Leases: one control at a time does a thing, and a write under a lost lease is refused.

The token is the fence: it grows with every acquisition, and `check` inside the writing
transaction holds the row until commit, so that nobody can take the lease over in between.
"""

from __future__ import annotations

import sqlalchemy as sa

from pillion.store.rows import Lease
from pillion.store.session import Session
from pillion.store.tables import leases


class LeaseLostError(Exception):
    """Somebody else holds the lease now. Stop, write nothing, acquire it again."""


class Leases:
    def __init__(self, session: Session) -> None:
        self._session = session

    async def acquire(self, name: str, holder: str, now: float, ttl: float) -> Lease | None:
        """None while another holds it. Who holds it already gets it again, with a new token."""
        until = now + ttl
        statement = self._session.insert(leases).values(name=name, holder=holder, token=1, expires_at=until)
        again = statement.on_conflict_do_update(
            index_elements=("name",),
            set_={"holder": holder, "token": leases.c.token + 1, "expires_at": until},
            where=(leases.c.expires_at <= now) | (leases.c.holder == holder),
        )
        return await self._session.one(again.returning(*leases.c), Lease)

    async def renew(self, name: str, token: int, now: float, ttl: float) -> None:
        """Raises LeaseLostError. One that has expired but that nobody took may be renewed."""
        statement = sa.update(leases).where(leases.c.name == name, leases.c.token == token)
        if not await self._session.changed(statement.values(expires_at=now + ttl)):
            raise LeaseLostError(f"Lease {name!r} with token {token} was taken over.")

    async def release(self, name: str, token: int) -> bool:
        """Free at once, and the token void. False where it was taken over. The row stays: tokens grow."""
        statement = sa.update(leases).where(leases.c.name == name, leases.c.token == token)
        return await self._session.changed(statement.values(expires_at=0.0, holder="", token=token + 1))

    async def check(self, name: str, token: int) -> None:
        """Raises LeaseLostError. For write transactions: true until they end."""
        statement = sa.select(leases.c.token).where(leases.c.name == name).with_for_update(read=True)
        if await self._session.value(statement) != token:
            raise LeaseLostError(f"Lease {name!r} with token {token} was taken over.")
