"""`Relay` over aiohttp."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from types import SimpleNamespace
from typing import Any

import aiohttp
from yarl import URL

from pillion.gateway.http import Fields
from pillion.gateway.upstream import ConnectionLost, ConnectRefused

# Shorter than the 5 s after which uvicorn, in front of every engine, closes an idle connection.
IDLE_S = 3.0
MAX_FIELD = 64 * 2**10
# aiohttp fills these in where they are absent; what the client did not send is not sent.
_NOT_ADDED = ("accept", "accept-encoding", "user-agent", "content-type")
# A host that vanished without a word is noticed after about 30 s of silence on the wire.
_KEEP_ALIVE = (("TCP_KEEPIDLE", 15), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 3), ("TCP_USER_TIMEOUT", 30_000))


class AiohttpRelay:
    """Connections without a cap, TCP_NODELAY (aiohttp's default), bodies never decoded, no limit on an answer's time.

    Make it inside a running loop. `aclose` breaks what is under way, as if upstream had.
    """

    def __init__(self, connect_timeout_s: float) -> None:
        self._users: set[asyncio.Task[Any]] = set()
        self._cut: set[asyncio.Task[Any]] = set()
        tracing = aiohttp.TraceConfig()
        tracing.on_connection_reuseconn.append(_note_reuse)
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=IDLE_S, socket_factory=_socket),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=connect_timeout_s),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            skip_auto_headers=_NOT_ADDED,
            max_line_size=MAX_FIELD,
            max_field_size=MAX_FIELD,
            trace_configs=[tracing],
        )

    async def aclose(self) -> None:
        # aiohttp wakes nobody who waits on a connection that it closes itself.
        self._cut |= self._users
        for task in self._users:
            task.cancel()
        await self._session.close()

    @asynccontextmanager
    async def send(
        self,
        method: str,
        url: str,
        fields: Fields,
        body: bytes | AsyncIterator[bytes] | None,
        *,
        expect: bool = False,
    ) -> AsyncIterator[_Answer]:
        if self._session.closed:
            raise ConnectRefused("the gateway is closing")
        with self._using():
            response = await self._request(method, url, fields, body, expect)
            try:
                yield _Answer(response, self._was_cut)
            finally:
                response.close()

    async def _request(
        self, method: str, url: str, fields: Fields, body: bytes | AsyncIterator[bytes] | None, expect: bool
    ) -> aiohttp.ClientResponse:
        context = SimpleNamespace(reused=False)
        try:
            return await self._session.request(
                method,
                URL(url, encoded=True),
                headers=[(name, _as_utf8(value)) for name, value in fields],
                data=body,
                expect100=expect,
                allow_redirects=False,
                trace_request_ctx=context,
            )
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            raise ConnectRefused(str(error)) from error
        except (aiohttp.ClientError, ConnectionError) as error:
            raise ConnectionLost(repr(error), reused=context.reused) from error
        except asyncio.CancelledError:
            if self._was_cut():
                raise ConnectRefused("the gateway is closing") from None
            raise

    @contextmanager
    def _using(self) -> Iterator[None]:
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("a relay is used from a task")
        self._users.add(task)
        try:
            yield
        finally:
            self._users.discard(task)
            self._cut.discard(task)

    def _was_cut(self) -> bool:
        """Whether the cancellation that just arrived is `aclose`'s; then it is taken back."""
        task = asyncio.current_task()
        if task is None or task not in self._cut:
            return False
        self._cut.discard(task)
        task.uncancel()
        return True


class _Answer:
    def __init__(self, response: aiohttp.ClientResponse, was_cut: Callable[[], bool]) -> None:
        self._response = response
        self._was_cut = was_cut
        self.status = response.status
        raw = response.raw_headers
        self.fields: Fields = [(n.decode("latin-1").lower(), v.decode("latin-1")) for n, v in raw]

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        try:
            async for chunk in self._response.content.iter_any():
                yield chunk
        except (aiohttp.ClientError, ConnectionError) as error:
            raise ConnectionLost(repr(error)) from error
        except asyncio.CancelledError:
            if self._was_cut():
                raise ConnectionLost("the gateway is closing") from None
            raise


async def _note_reuse(session: aiohttp.ClientSession, context: SimpleNamespace, params: object) -> None:
    context.trace_request_ctx.reused = True


def _as_utf8(value: str) -> str:
    """aiohttp writes header values as UTF-8; ours are bytes read as latin-1."""
    return value if value.isascii() else value.encode("latin-1").decode("utf-8", "replace")


def _socket(address: aiohttp.AddrInfoType) -> socket.socket:
    family, kind, proto, _, _ = address
    made = socket.socket(family, kind, proto)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _KEEP_ALIVE:
        option = getattr(socket, name, None)
        if option is not None:
            made.setsockopt(socket.IPPROTO_TCP, option, value)
    return made
