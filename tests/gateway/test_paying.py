"""Requests that cost: refused before an engine is asked where they cannot be paid, and settled at what they used."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import msgspec
import pytest
from aiohttp import web

from pillion.core.budgets import Ask, Given, TokenPrice
from pillion.core.snapshot import Model, Snapshot
from tests.gateway.conftest import Town
from tests.gateway.site import chat
from tests.gateway.world import BASE, make_instance, make_key, make_replica, make_snapshot

PRICE = TokenPrice(0, 1_000_000, 2_000_000)  # 1 for a token read, 2 for one written
USAGE = {"prompt_tokens": 3, "completion_tokens": 4}


@dataclass
class Bank:
    """Control's answers to asks. `away`: it answers nothing that makes sense."""

    free: int
    away: bool = False
    limit: int | None = None
    asks: list[Ask] = field(default_factory=list)

    async def handle(self, request: web.Request) -> web.StreamResponse:
        if request.path != "/internal/v1/budgets" or self.away:
            return web.Response(status=503)
        ask = msgspec.msgpack.decode(await request.read(), type=Ask)
        self.asks.append(ask)
        self.free += ask.back
        free = self.free if self.limit is None else min(self.free, self.limit)
        amount = 0 if ask.needed > free else max(ask.needed, min(ask.wanted, free // 4))
        given = Given(ask.number, amount, 1e12, limited=amount < ask.needed <= self.free)
        self.free -= amount
        return web.Response(body=msgspec.msgpack.encode(given))


async def with_usage(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
    answer = {"id": "c", "object": "chat.completion", "created": 1, "model": body["model"], "usage": USAGE}
    message = {"role": "assistant", "content": "hello"}
    return web.json_response(
        answer | {"choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}
    )


def snapshot(
    town: Town, prices: tuple[TokenPrice, ...] | None, *, account: str | None = None, limit: int | None = None
) -> tuple[str, Snapshot]:
    """A key, and one instance of the base, shared unless it is an account's."""
    key, (lookup, entry) = make_key()
    instance = make_instance(7, make_replica("a", url=town.a.url), account=account)
    made = make_snapshot(
        (lookup, msgspec.structs.replace(entry, spend_limit=limit)),
        instance,
        version=town.site.control.acknowledged + 1,
    )
    return key, msgspec.structs.replace(made, models=(Model(BASE, None, "chat", True, prices, 1000),))


Publish = Callable[..., Awaitable[str]]


@pytest.fixture
def publish(town: Town) -> Publish:
    town.a.behave = with_usage

    async def now(prices: tuple[TokenPrice, ...] | None, **fields: Any) -> str:
        key, made = snapshot(town, prices, **fields)
        await town.site.control.publish(made)
        return key

    return now


async def test_it_is_paid_for_what_it_used(town: Town, publish: Publish) -> None:
    bank = Bank(10_000)
    town.site.control.public = bank.handle
    key = await publish((PRICE,))
    for _ in range(200):  # some 400 are set aside for each, and 11 is what it costs
        assert (await town.site.chat(key, BASE, max_tokens=50))[0] == 200
    assert len(bank.asks) < 10


async def test_who_cannot_pay_is_refused_before_an_engine_is_asked(town: Town, publish: Publish) -> None:
    bank = Bank(400)
    town.site.control.public = bank.handle
    key = await publish((PRICE,))
    status, _, body = await town.site.chat(key, BASE)
    assert (status, body["error"]["code"]) == (402, "insufficient_balance")
    assert town.a.asked == []
    assert (await town.site.chat(key, BASE, max_tokens=1))[0] == 200


async def test_without_a_price_it_cannot_be_called(town: Town, publish: Publish) -> None:
    for prices in ((), (TokenPrice(10**14, 1, 1),)):
        key = await publish(prices)
        status, _, body = await town.site.chat(key, BASE)
        assert (status, body["error"]["code"]) == (402, "model_not_priced")
    assert town.a.asked == []


async def test_control_away_and_nothing_in_hand(town: Town, publish: Publish) -> None:
    town.site.control.public = Bank(0, away=True).handle
    key = await publish((PRICE,))
    status, headers, body = await town.site.chat(key, BASE)
    assert (status, body["error"]["code"]) == (429, "insufficient_quota")
    assert headers["x-should-retry"] == "false"
    assert town.a.asked == []


async def test_a_key_that_has_spent_its_limit(town: Town, publish: Publish) -> None:
    bank = Bank(10**6, limit=400)
    town.site.control.public = bank.handle
    key = await publish((PRICE,), limit=400)
    status, headers, body = await town.site.chat(key, BASE)
    assert (status, body["error"]["code"]) == (429, "insufficient_quota")
    assert headers["x-should-retry"] == "false"
    assert "this API key may still spend this month" in body["error"]["message"]
    assert town.a.asked == []
    assert (await town.site.chat(key, BASE, max_tokens=1))[0] == 200
    assert {ask.key[:4] for ask in bank.asks} == {"key_"}


@pytest.mark.parametrize(("prices", "account"), [(None, None), ((), "acc_acme"), ((PRICE,), "acc_acme")])
async def test_what_is_free_asks_nobody(
    town: Town, publish: Publish, prices: tuple[TokenPrice, ...] | None, account: str | None
) -> None:
    bank = Bank(0)
    town.site.control.public = bank.handle
    key = await publish(prices, account=account, limit=0)
    assert (await town.site.chat(key, BASE))[0] == 200
    assert bank.asks == []


async def test_an_engine_that_fails_costs_nothing(town: Town, publish: Publish) -> None:
    bank = Bank(10**6)
    town.site.control.public = bank.handle
    key = await publish((PRICE,))

    async def fail(_: web.Request, __: dict[str, Any]) -> web.StreamResponse:
        return web.json_response({"error": {"message": "no"}}, status=500)

    town.a.behave = fail
    for _ in range(60):
        assert (await town.site.chat(key, BASE, max_tokens=50))[0] == 500
    town.a.behave = chat  # tells no usage: nothing is known to be owed
    assert (await town.site.chat(key, BASE, max_tokens=50))[0] == 200
    assert len(bank.asks) == 1
