"""Waiting as a model would, and noticing at once that the client has left."""

from __future__ import annotations

import asyncio

from pillion.engines.plugin.pillion_engine.asgi import Receive


class ClientLeftError(Exception):
    """Nobody waits for the answer any more."""


class Patience:
    """One request's waits. `receive` is read only once somebody waits."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._listening: asyncio.Task[None] | None = None

    async def rest(self, seconds: float | None) -> None:
        """Sleeps; None is for ever. Raises `ClientLeftError` as soon as the client is gone."""
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

    async def _listen(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            continue
