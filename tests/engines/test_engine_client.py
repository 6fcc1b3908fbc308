import asyncio
import socket

import pytest
from aiohttp import web
from tests.gateway.site import listening

from pillion.engines.client import EngineAwayError, EngineClient, EngineError


async def test_a_cancellation_that_falls_together_with_a_timeout_is_not_lost() -> None:
    """An outer deadline at the very instant of the inner one: the outer one holds, whichever is first."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        client = EngineClient(f"http://127.0.0.1:{silent.getsockname()[1]}", "key")
        assert not await client.healthy(0.01)
        for late in (0.0, 1e-6, 1e-5, 1e-4, -1e-5) * 4:
            assert await ends_by_itself(client, 0.02 + late)
        await client.close()


async def test_nobody_there() -> None:
    with socket.create_server(("127.0.0.1", 0)) as bound:
        port = bound.getsockname()[1]
    client = EngineClient(f"http://127.0.0.1:{port}", "key")
    with pytest.raises(EngineAwayError, match=r"GET /pillion/v1/state"):
        await client.state()
    await client.close()


@pytest.mark.parametrize("answer", [b"<html>", b"{}", b"[]"])
async def test_an_answer_of_another_kind_is_the_engines_error(answer: bytes) -> None:
    async def other(request: web.BaseRequest) -> web.Response:
        return web.Response(body=answer)

    async with listening(other) as url:
        client = EngineClient(url, "key")
        for asking in (client.state(), client.load("a@b", "/a"), client.unload("a@b", 0.0)):
            with pytest.raises(EngineError, match="cannot be read"):
                await asking
        await client.close()


async def ends_by_itself(client: EngineClient, deadline_s: float) -> bool:
    """Whether a loop of probes under a deadline ends at it, and not at one far beyond."""
    try:
        async with asyncio.timeout(5) as last_resort, asyncio.timeout(deadline_s):
            while True:
                await client.healthy(0.02)
    except TimeoutError:
        return not last_resort.expired()
