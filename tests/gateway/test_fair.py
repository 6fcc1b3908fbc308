"""What accounts may take of pools: turns at replicas in fair order, requests at once, loads per minute."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st

from pillion.core.errors import NoRoomError, PillionError, RateLimitError
from pillion.core.snapshot import Key
from pillion.core.tiers import CAPS, Caps, Tier, Turns
from pillion.gateway import server
from pillion.gateway.fair import Fair, Turn
from pillion.gateway.inference import Inference
from tests.gateway.site import Control, Engine, Site, at_rest, chat, fleet, listening, site
from tests.gateway.world import OTHER, make_adapter, make_instance, make_key, make_replica, make_snapshot


def key(account: str, tier: Tier = "shared") -> Key:
    return Key(f"key_{account}", account, "", (), tier=tier)


class Desk:
    """A replica's turns as requests see them. `told`: in which order turns came to those that waited, or why not."""

    def __init__(self, turns: Turns, clock: Any = lambda: 0.0) -> None:
        self.refused: Counter[str] = Counter()
        self.fair = Fair(CAPS, turns, clock, lambda why: self.refused.update([why]))
        self.told: list[tuple[str, PillionError | None]] = []
        self.having: dict[str, list[Turn]] = {}

    def ask(self, account: str, tier: Tier = "shared", engine_takes: int | None = None) -> Turn:
        def ready(error: PillionError | None) -> None:
            self.told.append((account, error))
            if error is None:
                self.having.setdefault(account, []).append(turn)

        turn = self.fair.turn("r", key(account, tier), ready, engine_takes)
        if not turn.waits:
            self.having.setdefault(account, []).append(turn)
        return turn

    async def end(self, account: str) -> None:
        self.having[account].pop().end()
        await asyncio.sleep(0)

    @property
    def order(self) -> str:
        return "".join(account for account, _ in self.told)


async def test_turns_are_had_at_once_while_there_are_any() -> None:
    desk = Desk(Turns(at_once=2, share=1.0))
    assert [desk.ask("a").waits for _ in range(3)] == [False, False, True]
    assert desk.fair.waiting == 1


async def test_a_newcomer_goes_before_the_rest_of_a_flood() -> None:
    desk = Desk(Turns(at_once=4, share=1.0))
    for _ in range(50):
        desk.ask("greedy")
    desk.ask("modest")
    await desk.end("greedy")
    assert desk.order == "modest"
    for _ in range(3):
        await desk.end("greedy")
    assert desk.order == "modest" + "greedy" * 3


async def test_an_account_has_not_all_turns_and_others_find_one_free() -> None:
    desk = Desk(Turns(at_once=4, share=0.75))
    assert [desk.ask("greedy").waits for _ in range(10)] == [False] * 3 + [True] * 7
    assert not desk.ask("modest").waits
    assert desk.ask("modest").waits
    await desk.end("modest")
    assert desk.order == "modest", "a turn that greedy may not have goes to who may"
    await desk.end("modest")
    assert desk.fair.waiting == 7, "and is kept free where there is nobody else"


async def test_an_engine_says_how_many_turns_it_has() -> None:
    desk = Desk(Turns(share=0.5))
    assert [desk.ask("a", engine_takes=4).waits for _ in range(3)] == [False, False, True]
    assert not desk.ask("b", engine_takes=4).waits
    assert not desk.ask("a", engine_takes=8).waits, "it was started anew, with a larger batch"
    assert Turns(share=0.5, workers=3).of(10) == (4, 2)
    assert Turns(6, share=0.5).of(10) == (6, 3), "the operator's word goes before the engine's"
    assert Turns().of(None)[0] == 256


async def test_one_turn_at_a_time_goes_round() -> None:
    desk = Desk(Turns(at_once=1))
    desk.ask("a")
    for account in "aaabbc":
        desk.ask(account)
    current = "a"
    for _ in range(6):
        await desk.end(current)
        current = desk.told[-1][0]
    assert desk.order == "abcaba"


