"""What is written in one round of the event loop goes out together at its end.

A write wakes whoever waits for it. One after the other, with work between, each wakes a processor that has just gone to
sleep again, and that costs more than the work; in one go the first wakes it, and the rest find it awake.
"""

from __future__ import annotations

import asyncio
from typing import Any

# So much at once goes out at once: its sender is to hear soon that it has to wait for the reader.
LARGE = 16 * 2**10


class Outbox:
    """Order is kept: of one connection, and between them. Make it inside a running loop."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._waiting: list[tuple[Any, bytes]] = []
        self._written = 0
        self._alone = True

    def write(self, transport: Any, data: bytes) -> None:
        if not self._written:
            self._loop.call_soon(self._end_round)
        self._written += 1
        if self._alone:
            if not transport.is_closing():
                transport.write(data)
            return
        self._waiting.append((transport, data))
        if len(data) >= LARGE:
            self.flush()

    def close(self, transport: Any) -> None:
        """After what was written."""
        self.flush()
        transport.close()

    def _end_round(self) -> None:
        """Where there was but one write in a round, the next goes out at once: it would wait for nothing."""
        self._alone = self._written == 1
        self._written = 0
        self.flush()

    def flush(self) -> None:
        waiting, self._waiting = self._waiting, []
        for transport, data in waiting:
            if not transport.is_closing():
                transport.write(data)
