"""Several streams as one, in the order their items come."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from typing import TypeVar

T = TypeVar("T")


async def merge(sources: Sequence[AsyncIterator[T]]) -> AsyncIterator[tuple[int, T]]:
    """`(index of the source, item)` until all have ended; then raises what one of them raised.

    Leaving early ends what reads them.
    """
    queue: asyncio.Queue[tuple[int, T] | None] = asyncio.Queue(maxsize=256)

    async def drain(index: int, source: AsyncIterator[T]) -> None:
        try:
            async for item in source:
                await queue.put((index, item))
        finally:
            if isinstance(source, AsyncGenerator):  # else an open file waits for the garbage collector
                await source.aclose()

    async def end(reading: Sequence[asyncio.Task[None]]) -> None:
        await asyncio.gather(*reading, return_exceptions=True)
        await queue.put(None)

    tasks = [asyncio.create_task(drain(index, source)) for index, source in enumerate(sources)]
    ending = asyncio.create_task(end(tasks))
    try:
        while (found := await queue.get()) is not None:
            yield found
        for task in tasks:
            task.result()
    finally:
        for task in [*tasks, ending]:
            task.cancel()
        await asyncio.gather(*tasks, ending, return_exceptions=True)
