"""Registered models: an account's own bases."""

from __future__ import annotations

import sqlalchemy as sa

from pillion.core.errors import ConflictError, NameTakenError
from pillion.store.accounts import Accounts
from pillion.store.names import label_in_use
from pillion.store.rows import RegisteredModel
from pillion.store.session import Session, owned
from pillion.store.tables import adapters, instances, registered_models


class Models:
    def __init__(self, session: Session) -> None:
        self._session = session

    async def create(
        self,
        account: str,
        *,
        name: str,
        source: str,
        kind: str,
        lora: bool,
        now: float,
        revision: str | None = None,
        region: str | None = None,
        image: str | None = None,
    ) -> RegisteredModel:
        """Raises NameTakenError, also where an adapter of the account has or had `name` as name or label."""
        await Accounts(self._session).lock(account)
        if await label_in_use(self._session, account, name):
            raise NameTakenError(
                f"An adapter of yours is or was called {name!r}; choose another name.",
                param="name",
            )
        fields = {
            "account_id": account,
            "name": name,
            "source": source,
            "revision": revision,
            "kind": kind,
            "lora": lora,
            "region": region,
            "image": image,
            "created_at": now,
        }
        unless = ("account_id", "name")
        made = await self._session.add(registered_models, fields, RegisteredModel, unless=unless)
        if made is None:
            raise NameTakenError(f"You have a model named {name!r} already; choose another.", param="name")
        return made

    async def get(self, account: str, name: str) -> RegisteredModel | None:
        statement = sa.select(registered_models).where(
            owned(registered_models, account), registered_models.c.name == name
        )
        return await self._session.one(statement, RegisteredModel)

    async def list(self, account: str, *, after: int = 0, limit: int = 100) -> list[RegisteredModel]:
        statement = sa.select(registered_models).where(
            owned(registered_models, account), registered_models.c.id > after
        )
        return await self._session.all(
            statement.order_by(registered_models.c.id).limit(limit), RegisteredModel
        )

    async def delete(self, account: str, name: str) -> bool:
        """Raises ConflictError while an adapter is based on it or an instance of it is wanted."""
        await Accounts(self._session).lock(account)
        based = sa.select(adapters.c.name).where(owned(adapters, account), adapters.c.base_model == name)
        adapter = await self._session.value(based.limit(1))
        if adapter is not None:
            raise ConflictError(
                f"Model {name!r} is the base of your adapter {adapter!r}; delete those first."
            )
        running = sa.select(instances.c.id).where(
            owned(instances, account), instances.c.model == name, instances.c.wanted == "running"
        )
        instance = await self._session.value(running.limit(1))
        if instance is not None:
            raise ConflictError(f"Your instance {instance} runs model {name!r}; stop its instances first.")
        statement = sa.delete(registered_models)
        return await self._session.changed(
            statement.where(owned(registered_models, account), registered_models.c.name == name)
        )
