"""Several streams as one, in the order their items come."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import TypeVar

T = TypeVar("T")


async def merge(sources: Sequence[AsyncIterator[T]]) -> AsyncIterator[tuple[int, T]]:
    """`(index of the source, item)` until all have ended. Leaving early ends what reads them."""
    queue: asyncio.Queue[tuple[int, T] | None] = asyncio.Queue(maxsize=256)

    async def drain(index: int, source: AsyncIterator[T]) -> None:
        try:
            async for item in source:
                await queue.put((index, item))
        finally:
            await queue.put(None)

    tasks = [asyncio.create_task(drain(index, source)) for index, source in enumerate(sources)]
    try:
        left = len(tasks)
        while left:
            found = await queue.get()
            if found is None:
                left -= 1
            else:
                yield found
        for task in tasks:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
