"""Who waits for a change hears of it at once: wishes written here, facts heard from agents."""

from __future__ import annotations

import asyncio

from pillion.core.spans import Carried, NoSpans, Spans


class Changes:
    """A counter that grows with every change; waiters sleep until it has passed what they have seen.

    `written` counts those changes alone that are in the database and have to be read from there.
    """

    def __init__(self) -> None:
        self.count = 0
        self.written = 0
        self._changed = asyncio.Event()
        self.spans: Spans = NoSpans()
        self._origin: Carried = {}

    def origin(self) -> Carried:
        """The trace of who wrote last since this was asked."""
        origin, self._origin = self._origin, {}
        return origin

    def notify(self) -> None:
        """Something was written."""
        self._origin = self.spans.current() or self._origin
        self.written += 1
        self.nudge()

    def nudge(self) -> None:
        """Something was heard."""
        self.count += 1
        self._changed.set()
        self._changed = asyncio.Event()

    async def wait(self, seen: int, timeout: float) -> int:
        """The count, as soon as it differs from `seen`, or after `timeout` seconds."""
        if self.count == seen:
            try:
                async with asyncio.timeout(timeout):
                    await self._changed.wait()
            except TimeoutError:
                pass
        return self.count
