"""Requests whose head is too large, too slow, or no HTTP at all; and no 40 ms of Nagle."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from pillion.gateway import Limits
from tests.gateway.site import Control, Site, site


@pytest.fixture
async def strict(tmp_path: Path, control: Control) -> AsyncIterator[Site]:
    limits = Limits(drain_s=1, max_header_bytes=4096, header_timeout_s=0.3, body_timeout_s=0.3, linger_s=0.3)
    async with site(tmp_path, control, limits=limits) as running:
        yield running


async def ask(site: Site, *parts: bytes) -> bytes:
    """What comes back until the gateway closes."""
    host, port = site.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        for part in parts:
            writer.write(part)
            await writer.drain()
        return await asyncio.wait_for(reader.read(), 10)
    finally:
        writer.close()


def refusal(answer: bytes) -> tuple[bytes, str]:
    head, _, body = answer.partition(b"\r\n\r\n")
    return head.split(b"\r\n")[0][9:12], json.loads(body)["error"]["code"]


async def test_rubbish(strict: Site) -> None:
    assert refusal(await ask(strict, b"\x16\x03\x01 hello\r\n\r\n")) == (b"400", "invalid_request")


async def test_slow_head(strict: Site) -> None:
    assert refusal(await ask(strict, b"GET / HTTP/1.1\r\nhost: x\r\n")) == (b"408", "invalid_request")


async def test_silent_connection_is_closed(strict: Site) -> None:
    assert await ask(strict) == b""


async def test_large_head(strict: Site) -> None:
    host, port = strict.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(b"GET / HTTP/1.1\r\n")
    answer = asyncio.ensure_future(reader.read())
    while not answer.done():
        writer.write(b"x-a: " + b"a" * 1024 + b"\r\n")
        await asyncio.sleep(0.001)
    writer.close()
    assert refusal(await answer) == (b"431", "invalid_request")


async def test_slow_body_of_a_stranger_is_refused_at_once(strict: Site) -> None:
    head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 10\r\n\r\n{"
    assert (await ask(strict, head)).startswith(b"HTTP/1.1 503")


async def test_a_head_in_pieces_is_fine_and_so_is_the_next_request(strict: Site) -> None:
    whole = b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\nGET /healthz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
    answer = await ask(strict, *(whole[i : i + 1] for i in range(len(whole))))
    assert answer.count(b"HTTP/1.1 200") == 2


async def test_no_nagle(strict: Site) -> None:
    """With it, every answer in two writes waits for the client's delayed ACK: 40 ms, every time."""
    times = []
    for _ in range(20):
        started = time.perf_counter()
        async with strict.client.get(strict.url + "/healthz") as answer:
            await answer.read()
        times.append(time.perf_counter() - started)
    assert min(times) < 0.035
