"""Two kinds of requests that must never be in an engine at the same time."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Literal

Side = Literal["base", "adapter"]


class Turns:
    """Room synchronisation: any number of one side at once, never both, in order of arrival.

    Once somebody waits, newcomers queue behind, so neither side can starve the other.
    """

    def __init__(self) -> None:
        self._inside: Side | None = None
        self._count = 0
        self._waiting: deque[tuple[Side, asyncio.Future[None]]] = deque()

    @asynccontextmanager
    async def turn(self, side: Side) -> AsyncIterator[None]:
        """Holds a place on `side`, waiting while the other side is inside."""
        await self._enter(side)
        try:
            yield
        finally:
            self._leave()

    async def _enter(self, side: Side) -> None:
        if self._count == 0 or (self._inside == side and not self._waiting):
            self._inside = side
            self._count += 1
            return
        granted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        place = (side, granted)
        self._waiting.append(place)
        try:
            await granted
        except asyncio.CancelledError:
            if granted.done() and not granted.cancelled():
                self._leave()
            elif place in self._waiting:
                self._waiting.remove(place)
            raise

    def _leave(self) -> None:
        self._count -= 1
        while self._count == 0 and self._waiting:
            self._admit(self._waiting[0][0])

    def _admit(self, side: Side) -> None:
        """Lets in all that wait on `side`; those who have given up meanwhile only lose their place."""
        self._inside = side
        rest: deque[tuple[Side, asyncio.Future[None]]] = deque()
        for waiting_side, granted in self._waiting:
            if waiting_side != side:
                rest.append((waiting_side, granted))
            elif not granted.done():
                granted.set_result(None)
                self._count += 1
        self._waiting = rest
