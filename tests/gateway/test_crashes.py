"""What raises where nobody expects it costs one request: its client is told, and all that it held is free again."""

from __future__ import annotations

import asyncio
import gc
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from pillion.core.tiers import Turns
from pillion.core.usage import LOST, Used
from pillion.gateway import server
from pillion.gateway.balance import Balance
from pillion.gateway.cold import Cold
from pillion.gateway.exchange import InferenceExchange
from pillion.gateway.outbound import Outbound
from pillion.gateway.outbox import Outbox
from pillion.gateway.placing import Placing
from pillion.gateway.pool import Pool
from pillion.gateway.replies import ReplyHead
from pillion.gateway.spool import Spool
from tests.gateway.site import Control, Engine, Site, chat, chunk, fleet, free_url, open_stream, site
from tests.gateway.test_cold import COLD
from tests.gateway.world import BASE, make_instance, make_key, make_replica, make_snapshot

WHOLE = b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: 5\r\n\r\nhello"
ANSWERS = {
    "in one piece": [WHOLE],
    "in pieces": [WHOLE[:-8], WHOLE[-8:-2], WHOLE[-2:]],
    "until the end": [b"HTTP/1.1 200 OK\r\n\r\nhel", b"lo"],
    "asked to go on": [b"HTTP/1.1 100 Continue\r\n\r\n", WHOLE],
    "no answer": [b"HTTP/1.1 200 OK\r\ncontent-le"],
    "a broken one": [WHOLE[:-2]],
}


class Fault(Exception):
    """Which nobody expects."""


