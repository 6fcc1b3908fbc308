"""What instances have in hold, and what is carried from one settlement to the next. Under the wallet's lock."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
import sqlalchemy as sa

from pillion.core.money import Bill, Run
from pillion.store.session import Session, owned
from pillion.store.tables import bills, carries, runs


class Carry(msgspec.Struct, frozen=True):
    """Of an account and a price: whole units that are not posted yet, and what is less than one.

    `number` counts the postings, `posted_hour` is the last one's.
    """

    account_id: str
    price_id: int
    remainder: int
    owed: int
    number: int
    posted_hour: int


class Bills:
    def __init__(self, session: Session) -> None:
        self._session = session

    async def begin(self, account: str, instance: int, now: float, held: int = 0) -> Bill:
        """The instance's bill, open. One that was open is as it was; one that was closed goes on with its number."""
        statement = self._session.insert(bills).values(
            instance_id=instance, account_id=account, held=held, number=1, open=True, opened_at=now
        )
        again = {"open": True, "opened_at": now}
        statement = statement.on_conflict_do_update(
            index_elements=["instance_id"], set_=again, where=sa.not_(bills.c.open)
        )
        await self._session.run(statement)
        found = await self.get(account, instance)
        assert found is not None
        return found

    async def get(self, account: str, instance: int) -> Bill | None:
        statement = sa.select(bills).where(owned(bills, account), bills.c.instance_id == instance)
        return await self._session.one(statement, Bill)

    async def move(self, account: str, instance: int, number: int, *, held: int, open: bool) -> bool:
        """From settlement `number` to the next. False where it has moved already: then nothing may be done."""
        statement = sa.update(bills).where(
            owned(bills, account), bills.c.instance_id == instance, bills.c.number == number, bills.c.open
        )
        return await self._session.changed(statement.values(held=held, open=open, number=number + 1))

    async def runs(self, account: str, instance: int) -> list[Run]:
        """Those that are not charged in full, locked."""
        statement = sa.select(runs).where(
            owned(runs, account),
            runs.c.instance_id == instance,
            runs.c.billed,
            runs.c.seen_ms > runs.c.charged_ms,
        )
        return await self._session.all(statement.order_by(runs.c.id).with_for_update(), Run)

    async def charged(self, account: str, until: Mapping[int, int]) -> None:
        """Up to when each run is charged."""
        for id, instant in until.items():
            statement = sa.update(runs).where(owned(runs, account), runs.c.id == id)
            await self._session.run(statement.values(charged_ms=instant))

    async def end_runs(self, account: str, instance: int) -> None:
        """Nothing of this instance is extended any more."""
        statement = sa.update(runs).where(owned(runs, account), runs.c.instance_id == instance, runs.c.open)
        await self._session.run(statement.values(open=False))

    async def carries(self, account: str) -> dict[int, Carry]:
        found = await self._session.all(sa.select(carries).where(owned(carries, account)), Carry)
        return {carry.price_id: carry for carry in found}

    async def carry(
        self, account: str, price: int, remainder: int, *, owed: int = 0, hour: int | None = None
    ) -> None:
        """Sets the remainder and what is owed. With an hour: it was posted in that one."""
        values = {"remainder": remainder, "owed": owed}
        statement = self._session.insert(carries).values(
            account_id=account, price_id=price, number=0, posted_hour=0, **values
        )
        posted = {} if hour is None else {"posted_hour": hour, "number": carries.c.number + 1}
        await self._session.run(
            statement.on_conflict_do_update(index_elements=["account_id", "price_id"], set_=values | posted)
        )