async def test_who_comes_later_has_not_saved_up_turns() -> None:
    desk = Desk(Turns(at_once=1))
    desk.ask("a")
    for _ in range(8):
        desk.ask("a")
    for _ in range(4):
        await desk.end("a")
    for _ in range(3):
        desk.ask("b")
    current = "a"
    for _ in range(6):
        await desk.end(current)
        current = desk.told[-1][0]
    assert desk.order[4:] in ("bababa", "ababab")


async def test_a_weight_of_two_gets_two_turns_for_one() -> None:
    desk = Desk(Turns(at_once=30, share=1.0))
    for _ in range(30):
        desk.ask("filler")
    for _ in range(60):
        desk.ask("a", "shared")
        desk.ask("b", "reserved")
    assert CAPS["reserved"].weight == 2 * CAPS["shared"].weight
    for _ in range(24):
        await desk.end("filler")
    assert Counter(account for account, _ in desk.told) == {"a": 8, "b": 16}


async def test_who_leaves_while_waiting_or_just_called_takes_no_turn() -> None:
    desk = Desk(Turns(at_once=1))
    desk.ask("a")
    waits, called, after = desk.ask("b"), desk.ask("c"), desk.ask("d")
    waits.end()
    assert desk.fair.waiting == 2
    desk.having["a"].pop().end()
    called.end()  # its turn has come, and it has not heard of it
    await asyncio.sleep(0)
    assert not after.waits
    assert desk.fair.waiting == 0
    called.end()
    waits.end()
    after.end()
    assert not desk.ask("e").waits
    assert desk.ask("e").waits


async def test_where_too_many_wait_the_account_with_the_most_loses_its_newest() -> None:
    now = [0.0]
    desk = Desk(Turns(at_once=1, waiting=4), lambda: now[0])
    desk.ask("greedy")
    for _ in range(4):
        desk.ask("greedy")
    with pytest.raises(RateLimitError, match="this account's are the most"):
        desk.ask("greedy")
    now[0] = 10.0
    await desk.end("greedy")
    desk.ask("greedy")
    assert desk.ask("modest").waits
    await asyncio.sleep(0)
    account, error = desk.told[-1]
    assert (account, type(error)) == ("greedy", RateLimitError)
    assert error is not None
    assert error.retry_after == 30.0, "one turn in ten seconds, and three before it"
    await desk.end("greedy")
    assert desk.told[-1] == ("modest", None)
    assert desk.refused == {"full": 1, "pushed_out": 1}


async def test_where_everybody_waits_the_newcomer_is_told_to_come_later() -> None:
    desk = Desk(Turns(at_once=1, waiting=2))
    for account in "abc":
        desk.ask(account)
    with pytest.raises(NoRoomError, match="Try again"):
        desk.ask("d")
    assert desk.fair.waiting == 2


async def test_nobody_waits_for_ever() -> None:
    desk = Desk(Turns(at_once=1, wait_s=0.0))
    desk.ask("a")
    desk.ask("b")
    async with asyncio.timeout(10):
        while not desk.told:
            await asyncio.sleep(0)
    account, error = desk.told[0]
    assert (account, type(error)) == ("b", NoRoomError)
    assert (desk.fair.waiting, desk.refused) == (0, {"late": 1})
    await desk.end("a")
    assert desk.order == "b"


