"""The people of an account. Finding one by e-mail address or provider's subject alone is `everyone`'s."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from pillion.core.errors import NameTakenError
from pillion.core.permissions import Role
from pillion.store.rows import Member
from pillion.store.session import Session, owned
from pillion.store.tables import members


class Members:
    def __init__(self, session: Session) -> None:
        self._session = session

    async def create(
        self,
        account: str,
        id: str,
        *,
        email: str,
        name: str,
        role: Role,
        now: float,
        password: str | None = None,
        subject: str | None = None,
    ) -> Member:
        """Raises NameTakenError where the account has a member of that address."""
        fields = {"id": id, "account_id": account, "email": email, "name": name, "role": role}
        fields |= {"password": password, "subject": subject, "created_at": now}  # type: ignore[dict-item]
        made = await self._session.add(members, fields, Member, unless=("account_id", "email"))
        if made is None:
            raise NameTakenError(f"{email!r} is a member of this account already.", param="email")
        return made

    async def get(self, account: str, id: str) -> Member | None:
        statement = sa.select(members).where(owned(members, account), members.c.id == id)
        return await self._session.one(statement, Member)

    async def by_email(self, account: str, email: str) -> Member | None:
        statement = sa.select(members).where(owned(members, account), members.c.email == email)
        return await self._session.one(statement, Member)

    async def list(self, account: str) -> list[Member]:
        """Oldest first."""
        statement = sa.select(members).where(owned(members, account))
        return await self._session.all(statement.order_by(members.c.created_at, members.c.id), Member)

    async def owners(self, account: str) -> int:
        """True until the transaction ends only while the account is locked."""
        statement = sa.select(sa.func.count()).select_from(members)
        return int(
            await self._session.value(statement.where(owned(members, account), members.c.role == "owner"))
        )

    async def update(self, account: str, id: str, **values: Any) -> Member | None:
        """Of `role`, `name`, `password`, `subject`, `last_login_at`."""
        statement = sa.update(members).where(owned(members, account), members.c.id == id).values(**values)
        return await self._session.one(statement.returning(*members.c), Member)

    async def delete(self, account: str, id: str) -> bool:
        """Their logins go with them."""
        return await self._session.changed(
            sa.delete(members).where(owned(members, account), members.c.id == id)
        )
