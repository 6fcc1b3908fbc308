"""Who takes slowly: it is waited for, and nobody else waits with it."""

from __future__ import annotations

import asyncio
import socket

from aiohttp import web

from tests.gateway.conftest import Town
from tests.gateway.site import at_rest


async def test_who_takes_nothing_and_asks_for_more_is_not_kept_in_memory(town: Town) -> None:
    """One of many answers is what fills its client, and the next begins then, over the connection that was paused for it."""
    sent = 0

    async def public(request: web.Request) -> web.StreamResponse:
        nonlocal sent
        response = web.StreamResponse()
        await response.prepare(request)
        for _ in range(int(request.query.get("parts", 0))):
            await response.write(b"x" * 2**16)
            sent += 2**16
        return response

    town.control.public = public
    host, port = town.site.url.removeprefix("http://").split(":")
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(client, (host, int(port)))
        head = b"GET /v1/files/f/content?parts=%d HTTP/1.1\r\nhost: x\r\n\r\n"
        await loop.sock_sendall(client, head % 2 * 100 + head % 4000)
        await at_rest(lambda: sent)
        assert sent < 100 * 2**20
        taken = 0
        async with asyncio.timeout(30):
            while taken < 4200 * 2**16:
                taken += len(await loop.sock_recv(client, 2**16))