@given(
    at_once=st.integers(1, 6),
    share=st.sampled_from([0.3, 0.75, 1.0]),
    steps=st.lists(st.tuples(st.sampled_from("abcd"), st.integers(0, 3))),
)
async def test_whatever_comes_and_goes(at_once: int, share: float, steps: list[tuple[str, int]]) -> None:
    """No turn is lost or given twice; nobody waits who may have one; everybody is told once."""
    turns = Turns(at_once=at_once, share=share, waiting=8)
    desk, asked, refused = Desk(turns), list[Turn](), 0
    waited = set[int]()
    for account, what in steps:
        if what < 2:
            try:
                asked.append(desk.ask(account))
                waited |= {id(asked[-1])} if asked[-1].waits else set()
            except PillionError:
                refused += 1
        elif what == 2 and desk.having.get(account):
            await desk.end(account)
        elif what == 3 and (mine := [turn for turn in asked if turn.account == account and turn.waits]):
            mine[0].end()
            waited.discard(id(mine[0]))
        await asyncio.sleep(0)
        count = {account: len(having) for account, having in desk.having.items()}
        assert sum(count.values()) <= at_once
        assert max(count.values(), default=0) <= turns.of(None)[1]
        if sum(count.values()) < at_once:
            assert all(count[t.account] == turns.of(None)[1] for t in asked if t.waits)
        assert desk.fair.waiting == sum(turn.waits for turn in asked) <= 8
    for _ in range(len(asked)):
        for account in [account for account, having in desk.having.items() if having]:
            await desk.end(account)
    assert desk.fair.waiting == 0
    assert len(desk.told) == len(waited)


def test_an_accounts_requests_at_once_are_bounded_whatever_their_keys() -> None:
    fair = Fair(CAPS | {"shared": Caps(20, requests=2)})
    first, second = key("a"), Key("key_2", "a", "", ())
    fair.admit(first)
    fair.admit(second)
    with pytest.raises(RateLimitError, match="2 requests") as caught:
        fair.admit(first)
    assert caught.value.headers() == {"retry-after": "1"}
    fair.admit(key("b"))
    fair.dismiss("a")
    fair.admit(first)


def test_loads_come_back_with_the_minute() -> None:
    now = [0.0]
    fair = Fair(CAPS | {"shared": Caps(20, loads_per_minute=6)}, clock=lambda: now[0])
    assert [fair.load(key("a")) for _ in range(6)] == [None] * 6
    refusal = fair.load(key("a"))
    assert refusal is not None
    assert refusal.headers() == {"retry-after": "10"}
    assert fair.load(key("b")) is None
    assert fair.load(key("a", "reserved")) is None, "an account of another tier now"
    now[0] = 10.0
    fair = Fair(CAPS, clock=lambda: now[0])
    assert fair.load(key("a")) is None


# Through a gateway


