"""Who takes slowly: it is waited for, and nobody else waits with it."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from aiohttp import web

from pillion.gateway.outbound import Asker, Outbound
from pillion.gateway.outbox import Outbox
from pillion.gateway.pool import Pool
from pillion.gateway.replies import ReplyHead
from tests.gateway.conftest import Town


class Full(Asker):
    """Asks once. Its client is full with the answer's last bytes, as one is that takes slowly."""

    def __init__(self, pool: Pool, url: str) -> None:
        self.done: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._connection: Outbound | None = None
        self._body = b""
        self._choked = False
        origin = pool.origin(url)
        connection = pool.take(origin)
        self.reused = connection is not None
        if connection is None:
            pool.connect(origin, self)
        else:
            self.connected(connection)

    def connected(self, connection: Outbound) -> None:
        self._connection = connection
        connection.send(self, b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")

    def began(self, head: ReplyHead, length: int | None) -> None: ...

    def came(self, data: bytes) -> None:
        self._body += data
        assert self._connection is not None
        self._connection.pause()

    def answered(self) -> None:
        self._connection = None
        self.done.set_result(self._body)


@asynccontextmanager
async def answering(answer: bytes) -> AsyncIterator[str]:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.closing(writer), contextlib.suppress(asyncio.IncompleteReadError):
            while True:
                await reader.readuntil(b"\r\n\r\n")
                writer.write(answer)

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()


async def test_a_connection_whose_answer_ended_while_its_client_was_full_answers_the_next() -> None:
    for answer in (
        b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n",
    ):
        async with answering(answer) as url:
            pool = Pool(1.0, Outbox())
            for again in (False, True, True):
                asker = Full(pool, url)
                assert asker.reused is again
                assert await asyncio.wait_for(asker.done, 2) == b"hi"
            pool.close()


async def test_who_takes_nothing_and_asks_for_more_is_not_kept_in_memory(town: Town) -> None:
    """One of many answers is what fills its client, and the next begins then."""
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
        await settled(lambda: sent)
        assert sent < 100 * 2**20
        taken = 0
        async with asyncio.timeout(30):
            while taken < 4200 * 2**16:
                taken += len(await loop.sock_recv(client, 2**16))


async def settled(count: Callable[[], int]) -> None:
    """Until it grows no more."""
    before = -1
    while count() != before:
        before = count()
        await asyncio.sleep(0.5)
