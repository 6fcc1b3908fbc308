"""Logs of several replicas as one stream."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from pillion.control.merge import merge


async def items(count: int, ended: list[str] | None = None) -> AsyncIterator[int]:
    try:
        for number in range(count):
            await asyncio.sleep(0)
            yield number
    finally:
        if ended is not None:
            ended.append("ended")


async def endless(ended: list[str]) -> AsyncIterator[int]:
    try:
        while True:
            yield 0
            await asyncio.sleep(0)
    finally:
        ended.append("ended")


async def failing() -> AsyncIterator[int]:
    yield 1
    raise OSError("gone")


async def test_every_item_of_every_source_comes_in_its_sources_order() -> None:
    found = [pair async for pair in merge([items(1000), items(3), items(0)])]
    assert [item for index, item in found if index == 0] == list(range(1000))
    assert [item for index, item in found if index == 1] == [0, 1, 2]


async def test_no_source_is_an_empty_stream() -> None:
    assert [pair async for pair in merge([])] == []


async def test_leaving_early_ends_what_reads_and_leaves_no_task_behind() -> None:
    before = asyncio.all_tasks()
    ended: list[str] = []
    stream = merge([endless(ended), endless(ended)])
    async for _ in stream:
        break
    for _ in range(2000):  # the sources go on until the queue is full and they wait for room in it
        await asyncio.sleep(0)
    async with asyncio.timeout(5):
        await stream.aclose()
    assert asyncio.all_tasks() == before
    assert ended == ["ended", "ended"]


async def test_a_source_that_fails_is_told_after_the_others_have_ended() -> None:
    stream = merge([failing(), items(500)])
    found = [await anext(stream) for _ in range(501)]
    assert (0, 1) in found
    with pytest.raises(OSError, match="gone"):
        await anext(stream)
