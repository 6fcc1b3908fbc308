"""Tasks brought to their end."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any


async def end(tasks: Iterable[asyncio.Task[Any]]) -> None:
    """Cancels them and waits until they are over, however they end. A caller that is cancelled meanwhile is cancelled:
    `suppress(CancelledError)` around an `await task` would swallow that.
    """
    ending = set(tasks)
    for task in ending:
        task.cancel()
    if ending:
        await asyncio.wait(ending)
    for task in ending:
        if not task.cancelled():
            task.exception()  # retrieved: nobody else does
