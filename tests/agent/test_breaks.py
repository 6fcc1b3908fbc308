"""What nobody foresaw breaks: nobody waits for ever, and what can go on does."""

from __future__ import annotations

import asyncio
import errno
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from pillion.agent import permitted, residents, supervisor
from pillion.agent.demand import Interest
from pillion.agent.home import Home
from pillion.agent.logs import MAX_BYTES, bound
from pillion.core.replica import GrantEntry
from tests.agent.conftest import Serving, home_of
from tests.agent.test_on_demand import LORA, opened, permit, resident
from tests.replicas import Node


class BrokenError(Exception):
    pass


async def test_a_load_that_breaks_the_agent_ends_it_and_with_it_the_waiting(
    serving: Serving, node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next one begins with what the engine says it holds."""
    one, two = node.put("one", 1), node.put("two", 2)

    def broken(*_: Any) -> None:
        raise BrokenError

    async def breaks() -> None:
        async with serving(lora=LORA, keep=True) as agent:
            await opened(agent, one)
            await agent.settled(1, one="loaded")
            with monkeypatch.context() as patched:
                patched.setattr(Interest, "loaded", broken)
                with pytest.raises(aiohttp.ClientError):
                    await agent.load(permit(two))

    with pytest.raises(BrokenError):
        await breaks()
    async with serving(lora=LORA) as agent:
        assert "one" in resident(await agent.ready())
        assert (await agent.load(permit(two)))[0] == 200


async def test_a_full_disk_stops_no_agent(
    serving: Serving, node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = node.put("one", 1), node.put("two", 2)
    kept: list[Any] = []
    write = Home.write
    full = True

    def until_there_is_room(home: Home, name: str, record: Any) -> None:
        if name == permitted.FILE and full:
            kept.append(None)
            raise OSError(errno.ENOSPC, "No space left on device")
        write(home, name, record)

    monkeypatch.setattr(Home, "write", until_there_is_room)
    monkeypatch.setattr(permitted, "AGAIN_S", 0.01)
    async with serving(lora=LORA) as agent:
        await opened(agent)
        for entry in (one, two):
            assert (await agent.load(permit(entry)))[0] == 200
        while len(kept) < 3:
            await asyncio.sleep(0)
        full = False
        while {entry.engine_name for entry in permitted.kept(home_of(node, agent.spec))} != names(one, two):
            await asyncio.sleep(0)
        assert resident(await agent.status()) == {"one", "two"}


def names(*entries: GrantEntry) -> set[str]:
    return {entry.engine_name for entry in entries}


async def test_a_log_that_cannot_be_kept_short_ends_nothing(
    serving: Serving, node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[Path] = []

    def counted(path: Path) -> None:
        tried.append(path)
        bound(path)

    monkeypatch.setattr(supervisor, "bound", counted)
    async with serving() as agent:
        before = await agent.ready()
        log = home_of(node, agent.spec).engine_log
        log.with_name("engine.log.1").mkdir()
        with log.open("ab") as file:
            file.truncate(MAX_BYTES + 1)
        tried.clear()
        while len(tried) < 3:
            await asyncio.sleep(0)
        after = await agent.status()
        assert (after.ready, after.engine) == (True, before.engine)


async def test_who_asks_for_what_is_leaving_waits_for_so_long_and_no_longer(
    serving: Serving, node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Control, which alone lets it come back, is away."""
    monkeypatch.setattr(residents, "LEAVING_S", 0.01)
    one = node.put("one", 1)
    async with serving(lora=LORA) as agent:
        await opened(agent, leaving={one.engine_name: 1.0})
        status, body = await agent.load(permit(one))
        assert (status, body["error"]["code"]) == (503, "no_healthy_replica")
        assert "leaving" in body["error"]["message"]
        await opened(agent, version=2)
        assert (await agent.load(permit(one)))[0] == 200
