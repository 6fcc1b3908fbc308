"""The installation's own settings, such as the pepper of its keys."""

from __future__ import annotations

import sqlalchemy as sa

from pillion.store.session import Session
from pillion.store.tables import settings


class Settings:
    def __init__(self, session: Session) -> None:
        self._session = session

    async def get(self, name: str) -> bytes | None:
        found: bytes | None = await self._session.value(
            sa.select(settings.c.value).where(settings.c.name == name)
        )
        return found

    async def get_or_create(self, name: str, value: bytes) -> bytes:
        """What is there; `value`, from now on, where nothing is. Two at once get the same."""
        statement = self._session.insert(settings).values(name=name, value=value)
        await self._session.run(statement.on_conflict_do_nothing(index_elements=("name",)))
        found = await self.get(name)
        assert found is not None
        return found