@dataclass
class Clumsy:
    """Asks, and fails in the callback `at`."""

    at: str
    over: asyncio.Event = field(default_factory=asyncio.Event)
    crashes: list[type[BaseException] | None] = field(default_factory=list)

    def _called(self, name: str) -> None:
        assert not self.crashes, "nothing is called after `crashed`"
        if name == self.at:
            raise Fault

    def connected(self, connection: Outbound) -> None:
        connection.send(self, b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
        self._called("connected")

    def refused(self, why: str) -> None:
        self._called("refused")

    def proceed(self) -> None:
        self._called("proceed")

    def began(self, head: ReplyHead, length: int | None) -> None:
        self._called("began")

    def came(self, data: bytes) -> None:
        self._called("came")

    def answered(self) -> None:
        self._called("answered")

    def lost(self, why: str) -> None:
        self._called("lost")

    def upstream_full(self, full: bool) -> None:
        pass

    def crashed(self) -> None:
        self.crashes.append(sys.exc_info()[0])
        self.over.set()


@pytest.mark.parametrize(
    ("at", "answer"),
    [
        ("connected", "in one piece"),
        ("proceed", "asked to go on"),
        *((at, answer) for at in ("began", "came", "answered") for answer in list(ANSWERS)[:4]),
        ("lost", "no answer"),
        ("lost", "a broken one"),
    ],
)
async def test_a_callback_that_fails(at: str, answer: str) -> None:
    gone = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        for part in ANSWERS[answer]:
            writer.write(part)
            await writer.drain()
            await asyncio.sleep(0.01)
        if answer in ("until the end", "no answer", "a broken one"):
            writer.close()
        await reader.read()
        gone.set()

    listening = await asyncio.start_server(serve, "127.0.0.1", 0)
    pool, asker = Pool(1.0, Outbox()), Clumsy(at)
    origin = pool.origin(f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}")
    pool.connect(origin, asker)
    async with asyncio.timeout(10):
        await asker.over.wait()
        if at != "answered":
            await gone.wait()
    assert asker.crashes == [Fault]
    assert not list(pool.asking())
    assert pool.take(origin) is None or at == "answered"
    pool.close()
    listening.close()


@pytest.mark.parametrize("url", ["http://127.0.0.1:1", "http://a..b"])
async def test_a_refusal_that_fails_and_a_host_that_cannot_be_one(url: str) -> None:
    pool, asker = Pool(1.0, Outbox()), Clumsy("refused")
    pool.connect(pool.origin(url), asker)
    await asyncio.wait_for(asker.over.wait(), 10)
    assert asker.crashes == [Fault]


class Clock:
    """Raises once, when it is asked for the time after being asked `left` times."""

    def __init__(self) -> None:
        self.left: int | None = None

    def __call__(self) -> float:
        if self.left is not None:
            self.left -= 1
            if self.left < 0:
                self.left = None
                raise Fault
        return time.time()


@dataclass
class Place:
    """A gateway with such a clock, an engine behind it, and what counts requests in flight there."""

    site: Site
    control: Control
    engine: Engine
    clock: Clock
    key: str
    entry: Any
    balance: Balance

    async def ask(self, stream: bool) -> str:
        """What came of it: `answered`, `500`, `event` for an error event at its end, or `cut`."""
        document = {"model": BASE, "messages": [{"role": "user", "content": "hi"}], "stream": stream}
        try:
            async with (
                asyncio.timeout(10),
                self.site.post("/v1/chat/completions", self.key, document) as answer,
            ):
                text = await answer.text()
        except aiohttp.ClientError:
            return "cut"
        if answer.status != 200:
            assert "internal_error" in text, text
            assert answer.headers["x-request-id"] in text
            return str(answer.status)
        if not stream or text.endswith("data: [DONE]\n\n"):
            return "answered"
        assert "internal_error" in text.split("\n\n")[-2]
        return "event"

    async def idle(self) -> None:
        """Nothing is in flight any more, and nothing waits."""
        async with self.site.client.get(self.site.url + "/metrics") as answer:
            page = await answer.text()
        assert 'pillion_gateway_in_flight{kind="inference"} 0.0' in page
        assert "pillion_gateway_pool_waiting 0.0" in page
        assert self.balance.in_flight("a") == 0


@pytest.fixture
async def place(tmp_path: Path, control: Control, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Place]:
    made: list[Balance] = []

    def balance(*args: Any) -> Balance:
        made.append(Balance(*args))
        return made[-1]

    monkeypatch.setattr(server, "Balance", balance)
    clock, (key, entry) = Clock(), make_key()
    turns = Turns(at_once=1, share=1.0)
    async with fleet(1) as (engine,):
        async with site(tmp_path / "gateway", control, clock=clock, turns=turns) as running:
            await control.publish(
                make_snapshot(entry, make_instance(1, make_replica("a", url=engine.url), account=None))
            )
            yield Place(running, control, engine, clock, key, entry, made[0])
        (directory,) = (tmp_path / "gateway" / "spool").iterdir()
        spool = Spool(directory, 2**20)
        told = [one for one in spool.after(0, 10_000) if isinstance(one, Used)]
        assert told
        assert [one.status for one in told if one.status == LOST] == [], "each has had its end"


async def in_pieces(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
    if not body["stream"]:
        return await chat(request, body)
    response = await open_stream(request)
    for text in ("a", "b", "c"):
        await response.write(chunk(body["model"], text))
        await asyncio.sleep(0.01)
    await response.write(b"data: [DONE]\n\n")
    return response


async def test_a_request_that_is_over_is_forgotten(place: Place) -> None:
    """Whatever came of it, and without the collector, which the gateway has run seldom."""
    begun, over, place.engine.behave = asyncio.Event(), asyncio.Event(), in_pieces

    async def hold(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        begun.set()
        await over.wait()
        return await chat(request, body)

    def any_left() -> bool:
        return any(isinstance(one, InferenceExchange | Placing) for one in gc.get_objects())

    gc.collect()
    gc.disable()
    try:
        assert [await place.ask(stream) for stream in (False, True)] == ["answered", "answered"]
        assert (await place.site.chat(place.key, "nobody"))[0] == 404
        place.engine.behave = hold
        leaving = asyncio.ensure_future(place.ask(False))
        await begun.wait()
        assert any_left()
        leaving.cancel()
        async with asyncio.timeout(10):
            while any_left():
                await asyncio.sleep(0.01)  # the watch has those that it saw until it looks again
    finally:
        gc.enable()
        over.set()


@pytest.mark.parametrize("stream", [False, True])
async def test_a_request_that_fails_anywhere_is_told_and_leaves_nothing(place: Place, stream: bool) -> None:
    """Wherever it looks at the clock: before an engine is asked, while it answers, at the end."""
    place.engine.behave = in_pieces
    came: list[str] = []
    for number in range(30):
        place.clock.left = number
        came.append(await place.ask(stream))
        if place.clock.left is not None:
            break
    place.clock.left = None
    assert came.count("500") >= 3
    assert not stream or "event" in came
    assert came[-1] == "answered"
    await place.idle()


async def test_one_that_fails_when_its_turn_has_come(place: Place) -> None:
    for number in range(30):
        waits, go = asyncio.Event(), asyncio.Event()

        async def hold(
            request: web.Request,
            body: dict[str, Any],
            waits: asyncio.Event = waits,
            go: asyncio.Event = go,
        ) -> web.StreamResponse:
            waits.set()
            await go.wait()
            return await chat(request, body)

        place.engine.behave = hold
        asking = [asyncio.ensure_future(place.ask(False))]
        await waits.wait()
        asking.append(asyncio.ensure_future(place.ask(False)))
        while await place.site.metric("pillion_gateway_pool_waiting") < 1:
            await asyncio.sleep(0)
        place.clock.left = number
        go.set()
        await asyncio.gather(*asking)
        done, place.clock.left = place.clock.left is not None, None
        await place.idle()
        if done:
            break
    assert number > 5


async def test_one_that_fails_when_its_load_is_done(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    load = Cold.load

    def broken(*args: Any) -> Any:
        """Tells what is no outcome."""
        cold, route, candidate, left_s, done, of = args
        asyncio.get_running_loop().call_soon(done, None)
        return load(cold, route, candidate, left_s, lambda asked: None, of)

    monkeypatch.setattr(Cold, "load", broken)
    instance = make_instance(
        1, make_replica("a", url=place.engine.url, agent_url=free_url()), on_demand=True, max_rank=16
    )
    await place.control.publish(make_snapshot(place.entry, COLD, instance, version=2))
    status, _, body = await asyncio.wait_for(place.site.chat(place.key, "ft1:1"), 10)
    assert (status, body["error"]["code"]) == (500, "internal_error")
    await place.idle()
