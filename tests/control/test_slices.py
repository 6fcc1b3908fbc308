"""Slices of balances: given once for each ask, covered by usage, freed at their end; and no balance is overspent."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator

import pytest
from msgspec.structs import replace

from pillion.control import keys, slices, usage, usage_queries
from pillion.control.context import Control
from pillion.control.keys import Principal, Terms
from pillion.control.slices import GRACE_S, SLICE_S
from pillion.core.budgets import Ask, Given, TokenPrice
from pillion.core.errors import InsufficientBalanceError, PillionError
from pillion.core.snapshot import Key
from pillion.core.usage import Report, Used
from pillion.gateway.budgets import AHEAD, Budgets
from pillion.gateway.reports import UntoldError
from tests.control.ledger_world import HOUR, RATE, Office
from tests.control.test_ledger_machine import pool, recompute, tokens
from tests.control.world import World

PRICE = TokenPrice(0, 150_001, 600_007)  # as in `pool`
MOST = PRICE.cost(500, 500)


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


async def limited(control: Control, who: Principal, limit: int | None) -> Key:
    """A key of the account, as gateways know it."""
    made = await keys.mint(control, who.account, "k", ["inference"], Terms(spend_limit=limit))
    return Key(made.id, who.account, "", ("inference",), spend_limit=limit)


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
    await usage.take(control, Report("s", 1, (replace(event, instance=made.id),)))
    assert (await free(control, who))[2] == 0


async def test_a_key_gets_no_more_than_its_limit_of_the_month(
    office: Office, control: Control, who: Principal
) -> None:
    await office.topup(who, 10**6)
    key = (await limited(control, who, 1000)).id
    first = await ask(control, who, 1, 900, key=key)
    assert (first.amount, first.limited) == (900, False)
    other = await ask(control, who, 1, 101, key=key, spool="t")
    assert (other.amount, other.limited) == (0, True)
    assert (await ask(control, who, 2, 100, key=key, spool="t")).amount == 100
    assert (await ask(control, who, 1, 10**5)).amount == 10**5  # the account's other keys
    broke = await ask(control, who, 3, 10**6, key=key, spool="t")
    assert (broke.amount, broke.limited) == (0, False)
    used = tokens(1, who.account, office.now, 1000, 0)
    await usage.take(control, Report("s", 1, (replace(used, key=key),)))
    assert (await ask(control, who, 2, 1, back=700, key=key)).amount == 1
    assert (await ask(control, who, 3, 700, key=key)).amount == 0
    assert (
        await ask(control, who, 4, 698, key=key)
    ).amount == 698  # 151 cost, 149 and 1 in hand, 1 for rounding
    office.world.clock.ahead += 31 * 24 * HOUR
    assert (await ask(control, who, 5, 1000, key=key)).amount == 1000


async def test_the_usage_of_a_key_covers_its_own_slice_and_never_that_of_another(
    office: Office, control: Control, who: Principal
) -> None:
    await office.topup(who, 10**6)
    one, two = [(await limited(control, who, 1000)).id for _ in range(2)]
    for number, key in enumerate(("", one, two)):
        await ask(control, who, number + 1, 200, key=key)
    used = [replace(tokens(n + 1, who.account, office.now, 1000, 0), key=one) for n in range(2)]
    await usage.take(control, Report("s", 1, tuple(used)))
    async with control.db.read() as tx:
        left = {slice.key_id: slice.outstanding for slice in await tx.slices.of(who.account)}
    assert left == {one: 0, "": 200 - (302 - 200), two: 200}


class Line:
    """From a gateway to control and back, on which things get lost."""

    def __init__(self, control: Control, draw: random.Random, losing: float = 0.1) -> None:
        self._control, self._draw, self._losing = control, draw, losing

    async def lease(self, ask: Ask) -> Given:
        if self._draw.random() < self._losing:
            raise UntoldError("away")
        given = await slices.lease(self._control, ask)
        if self._draw.random() < self._losing:
            raise UntoldError("the answer was lost")
        return given


class Gateway:
    """Requests of it take as long as it likes, and its usage is told whenever `tell` is called."""

    def __init__(self, line: Line, name: str, world: World, draw: random.Random) -> None:
        self.name, self.world, self.draw = name, world, draw
        self.budgets = Budgets(line, name, "e", world.clock)
        self.running: list[Key] = []
        self.told: list[Used] = []
        self.seq = 0

    async def begin(self, key: Key) -> None:
        heard: asyncio.Future[PillionError | None] = asyncio.get_running_loop().create_future()
        if self.budgets.reserve(key, MOST, heard.set_result) is None or await heard is None:
            self.running.append(key)

    def end(self) -> None:
        key = self.running.pop(self.draw.randrange(len(self.running)))
        prompt, completion = self.draw.randrange(501), self.draw.randrange(501)
        self.budgets.settle(key, MOST, PRICE.cost(prompt, completion))
        self.seq += 1
        event = tokens(self.seq, key.account, self.world.clock(), prompt, completion)
        self.told.append(replace(event, key=key.id))

    async def tell(self, control: Control) -> None:
        told, self.told = self.told, []
        await usage.take(control, Report(self.name, 1, tuple(told)))


async def cost_of_keys(control: Control, who: Principal) -> dict[str, float]:
    found = await usage_queries.summary(control, who, "30d", "key")
    return {one.group: one.cost for one in found.data}


@pytest.mark.parametrize("seed", range(4))
async def test_several_gateways_overspend_neither_balances_nor_limits_of_keys(
    office: Office, control: Control, who: Principal, world: World, seed: int
) -> None:
    draw = random.Random(seed)
    funds = 27_000 + draw.randrange(3000)
    await office.topup(who, funds)
    free_key, *capped = [await limited(control, who, limit) for limit in (None, 9000, 12_345)]
    line = Line(control, draw)
    gateways = [Gateway(line, name, world, draw) for name in ("g1", "g2", "g3")]
    for _ in range(90):
        await asyncio.gather(
            *(g.begin(draw.choice([free_key, *capped])) for g in gateways for _ in range(draw.randrange(4)))
        )
        for g in gateways:
            while g.running and draw.random() < 0.7:
                g.end()
        await asyncio.gather(*(g.tell(control) for g in gateways if draw.random() < 0.8))
        # While slices are kept from ending; at times all are away for long enough to lose them.
        calm = not any(g.running or g.told for g in gateways)
        world.clock.ahead += draw.choice([1, 20, 300, 650, HOUR] if calm else [1, 5, 20])
        for g in gateways:
            await g.budgets.sweep()
        await office.billing.step()
        async with control.db.read() as tx:
            wallet = await tx.ledger.wallet(who.account)
        assert wallet.available >= wallet.leased + wallet.owed
    for g in gateways:
        while g.running:
            g.end()
        await g.tell(control)
    costs = await cost_of_keys(control, who)
    for key in capped:
        assert key.spend_limit is not None
        assert costs[key.id] <= key.spend_limit
    assert costs[capped[0].id] > 0.7 * 9000
    assert 0.9 * funds < sum(costs.values()) <= funds
    world.clock.ahead += HOUR
    await office.billing.step()
    async with control.db.read() as tx:
        assert await tx.books.mismatches() == []
        lost = [await tx.ledger.by_key(who.account, f"usage:1:{n}:loss") for n in range(40)]
    assert not any(lost)
    recompute(world.root / "pillion.db")


async def test_little_traffic_for_long_leaves_nothing_set_aside(
    office: Office, control: Control, who: Principal, world: World
) -> None:
    """Slices are kept on before they end, and none is forgotten in control's books."""
    await office.topup(who, 10**6)
    key = await limited(control, who, None)
    g = Gateway(Line(control, random.Random(0), losing=0), "g", world, random.Random(0))
    for number in range(3 * 144):
        await g.begin(key)
        g.budgets.settle(g.running.pop(), MOST, 0)
        world.clock.ahead += 25
        if number % 24 == 0:  # now and then, as if the gateway were that slow
            await g.budgets.sweep()
    assert (await free(control, who))[1] <= (AHEAD + 1) * MOST


async def test_what_a_request_had_set_aside_does_not_outlive_its_slice(
    office: Office, control: Control, who: Principal, world: World
) -> None:
    """It ran on while control was away, which has given the rest to others since."""
    await office.topup(who, 4 * MOST)
    key = await limited(control, who, None)
    line = Line(control, random.Random(0), losing=0)
    one, two = (Gateway(line, name, world, random.Random(0)) for name in ("one", "two"))
    for _ in range(2):
        await one.begin(key)
    world.clock.ahead += SLICE_S + GRACE_S
    for _ in range(3):
        await two.begin(key)
    await one.begin(key)
    assert (len(one.running), len(two.running)) == (3, 3)
    for _ in range(2):
        one.budgets.settle(one.running.pop(), MOST, 0)
    for g in (one, one, two, two):
        await g.begin(key)
    assert (len(one.running), len(two.running)) == (1, 3)
