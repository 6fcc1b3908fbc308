"""Usage from spools to the database: exactly once, whatever is repeated, reordered or cut off."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from pillion.control import explanations, usage
from pillion.control.context import Control
from pillion.control.keys import Principal
from pillion.core.usage import QUARANTINE_S, QUARANTINED, Incident, Mark, Report, Told, Used
from pillion.gateway.reports import Reports, UntoldError
from pillion.gateway.spool import Spool
from tests.control.world import World


def used(seq: int, account: str, at: float = 7200.0, status: str = "200") -> Used:
    return Used(
        seq, at, account, "key", "adp_1", 1, "ft:1", "tiny", 3, "r3", "local", f"req_{seq}", 10, 4, seq, status, 5.0,
        9.0, False,
    )  # fmt: skip


async def events(control: Control, who: Principal) -> list[tuple[int, int | None]]:
    async with control.db.read() as tx:
        return [(e.seq, e.completion_tokens) for e in await tx.usage.list(who.account, limit=10_000)]


async def sums(control: Control, who: Principal, group: str | None = None) -> list[tuple[str, int, int, int]]:
    async with control.db.read() as tx:
        found = await tx.usage.sums(who.account, since=0, until=1e6, group=group)  # type: ignore[arg-type]
    return [(s.group, s.requests, s.errors, s.completion_tokens) for s in found]


async def test_in_order_once(control: Control, who: Principal) -> None:
    first = tuple(used(n, who.account) for n in (1, 2, 3))
    assert await usage.take(control, Report("s", 1, first)) == Mark(3)
    assert await usage.take(control, Report("s", 1, first)) == Mark(3)
    overlapping = tuple(used(n, who.account) for n in (2, 3, 4))
    assert await usage.take(control, Report("s", 1, overlapping)) == Mark(4)
    assert await events(control, who) == [(n, n) for n in (1, 2, 3, 4)]
    assert await sums(control, who) == [("", 4, 0, 10)]


async def test_a_gap_is_not_taken(control: Control, who: Principal) -> None:
    assert await usage.take(control, Report("s", 1, (used(2, who.account),))) == Mark(0)
    assert await events(control, who) == []


async def test_what_the_spool_has_no_more_is_passed_over(control: Control, who: Principal) -> None:
    """A database that was restored from before."""
    assert await usage.take(control, Report("s", 7, (used(7, who.account),))) == Mark(7)
    assert await events(control, who) == [(7, 7)]


async def test_spools_are_counted_apart(control: Control, who: Principal) -> None:
    for spool in ("a", "b"):
        assert await usage.take(control, Report(spool, 1, (used(1, who.account),))) == Mark(1)
    assert await events(control, who) == [(1, 1), (1, 1)]


async def test_incidents_become_events(control: Control, who: Principal) -> None:
    told: tuple[Told, ...] = (
        used(1, who.account),
        Incident(2, 5.0, "adapter_quarantined", who.account, "adp_1", "two died"),
    )
    for _ in range(2):
        assert await usage.take(control, Report("s", 1, told)) == Mark(2)
    async with control.db.read() as tx:
        (event,) = await tx.events.list(who.account, subject="adapter:adp_1")
    assert (event.kind, event.detail) == ("adapter_quarantined", {"detail": "two died"})


async def test_what_one_gateway_has_in_quarantine_all_have(
    control: Control, who: Principal, world: World
) -> None:
    adapter, other = await world.adapter(control, who, "mine"), await world.adapter(control, who, "other")
    [name] = [a.engine_name for a in (await world.snapshot(control)).adapters if a.id == adapter.id]
    at = control.clock()
    told = (Incident(1, at, QUARANTINED, who.account, adapter.id, "two died", name),)
    assert await usage.take(control, Report("s", 1, told)) == Mark(1)
    refused = {a.id: a.refused for a in (await world.snapshot(control)).adapters}
    assert refused == {adapter.id: (name, at + QUARANTINE_S), other.id: None}
    explained = await explanations.explained(control, who, adapter.id)
    assert "two replicas died" in explained.summary
    world.clock.ahead += QUARANTINE_S
    assert "two replicas died" not in (await explanations.explained(control, who, adapter.id)).summary


async def test_sums_by_group_and_one_sees_ones_own(control: Control, who: Principal, world: World) -> None:
    other = await world.account(control, "other")
    told = (
        used(1, who.account, 0.0),
        used(2, who.account, 86_400.0, "500"),
        used(3, other.account, 0.0),
        used(4, who.account, 86_400.0, "lost"),
    )
    await usage.take(control, Report("s", 1, told))
    assert await sums(control, who) == [("", 3, 2, 7)]
    assert await sums(control, who, "day") == [("0", 1, 0, 1), ("1", 2, 2, 6)]
    assert await sums(control, who, "adapter") == [("adp_1", 3, 2, 7)]
    assert await sums(control, other) == [("", 1, 0, 3)]
    async with control.db.read() as tx:
        assert await tx.usage.sums(who.account, since=3600, until=7200) == []


class Unsteady:
    """Control as gateways see it, which dies before or after it has taken a report."""

    def __init__(self, control: Control, draw: random.Random) -> None:
        self._control, self._draw = control, draw

    async def report(self, report: Report) -> Mark:
        if self._draw.random() < 0.3:
            raise UntoldError("it never came")
        mark = await usage.take(self._control, report)
        if self._draw.random() < 0.3:
            raise UntoldError("the answer was lost")
        return mark


@pytest.mark.parametrize("seed", range(4))
async def test_every_event_comes_once_through_crashes_of_both_sides(
    control: Control, who: Principal, tmp_path: Path, seed: int
) -> None:
    draw = random.Random(seed)
    ledger = Unsteady(control, draw)
    told = 0
    spool = Spool(tmp_path / "s", 2**20)
    reports = Reports(ledger, spool, [], lambda: 0.0, draw.random)  # type: ignore[arg-type]
    for _ in range(40):
        for _ in range(draw.randrange(8)):
            number = spool.open(used(0, who.account, status="lost"))
            told += 1
            if draw.random() < 0.8:
                spool.tell(used(0, who.account), number)
        syncing = spool.syncing()
        syncing.run()
        spool.synced(syncing)
        try:
            await reports.flush()
        except UntoldError:
            if draw.random() < 0.5:  # the gateway dies as well
                spool.close()
                spool = Spool(tmp_path / "s", 2**20)
                reports = Reports(ledger, spool, [], lambda: 0.0, draw.random)  # type: ignore[arg-type]
    spool.close()
    spool = Spool(tmp_path / "s", 2**20)
    reports = Reports(ledger, spool, [], lambda: 0.0, draw.random)  # type: ignore[arg-type]
    for _ in range(100):
        try:
            await reports.flush()
            break
        except UntoldError:
            continue
    assert [seq for seq, _ in await events(control, who)] == list(range(1, told + 1))
    ((_, requests, _, _),) = await sums(control, who)
    assert requests == told
    assert reports.behind == 0
