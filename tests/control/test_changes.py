"""Whoever waits for a change hears of it, whether it came before or while they wait."""

import asyncio

from pillion.control.changes import Changes


async def test_a_change_that_came_before_is_not_waited_for() -> None:
    changes = Changes()
    seen = changes.count
    changes.notify()
    async with asyncio.timeout(5):
        assert await changes.wait(seen, 60) == seen + 1


async def test_all_who_wait_hear() -> None:
    changes = Changes()
    waiting = [asyncio.create_task(changes.wait(0, 60)) for _ in range(3)]
    await asyncio.sleep(0)
    changes.notify()
    async with asyncio.timeout(5):
        assert await asyncio.gather(*waiting) == [1, 1, 1]


async def test_without_a_change_the_wait_ends_in_time() -> None:
    assert await Changes().wait(0, 0.01) == 0


async def test_many_changes_at_once_count_each() -> None:
    changes = Changes()
    waiting = asyncio.create_task(changes.wait(0, 60))
    await asyncio.sleep(0)
    for _ in range(5):
        changes.notify()
    assert await waiting == 5
