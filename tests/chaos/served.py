"""An ASGI application on a port of loopback in this event loop, which can be cut off, opened again, and killed."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from tests.chaos.lives import Crash


class Served:
    """It takes connections from the moment it is made."""

    def __init__(self, app: Any, port: int = 0) -> None:
        self._app = app
        self._config = uvicorn.Config(
            self._answer,
            log_config=None,
            access_log=False,
            lifespan="off",
            interface="asgi3",
            proxy_headers=False,
        )
        self._config.load()
        self._state = ServerState()
        self._server: asyncio.Server | None = None
        self.port = port
        self.open = False
        self.restore()

    def restore(self) -> None:
        """Takes connections, again where it was cut off."""
        if self.open:
            return
        listener = socket.create_server(("127.0.0.1", self.port))
        self.port = listener.getsockname()[1]
        self.open = True
        asyncio.get_running_loop().create_task(self._listen(listener))

    def cut(self, spare: Callable[[Any], bool] = lambda address: False) -> None:
        """Connections end, but those from addresses that are spared; there are no new ones."""
        self.open = False
        if self._server is not None:
            self._server.close()
            self._server = None
        for connection in list(self._state.connections):
            if not spare(connection.client):
                connection.transport.abort()

    def kill(self) -> None:
        """As SIGKILL would: what was being answered is not."""
        self.cut()
        for task in list(self._state.tasks):
            task.cancel()

    async def _answer(self, scope: Any, receive: Any, send: Any) -> None:
        with contextlib.suppress(asyncio.CancelledError, Crash):  # it was killed
            await self._app(scope, receive, send)

    async def _listen(self, listener: socket.socket) -> None:
        server = await asyncio.get_running_loop().create_server(
            lambda: HttpToolsProtocol(self._config, self._state, {}), sock=listener, backlog=256
        )
        if self.open and self._server is None:
            self._server = server
        else:
            server.close()
