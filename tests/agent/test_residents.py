"""What no engine can be made to do at will: things that happen at the same moment."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from pillion.agent.backoff import Backoff
from pillion.agent.home import Home
from pillion.agent.loading import Engine, Loading
from pillion.agent.permitted import Permitted
from pillion.agent.residents import Residents
from pillion.agent.traces import Traces
from pillion.core.replica import Grant, GrantEntry, Proof, Residency
from pillion.core.spans import NoSpans
from pillion.engines.client import AdapterState, BaseState, EngineState, Plugin

NAME = f"adp_one@{'1' * 64}"
ONE = GrantEntry(NAME, "adp_one", "1" * 64, 8, 1)


class Client:
    """An engine that does at once what it is told, unloads once it is `idle`. `then` is called after one."""

    def __init__(self) -> None:
        self.deadlines: list[float] = []
        self.then: Callable[[], None] | None = None
        self.idle = asyncio.Event()
        self.idle.set()

    async def unload(self, name: str, deadline_s: float) -> None:
        self.deadlines.append(deadline_s)
        await self.idle.wait()
        then, self.then = self.then, None
        if then is not None:
            then()

    async def load(self, name: str, path: str) -> float:
        return 1.0

    async def open(self, name: str) -> None:
        return None


class Prover:
    async def prove(self, name: str) -> Proof:
        return Proof(1.0, 0.0)


class Place:
    """A replica that holds one adapter."""

    def __init__(self, root: Path) -> None:
        self.client, self.rows, self._root = Client(), dict[str, Residency](), root
        self.residents = Residents(
            3,
            Loading(self._fetch),
            Backoff(lambda: 0.0),
            lambda: 0.0,
            self._published,
            Permitted(Home(root)),
            Traces(NoSpans(), "r"),
        )
        held = AdapterState(NAME, "/one", 0, open=True, resident=True)
        state = EngineState("sim", "1", Plugin("1", "native"), BaseState("tiny", 0), (held,))
        self.residents.attach(Engine(self.client, Prover()), state)  # type: ignore[arg-type]
        self._version = 0
        self.given(ONE)

    async def _fetch(self, digest: str) -> Path:
        return self._root

    def _published(self, version: int, adapters: tuple[Residency, ...]) -> None:
        self.rows = {row.engine_name: row for row in adapters}

    def given(self, *entries: GrantEntry, **changes: Any) -> None:
        self._version += 1
        self.residents.accept(Grant("r", self._version, entries, **changes), {})

    def leaves(self, drain_s: float) -> None:
        self.given(leaving={NAME: drain_s})


@pytest.fixture
async def place(tmp_path: Path) -> AsyncIterator[Place]:
    made = Place(tmp_path)
    running = asyncio.create_task(made.residents.run())
    yield made
    running.cancel()
    await asyncio.wait([running])


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not true():
            await asyncio.sleep(0)


async def test_a_shorter_drain_that_comes_at_its_end_does_not_shorten_the_next(place: Place) -> None:
    client = place.client
    client.then = lambda: place.leaves(1.0)
    place.leaves(30.0)
    await until(lambda: client.deadlines == [30.0, 1.0] and not place.rows)
    place.given(ONE)
    await until(lambda: NAME in place.rows and place.rows[NAME].state == "loaded")
    place.leaves(20.0)
    await until(lambda: not place.rows)
    assert client.deadlines == [30.0, 1.0, 20.0]


async def test_a_drain_may_be_shortened_more_than_once(place: Place) -> None:
    place.client.idle.clear()
    for number, drain_s in enumerate((30.0, 5.0, 0.0), 1):
        place.leaves(drain_s)
        await until(lambda number=number: len(place.client.deadlines) == number)  # type: ignore[misc]
    assert place.client.deadlines == [30.0, 5.0, 0.0]
    place.client.idle.set()
    await until(lambda: not place.rows)


async def test_what_is_granted_while_all_is_drained_is_not_loaded_any_more(place: Place) -> None:
    client = place.client
    client.idle.clear()
    draining = asyncio.create_task(place.residents.drain(7.0))
    await until(lambda: client.deadlines == [7.0])
    place.given(ONE, drain_deadline_s=1.0)
    client.idle.set()
    async with asyncio.timeout(10):
        await draining
    assert not place.rows
    assert client.deadlines == [7.0]
