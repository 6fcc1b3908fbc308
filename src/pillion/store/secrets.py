"""An account's secrets, as ciphertext: who encrypts them holds the key, the database does not."""

from __future__ import annotations

import sqlalchemy as sa

from pillion.store.session import Session, owned
from pillion.store.tables import secrets


class Secrets:
    def __init__(self, session: Session) -> None:
        self._session = session

    async def put(self, account: str, name: str, ciphertext: bytes) -> None:
        """Replaces what was there."""
        statement = self._session.insert(secrets).values(account_id=account, name=name, ciphertext=ciphertext)
        keys = ("account_id", "name")
        await self._session.run(
            statement.on_conflict_do_update(index_elements=keys, set_={"ciphertext": ciphertext})
        )

    async def get(self, account: str, name: str) -> bytes | None:
        statement = sa.select(secrets.c.ciphertext).where(owned(secrets, account), secrets.c.name == name)
        found: bytes | None = await self._session.value(statement)
        return found

    async def delete(self, account: str, name: str) -> bool:
        return await self._session.changed(
            sa.delete(secrets).where(owned(secrets, account), secrets.c.name == name)
        )
