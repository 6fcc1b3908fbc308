"""What many accounts owe for requests that came in one report: a few statements for all of them. Crosses accounts."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import sqlalchemy as sa

from pillion.core.money import Wallet
from pillion.store.bills import Carry
from pillion.store.session import Session
from pillion.store.slices import Slice
from pillion.store.tables import carries, slices, wallets


class Owing:
    """`session` is one that crosses accounts."""

    def __init__(self, session: Session) -> None:
        self._session = session

    async def lock(self, accounts: Collection[str]) -> None:
        """Their wallets, in an order that others lock them in too, until the transaction ends."""
        empty = {"available": 0, "held": 0, "leased": 0, "owed": 0}
        made = self._session.insert(wallets).on_conflict_do_nothing(index_elements=["account_id"])
        await self._session.many(made, [{"account_id": account, **empty} for account in sorted(accounts)])
        statement = sa.select(wallets).where(wallets.c.account_id.in_(accounts))
        await self._session.all(statement.order_by(wallets.c.account_id).with_for_update(), Wallet)

    async def carries(self, accounts: Collection[str]) -> dict[tuple[str, int], Carry]:
        """By account and price."""
        statement = sa.select(carries).where(carries.c.account_id.in_(accounts))
        return {(c.account_id, c.price_id): c for c in await self._session.all(statement, Carry)}

    async def slices(self, accounts: Collection[str], gateway: str) -> list[Slice]:
        """In this gateway's hands; those that end first come first."""
        statement = sa.select(slices).where(slices.c.account_id.in_(accounts), slices.c.gateway == gateway)
        return await self._session.all(statement.order_by(slices.c.until), Slice)

    async def carry(self, found: Mapping[tuple[str, int], tuple[int, int]]) -> None:
        """Sets what is owed and the remainder, by account and price."""
        made = self._session.insert(carries)
        again = made.on_conflict_do_update(
            index_elements=["account_id", "price_id"],
            set_={"owed": made.excluded.owed, "remainder": made.excluded.remainder},
        )
        rows = [
            {
                "account_id": account,
                "price_id": price,
                "owed": owed,
                "remainder": remainder,
                "number": 0,
                "posted_hour": 0,
            }
            for (account, price), (owed, remainder) in sorted(found.items())
        ]
        await self._session.many(again, rows)

    async def spend(self, spent: Mapping[Slice, int]) -> None:
        """Usage has covered so much of these."""
        statement = sa.update(slices).where(
            slices.c.account_id == sa.bindparam("a"),
            slices.c.gateway == sa.bindparam("g"),
            slices.c.epoch == sa.bindparam("e"),
            slices.c.key_id == sa.bindparam("k"),
        )
        rows = [
            {"a": one.account_id, "g": one.gateway, "e": one.epoch, "k": one.key_id, "by": amount}
            for one, amount in spent.items()
        ]
        if rows:
            less = slices.c.outstanding - sa.bindparam("by", type_=sa.BigInteger)
            await self._session.many(statement.values(outstanding=less), rows)

    async def set_aside(self, changes: Mapping[str, tuple[int, int]]) -> None:
        """Adds to what wallets keep back: leased and owed, by account."""
        statement = sa.update(wallets).where(wallets.c.account_id == sa.bindparam("a"))
        values = {
            "leased": wallets.c.leased + sa.bindparam("by_leased", type_=sa.BigInteger),
            "owed": wallets.c.owed + sa.bindparam("by_owed", type_=sa.BigInteger),
        }
        rows = [
            {"a": account, "by_leased": leased, "by_owed": owed}
            for account, (leased, owed) in sorted(changes.items())
        ]
        await self._session.many(statement.values(**values), rows)
