"""Holds, renewals, stops and refunds over days that pass in an instant; and whatever dies, the sums are right."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
import sqlalchemy as sa

from pillion.control import wallets
from pillion.control.billing import Billing
from pillion.control.context import Control
from pillion.control.keys import Principal
from pillion.core.errors import ConflictError, InsufficientBalanceError, InvalidRequestError, NotFoundError
from pillion.core.money import MICRO
from tests.control.ledger_world import DAY, HOUR, RATE, DiedError, Office
from tests.control.world import World

FULL = os.environ.get("PILLION_TEST_FULL") == "1"
HOLD = 24 * RATE


@pytest.fixture
async def control(world: World) -> AsyncIterator[Control]:
    world.clock.began = 1_700_000_000.0
    async with world.control(run=False) as made:
        yield made


@pytest.fixture
async def office(world: World, control: Control) -> AsyncIterator[Office]:
    made = Office(world, control)
    await made.price(RATE)
    yield made
    async with control.db.read() as tx:
        assert await tx.books.mismatches() == []


async def events(office: Office, who: Principal, kind: str) -> list[dict[str, object]]:
    async with office.control.db.read() as tx:
        return [e.detail for e in await tx.events.list(who.account, limit=1000) if e.kind == kind]


async def test_a_launch_holds_a_day_and_a_stop_refunds_what_was_not_used(
    office: Office, who: Principal
) -> None:
    await office.topup(who, 100 * RATE)
    made = await office.launch(who, replicas=2)
    assert await office.balances(who) == (52 * RATE, 48 * RATE)
    await office.wait(1.5 * HOUR)
    await office.stop(who, made.id)
    await office.wait(HOUR)
    assert await office.entries(who) == [
        ("topup", 100 * RATE),
        ("hold", 48 * RATE),
        ("settlement", 3 * RATE),
        ("refund", 45 * RATE),
    ]
    assert await office.balances(who) == (97 * RATE, 0)


async def test_a_launch_below_the_first_hold_is_refused_and_leaves_nothing(
    office: Office, who: Principal
) -> None:
    await office.topup(who, HOLD - 1)
    with pytest.raises(InsufficientBalanceError, match=r"86\.40; 86\.399999 is available"):
        await office.launch(who)
    async with office.control.db.read() as tx:
        assert await tx.everyone.wanted_instances() == []
    assert await office.balances(who) == (HOLD - 1, 0)


async def test_one_that_never_became_ready_costs_nothing(office: Office, who: Principal) -> None:
    await office.topup(who, HOLD)
    made = await office.launch(who, ready=False)
    await office.wait(3 * DAY)
    await office.stop(who, made.id)
    await office.wait(HOUR)
    assert await office.balances(who) == (HOLD, 0)


async def test_a_renewal_takes_a_full_hold_then_a_partial_one_with_a_warning_then_it_stops(
    office: Office, who: Principal
) -> None:
    await office.topup(who, 2 * HOLD + 6 * RATE)
    made = await office.launch(who)
    await office.wait(DAY)
    assert await office.balances(who) == (6 * RATE, HOLD)
    await office.wait(DAY)
    assert await office.balances(who) == (0, 6 * RATE)
    assert await events(office, who, "hold_is_partial") == [{"held": 6 * RATE, "hours": 6.0}]
    assert (await office.instance(who, made.id)).wanted == "running"
    await office.wait(6 * HOUR)
    stopped = await office.instance(who, made.id)
    assert (stopped.wanted, stopped.termination_reason) == ("stopped", "credit_depleted")
    await office.wait(DAY)
    assert await office.balances(who) == (0, 0)
    assert sum(amount for kind, amount in await office.entries(who) if kind == "settlement") == 54 * RATE


async def test_a_hold_lasts_as_long_as_replicas_are_down(office: Office, who: Principal) -> None:
    await office.topup(who, HOLD)
    made = await office.launch(who, replicas=1)
    await office.wait(12 * HOUR)
    office.machines[made.id][0].be(False, office.now)
    await office.wait(5 * DAY)
    office.machines[made.id][0].be(True, office.now)
    await office.wait(11 * HOUR)
    assert await office.balances(who) == (0, HOLD)
    await office.wait(HOUR)
    assert (await office.instance(who, made.id)).termination_reason == "credit_depleted"


async def test_time_while_control_was_away_is_charged_up_to_the_balance(
    office: Office, who: Principal
) -> None:
    await office.topup(who, HOLD + 5 * RATE)
    made = await office.launch(who)
    await office.look()
    office.away = True
    await office.wait(40 * HOUR, step=40 * HOUR)
    office.away = False
    office.restart()
    await office.look()
    assert await office.balances(who) == (0, 0)
    assert (await office.instance(who, made.id)).termination_reason == "credit_depleted"
    assert [e for e in await office.entries(who) if e[0] == "settlement"] == [
        ("settlement", HOLD),
        ("settlement", 5 * RATE),
    ]
    assert await lost(office, who) == 11 * RATE


async def lost(office: Office, who: Principal) -> int:
    async with office.control.db.read() as tx:
        keys = [f"instance:{id}:{n}:settlement:loss" for id in range(1, 9) for n in range(50)]
        found = [await tx.ledger.by_key(who.account, key) for key in keys]
    return sum(entry.amount for entry in found if entry is not None)


async def test_what_nobody_saw_is_not_charged(office: Office, who: Principal) -> None:
    """The engine died and came back while control was away; when it died is not known."""
    await office.topup(who, 3 * HOLD)
    made = await office.launch(who)
    await office.wait(HOUR)
    office.away = True
    machine = office.machines[made.id][0]
    await office.wait(2 * HOUR)
    machine.be(False, office.now)
    await office.wait(HOUR)
    machine.be(True, office.now)
    await office.wait(HOUR)
    office.away = False
    await office.look()
    await office.stop(who, made.id)
    await office.wait(HOUR)
    assert await office.balances(who) == (3 * HOLD - 2 * RATE, 0)


async def test_a_price_that_changes_holds_from_its_instant_on(office: Office, who: Principal) -> None:
    await office.topup(who, 10 * HOLD)
    made = await office.launch(who)
    await office.price(2 * RATE, at=office.now + 90 * 60)
    await office.price(7 * RATE, at=office.now + 2 * HOUR, region="local")
    await office.price(999 * RATE, at=office.now + HOUR, region="elsewhere")
    await office.wait(3 * HOUR)
    await office.stop(who, made.id)
    await office.wait(HOUR)
    assert await office.balances(who) == (10 * HOLD - round((1.5 + 0.5 * 2 + 7) * RATE), 0)


async def test_free_gpus_take_no_hold_and_never_stop(office: Office, who: Principal) -> None:
    await office.price(0, at=office.now + 1)
    office.world.clock.ahead += 2
    made = await office.launch(who)
    await office.wait(3 * DAY)
    assert (await office.instance(who, made.id)).wanted == "running"
    assert await office.entries(who) == []


async def test_billing_off_takes_nothing_and_on_charges_from_then(office: Office, who: Principal) -> None:
    office.bill(False)
    made = await office.launch(who)
    await office.wait(DAY)
    assert await office.entries(who) == []
    office.bill(True)
    await office.topup(who, 2 * HOLD)
    await office.wait(1)
    assert await office.balances(who) == (HOLD, HOLD)
    await office.wait(HOUR)
    office.bill(False)
    office.restart()
    await office.wait(DAY)
    used = 2 * HOLD - sum(await office.balances(who))
    assert RATE <= used <= RATE + 1000, "the hour between, and what passed until it was noticed"
    assert (await office.balances(who))[1] == 0
    assert (await office.instance(who, made.id)).wanted == "running"


async def test_credits_are_given_once_for_a_key(office: Office, who: Principal) -> None:
    for _ in range(3):
        await office.topup(who, 5 * MICRO, "invoice-7")
    with pytest.raises(ConflictError, match="another credit"):
        await office.topup(who, 6 * MICRO, "invoice-7")
    taken = await wallets.credit(
        office.control, who, who.account, "admin_correction", -2 * MICRO, note="mistake"
    )
    assert (taken.available_change, taken.balance_after, taken.note) == (-2 * MICRO, 3 * MICRO, "mistake")
    with pytest.raises(ConflictError, match=r"has 3\.00 available"):
        await wallets.credit(office.control, who, who.account, "admin_correction", -4 * MICRO)
    for amount, kind in ((0, "topup"), (-1, "bonus"), (10**15 + 1, "topup")):
        with pytest.raises(InvalidRequestError, match="amount"):
            await wallets.credit(office.control, who, who.account, kind, amount)  # type: ignore[arg-type]
    with pytest.raises(NotFoundError):
        await wallets.credit(office.control, who, "acc_nobody", "topup", 1)
    page = await wallets.transactions(office.control, who.account, None, 1)
    assert (page.has_more, page.data[0].kind, page.data[0].balance_after) == (True, "topup", 5 * MICRO)
    rest = await wallets.transactions(office.control, who.account, page.next, 10)
    assert [t.kind for t in rest.data] == ["admin_correction"]


async def story(
    office: Office, who: Principal, survive: Callable[[Awaitable[object]], Awaitable[bool]]
) -> None:
    """Some days. What a user or the operator asked for and got no answer to is asked for again, or looked up."""
    while not await survive(office.topup(who, 3 * HOLD, "first")):
        pass
    made = await office.launch(who)
    for hours, down in ((6, None), (20, False), (3, True), (30, None), (30, None)):
        if down is not None:
            for machine in office.machines.get(made.id, []):
                machine.be(down, office.now)
        office.world.clock.ahead += hours * HOUR
        while not await survive(office.look()):
            pass
    while not await survive(office.close()):
        pass


async def result(office: Office, who: Principal) -> object:
    async with office.control.db.read() as tx:
        assert await tx.books.mismatches() == []
        found = await tx.ledger.list(who.account, limit=1000)
        wallet = await tx.ledger.wallet(who.account)
    return [(e.key, e.amount) for e in found], wallet.available, wallet.held


async def test_dying_at_any_commit_loses_and_doubles_nothing(world: World) -> None:
    async def play(at: int | None, after: bool) -> tuple[object, int]:
        world.clock.ahead = 0.0
        (world.root / "pillion.db").unlink(missing_ok=True)
        async with world.control(run=False) as control:
            office = Office(world, control)
            await office.price(RATE)
            who = await world.account(control)
            begun, office.db.after = office.db.writes, after
            office.db.at = None if at is None else begun + at

            async def survive(work: Awaitable[object]) -> bool:
                try:
                    await work
                except DiedError:
                    office.restart()
                    return False
                return True

            await story(office, who, survive)
            found = await result(office, who)
            return found, office.db.writes - begun

    world.clock.began = 1_700_000_000.0
    whole, writes = await play(None, after=False)
    assert writes > 12
    launch = 2  # the user's own; it is refused or done, and tested above
    points = [n for n in range(1, writes + 1) if n != launch]
    for at in points if FULL else points[::3]:
        for after in (False, True):
            found, _ = await play(at, after)
            assert found == whole, (at, after)


async def test_what_fails_for_one_does_not_hold_up_the_others(
    office: Office, world: World, who: Principal
) -> None:
    other = await world.account(office.control, "other")
    ids = []
    for one in (who, other):
        await office.topup(one, HOLD)
        ids.append((await office.launch(one)).id)
    async with office.control.db.transaction() as tx:
        broken = sa.text("UPDATE instances SET spec = '{}' WHERE id = :id AND account_id = :account")
        await tx.everyone._session.run(broken.bindparams(id=ids[0], account=who.account))
    for one, id in zip((who, other), ids, strict=True):
        await office.stop(one, id)
    await office.billing.step()
    assert await office.balances(other) == (HOLD, 0)
    assert await office.balances(who) == (0, HOLD)


async def test_two_controls_at_once_do_no_harm(office: Office, world: World, who: Principal) -> None:
    await office.topup(who, 3 * HOLD)
    made = await office.launch(who)
    async with world.control("two", run=False) as other:
        other.settings = office.control.settings
        second = Billing(other, "two")
        for _ in range(30):
            await office.wait(HOUR)
            await second.step()
            await office.billing.step()
        await office.stop(who, made.id)
        for worker in (second, office.billing, second):
            await worker.step()
    assert await office.balances(who) == (3 * HOLD - 30 * RATE, 0)


async def test_a_plan_is_applied_once_and_never_late(office: Office, who: Principal) -> None:
    from pillion.billing.settlement import settle
    from pillion.billing.tariff import Terms
    from pillion.control.billing import apply
    from pillion.control.prices import tariff_of

    await office.topup(who, 3 * HOLD)
    made = await office.launch(who)
    await office.look()
    await office.wait(DAY, step=DAY)
    before = await result(office, who)
    async with office.control.db.transaction() as tx:
        wallet = await tx.ledger.lock(who.account)
        bill = await tx.bills.get(who.account, made.id)
        assert bill is not None
        runs = await tx.bills.runs(who.account, made.id)
        terms = Terms("cpu", 1, {"local": 1})
        plan = settle(bill, runs, await tariff_of(tx), terms, {}, wallet.free, 0, ended=True)
        assert plan is not None
        old = type(plan)(bill.number - 1, plan.transfers, {}, {}, 0, open=False)
        assert not await apply(tx, bill, old, office.now, "tiny")
    assert await result(office, who) == before
    for expected in (True, False, False):
        async with office.control.db.transaction() as tx:
            assert await apply(tx, bill, plan, office.now, "tiny") is expected
    async with office.control.db.read() as tx:
        assert await tx.books.mismatches() == []
