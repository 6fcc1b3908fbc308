"""Entries once for each key, balances that are their sums, and a database that refuses to change what was written."""

from __future__ import annotations

import asyncio

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError

from pillion.core.errors import InsufficientBalanceError
from pillion.core.money import Bill, Transfer
from pillion.store.database import Database
from pillion.store.transaction import Tx
from tests.store.conftest import NOW, two_accounts


def topup(key: str = "k", amount: int = 100) -> Transfer:
    return Transfer(key, "topup", "payments", "available", amount, "account")


def hold(key: str = "h", amount: int = 60) -> Transfer:
    return Transfer(key, "hold", "available", "held", amount, "instance:1")


async def test_each_key_once(tx: Tx) -> None:
    made = await tx.ledger.post("acc_a", [topup(), hold()], NOW)
    assert [(e.kind, e.available_after, e.held_after) for e in made] == [("topup", 100, 0), ("hold", 40, 60)]
    assert await tx.ledger.post("acc_a", [topup(), hold()], NOW + 1) == []
    assert len(await tx.ledger.post("acc_b", [topup()], NOW)) == 1
    wallet = await tx.ledger.wallet("acc_a")
    assert (wallet.available, wallet.held, wallet.free) == (40, 60, 40)
    assert [e.key for e in await tx.ledger.list("acc_a")] == ["k", "h"]
    assert [e.key for e in await tx.ledger.list("acc_a", kind="hold")] == ["h"]
    assert await tx.books.mismatches() == []


async def test_no_balance_falls_below_zero(database: Database) -> None:
    async with database.transaction() as tx:
        await two_accounts(tx)
        await tx.ledger.post("acc_a", [topup()], NOW)
    with pytest.raises(InsufficientBalanceError):
        async with database.transaction() as tx:
            await tx.ledger.post("acc_a", [hold("1", 60), hold("2", 60)], NOW)
    async with database.read() as tx:
        assert (await tx.ledger.wallet("acc_a")).available == 100
        assert len(await tx.ledger.list("acc_a")) == 1


async def test_what_the_operator_bears_is_not_in_the_accounts_list(tx: Tx) -> None:
    await tx.ledger.post("acc_a", [Transfer("l", "settlement", "loss", "revenue", 5, "instance:1")], NOW)
    assert await tx.ledger.list("acc_a") == []
    assert await tx.books.mismatches() == []


async def test_what_was_spent_by_model_and_day(tx: Tx) -> None:
    await tx.ledger.post("acc_a", [topup()], 0.0)
    for number, (at, model) in enumerate([(0.0, "x"), (90_000.0, "x"), (90_000.0, "y")]):
        paid = Transfer(f"u{number}", "usage", "available", "revenue", 10, "model:x")
        await tx.ledger.post("acc_a", [paid], at, model=model)
    assert await tx.ledger.spent("acc_a", since=0, until=1e6) == {"x": 20, "y": 10}
    assert await tx.ledger.spent("acc_a", since=0, until=1e6, by_day=True) == {"0": 10, "1": 20}
    assert await tx.ledger.spent("acc_a", since=0, until=3600) == {"x": 10}


@pytest.mark.parametrize(
    "statement",
    ["UPDATE ledger_entries SET amount = 1", "DELETE FROM ledger_entries", "TRUNCATE ledger_entries"],
)
async def test_the_database_refuses_to_change_the_ledger(
    database: Database, dialect: str, statement: str
) -> None:
    if dialect == "sqlite" and statement.startswith("TRUNCATE"):
        statement = "REPLACE INTO ledger_entries SELECT * FROM ledger_entries"
    async with database.transaction() as tx:
        await two_accounts(tx)
        await tx.ledger.post("acc_a", [topup()], NOW)
    with pytest.raises(DBAPIError, match="append-only"):
        await run(database, statement)


async def run(database: Database, statement: str) -> None:
    async with database._write.begin() as connection:
        await connection.exec_driver_sql(statement)


async def test_balances_that_were_tampered_with_are_found(database: Database) -> None:
    async with database.transaction() as tx:
        await two_accounts(tx)
        await tx.ledger.post("acc_a", [topup()], NOW)
        await tx.ledger.post("acc_b", [topup()], NOW)
    async with database._write.begin() as connection:
        await connection.execute(
            sa.text("UPDATE wallets SET available = 101 WHERE account_id = 'acc_b'"),
            execution_options={"everyone": True},
        )
    async with database.read() as tx:
        assert await tx.books.mismatches() == ["acc_b"]
    async with database.transaction() as tx:
        await tx.ledger.set_aside("acc_a", owed=1)
        assert await tx.books.mismatches() == ["acc_a", "acc_b"]


async def test_those_who_spend_at_once_cannot_overspend(database: Database) -> None:
    async with database.transaction() as tx:
        await two_accounts(tx)
        await tx.ledger.post("acc_a", [topup()], NOW)

    async def spend(number: int) -> int:
        try:
            async with database.transaction() as tx:
                await tx.ledger.post("acc_a", [hold(str(number), 30)], NOW)
        except InsufficientBalanceError:
            return 0
        return 30

    assert sum(await asyncio.gather(*(spend(n) for n in range(8)))) == 90
    async with database.read() as tx:
        wallet = await tx.ledger.wallet("acc_a")
        assert (wallet.available, wallet.held) == (10, 90)
        assert await tx.books.mismatches() == []


async def test_a_bill_moves_on_from_each_number_once(tx: Tx) -> None:
    bill = await tx.bills.begin("acc_a", 1, NOW, held=5)
    assert bill == Bill(1, "acc_a", 5, 1, open=True, opened_at=NOW)
    assert await tx.bills.begin("acc_a", 1, NOW + 1) == bill
    assert await tx.bills.move("acc_a", 1, 1, held=7, open=True)
    assert not await tx.bills.move("acc_a", 1, 1, held=9, open=True)
    assert await tx.bills.get("acc_b", 1) is None
    assert await tx.bills.move("acc_a", 1, 2, held=0, open=False)
    assert not await tx.bills.move("acc_a", 1, 3, held=0, open=True)
    again = await tx.bills.begin("acc_a", 1, NOW + 2)
    assert again == Bill(1, "acc_a", 0, 3, open=True, opened_at=NOW + 2)
