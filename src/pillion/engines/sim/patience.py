"""Waiting as a model would, and noticing at once that the client has left."""

from __future__ import annotations

import asyncio
from collections import deque

from pillion.engines.plugin.pillion_engine.asgi import Message, Receive


class ClientLeftError(Exception):
    """Nobody waits for the answer any more."""


class Patience:
    """One request's waits. What the client sends meanwhile is kept for `receive`."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._came: deque[Message] = deque()
        self._listening: asyncio.Task[None] | None = None

    async def receive(self) -> Message:
        self.end()
        return self._came.popleft() if self._came else await self._receive()

    async def rest(self, seconds: float) -> None:
        """Sleeps. Raises `ClientLeftError` as soon as the client is gone."""
        if seconds == 0:
            return
        if self._listening is None:
            self._listening = asyncio.ensure_future(self._listen())
        await asyncio.wait({self._listening}, timeout=seconds)
        if self._listening.done():
            raise ClientLeftError

    def end(self) -> None:
        if self._listening is not None:
            self._listening.cancel()
            self._listening = None

    async def _listen(self) -> None:
        while (message := await self._receive())["type"] != "http.disconnect":
            self._came.append(message)
