"""The ledger: entries that move money between two books and are never changed, and each account's balances.

The wallet's row is locked before anything of its account is planned or written, so that entries of an account have an
order, and what was planned is still true.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import sqlalchemy as sa

from pillion.core.errors import InsufficientBalanceError
from pillion.core.money import Kind, Transfer, Wallet
from pillion.store.rows import LedgerEntry
from pillion.store.session import Session, owned
from pillion.store.tables import carries, ledger_entries, slices, wallets

OWN_BOOKS = ("available", "held")
HOUR_S = 3600


class Ledger:
    def __init__(self, session: Session) -> None:
        self._session = session

    async def wallet(self, account: str) -> Wallet:
        found = await self._session.one(sa.select(wallets).where(owned(wallets, account)), Wallet)
        return found or Wallet(account)

    async def lock(self, account: str) -> Wallet:
        """The wallet, nobody else's to write until the transaction ends."""
        statement = sa.select(wallets).where(owned(wallets, account)).with_for_update()
        found = await self._session.one(statement, Wallet)
        if found is not None:
            return found
        made = self._session.insert(wallets).values(account_id=account, available=0, held=0, leased=0, owed=0)
        await self._session.run(made.on_conflict_do_nothing(index_elements=["account_id"]))
        found = await self._session.one(statement, Wallet)
        assert found is not None
        return found

    async def post(
        self, account: str, transfers: Sequence[Transfer], now: float, *, model: str = ""
    ) -> list[LedgerEntry]:
        """Those that are new, each once whatever is repeated. Raises InsufficientBalanceError where a balance would be
        below zero: then the transaction has to end.
        """
        wallet = await self.lock(account)
        known = await self._known(account, [transfer.key for transfer in transfers])
        available, held, made = wallet.available, wallet.held, []
        for transfer in transfers:
            if transfer.key in known:
                continue
            available += _change(transfer, "available")
            held += _change(transfer, "held")
            if available < 0 or held < 0:
                raise InsufficientBalanceError(f"the balance of {account} does not cover {transfer.key}.")
            made.append(await self._add(account, transfer, available, held, now, model))
        await self._session.run(
            sa.update(wallets).where(owned(wallets, account)).values(available=available, held=held)
        )
        return made

    async def set_aside(self, account: str, *, leased: int = 0, owed: int = 0) -> None:
        """Adds to what the wallet must keep back; either may be negative."""
        values = {"leased": wallets.c.leased + leased, "owed": wallets.c.owed + owed}
        await self._session.run(sa.update(wallets).where(owned(wallets, account)).values(**values))

    async def by_key(self, account: str, key: str) -> LedgerEntry | None:
        statement = sa.select(ledger_entries).where(
            owned(ledger_entries, account), ledger_entries.c.key == key
        )
        return await self._session.one(statement, LedgerEntry)

    async def list(
        self, account: str, *, after: int = 0, limit: int = 100, kind: Kind | None = None
    ) -> list[LedgerEntry]:
        """Those that changed the account's balances, oldest first."""
        touched = ledger_entries.c.source.in_(OWN_BOOKS) | ledger_entries.c.target.in_(OWN_BOOKS)
        statement = sa.select(ledger_entries).where(
            owned(ledger_entries, account), ledger_entries.c.id > after, touched
        )
        if kind is not None:
            statement = statement.where(ledger_entries.c.kind == kind)
        return await self._session.all(statement.order_by(ledger_entries.c.id).limit(limit), LedgerEntry)

    async def spent(
        self, account: str, *, since: float, until: float, by_day: bool = False
    ) -> dict[str, int]:
        """What the account paid in the hours that begin in [`since`, `until`), by model or by day since the epoch."""
        entries = ledger_entries.c
        by = sa.cast(entries.hour // 24, sa.Text) if by_day else entries.model
        statement = (
            sa.select(by.label("by"), sa.func.sum(entries.amount).label("paid"))
            .where(
                owned(ledger_entries, account),
                entries.target == "revenue",
                entries.source.in_(OWN_BOOKS),
                entries.hour >= int(since // HOUR_S),
                entries.hour < -int(-until // HOUR_S),
            )
            .group_by(sa.text("1"))
        )
        return {str(row["by"]): int(row["paid"]) for row in (await self._session.run(statement)).mappings()}

    async def _known(self, account: str, keys: Sequence[str]) -> set[str]:
        statement = sa.select(ledger_entries.c.key).where(
            owned(ledger_entries, account), ledger_entries.c.key.in_(keys)
        )
        return set((await self._session.run(statement)).scalars())

    async def _add(
        self, account: str, transfer: Transfer, available: int, held: int, now: float, model: str
    ) -> LedgerEntry:
        fields = {
            "account_id": account,
            "key": transfer.key,
            "kind": transfer.kind,
            "source": transfer.source,
            "target": transfer.target,
            "amount": transfer.amount,
            "at": now,
            "hour": int(now // HOUR_S),
            "subject": transfer.subject,
            "model": model,
            "detail": transfer.detail,
            "available_after": available,
            "held_after": held,
        }
        statement = sa.insert(ledger_entries).values(**fields).returning(*ledger_entries.c)
        made = await self._session.one(statement, LedgerEntry)
        assert made is not None
        return made


class Books:
    """Looks over all accounts. `session` is one that crosses them."""

    def __init__(self, session: Session) -> None:
        self._session = session

    async def mismatches(self) -> list[str]:
        """Accounts whose wallets are not the sums of their entries, of their slices and of what they owe: none."""
        sums: dict[str, list[int]] = defaultdict(lambda: [0, 0, 0, 0])
        entries = ledger_entries.c
        statement = sa.select(
            entries.account_id, entries.source, entries.target, sa.func.sum(entries.amount).label("amount")
        ).group_by(entries.account_id, entries.source, entries.target)
        for row in (await self._session.run(statement)).mappings():
            for index, book in enumerate(OWN_BOOKS):
                change = (row["target"] == book) - (row["source"] == book)
                sums[row["account_id"]][index] += change * int(row["amount"])
        for index, column in ((2, slices.c.outstanding), (3, carries.c.owed)):
            account = column.table.c.account_id
            of = sa.select(account, sa.func.sum(column).label("amount")).group_by(account)
            for row in (await self._session.run(of)).mappings():
                sums[row["account_id"]][index] = int(row["amount"])
        kept = {
            wallet.account_id: [wallet.available, wallet.held, wallet.leased, wallet.owed]
            for wallet in await self._session.all(sa.select(wallets), Wallet)
        }
        return sorted(
            account for account in sums.keys() | kept.keys() if sums[account] != kept.get(account, [0] * 4)
        )


def _change(transfer: Transfer, book: str) -> int:
    return transfer.amount * ((transfer.target == book) - (transfer.source == book))
