"""Billing on PostgreSQL, where those who spend and those who settle really run beside each other."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from msgspec.structs import replace

from pillion.control import slices, usage, usage_queries
from pillion.control.billing import Billing
from pillion.core.budgets import Ask
from pillion.core.errors import InsufficientBalanceError
from pillion.core.usage import Mark, Report
from pillion.store.database import Database
from tests.control.ledger_world import DAY, HOUR, RATE, DiedError, Office
from tests.control.test_ledger_machine import pool, tokens
from tests.control.test_usage import used
from tests.control.world import World
from tests.postgres import Cluster, postgres

__all__ = ["postgres"]


@pytest.fixture
async def world(world: World, postgres: Cluster) -> AsyncIterator[World]:
    name = postgres.create()
    world.url = postgres.url(name)
    world.clock.began = 1_700_000_000.0
    database = Database.open(world.url)
    await database.migrate()
    await database.close()
    yield world
    postgres.drop(name)


async def test_days_of_holds_with_deaths_and_two_workers_at_once(world: World) -> None:
    async with world.control(run=False) as control:
        office = Office(world, control)
        who = await world.account(control)
        await pool(office)
        await office.price(RATE)
        await office.topup(who, 60 * RATE)
        made = await office.launch(who)
        second = Billing(control, "two")
        for hour in range(0, 48, 4):
            await office.wait(4 * HOUR, 4 * HOUR)
            event = tokens(hour // 4 + 1, who.account, office.now, 1000, 10)
            await asyncio.gather(
                office.billing.step(),
                second.step(),
                office.record(),
                usage.take(control, Report("s", 1, (event,))),
                office.topup(who, 1000, f"t{hour}"),
            )
            office.db.at, office.db.after = office.db.writes + 2, hour % 8 == 0
            try:
                await office.look()
            except DiedError:
                office.restart()
            office.db.at = None
        await office.wait(DAY, 8 * HOUR)
        await office.close()
        assert (await office.instance(who, made.id)).termination_reason == "credit_depleted"
        async with control.db.read() as tx:
            assert await tx.books.mismatches() == []
            wallet = await tx.ledger.wallet(who.account)
            paid = await tx.ledger.spent(who.account, since=0, until=1e12)
        assert wallet.held == wallet.owed == 0
        assert wallet.available + sum(paid.values()) == 60 * RATE + 12 * 1000


async def test_launches_and_slices_at_once_cannot_overspend(world: World) -> None:
    async with world.control(run=False) as control:
        office = Office(world, control)
        who = await world.account(control)
        await office.price(RATE)
        await office.topup(who, 100 * RATE)

        async def launch() -> int:
            try:
                await office.launch(who)
            except InsufficientBalanceError:
                return 0
            return 24 * RATE

        async def lease(number: int) -> int:
            ask = Ask(f"s{number}", "e", who.account, 1, 10 * RATE, 0)
            return (await slices.lease(control, ask)).amount

        taken = await asyncio.gather(*(work for n in range(6) for work in (launch(), lease(n))))
        async with control.db.read() as tx:
            wallet = await tx.ledger.wallet(who.account)
        assert sum(taken) == wallet.held + wallet.leased <= 100 * RATE
        assert wallet.available >= wallet.leased
        assert 100 * RATE - sum(taken) < 24 * RATE


async def test_reports_of_the_same_hours_at_once_wait_for_each_other(world: World) -> None:
    """In whatever order their requests came: a database that finds them in each other's way ends one of them."""
    async with world.control(run=False) as control:
        who = await world.account(control)
        keys = [f"k{n}" for n in range(1500)]

        def report(spool: str, order: list[str]) -> Report:
            return Report(
                spool, 1, tuple(replace(used(n, who.account), key=key) for n, key in enumerate(order, 1))
            )

        reports = [report("a", keys), report("b", keys[::-1]), report("c", keys), report("d", keys[::-1])]
        marks = await asyncio.gather(*(usage.take(control, one) for one in reports))
        assert marks == [Mark(len(keys))] * len(reports)


async def test_no_event_comes_in_before_one_that_was_read(world: World) -> None:
    async with world.control(run=False) as control:
        who = await world.account(control)
        fast = Report("fast", 1, tuple(replace(used(n, who.account), key="other") for n in (1, 2, 3)))
        async with control.db.transaction() as tx:
            await tx.intake.mark("slow", 0.0)
            await tx.intake.add("slow", [used(1, who.account)], 1, 0.0)
            taking = asyncio.create_task(usage.take(control, fast))
            await asyncio.wait([taking], timeout=0.5)
            first = await usage_queries.events(control, who, None, 2)
        await taking
        rest = await usage_queries.events(control, who, str(first.data[-1].id) if first.data else None, 10)
    assert [event.key_id for event in (*first.data, *rest.data)].count("key") == 1
