"""Control dies after each commit of an operation in turn and begins anew: in the end all is as if it had not."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from pillion.control import attachments, instances, moves
from pillion.control.instances import Launch
from pillion.core.replica import LoraSpec
from tests.chaos.walk import Walk

FEWEST, MOST = 2, 40
Act = Callable[["Town"], Awaitable[Any]]


class Town(Walk):
    """Two instances of two replicas, and an adapter that is on the first or nowhere."""

    def __init__(self, on_it: bool) -> None:
        super().__init__()
        who = self.accounts[0]
        self.first, self.second = (self.run(self.launch()).id for _ in range(2))
        self.mine = self.run(self.adapter(who, None)).id
        if on_it:
            self.run(attachments.attach(self.control, who, self.first, self.mine))
        self.quiet()
        self.loads_before = self.loads()

    async def launch(self) -> Any:
        wish = Launch("tiny", regions=["eu", "us"], replicas=2, lora=LoraSpec(True, max_adapters=2))
        return await instances.launch(self.control, self.accounts[0], wish)

    def loads(self) -> int:
        """How often anything was loaded or failed to be, by all agents."""
        return round(sum(agent.now for agent in self.agents))

    def facts(self) -> tuple[list[int], list[tuple[int, int]], int, int]:
        """Where the adapter is wished; where how many replicas have it; how many replicas were made; loads."""
        wished = sorted(instance for _, _, instance in self.placed())
        held = [(a.replica.instance, len(a.resident)) for a in self.agents]
        made = sum(fleet.made for fleet in self.world.fleets.values())
        return wished, sorted(held), made, self.loads() - self.loads_before


@contextmanager
def town(on_it: bool) -> Iterator[Town]:
    made = Town(on_it)
    try:
        yield made
    finally:
        made.close()


async def attach(town: Town) -> None:
    await attachments.attach(town.control, town.accounts[0], town.first, town.mine)


async def detach(town: Town) -> None:
    await attachments.detach(town.control, town.accounts[0], town.first, town.mine, force=False)


async def move(town: Town) -> None:
    await moves.move(town.control, town.accounts[0], town.mine, town.first, town.second)


async def launch(town: Town) -> None:
    await town.launch()


def play(act: Act, on_it: bool, dies_after: int | None) -> tuple[bool, Any, float]:
    """Whether control died before all was done; what there is in the end; seconds from the death to the end."""
    with town(on_it) as here:
        if dies_after is not None:
            here.kill_after(dies_after)
        here.do(lambda: act(here))
        while not here.restarts and here.wrong():
            here.do(here.tick)
        began = time.monotonic()
        here.quiet()
        return here.restarts > 0, here.facts(), time.monotonic() - began


@pytest.mark.parametrize(
    ("act", "on_it"),
    [(attach, False), (detach, True), (move, True), (launch, False)],
    ids=["attach", "detach", "move", "launch"],
)
def test_dying_after_any_commit_loses_and_doubles_nothing(act: Act, on_it: bool) -> None:
    """The first commit is the wish, so that from then on it is kept without being asked again."""
    _, whole, _ = play(act, on_it, None)
    took = []
    for commits in range(1, MOST):
        died, found, seconds = play(act, on_it, commits)
        assert found == whole, f"after commit {commits}"
        if not died:
            break
        took.append(seconds)
    assert FEWEST <= len(took) < MOST - 1
    print(f"{act.__name__}: {len(took)} commits, whole again within {max(took):.2f} s")
