"""Slices of balances: given once for each ask, covered by usage, freed at their end; and no balance is overspent."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator

import msgspec
import pytest

from pillion.control import slices, usage
from pillion.control.context import Control
from pillion.control.keys import Principal
from pillion.control.slices import GRACE_S, SLICE_S
from pillion.core.budgets import Ask, Given, TokenPrice
from pillion.core.errors import InsufficientBalanceError, PillionError
from pillion.core.usage import Report
from pillion.gateway.budgets import Budgets
from pillion.gateway.reports import UntoldError
from tests.control.ledger_world import HOUR, RATE, Office
from tests.control.test_ledger_machine import pool, recompute, tokens
from tests.control.world import World

PRICE = TokenPrice(0, 150_001, 600_007)  # as in `pool`


@pytest.fixture
async def control(world: World) -> AsyncIterator[Control]:
    world.clock.began = 1_700_000_000.0
    async with world.control(run=False) as made:
        yield made


@pytest.fixture
async def office(world: World, control: Control) -> Office:
    made = Office(world, control)
    await pool(made)
    await made.price(RATE)
    return made


async def ask(
    control: Control, who: Principal, number: int, needed: int, wanted: int = 0, **more: object
) -> Given:
    fields: dict[str, object] = {"spool": "s", "epoch": "e", "back": 0} | more
    return await slices.lease(
        control,
        Ask(account=who.account, number=number, needed=needed, wanted=wanted, **fields),  # type: ignore[arg-type]
    )


async def free(control: Control, who: Principal) -> tuple[int, int, int]:
    async with control.db.read() as tx:
        wallet = await tx.ledger.wallet(who.account)
    return wallet.free, wallet.leased, wallet.owed


async def test_each_ask_is_answered_once(office: Office, control: Control, who: Principal) -> None:
    await office.topup(who, 1000)
    assert (await ask(control, who, 1, 10, 100)).amount == 100
    assert (await ask(control, who, 1, 10, 100)).amount == 100
    assert await free(control, who) == (900, 100, 0)
    assert (await ask(control, who, 2, 10, 100_000)).amount == 225
    assert (await ask(control, who, 1, 10, 100)).amount == 0
    assert (await ask(control, who, 1, 10, 100, epoch="another life")).amount == 100
    assert (await ask(control, who, 3, 576)).amount == 0
    assert (await ask(control, who, 4, 575)).amount == 575
    assert await free(control, who) == (0, 1000, 0)
    assert (await ask(control, who, 5, 0, 0, back=400)).amount == 0
    assert await free(control, who) == (400, 600, 0)


async def test_what_is_in_gateways_hands_cannot_be_held(
    office: Office, control: Control, who: Principal
) -> None:
    await office.topup(who, 24 * RATE + 50)
    await ask(control, who, 1, 51)
    with pytest.raises(InsufficientBalanceError):
        await office.launch(who)
    await ask(control, who, 2, 0, back=1)
    await office.launch(who)


async def test_usage_covers_a_slice_and_is_owed_until_it_is_posted(
    office: Office, control: Control, who: Principal
) -> None:
    await office.topup(who, 1000)
    await ask(control, who, 1, 300)
    event = tokens(1, who.account, office.now, 100, 100)
    for _ in range(2):
        await usage.take(control, Report("s", 1, (event,)))
    cost = PRICE.cost(100, 100)
    assert await free(control, who) == (1000 - 300 + 1, 300 - cost, cost - 1)  # rounded up and down
    office.world.clock.ahead += HOUR
    await office.billing.step()
    assert await office.balances(who) == (1000 - cost + 1, 0)
    assert (await free(control, who))[2] == 0
    assert [kind for kind, _ in await office.entries(who)] == ["topup", "usage"]


async def test_what_was_not_spent_in_time_is_free_again(
    office: Office, control: Control, who: Principal
) -> None:
    await office.topup(who, 1000)
    given = await ask(control, who, 1, 400)
    assert given.until == office.now + SLICE_S
    office.world.clock.ahead += SLICE_S + GRACE_S - 1
    await office.billing.step()
    assert (await free(control, who))[1] == 400
    office.world.clock.ahead += 1
    await office.billing.step()
    assert await free(control, who) == (1000, 0, 0)


async def test_what_no_balance_covers_is_the_operators_loss(
    office: Office, control: Control, who: Principal, world: World
) -> None:
    await office.topup(who, 10)
    await usage.take(control, Report("s", 1, (tokens(1, who.account, office.now, 10**6, 0),)))
    office.world.clock.ahead += HOUR
    await office.billing.step()
    assert await office.balances(who) == (0, 0)
    recompute(world.root / "pillion.db")


async def test_own_instances_tokens_cost_nothing(office: Office, control: Control, who: Principal) -> None:
    await office.topup(who, 100 * RATE)
    made = await office.launch(who)
    event = tokens(1, who.account, office.now, 10**6, 10**6)
    await usage.take(control, Report("s", 1, (msgspec.structs.replace(event, instance=made.id),)))
    assert (await free(control, who))[2] == 0


class Line:
    """From a gateway to control and back, on which things get lost."""

    def __init__(self, control: Control, draw: random.Random) -> None:
        self._control, self._draw = control, draw

    async def lease(self, ask: Ask) -> Given:
        if self._draw.random() < 0.1:
            raise UntoldError("away")
        given = await slices.lease(self._control, ask)
        if self._draw.random() < 0.1:
            raise UntoldError("the answer was lost")
        return given


@pytest.mark.parametrize("seed", range(3))
async def test_several_gateways_do_not_overspend_and_nothing_is_lost(
    office: Office, control: Control, who: Principal, world: World, seed: int
) -> None:
    draw = random.Random(seed)
    funds = 20_000 + draw.randrange(5000)
    await office.topup(who, funds)
    line = Line(control, draw)
    gateways = {name: Budgets(line, name, "e", world.clock) for name in ("g1", "g2", "g3")}
    told = dict.fromkeys(gateways, 0)
    served = 0

    async def request(name: str) -> None:
        nonlocal served
        budgets = gateways[name]
        most = PRICE.cost(500, 500)
        heard: asyncio.Future[PillionError | None] = asyncio.get_running_loop().create_future()
        if budgets.reserve(who.account, most, heard.set_result) is not None and await heard is not None:
            return
        prompt, completion = draw.randrange(501), draw.randrange(501)
        budgets.settle(who.account, most, PRICE.cost(prompt, completion))
        told[name] += 1
        served += 1
        event = tokens(told[name], who.account, office.now, prompt, completion)
        await usage.take(control, Report(name, 1, (event,)))

    for round in range(12):
        for name in gateways:  # each spool tells in its order
            await asyncio.gather(*(request(name) for _ in range(1)))
        await asyncio.gather(*(request(name) for name in gateways))
        world.clock.ahead += 400 if round % 3 else HOUR
        await office.billing.step()
        async with control.db.read() as tx:
            wallet = await tx.ledger.wallet(who.account)
        assert wallet.available >= wallet.leased + wallet.owed
    world.clock.ahead += HOUR
    await office.billing.step()
    assert served > 20
    async with control.db.read() as tx:
        assert await tx.books.mismatches() == []
        lost = [await tx.ledger.by_key(who.account, f"usage:1:{n}:loss") for n in range(40)]
    assert not any(lost)
    recompute(world.root / "pillion.db")
