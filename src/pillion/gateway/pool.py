"""The connections to what lies behind the gateway, opened where none is idle, and kept while they are young."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

from pillion.gateway.outbound import Asker, Origin, Outbound
from pillion.gateway.outbox import Outbox
from pillion.gateway.replies import ReplyHeads

# Shorter than the 5 s after which uvicorn, in front of every engine, closes an idle connection.
IDLE_S = 3.0
MAX_ORIGINS = 10_000
# A host that vanished without a word is noticed after about 30 s of silence on the wire.
_KEEP_ALIVE = (("TCP_KEEPIDLE", 15), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 3), ("TCP_USER_TIMEOUT", 30_000))


class Pool:
    """Connections without a cap, kept while they are young. Make it inside a running loop."""

    def __init__(self, connect_timeout_s: float, outbox: Outbox) -> None:
        self.outbox = outbox
        self.heads = ReplyHeads()
        self._connect_timeout_s = connect_timeout_s
        self._loop = asyncio.get_running_loop()
        self._idle: dict[Origin, list[Outbound]] = {}
        self._all: set[Outbound] = set()
        self._connecting: set[asyncio.Task[None]] = set()
        self._origins: dict[str, Origin] = {}
        self._tls: ssl.SSLContext | None = None
        self._closed = False

    def origin(self, url: str) -> Origin:
        found = self._origins.get(url)
        if found is None:
            if len(self._origins) >= MAX_ORIGINS:
                self._origins.clear()
            found = self._origins[url] = _parse(url)
        return found

    def take(self, origin: Origin) -> Outbound | None:
        """An idle connection, the youngest first."""
        idle = self._idle.get(origin)
        oldest = self._loop.time() - IDLE_S
        while idle:
            connection = idle.pop()
            if connection.idle_since >= oldest and connection.open:
                return connection
            connection.close()
        return None

    def connect(self, origin: Origin, asker: Asker) -> None:
        """A new connection; the asker is told."""
        task = self._loop.create_task(self._connect(origin, asker))
        self._connecting.add(task)
        task.add_done_callback(self._connecting.discard)

    def give(self, connection: Outbound) -> None:
        if self._closed:
            connection.close()
            return
        connection.idle_since = self._loop.time()
        self._idle.setdefault(connection.origin, []).append(connection)

    def add(self, connection: Outbound) -> None:
        self._all.add(connection)

    def remove(self, connection: Outbound) -> None:
        self._all.discard(connection)
        idle = self._idle.get(connection.origin)
        if idle is not None:
            with contextlib.suppress(ValueError):
                idle.remove(connection)
            if not idle:
                del self._idle[connection.origin]

    def asking(self) -> Iterator[Asker]:
        """Those whose answers are not whole."""
        return (connection.asker for connection in list(self._all) if connection.asker is not None)

    def sweep(self) -> None:
        """Closes what has been idle for too long."""
        oldest = self._loop.time() - IDLE_S
        for idle in list(self._idle.values()):
            for connection in idle:
                if connection.idle_since < oldest:
                    connection.close()

    def close(self) -> None:
        """Breaks what is under way, as if upstream had."""
        self._closed = True
        for connection in list(self._all):
            connection.cut("the gateway is closing")

    async def _connect(self, origin: Origin, asker: Asker) -> None:
        try:
            await self._open(origin, asker)
        except Exception:
            asker.crashed()

    async def _open(self, origin: Origin, asker: Asker) -> None:
        if self._closed:
            asker.refused("the gateway is closing")
            return
        try:
            async with asyncio.timeout(self._connect_timeout_s):
                transport, connection = await self._loop.create_connection(
                    lambda: Outbound(self, origin), origin.host, origin.port, ssl=self._context(origin)
                )
        except (OSError, ValueError) as error:  # a ValueError is of a host that cannot be one
            asker.refused(str(error) or "connecting took too long")
            return
        _tune(transport.get_extra_info("socket"))
        try:
            asker.connected(connection)
        except Exception:
            connection.abort()
            raise

    def _context(self, origin: Origin) -> ssl.SSLContext | None:
        if not origin.tls:
            return None
        self._tls = self._tls or ssl.create_default_context()
        return self._tls


def _parse(url: str) -> Origin:
    parts = urlsplit(url)
    tls = parts.scheme == "https"
    port = parts.port or (443 if tls else 80)
    host = parts.hostname or ""
    return Origin(host, port, tls, parts.path.rstrip("/"), parts.netloc.rpartition("@")[2])


def _tune(sock: Any) -> None:
    if sock is None or sock.family == socket.AF_UNIX:
        return
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _KEEP_ALIVE:
        option = getattr(socket, name, None)
        if option is not None:
            sock.setsockopt(socket.IPPROTO_TCP, option, value)
