"""Accounts: the tenants themselves. Who may see which is for the caller to say."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import sqlalchemy as sa

from pillion.core.errors import NameTakenError, NotFoundError
from pillion.core.tiers import Tier
from pillion.store.rows import Account
from pillion.store.session import Session, owned
from pillion.store.tables import (
    accounts,
    adapters,
    api_keys,
    instances,
    invites,
    members,
    registered_models,
)

Held = Literal["adapters", "keys", "members", "invites", "instances", "models"]
_HELD: Mapping[Held, tuple[sa.Table, sa.ColumnElement[bool]]] = {
    "adapters": (adapters, sa.true()),
    "keys": (api_keys, api_keys.c.revoked_at.is_(None)),
    "members": (members, sa.true()),
    "invites": (invites, invites.c.accepted_at.is_(None)),
    "instances": (instances, instances.c.wanted == "running"),
    "models": (registered_models, sa.true()),
}


class Accounts:
    def __init__(self, session: Session) -> None:
        self._session = session

    async def create(
        self, id: str, *, name: str, now: float, tier: Tier = "shared", local_only: bool = False
    ) -> Account:
        """Raises NameTakenError."""
        fields = {"id": id, "name": name, "tier": tier, "local_only": local_only, "created_at": now}
        made = await self._session.add(accounts, fields, Account, unless=("name",))
        if made is None:
            raise _taken(name)
        return made

    async def get(self, id: str) -> Account | None:
        return await self._session.one(sa.select(accounts).where(accounts.c.id == id), Account)

    async def by_name(self, name: str) -> Account | None:
        return await self._session.one(sa.select(accounts).where(accounts.c.name == name), Account)

    async def list(self, *, after: str | None = None, limit: int = 100) -> list[Account]:
        """In the order of their names, without those deleted; `after` is a name."""
        statement = sa.select(accounts).order_by(accounts.c.name).limit(limit)
        statement = statement.where(accounts.c.deleted_at.is_(None))
        if after is not None:
            statement = statement.where(accounts.c.name > after)
        return await self._session.all(statement, Account)

    async def count(self) -> int:
        return int(await self._session.value(sa.select(sa.func.count()).select_from(accounts)))

    async def has(self, id: str, what: Held) -> int:
        """How many: keys that are not revoked, invites that wait, instances that are to run."""
        table, still = _HELD[what]
        statement = sa.select(sa.func.count()).select_from(table).where(owned(table, id), still)
        return int(await self._session.value(statement))

    async def update(self, id: str, **values: Any) -> Account:
        """Of `name`, `tier`, `local_only`, `suspended_at`, `deleted_at`. Raises NameTakenError, NotFoundError."""
        statement = sa.update(accounts).where(accounts.c.id == id).values(**values)
        try:
            async with self._session.savepoint():
                changed = await self._session.one(statement.returning(*accounts.c), Account)
        except sa.exc.IntegrityError as error:
            raise _taken(values["name"]) from error
        if changed is None:
            raise NotFoundError(f"there is no account {id[:80]!r}.")
        return changed

    async def lock(self, id: str) -> Account:
        """Hold the account until the transaction ends: what is counted or compared in it stays true.

        Raises NotFoundError.
        """
        statement = sa.select(accounts).where(accounts.c.id == id).with_for_update(key_share=True)
        found = await self._session.one(statement, Account)
        if found is None:
            raise NotFoundError(f"There is no account {id!r}.")
        return found


def _taken(name: str) -> NameTakenError:
    return NameTakenError(f"There is an account named {name!r} already; choose another name.", param="name")
