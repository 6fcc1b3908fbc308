"""Who takes slowly: it is waited for, and nobody else waits with it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from pillion.gateway.outbound import Asker, Outbound
from pillion.gateway.outbox import Outbox
from pillion.gateway.pool import Pool
from pillion.gateway.replies import ReplyHead


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
