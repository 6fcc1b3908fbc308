"""When a process is to end: a signal, or the death of the process that started it."""

from __future__ import annotations

import asyncio
import os
import signal

PARENT_FD = "PILLION_PARENT_FD"


class Stop:
    """Set by SIGTERM, SIGINT, or when the parent is gone (its end of the inherited pipe closes)."""

    def __init__(self) -> None:
        self.event = asyncio.Event()
        self.parent_died = False

    def listen(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.event.set)
        descriptor = os.environ.pop(PARENT_FD, None)
        if descriptor is not None:
            loop.add_reader(int(descriptor), self._parent_gone, int(descriptor))

    def _parent_gone(self, descriptor: int) -> None:
        asyncio.get_running_loop().remove_reader(descriptor)
        self.parent_died = True
        self.event.set()
