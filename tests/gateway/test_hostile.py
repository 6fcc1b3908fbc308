"""Upstreams that lie, and clients that would confuse: each has its table."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from pillion.gateway import Limits
from tests.gateway.conftest import Town
from tests.gateway.site import Control, chunk, fleet, open_stream, site
from tests.gateway.test_wire import exchange
from tests.gateway.world import BASE, make_instance, make_key, make_replica, make_snapshot

DOCUMENT = b'{"object":"x","model":"served/qwen3-4b","choices":[]}'
EVENT = b'data: {"model":"served/qwen3-4b","choices":[{"delta":{"content":"a"}}]}\n\n'
STREAM = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
DONE = b"e\r\ndata: [DONE]\n\n\r\n0\r\n"
LOST, BROKEN, FAILED = "no_healthy_replica", "stream_broken", "engine_error"


def whole(*fields: bytes, body: bytes = DOCUMENT, status: bytes = b"200 OK") -> bytes:
    lines = (b"content-type: application/json", *fields, b"content-length: %d" % len(body))
    return b"HTTP/1.1 %b\r\n%b\r\n\r\n%b" % (status, b"\r\n".join(lines), body)


def stream(rest: bytes) -> bytes:
    return STREAM + b"%x\r\n%b\r\n" % (len(EVENT), EVENT) + rest


def json_of(head: bytes, body: bytes = DOCUMENT) -> bytes:
    return b"%b\r\ncontent-type: application/json\r\n\r\n%b" % (head, body)


# What an upstream says, what becomes of the request, and whether its connection is used again. It closes after CLOSE.
CLOSE = b"<close>"
GOOD = "good"
ANSWERS: dict[str, tuple[bytes, str, bool]] = {
    "an answer": (whole(), GOOD, True),
    "in another order": (whole(b"x-a: b"), GOOD, True),
    "two answers": (whole() + whole(), GOOD, False),
    "the beginning of another": (whole() + b"HT", GOOD, False),
    "the head of another": (whole() + b"HTTP/1.1 200 OK\r\nset-cookie: ", GOOD, False),
    "rubbish behind": (whole() + b"\x00\x01", GOOD, False),
    "after an early hint": (b"HTTP/1.1 103 Early\r\nlink: x\r\n\r\n" + whole(), GOOD, True),
    "after 100 that nobody asked for": (b"HTTP/1.1 100 Continue\r\n\r\n" + whole(), GOOD, True),
    "hints without end": (b"HTTP/1.1 103 Early\r\nlink: x\r\n\r\n" * 10_000, LOST, False),
    "another protocol": (b"HTTP/1.1 101 Switching\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n", LOST, False),
    "lengths and chunks": (json_of(b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\ntransfer-encoding: chunked"), LOST, False),
    "two lengths": (json_of(b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\ncontent-length: 5"), LOST, False),
    "a signed length": (json_of(b"HTTP/1.1 200 OK\r\ncontent-length: +53"), LOST, False),
    "a length beyond 64 bits": (json_of(b"HTTP/1.1 200 OK\r\ncontent-length: 99999999999999999999"), LOST, False),
    "too short": (json_of(b"HTTP/1.1 200 OK\r\ncontent-length: 99") + CLOSE, LOST, False),
    "until the end": (json_of(b"HTTP/1.1 200 OK") + CLOSE, GOOD, False),
    "HTTP/1.0": (json_of(b"HTTP/1.0 200 OK") + CLOSE, GOOD, False),
    "HTTP/0.9": (b"hello\n" + CLOSE, LOST, False),
    "nothing": (CLOSE, LOST, False),
    "a head without end": (b"HTTP/1.1 200 OK\r\n" + b"x-a: %b\r\n" % (1000 * b"a") * 300, LOST, False),
    "a field without end": (b"HTTP/1.1 200 OK\r\nx-a: " + b"a" * 300_000, LOST, False),
    "a status that is none": (whole(status=b"999 X"), LOST, False),
    "folding": (whole(b"x-a: 1\r\n\t2"), LOST, False),
    "bare CR": (whole(b"x-a: 1\rset-cookie: a=b"), LOST, False),
    "bare LF": (whole().replace(b"\r\n", b"\n"), LOST, False),
    "NUL": (whole(b"x-a: \x00"), LOST, False),
    "a blank before the colon": (whole(b"x-a : 1"), LOST, False),
    "another coding": (STREAM.replace(b"chunked", b"gzip, chunked") + DONE + b"\r\n", LOST, False),
    "two codings": (STREAM.replace(b"\r\n\r\n", b"\r\ntransfer-encoding: gzip\r\n\r\n") + DONE + b"\r\n", LOST, False),
    "compressed": (whole(b"content-encoding: gzip"), FAILED, False),
    "a compressed stream": (STREAM.replace(b"\r\n\r\n", b"\r\ncontent-encoding: gzip\r\n\r\n"), FAILED, False),
    "not modified": (whole(status=b"304 Not Modified"), FAILED, False),
    "a stream": (stream(DONE + b"\r\n"), GOOD, True),
    "a stream with a comment behind": (stream(DONE[:-3] + b"4\r\n: x\n\r\n2\r\n\n\n\r\n0\r\n\r\n"), GOOD, True),
    "a stream with trailers": (stream(DONE + b"set-cookie: a=b\r\n\r\n"), GOOD, True),
    "a stream that is cut": (stream(b"") + CLOSE, BROKEN, False),
    "a stream that ends too early": (stream(b"0\r\n\r\n"), BROKEN, True),
    "a chunk of no length": (stream(b"zz\r\n"), BROKEN, False),
    "trailers without end": (stream(DONE) + b"x-a: %b\r\n" % (1000 * b"a") * 300, BROKEN, False),
    "a trailer without end": (stream(DONE) + b"x-a: " + b"a" * 300_000, BROKEN, False),
    "an extension without end": (stream(b"5;") + b"a" * 300_000, BROKEN, False),
}  # fmt: skip


@asynccontextmanager
async def upstream(answer: bytes) -> AsyncIterator[tuple[str, list[int], asyncio.Event]]:
    """Says `answer` byte for byte, and `whole()` to the second request. How many there were by connection.

    Of a stream the first event, and the rest once that was `seen`.
    """
    asked: list[int] = []
    seen = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        mine = len(asked)
        asked.append(0)
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]
                body = await reader.readexactly(int(length))
                asked[mine] += 1
                said = whole() if b"second" in body else answer
                if said.startswith(stream(b"")):
                    writer.write(stream(b""))
                    await seen.wait()
                    said = said.removeprefix(stream(b""))
                writer.write(said.removesuffix(CLOSE))
                await writer.drain()
                if said.endswith(CLOSE):
                    return
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", asked, seen
    finally:
        server.close()


@pytest.mark.parametrize("name", ANSWERS)
async def test_an_upstream_that_lies(town: Town, name: str) -> None:
    answer, expected, again = ANSWERS[name]
    async with upstream(answer) as (url, asked, seen):
        await town.publish(town.entry, make_instance(1, make_replica("a", url=url)))
        document: dict[str, Any] = {"model": BASE, "messages": [], "stream": answer.startswith(STREAM)}
        async with asyncio.timeout(20), town.site.post("/v1/chat/completions", town.key, document) as got:
            first = await got.content.readuntil(b"\n\n") if answer.startswith(stream(b"")) else b""
            seen.set()
            text = (first + await got.content.read()).decode()
            assert "set-cookie" not in got.headers
            assert "content-encoding" not in got.headers
        events = [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: {")]
        last = json.loads(events[-1] if events else text)
        assert last.get("error", {"code": GOOD})["code"] == expected
        assert got.status == {GOOD: 200, BROKEN: 200, FAILED: 500, LOST: 503}[expected]
        assert not events or json.loads(events[0])["model"] == BASE
        assert text.count("[DONE]") == text.startswith("data: ") * (expected == GOOD or b"[DONE]" in answer)
        before = len(asked)
        status, _, _ = await town.site.chat(town.key, BASE, user="second")
        assert status == 200
        assert (len(asked) == before) == again
        assert sum(asked) == before + 1


KEY = b"authorization: Bearer %KEY\r\n"
CHAT = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\n"
KEYS = b"POST /v1/keys HTTP/1.1\r\nhost: x\r\n"
BODY = b'{"model":"qwen3-4b","messages":[]}'
LENGTH = b"content-length: %d\r\n\r\n" % len(BODY)
CHUNKS = b"transfer-encoding: chunked\r\n\r\n%x\r\n%b\r\n" % (len(BODY), BODY)
HIDDEN = b"GET /v1/hidden HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n"
# What a client sends, and the statuses of the answers until the connection is closed. All but those that end in a fault
# are followed by a request that is answered 200. No engine and no control ever sees a hidden one.
REQUESTS: dict[str, tuple[bytes, list[int]]] = {
    "a stranger's body": (CHAT + LENGTH + BODY, [401, 200]),
    "a stranger's chunks": (CHAT + CHUNKS + b"0\r\n\r\n", [401, 200]),
    "a request in a stranger's body": (CHAT + b"content-length: %d\r\n\r\n" % len(HIDDEN) + HIDDEN, [401, 200]),
    "a request in what needs no body": (
        b"GET /healthz HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % len(HIDDEN) + HIDDEN, [200, 200],
    ),
    "a request in a HEAD": (
        b"HEAD /healthz HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % len(HIDDEN) + HIDDEN, [200, 200],
    ),
    "a request in chunks to control": (
        KEYS + b"transfer-encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(HIDDEN), HIDDEN), [200, 200],
    ),
    "chunks of a HEAD to control": (
        b"HEAD /v1/x HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n", [200, 200],
    ),
    "framing named as one hop's": (
        KEYS + b"connection: content-length, transfer-encoding\r\n" + LENGTH + BODY, [200, 200],
    ),
    "a coding named as one hop's": (KEYS + b"connection: transfer-encoding\r\n" + CHUNKS + b"0\r\n\r\n", [200, 200]),
    "another protocol": (
        b"GET /v1/x HTTP/1.1\r\nhost: x\r\nconnection: upgrade, http2-settings\r\nupgrade: h2c\r\n"
        b"http2-settings: x\r\n\r\n", [200, 200],
    ),
    "trailers that were heads": (
        CHAT + KEY + CHUNKS + b"0\r\nauthorization: x\r\ncontent-length: 99\r\nhost: y\r\n\r\n", [200, 200],
    ),
    "a length with an underscore": (CHAT + KEY + b"content_length: 5\r\n" + LENGTH + BODY, [200, 200]),
    "100 for no body": (CHAT + KEY + b"expect: 100-continue\r\n\r\n", [400, 200]),
    "100 and the body at once": (CHAT + KEY + b"expect: 100-continue\r\n" + LENGTH + BODY, [200, 200]),
    "a stranger who waits for 100": (CHAT + b"expect: 100-continue\r\n" + LENGTH, [401]),
    "a request for 100 to a stranger": (CHAT + b"expect: 100-continue\r\ncontent-length: 9\r\n\r\n" + HIDDEN, [401]),
    "a fault in the chunks to an engine": (CHAT + KEY + CHUNKS + b"zz\r\n" + HIDDEN, [400]),
    "a fault in the chunks to control": (KEYS + CHUNKS + b"zz\r\n" + HIDDEN, [400]),
    "a fault in the chunks of a stranger": (CHAT + CHUNKS + b"zz\r\n" + HIDDEN, [401, 400]),
    "less than it says": (CHAT + KEY + b"content-length: 99\r\n\r\n" + BODY, [400]),
    "two in a row, the second by half": (
        CHAT + KEY + LENGTH + BODY + CHAT + KEY + b"content-length: 99\r\n\r\n" + BODY, [200, 400],
    ),
    "chunks that never end": (KEYS + CHUNKS, [400]),
    "the longest body there is": (CHAT + KEY + b"content-length: 999999999999999999\r\n\r\n", [413]),
}  # fmt: skip
NEXT = b"GET /healthz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"


@pytest.mark.parametrize("name", REQUESTS)
async def test_a_client_that_would_confuse(tmp_path: Path, control: Control, name: str) -> None:
    seen: list[str] = []

    async def public(request: web.Request) -> web.StreamResponse:
        await request.read()
        seen.append(request.path)
        return web.json_response({})

    control.public = public
    data, statuses = REQUESTS[name]
    key, entry = make_key()
    limits = Limits(drain_s=1, body_timeout_s=0.3, linger_s=0.3)
    async with fleet(1) as (engine,), site(tmp_path, control, limits=limits) as running:
        await control.publish(make_snapshot(entry, make_instance(1, make_replica("a", url=engine.url))))
        data = data.replace(b"%KEY", key.encode())
        got = await exchange(running, data + NEXT * (statuses[-1] == 200))
        answered = statuses.count(200) - (statuses[-1] == 200)
        assert len(engine.asked) == (answered if KEY[:9] in data else 0)
    assert [int(part[:3]) for part in got.split(b"HTTP/1.1 ")[1:] if part[:3] != b"100"] == statuses
    assert "/v1/hidden" not in seen


@pytest.mark.parametrize("close", [b"", b"connection: close\r\n"])
async def test_a_client_that_takes_nothing_is_given_up(
    tmp_path: Path, control: Control, close: bytes
) -> None:
    """Also when all is written that it is to get: else it would keep that, and its connection, for ever."""
    left = asyncio.Event()

    async def endless(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        response = await open_stream(request)
        try:
            for _ in range(100 if close else 2**62):
                await response.write(chunk(body["model"], "x" * 50_000))
            await response.write(b"data: [DONE]\n\n")
        finally:
            left.set()
        return response

    key, entry = make_key()
    limits = Limits(drain_s=1, stall_s=0.2)
    async with fleet(1) as (engine,), site(tmp_path, control, limits=limits) as running:
        engine.behave = endless
        await control.publish(make_snapshot(entry, make_instance(1, make_replica("a", url=engine.url))))
        host, port = running.url.removeprefix("http://").split(":")
        with socket.socket() as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            sock.setblocking(False)
            loop = asyncio.get_running_loop()
            await loop.sock_connect(sock, (host, int(port)))
            body = b'{"model":"%b","messages":[],"stream":true}' % BASE.encode()
            ask = CHAT + KEY.replace(b"%KEY", key.encode()) + close + b"content-length: %d\r\n\r\n%b"
            await loop.sock_sendall(sock, ask % (len(body), body))
            async with asyncio.timeout(20):
                await left.wait()
                while await running.metric("pillion_gateway_connections") > 1:
                    await asyncio.sleep(0.01)
