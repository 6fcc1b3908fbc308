"""What gateways may spend of accounts' balances. Under the wallet's lock."""

from __future__ import annotations

import msgspec
import sqlalchemy as sa

from pillion.store.session import Session, owned
from pillion.store.tables import slices


class Slice(msgspec.Struct, frozen=True):
    """Of one life (`epoch`) of a gateway, for one key with a spend limit, or "" for all the others. `number` is the last
    ask that was answered, with `given`.

    `outstanding`: of all that was given, what usage events have not covered yet. After `until` nobody spends it.
    """

    account_id: str
    gateway: str
    epoch: str
    key_id: str
    number: int
    given: int
    outstanding: int
    until: float


class Slices:
    def __init__(self, session: Session) -> None:
        self._session = session

    async def of(self, account: str) -> list[Slice]:
        """Those that end first come first."""
        statement = sa.select(slices).where(owned(slices, account))
        return await self._session.all(statement.order_by(slices.c.until), Slice)

    async def put(self, one: Slice) -> None:
        fields = msgspec.structs.asdict(one)
        statement = self._session.insert(slices).values(**fields)
        await self._session.run(
            statement.on_conflict_do_update(
                index_elements=["account_id", "gateway", "epoch", "key_id"], set_=fields
            )
        )

    async def drop(self, one: Slice) -> None:
        statement = sa.delete(slices).where(
            owned(slices, one.account_id),
            slices.c.gateway == one.gateway,
            slices.c.epoch == one.epoch,
            slices.c.key_id == one.key_id,
        )
        await self._session.run(statement)
