"""One that was to be evicted stays, because a request came first."""

from __future__ import annotations

import asyncio
from pathlib import Path

import msgspec

from pillion.core.replica import GrantEntry
from pillion.engines.client import Requests
from tests.agent.test_residents import NAME, ONE, Place, until

TWO = GrantEntry(f"adp_two@{'2' * 64}", "adp_two", "2" * 64, 8, 1)
THREE = GrantEntry(f"adp_three@{'3' * 64}", "adp_three", "3" * 64, 8, 1)


async def test_who_asked_for_it_meanwhile_is_told_that_it_is_there(tmp_path: Path) -> None:
    place = Place(tmp_path)
    asked, answer = asyncio.Event(), asyncio.Event()

    async def evict(name: str) -> bool:
        asked.set()
        await answer.wait()
        return False

    async def requests() -> dict[str, Requests]:
        return {NAME: Requests(1, 1)}

    place.client.evict, place.client.requests = evict, requests  # type: ignore[attr-defined]
    loaded = msgspec.structs.replace(ONE, hold="loaded")
    running = asyncio.create_task(place.residents.run())
    try:
        place.given(loaded, TWO)
        await until(lambda: TWO.engine_name in place.rows and place.rows[TWO.engine_name].state == "loaded")
        place.given(loaded, TWO, THREE)
        await asked.wait()
        assert place.rows[NAME].state == "evicting"
        waiting = asyncio.create_task(place.residents.ask(loaded, {}))
        await until(lambda: NAME in place.residents._asks.names)
        answer.set()
        await until(lambda: place.rows[NAME].state == "loaded")
        async with asyncio.timeout(2):
            assert await waiting == 0.0
    finally:
        running.cancel()
        await asyncio.wait([running])
