"""`Relay` over aiohttp."""

from __future__ import annotations

import socket
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from types import SimpleNamespace

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

    Make it inside a running loop. `aclose` breaks what is under way.
    """

    def __init__(self, connect_timeout_s: float) -> None:
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
        context = SimpleNamespace(reused=False)
        try:
            response = await self._session.request(
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
        try:
            yield _Answer(response)
        finally:
            response.close()


class _Answer:
    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self._response = response
        self.status = response.status
        raw = response.raw_headers
        self.fields: Fields = [(n.decode("latin-1").lower(), v.decode("latin-1")) for n, v in raw]

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        try:
            async for chunk in self._response.content.iter_any():
                yield chunk
        except (aiohttp.ClientError, ConnectionError) as error:
            raise ConnectionLost(repr(error)) from error


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
