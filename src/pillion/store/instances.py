"""Instances, an account's own and the operator's pools (account None)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa

from pillion.store.rows import Instance, InstanceState
from pillion.store.session import Session, owned
from pillion.store.tables import instances

ENDING = ("stopping", "stopped")


class Instances:
    def __init__(self, session: Session) -> None:
        self._session = session

    async def create(
        self, account: str | None, *, model: str, spec: Mapping[str, Any], now: float
    ) -> Instance:
        """Pending, and wanted running."""
        fields = {"account_id": account, "model": model, "spec": dict(spec), "wanted": "running"}
        statement = sa.insert(instances).values(**fields, state="pending", created_at=now, generation=1)
        made = await self._session.one(statement.returning(*instances.c), Instance)
        assert made is not None
        return made

    async def get(self, account: str | None, id: int, *, pool: bool = False) -> Instance | None:
        """The account's own; with `pool` also the operator's."""
        return await self._session.one(
            sa.select(instances).where(visible(account, pool=pool), instances.c.id == id), Instance
        )

    async def list(
        self,
        account: str | None,
        *,
        after: int = 0,
        limit: int = 100,
        pool: bool = False,
        model: str | None = None,
        wanted: bool = False,
    ) -> list[Instance]:
        """By id. With `pool` also the operator's; `wanted`: only those wanted running."""
        statement = sa.select(instances).where(visible(account, pool=pool), instances.c.id > after)
        if model is not None:
            statement = statement.where(instances.c.model == model)
        if wanted:
            statement = statement.where(instances.c.wanted == "running")
        return await self._session.all(statement.order_by(instances.c.id).limit(limit), Instance)

    async def set_state(
        self, account: str | None, id: int, state: InstanceState, now: float, *, reason: str | None = None
    ) -> Instance | None:
        """What a controller found. None: not there, or to be stopped and `state` says otherwise.

        `reason` becomes the termination reason if given.
        """
        values: dict[str, Any] = {"state": state}
        if reason is not None:
            values["termination_reason"] = reason
        if state == "stopped":
            values["stopped_at"] = sa.func.coalesce(instances.c.stopped_at, now)
        statement = sa.update(instances).where(owned(instances, account), instances.c.id == id)
        if state not in ENDING:
            statement = statement.where(instances.c.wanted == "running")
        return await self._session.one(statement.values(**values).returning(*instances.c), Instance)

    async def stop(
        self, account: str | None, id: int, now: float, *, reason: str | None = None
    ) -> Instance | None:
        """To be stopped, and `stopping` unless it is `stopped`. Again is no error. None: not there."""
        stopped = instances.c.state == "stopped"
        values: dict[str, Any] = {
            "wanted": "stopped",
            "state": sa.case((stopped, "stopped"), else_="stopping"),
            "termination_reason": sa.func.coalesce(instances.c.termination_reason, reason),
        }
        statement = sa.update(instances).where(owned(instances, account), instances.c.id == id)
        return await self._session.one(statement.values(**values).returning(*instances.c), Instance)


def visible(account: str | None, *, pool: bool) -> sa.ColumnElement[bool]:
    own = owned(instances, account)
    return sa.or_(own, instances.c.account_id.is_(None)) if pool else own
