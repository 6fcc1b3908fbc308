"""What requests cost: shown with usage, told to gateways, limited by key."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from msgspec.structs import replace

from pillion.control import keys, leftovers, usage, usage_queries
from pillion.control.context import Control
from pillion.control.keys import Principal, Terms
from pillion.core.usage import Report
from tests.control.ledger_world import HOUR, RATE, Office
from tests.control.test_ledger_machine import pool, tokens
from tests.control.world import World


@pytest.fixture
async def control(world: World) -> AsyncIterator[Control]:
    world.clock.began = 1_699_999_210.0  # soon after an hour began
    async with world.control(run=False) as made:
        yield made


@pytest.fixture
async def office(world: World, control: Control) -> Office:
    made = Office(world, control)
    await pool(made)
    await made.price(RATE)
    return made


async def test_costs_are_summed_with_usage(office: Office, control: Control, who: Principal) -> None:
    await office.topup(who, 10**7)
    cached = replace(tokens(1, who.account, office.now, 1000, 100), adapter="adp_1", version=1)
    await usage.take(control, Report("s", 1, (cached, tokens(2, who.account, office.now, 10, None))))
    cost = (150_001 * 1010 + 600_007 * 100) // 1_000_000
    found = await usage_queries.summary(control, who, "24h", "adapter")
    assert found.total.cost == cost
    assert [(one.group, one.cost) for one in found.data] == [("", 1), ("adp_1", cost - 1)]
    snapshot = await usage_queries.snapshot(control, who)
    assert (snapshot.wallet.enabled, snapshot.wallet.available, snapshot.wallet.owed) == (True, 10**7, cost)
    assert (snapshot.total.cost, snapshot.paid) == (cost, 0)
    office.world.clock.ahead += HOUR
    await office.billing.step()
    snapshot = await usage_queries.snapshot(control, who)
    assert (snapshot.wallet.available, snapshot.wallet.owed, snapshot.paid) == (10**7 - cost, 0, cost)
    assert snapshot.paid_by_model == {"tiny": cost}
    assert snapshot.paid_by_day == {"2023-11-14": cost}


async def test_with_billing_off_nothing_costs(office: Office, control: Control, who: Principal) -> None:
    office.bill(False)
    await usage.take(control, Report("s", 1, (tokens(1, who.account, office.now, 1000, 100),)))
    found = await usage_queries.summary(control, who, "24h", "model")
    assert (found.total.cost, found.total.total_tokens) == (0, 1100)
    assert (await world_models(office))["tiny"] is None


async def world_models(office: Office) -> dict[str, object]:
    snapshot = await office.world.snapshot(office.control)
    return {
        model.name: model.prices and [(p.input, p.output) for p in model.prices] for model in snapshot.models
    }


async def test_gateways_are_told_prices(office: Office) -> None:
    found = await world_models(office)
    assert found["tiny"] == [(150_001, 600_007), (99_999, 1)]
    assert found["other"] == ()


async def test_gateways_are_told_which_keys_have_a_limit(
    office: Office, control: Control, who: Principal
) -> None:
    made = await keys.mint(control, who.account, "k", ["inference"], Terms(spend_limit=500))
    by_id = {key.id: key.spend_limit for key in (await office.world.snapshot(control)).keys.values()}
    assert by_id == {made.id: 500, who.key: None}


async def test_old_events_go_once_they_are_paid_and_their_sums_stay(
    office: Office, control: Control, who: Principal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leftovers, "BATCH", 2)
    await office.topup(who, 10**7)
    used = [tokens(seq, who.account, office.now, 1000, 100) for seq in range(1, 6)]
    await usage.take(control, Report("s", 1, tuple(used)))
    office.world.clock.ahead += 40 * 24 * HOUR
    keep = leftovers.Keep(usage_s=30 * 24 * HOUR)
    assert (await leftovers.forget(control, keep))["usage"] == 0, "it is owed for"
    before = await usage_queries.snapshot(control, who)
    await office.billing.step()
    paid = await office.balances(who)
    young = tokens(6, who.account, office.now, 1, 1)
    await usage.take(control, Report("s", 1, (young,)))
    assert (await leftovers.forget(control, keep))["usage"] == 5
    assert [
        event.completion_tokens for event in (await usage_queries.events(control, who, None, 10)).data
    ] == [1]
    async with control.db.read() as tx:
        (summed,) = await tx.usage.sums(
            who.account, since=office.now - 41 * 24 * HOUR, until=office.now - HOUR
        )
    assert (summed.requests, summed.prompt_tokens) == (5, 5000)
    assert await office.balances(who) == paid
    assert before.wallet.owed > 0
    await usage.take(control, Report("s", 1, tuple(used)))
    assert (await leftovers.forget(control, keep))["usage"] == 0, "what went does not come back"