class Gate:
    """An engine that answers when told to."""

    def __init__(self) -> None:
        self.open = asyncio.Event()
        self.came = asyncio.Condition()
        self.models: list[str] = []

    async def __call__(self, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        async with self.came:
            self.models.append(body["messages"][0]["content"])
            self.came.notify_all()
        await self.open.wait()
        return await chat(request, body)

    async def until(self, count: int) -> None:
        async with self.came, asyncio.timeout(10):
            await self.came.wait_for(lambda: len(self.models) >= count)


class Pool:
    """A pool's one replica, and two accounts' keys."""

    def __init__(self, running: Site, engine: Engine) -> None:
        self.site, self.engine, self.gate = running, engine, Gate()
        self.greedy, self.entry = make_key()
        self.modest, self.other = make_key(OTHER)
        engine.behave = self.gate
        self.adapter = make_adapter(1, instances=(), rank=8, permit=b"signed")
        self.instance = make_instance(
            1, make_replica("a", self.adapter, url=engine.url), account=None, on_demand=True, max_rank=8
        )

    def chat(self, key: str, says: str, model: str = "qwen3-4b") -> asyncio.Task[Any]:
        asking = self.site.chat(key, model, messages=[{"role": "user", "content": says}])
        return asyncio.ensure_future(asking)

    async def waiting(self, count: int) -> None:
        async with asyncio.timeout(10):
            while await self.site.metric("pillion_gateway_pool_waiting") != count:
                await asyncio.sleep(0)


@asynccontextmanager
async def pool(where: Path, control: Control, **fields: Any) -> AsyncIterator[Pool]:
    async with fleet(1) as (engine,), site(where, control, **fields) as running:
        made = Pool(running, engine)
        await control.publish(make_snapshot(made.entry, made.other, made.adapter, made.instance))
        yield made


async def test_a_flood_on_a_pool_lets_another_account_through(tmp_path: Path, control: Control) -> None:
    async with pool(tmp_path, control, turns=Turns(at_once=2, share=1.0)) as here:
        flood = [here.chat(here.greedy, f"greedy {n}") for n in range(6)]
        await here.gate.until(2)
        await here.waiting(4)
        modest = here.chat(here.modest, "modest")
        await here.waiting(5)
        here.gate.open.set()
        answers = await asyncio.gather(*flood, modest)
        assert [status for status, _, _ in answers] == [200] * 7
        assert here.gate.models[2] == "modest"
        assert await here.site.metric("pillion_gateway_pool_waiting") == 0


async def test_a_replica_is_given_what_its_engine_takes(tmp_path: Path, control: Control) -> None:
    async with pool(tmp_path, control) as here:
        replica = make_replica("a", here.adapter, url=here.engine.url, max_requests=2)
        small = make_instance(1, replica, account=None)
        await control.publish(make_snapshot(here.entry, here.other, here.adapter, small, version=2))
        asked = [here.chat(key, "hi") for key in (here.greedy, here.modest, here.greedy)]
        await here.gate.until(2)
        await here.waiting(1)
        here.gate.open.set()
        assert {status for status, _, _ in await asyncio.gather(*asked)} == {200}


async def test_an_accounts_own_replicas_are_its_own(tmp_path: Path, control: Control) -> None:
    async with pool(tmp_path, control, turns=Turns(at_once=1), tiers={"shared": Caps(1, requests=1)}) as here:
        own = make_instance(1, make_replica("a", url=here.engine.url))
        await control.publish(make_snapshot(here.entry, own, version=2))
        asked = [here.chat(here.greedy, "hi") for _ in range(5)]
        await here.gate.until(5)
        here.gate.open.set()
        assert {status for status, _, _ in await asyncio.gather(*asked)} == {200}


async def test_too_many_at_once_are_refused_and_the_place_comes_back(
    tmp_path: Path, control: Control
) -> None:
    async with pool(tmp_path, control, tiers={"shared": Caps(1, requests=2)}) as here:
        asked = [here.chat(here.greedy, "hi") for _ in range(2)]
        await here.gate.until(2)
        status, headers, body = await here.chat(here.greedy, "one more")
        assert (status, headers["retry-after"]) == (429, "1")
        assert body["error"]["code"] == "rate_limit_exceeded"
        other = here.chat(here.modest, "hi")
        await here.gate.until(3)
        here.gate.open.set()
        assert {status for status, _, _ in await asyncio.gather(*asked, other)} == {200}
        assert (await here.chat(here.greedy, "again"))[0] == 200
        assert await here.site.metric("pillion_gateway_pool_refusals_total") == 1


async def test_a_client_that_leaves_the_line_takes_no_turn(tmp_path: Path, control: Control) -> None:
    async with pool(tmp_path, control, turns=Turns(at_once=1)) as here:
        first = here.chat(here.greedy, "first")
        await here.gate.until(1)
        leaving = here.chat(here.modest, "leaving")
        await here.waiting(1)
        leaving.cancel()
        await here.waiting(0)
        last = here.chat(here.modest, "last")
        await here.waiting(1)
        here.gate.open.set()
        assert {status for status, _, _ in await asyncio.gather(first, last)} == {200}
        assert here.gate.models == ["first", "last"]


async def test_what_ended_while_it_waited_is_not_asked_for(tmp_path: Path, control: Control) -> None:
    async with pool(tmp_path, control, turns=Turns(at_once=1)) as here:
        first = here.chat(here.modest, "first")
        await here.gate.until(1)
        asked = here.chat(here.greedy, "hi", "ft1:1")
        await here.waiting(1)
        gone = make_adapter(1, instances=(), engine_name=None, version=None)
        await control.publish(make_snapshot(here.entry, here.other, gone, here.instance, version=2))
        here.gate.open.set()
        status, _, body = await asked
        assert (status, body["error"]["code"]) == (404, "adapter_not_deployed")
        assert (await first)[0] == 200
        assert here.gate.models == ["first"]


async def test_a_replica_that_dies_gives_its_turns_back(tmp_path: Path, control: Control) -> None:
    async def die(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        assert request.transport is not None
        request.transport.abort()
        return web.Response()

    async with pool(tmp_path, control, turns=Turns(at_once=1)) as here:
        here.engine.behave = die
        for _ in range(3):
            assert (await here.chat(here.greedy, "hi"))[0] == 503
        here.engine.behave = chat
        assert (await asyncio.wait_for(here.chat(here.modest, "hi"), 10))[0] == 200


async def test_a_flood_of_cold_adapters_is_refused_and_warm_ones_are_answered(
    tmp_path: Path, control: Control
) -> None:
    asked = 0

    async def loads(request: web.Request) -> web.StreamResponse:
        nonlocal asked
        asked += 1
        return web.json_response({"load_ms": 1.0})

    tiers = {"shared": Caps(20, loads_per_minute=2)}
    async with listening(loads) as agent, pool(tmp_path, control, tiers=tiers) as here:
        here.gate.open.set()
        cold = [make_adapter(n, instances=(), rank=8, permit=b"signed") for n in range(2, 6)]
        theirs = make_adapter(9, OTHER, instances=(), rank=8, permit=b"signed")
        held = make_replica("a", here.adapter, url=here.engine.url, agent_url=agent, load_key="k")
        instance = make_instance(1, held, account=None, on_demand=True, max_rank=8)
        parts = here.entry, here.other, here.adapter, *cold, theirs, instance
        await control.publish(make_snapshot(*parts, version=2))
        answers = [await here.chat(here.greedy, "hi", f"ft{n}:{n}") for n in range(2, 6)]
        assert [status for status, _, _ in answers] == [200, 200, 429, 429]
        _, headers, body = answers[-1]
        assert (headers["retry-after"], body["error"]["code"]) == ("30", "rate_limit_exceeded")
        assert "loads per minute" in body["error"]["message"]
        assert (await here.chat(here.greedy, "hi", "ft1:1"))[0] == 200
        assert (await here.chat(here.greedy, "hi", "ft2:2"))[0] == 200, "it is there by now"
        assert (await here.chat(here.modest, "hi", "ft9:9"))[0] == 200
        assert asked == 3


@pytest.mark.parametrize("comes", [True, False])
async def test_a_turn_that_comes_as_its_request_leaves_for_another_replica_is_not_taken(
    tmp_path: Path, control: Control, monkeypatch: pytest.MonkeyPatch, comes: bool
) -> None:
    """The turn is had, or is refused, in the very round of the loop in which the replica is found to be silent."""
    made: list[Inference] = []
    monkeypatch.setattr(server, "Inference", lambda **fields: made.append(Inference(**fields)) or made[-1])
    async with (
        pool(tmp_path, control, turns=Turns(at_once=1, share=1.0)) as here,
        fleet(1) as (other,),
    ):
        first = here.chat(here.greedy, "first")
        await here.gate.until(1)
        second = here.chat(here.modest, "second")
        await here.waiting(1)
        replicas = [make_replica(name, url=engine.url) for name, engine in (("a", here.engine), ("b", other))]
        both = make_instance(1, *replicas, account=None)
        await control.publish(make_snapshot(here.entry, here.other, both, version=2))
        (waits,) = made[0].held_up
        (has,) = [one for one in made[0].waiting() if one is not waits]
        if comes:
            has.left()
        else:
            turn = waits._placing._turn
            assert turn is not None
            made[0].fair._lines["a"]._late(turn)
        waits.silent()
        assert (await asyncio.wait_for(second, 10))[0] == 200
        await at_rest(lambda: len(other.asked))
        assert [body["messages"][0]["content"] for _, body in other.asked] == ["second"]
        assert here.gate.models == ["first"]
        first.cancel()
