"""Slices of balances in gateways: reserved, settled, given back; and nobody overspends, whatever gets lost on the way."""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass, field

import msgspec
import pytest

from pillion.core.budgets import Ask, Given, TokenPrice, price_at
from pillion.core.errors import InvalidRequestError, ModelNotPricedError, PillionError
from pillion.core.snapshot import Key, Model
from pillion.gateway.budgets import AHEAD, IDLE_S, Budgets
from pillion.gateway.charges import CONTEXT, TEMPLATE_TOKENS, check_answers, most
from pillion.gateway.reports import UntoldError


@dataclass
class Bank:
    """Control's side, in memory: asked the same again, it answers the same."""

    free: int
    now: float = 0.0
    away: bool = False
    losing: float = 0.0
    draw: random.Random = field(default_factory=lambda: random.Random(7))
    answers: dict[tuple[str, int], Given] = field(default_factory=dict)
    asks: list[Ask] = field(default_factory=list)

    async def lease(self, ask: Ask) -> Given:
        await asyncio.sleep(0)
        if self.away or self.draw.random() < self.losing:
            raise UntoldError("away")
        self.asks.append(ask)
        known = self.answers.get((ask.spool, ask.number))
        if known is None:
            self.free += ask.back
            amount = 0 if ask.needed > self.free else max(ask.needed, min(ask.wanted, self.free // 4))
            self.free -= amount
            known = self.answers[ask.spool, ask.number] = Given(ask.number, amount, self.now + 600)
        if self.draw.random() < self.losing:
            raise UntoldError("the answer was lost")
        return known

    def gateway(self, name: str = "g") -> Budgets:
        return Budgets(self, name, "epoch", lambda: self.now)


A = Key("key_a", "a", "", ("inference",))


async def pay(budgets: Budgets, amount: int, key: Key = A) -> PillionError | None:
    """Why it was not reserved; None where it was."""
    heard: asyncio.Future[PillionError | None] = asyncio.get_running_loop().create_future()
    if budgets.reserve(key, amount, heard.set_result) is None:
        return None
    return await asyncio.wait_for(heard, 10)


async def test_one_ask_is_for_many_requests() -> None:
    bank = Bank(10**6)
    budgets = bank.gateway()
    for _ in range(AHEAD - 10):
        assert await pay(budgets, 10) is None
        budgets.settle(A, 10, 10)
    assert len(bank.asks) == 1


async def test_what_was_not_used_is_there_for_the_next() -> None:
    bank = Bank(100)
    budgets = bank.gateway()
    for _ in range(30):
        assert await pay(budgets, 60) is None
        budgets.settle(A, 60, 1)
    refusal = await pay(budgets, 90)
    assert refusal is not None
    assert (refusal.status, refusal.code) == (402, "insufficient_balance")
    assert bank.free <= 70


async def test_control_away_a_slice_is_spent_to_its_end_and_no_further() -> None:
    bank = Bank(10**6)
    budgets = bank.gateway()
    assert await pay(budgets, 10) is None
    bank.away = True
    paid = 0
    while (refusal := await pay(budgets, 10)) is None:
        paid += 1
        assert paid < 1000
    assert paid >= AHEAD - 1
    assert (refusal.status, refusal.code) == (429, "insufficient_quota")
    assert refusal.headers()["x-should-retry"] == "false"
    bank.away = False
    assert await pay(budgets, 10) is None


async def test_whatever_fails_who_waits_for_money_hears_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    bank = Bank(10**6)
    budgets = bank.gateway()

    async def breaks(ask: Ask) -> Given:
        raise RuntimeError("nobody thought of this")

    with monkeypatch.context() as broken:
        broken.setattr(bank, "lease", breaks)
        refusal = await pay(budgets, 10)
    assert refusal is not None
    assert (refusal.status, refusal.code) == (429, "insufficient_quota")
    assert await pay(budgets, 10) is None


async def test_an_answer_that_was_lost_is_asked_for_again_and_not_given_twice() -> None:
    bank = Bank(1000, losing=0.5)
    budgets = bank.gateway()
    paid = 0
    for _ in range(300):
        if await pay(budgets, 10) is None:
            paid += 10
            budgets.settle(A, 10, 10)
    assert paid == 1000


async def test_after_its_end_a_slice_is_not_touched() -> None:
    bank = Bank(1000)
    budgets = bank.gateway()
    assert await pay(budgets, 10) is None
    before = len(bank.asks)
    bank.now += 600
    bank.away = True
    assert await pay(budgets, 10) is not None
    bank.away = False
    assert await pay(budgets, 10) is None
    assert len(bank.asks) > before


async def test_what_lies_idle_goes_back() -> None:
    bank = Bank(1000)
    budgets = bank.gateway()
    assert await pay(budgets, 10) is None
    budgets.settle(A, 10, 4)
    bank.now += IDLE_S
    await budgets.sweep()
    assert bank.free == 996
    assert await pay(budgets, 10) is None
    assert bank.free < 996


async def test_who_comes_back_after_its_slice_ended_is_served() -> None:
    """Control keeps a slice for a while after its end, and answers no ask that is older than the last."""
    bank = Bank(1000)
    budgets = bank.gateway()
    for _ in range(3):
        assert await pay(budgets, 10) is None
        budgets.settle(A, 10, 1)
        bank.now += IDLE_S
        await budgets.sweep()
        bank.now += 601
        await budgets.sweep()
    assert [ask.number for ask in bank.asks] == sorted({ask.number for ask in bank.asks})


async def test_what_is_in_hand_or_runs_is_kept_from_ending() -> None:
    bank = Bank(1000)
    budgets = bank.gateway()
    assert await pay(budgets, 10) is None
    for _ in range(200):
        bank.now += 5
        await budgets.sweep()
    budgets.settle(A, 10, 10)
    assert len(bank.asks) < 6
    assert bank.answers["g", bank.asks[-1].number].until > bank.now
    assert bank.free == 990


async def test_who_waits_while_it_is_given_back_is_served_after_it() -> None:
    bank = Bank(1000)
    budgets = bank.gateway()
    assert await pay(budgets, 10) is None
    bank.now += IDLE_S
    found = await asyncio.gather(budgets.sweep(), pay(budgets, 500))
    assert found[1] is None
    assert [(ask.number, ask.back > 0) for ask in bank.asks] == [(1, False), (2, True), (3, False)]


async def test_a_limit_that_was_changed_is_asked_for_anew() -> None:
    bank = Bank(1000)
    budgets = bank.gateway()
    limited = msgspec.structs.replace(A, spend_limit=500)
    assert await pay(budgets, 10, limited) is None
    assert await pay(budgets, 10) is None
    assert [ask.key for ask in bank.asks] == ["key_a", ""]
    before = bank.free
    assert await pay(budgets, 10, msgspec.structs.replace(A, spend_limit=400)) is None
    assert (bank.asks[-1].key, bank.asks[-1].back > 0) == ("key_a", True)
    assert bank.free == before - 10 + bank.asks[-1].back - bank.answers["g", 3].amount + 10


async def test_who_leaves_while_it_waits_costs_nothing() -> None:
    bank = Bank(10)
    budgets = bank.gateway()
    payer = budgets.reserve(A, 10, lambda _: pytest.fail("it left"))
    assert payer is not None
    payer.cancel()
    assert await pay(budgets, 10) is None


async def test_those_who_wait_are_served_as_far_as_it_reaches() -> None:
    bank = Bank(35)
    budgets = bank.gateway()
    found = await asyncio.gather(*(pay(budgets, 10) for _ in range(5)))
    assert [refusal is None for refusal in found].count(True) == 3


@pytest.mark.parametrize("seed", range(8))
async def test_many_gateways_and_requests_at_once_never_overspend(seed: int) -> None:
    draw = random.Random(seed)
    funds = draw.randrange(1, 3000)
    bank = Bank(funds, losing=draw.choice([0.0, 0.2]), draw=draw)
    gateways = [bank.gateway(f"g{number}") for number in range(3)]
    spent = running = 0

    async def request() -> None:
        nonlocal spent, running
        budgets, most_ = draw.choice(gateways), draw.randrange(1, 60)
        if await pay(budgets, most_) is not None:
            return
        running += most_
        assert spent + running <= funds
        await asyncio.sleep(0)
        cost = draw.randrange(most_ + 1)
        running -= most_
        spent += cost
        budgets.settle(A, most_, cost)

    for _ in range(20):
        await asyncio.gather(*(request() for _ in range(10)))
        bank.now += draw.randrange(20)
        for budgets in gateways:
            await budgets.sweep()
    assert spent <= funds
    assert spent > 0.5 * funds or funds < 60


def test_prices_hold_from_their_instants_on() -> None:
    prices = (TokenPrice(1000, 1, 2), TokenPrice(5000, 3, 4))
    assert [price_at(prices, now) for now in (0.5, 1.0, 4.9, 5.0)] == [None, prices[0], prices[0], prices[1]]
    assert price_at((), 1.0) is None
    assert [TokenPrice(0, 150_000, 600_000).cost(*used) for used in ((0, 0), (1, 0), (10, 10))] == [0, 1, 8]


@pytest.mark.parametrize(
    ("path", "body", "answer"),
    [
        ("/v1/chat/completions", {"max_tokens": 10}, 10),
        ("/v1/chat/completions", {"max_completion_tokens": 10, "n": 3}, 30),
        ("/v1/responses", {"max_output_tokens": 7}, 7),
        ("/v1/completions", {"max_tokens": 5, "best_of": 4, "n": 2}, 20),
        ("/v1/completions", {"max_tokens": 5, "n": 2, "prompt": ["a", "b", "c"]}, 30),
        ("/v1/completions", {"max_tokens": 5, "prompt": [[1, 2], [3]]}, 10),
        ("/v1/completions", {"max_tokens": 5, "prompt": [1, 2, 3]}, 5),
        ("/v1/completions", {"max_tokens": 5, "prompt": []}, 5),
        ("/v1/chat/completions", {"max_tokens": 5, "n": 1000}, 5000),
        ("/v1/completions", {}, CONTEXT),
        ("/v1/completions", {"max_tokens": 10**9}, CONTEXT),
        ("/v1/completions", {"max_tokens": "many", "n": None}, CONTEXT),
        ("/v1/embeddings", {}, 0),
        # An engine takes the one or the other, or looks at neither.
        ("/v1/chat/completions", {"max_tokens": 1, "max_completion_tokens": 900}, 900),
        ("/v1/chat/completions", {"max_tokens": 900, "max_completion_tokens": 1}, 900),
        ("/v1/chat/completions", {"max_tokens": 900, "max_completion_tokens": None}, 900),
        ("/v1/chat/completions", {"max_tokens": 1, "max_completion_tokens": "900"}, CONTEXT),
        ("/v1/chat/completions", {"max_output_tokens": 1}, CONTEXT),
        ("/v1/responses", {"max_output_tokens": 900, "max_tokens": 1}, 900),
        ("/v1/responses", {"max_tokens": 1}, CONTEXT),
        ("/v1/completions", {"max_tokens": 900, "max_completion_tokens": 1}, 900),
        ("/v1/other", {"max_tokens": 1}, CONTEXT),
        ("/v1/chat/completions/batch", {"max_tokens": 5, "messages": [[{}], [{}]], "n": 2}, 20),
        ("/v1/images/edits", {"n": "3"}, 3 * CONTEXT),
    ],
)
def test_the_most_that_a_request_may_cost(path: str, body: dict[str, object], answer: int) -> None:
    document = {name: msgspec.Raw(msgspec.json.encode(value)) for name, value in body.items()}
    model = Model("tiny", None, "chat", True, prices=(TokenPrice(0, 1_000_000, 2_000_000),))
    charge = most(path, 100, document, model, 1.0)
    assert charge.reserved == 100 + TEMPLATE_TOKENS + 2 * answer
    assert charge.cost(3, 4) == 11
    known = msgspec.structs.replace(model, context=50)
    assert most(path, 100, document, known, 1.0).reserved <= charge.reserved


def test_how_many_answers_a_request_may_have_of_a_pool() -> None:
    check_answers(
        "/v1/completions", {"n": msgspec.Raw(b"2"), "prompt": msgspec.Raw(b'["a"' + b',"a"' * 63 + b"]")}
    )
    for body in ({"n": b"129"}, {"best_of": b"1000000000"}, {"n": b"65", "prompt": b'["a", "b"]'}):
        with pytest.raises(InvalidRequestError, match="128"):
            check_answers("/v1/completions", {name: msgspec.Raw(value) for name, value in body.items()})


@pytest.mark.parametrize("n", ["8.0", '" 8 "', '"8_0"', "true", "[8]", "1e2"])
def test_a_number_of_answers_that_only_an_engine_could_read(n: str) -> None:
    with pytest.raises(InvalidRequestError, match="whole number"):
        check_answers("/v1/chat/completions", {"n": msgspec.Raw(n.encode())})


def test_a_model_without_a_price_cannot_be_called() -> None:
    for prices in ((), (TokenPrice(5000, 1, 1),)):
        with pytest.raises(ModelNotPricedError, match="'tiny' has no price"):
            most("/v1/completions", 1, {}, Model("tiny", None, "chat", True, prices=prices), 1.0)
