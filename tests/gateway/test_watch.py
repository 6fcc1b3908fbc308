"""Replicas that take a request and say nothing: found by asking them, and what waits there goes on to another."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from pillion.core.snapshot import Replica
from pillion.gateway import Limits
from pillion.gateway.balance import Balance
from pillion.gateway.watch import KEPT_S, Watch
from tests.gateway.conftest import Town
from tests.gateway.site import Control, Engine, chat, fleet, open_stream, site
from tests.gateway.world import make_adapter, make_key, make_replica, make_snapshot

A = make_replica("a")
LOOK_S, SILENT_S, PROBE_S = 0.5, 1.0, 2.0


class Request:
    """One that waits for a replica, and goes to another as soon as it is told."""

    def __init__(self, replica: Replica) -> None:
        self.replica: Replica | None = replica
        self.told = 0

    def waits_for(self) -> Replica | None:
        return self.replica

    def silent(self) -> None:
        self.told += 1
        self.replica = None


class Lab:
    """A watch on a clock of its own. `says` is what the engine says when it is asked."""

    def __init__(self) -> None:
        self.now = 0.0
        self.says: bool | None = False
        self.asked: list[str] = []
        self.requests: list[Request] = []
        self.counted: list[str] = []
        self.takes = 0.0
        self.balance = Balance(lambda: self.now)
        self.watch = Watch(
            lambda: iter(self.requests),
            self,
            self.balance,
            lambda: self.now,
            self.counted.append,
            SILENT_S,
            PROBE_S,
        )

    async def speaks(self, url: str) -> bool | None:
        self.asked.append(url)
        self.now += self.takes
        return self.says

    async def look(self, seconds: float) -> None:
        for _ in range(round(seconds / LOOK_S)):
            self.now += LOOK_S
            self.watch.look()
            await asyncio.sleep(0)
            await asyncio.sleep(0)


async def test_who_does_not_say_a_word_is_left_and_asked_last_until_it_does() -> None:
    lab = Lab()
    request = Request(A)
    lab.requests.append(request)
    await lab.look(SILENT_S)
    assert not lab.asked
    await lab.look(LOOK_S)
    assert (lab.asked, request.told, lab.counted) == ([A.url], 1, ["silent"])
    for _ in range(20):  # though nobody waits for it any more
        await lab.look(1)
        assert lab.balance.out("a")
    lab.says = True
    await lab.look(LOOK_S)
    assert not lab.balance.out("a")
    asked = len(lab.asked)
    await lab.look(10)
    assert len(lab.asked) == asked
    assert lab.counted == ["silent"]


@pytest.mark.parametrize("says", [True, None])
async def test_who_says_anything_or_is_gone_is_left_to_what_comes(says: bool | None) -> None:
    lab = Lab()
    lab.says = says
    lab.requests.append(Request(A))
    await lab.look(10)
    assert len(lab.asked) > 5
    assert (lab.requests[0].told, lab.counted, lab.balance.out("a")) == (0, [], False)


async def test_a_probe_that_this_process_held_up_says_nothing() -> None:
    lab = Lab()
    lab.takes = 10
    lab.requests.append(Request(A))
    await lab.look(5)
    assert lab.asked
    assert (lab.requests[0].told, lab.counted) == (0, [])


async def test_who_is_not_asked_any_more_is_forgotten_and_so_is_who_has_another_engine() -> None:
    lab = Lab()
    lab.requests.append(Request(A))
    await lab.look(3)
    asked = len(lab.asked)
    await lab.look(KEPT_S)
    assert len(lab.asked) > asked
    asked = len(lab.asked)
    await lab.look(10)
    assert len(lab.asked) == asked
    lab.requests[:] = [Request(A)]
    await lab.look(3)
    lab.says = True
    lab.requests[:] = [Request(make_replica("a", url="http://127.0.0.1:10"))]
    asked = len(lab.asked)
    await lab.look(3)
    assert set(lab.asked[asked:]) <= {"http://127.0.0.1:10", A.url}
    assert lab.asked[-1] == "http://127.0.0.1:10"


async def test_each_request_waits_for_itself() -> None:
    """One after the other, each answered soon: nobody asks."""
    lab = Lab()
    for _ in range(10):
        lab.requests[:] = [Request(A)]
        await lab.look(SILENT_S)
    assert not lab.asked


# With a gateway around it


@pytest.fixture
async def town(tmp_path: Path, control: Control) -> AsyncIterator[Town]:
    """One whose gateway is not patient."""
    text, entry = make_key()
    limits = Limits(drain_s=2, silent_s=0.1, probe_s=0.4)
    async with fleet(2) as (a, b), site(tmp_path / "gateway", control, limits=limits) as running:
        made = Town(running, control, a, b, make_adapter(1, version=3), text, entry)
        await control.publish(make_snapshot(entry, made.adapter, made.instance(a, b)))
        yield made


async def hang(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
    """Health included."""
    await asyncio.Event().wait()
    return web.Response()


async def hang_after_headers(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
    if request.path != "/health":
        await open_stream(request)
    return await hang(request, body)


async def think(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
    if request.path == "/health":
        return web.Response()
    await asyncio.sleep(1.5)
    return await chat(request, body)


def asked(engine: Engine) -> int:
    return sum(request.path != "/health" for request, _ in engine.asked)


@pytest.mark.parametrize("behave", [hang, hang_after_headers])
async def test_a_request_leaves_a_hung_replica_for_another(town: Town, behave: Any) -> None:
    for engine, other in ((town.a, town.b), (town.b, town.a)):
        engine.behave, other.behave = behave, chat
        for stream in (False, True):
            document = {"model": "ft1:1", "messages": [], "stream": stream}
            async with town.site.post("/v1/chat/completions", town.key, document) as answer:
                assert answer.status == 200
                assert "lo" in await answer.text()
    assert asked(town.a) + asked(town.b) <= 4 + 2


async def test_who_only_thinks_is_waited_for(town: Town) -> None:
    town.a.behave = town.b.behave = think
    assert (await town.site.chat(town.key, "ft1:1"))[0] == 200
    assert asked(town.a) + asked(town.b) == 1


async def test_nobody_leaves_the_only_replica_and_it_may_answer_yet(town: Town) -> None:
    release = asyncio.Event()

    async def hang_until(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        await release.wait()
        return await chat(request, body)

    town.a.behave = hang_until
    await town.only(town.a)
    waiting = asyncio.ensure_future(town.site.chat(town.key, "ft1:1"))
    while await town.site.metric("pillion_gateway_upstream_failures_total") < 1:
        await asyncio.sleep(0.02)
    release.set()
    assert (await waiting)[0] == 200
    assert asked(town.a) == 1


async def test_a_request_moves_once_and_then_waits(town: Town) -> None:
    town.a.behave = town.b.behave = hang
    waiting = asyncio.ensure_future(town.site.chat(town.key, "ft1:1"))
    while await town.site.metric("pillion_gateway_upstream_failures_total") < 2:
        await asyncio.sleep(0.02)
    assert asked(town.a) == asked(town.b) == 1
    assert not waiting.done()
    assert await town.site.metric("pillion_gateway_quarantines_total") == 0
    waiting.cancel()


async def test_leaving_is_paid_by_the_budget(town: Town) -> None:
    """Ten in reserve; the rest wait for what becomes of it."""
    town.a.behave = hang
    await town.only(town.a)
    waiting = [asyncio.ensure_future(town.site.chat(town.key, "ft1:1")) for _ in range(40)]
    while asked(town.a) < 40:
        await asyncio.sleep(0.02)
    await town.only(town.a, town.b)
    done, left = await asyncio.wait(waiting, timeout=1.5)
    assert 10 <= len(done) <= 14
    assert {(await request)[0] for request in done} == {200}
    for request in left:
        request.cancel()
