"""Whatever comes in whatever order, and whoever dies: money is conserved, nothing falls below zero, each ready moment is
charged once, and a script that knows nothing of Pillion's code comes to the same invoices.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Coroutine
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, assume, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from pillion.control import usage
from pillion.control.billing import Billing
from pillion.control.keys import Principal
from pillion.core.errors import InsufficientBalanceError
from pillion.core.usage import Report, Used
from tests.control import things
from tests.control.fakes import FakeFleet
from tests.control.ledger_world import HOUR, RATE, DiedError, Office
from tests.control.world import World

SCRIPT = Path(__file__).parents[2] / "docs" / "examples" / "recompute_invoices.py"
FULL = os.environ.get("PILLION_TEST_FULL") == "1"
POOL = 1


def recompute(database: Path) -> str:
    """The script's findings; fails where it finds a difference."""
    done = subprocess.run([sys.executable, SCRIPT, database], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def tokens(seq: int, account: str, at: float, prompt: int, completion: int | None) -> Used:
    return Used(
        seq, at, account, "key", None, None, "tiny", "tiny", POOL, "r", "local", f"req_{seq}", prompt, 0, completion,
        "200", 5.0, 9.0, False,
    )  # fmt: skip


async def pool(office: Office) -> None:
    """The first instance, a shared one, and what its tokens cost."""
    async with office.control.db.transaction() as tx:
        spec = msgspec.to_builtins(things.spec({"local": 1}))
        row = await tx.instances.create(None, model="tiny", spec=spec, now=office.now)
        assert row.id == POOL
        for at, input, output in ((0.0, 150_001, 600_007), (office.now + 20 * HOUR, 99_999, 1)):
            await tx.prices.add(
                "tokens",
                "tiny",
                input=input,
                output=output,
                effective_ms=round(at * 1000),
                source="t",
                now=0.0,
            )


class Bookkeeping(RuleBasedStateMachine):
    @initialize()
    def begin(self) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.runner = asyncio.Runner()
        self.world = World(Path(self.folder.name), {"local": FakeFleet("local", "http://nowhere")})
        self.world.clock.began = 1_700_000_000.0
        self.do(self._begin())

    async def _begin(self) -> None:
        self.context = self.world.control(run=False)
        control = await self.context.__aenter__()
        self.office = Office(self.world, control)
        self.who: list[Principal] = [await self.world.account(control, name) for name in ("a", "b")]
        self.seq = 0
        self.told: list[int] = []
        await pool(self.office)
        await self.office.price(RATE)
        await self.office.topup(self.who[0], 150 * RATE)
        await self.office.launch(self.who[0], 2)

    def do(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self.runner.run(work)

    @rule(hours=st.sampled_from([0.001, 0.5, 3, 24, 100]), step=st.sampled_from([1, 7, 200]))
    def wait(self, hours: float, step: float) -> None:
        self.do(self.office.wait(hours * HOUR, step * HOUR))

    @rule(
        who=st.integers(0, 1),
        amount=st.sampled_from([1, 7 * RATE + 3, 60 * RATE, 500 * RATE]),
        twice=st.booleans(),
    )
    def topup(self, who: int, amount: int, twice: bool) -> None:
        self.seq += 1
        for _ in range(1 + twice):
            self.do(self.office.topup(self.who[who], amount, f"k{self.seq}"))

    @rule(who=st.integers(0, 1), replicas=st.integers(1, 3), ready=st.booleans())
    def launch(self, who: int, replicas: int, ready: bool) -> None:
        with contextlib.suppress(InsufficientBalanceError):
            self.do(self.office.launch(self.who[who], replicas, ready=ready))

    @precondition(lambda self: self.office.machines)
    @rule(which=st.randoms(use_true_random=False))
    def stop(self, which: Any) -> None:
        id = which.choice(sorted(self.office.machines))
        for who in self.who:
            self.do(self.office.stop(who, id))

    @precondition(lambda self: self.office.machines)
    @rule(which=st.randoms(use_true_random=False))
    def flip(self, which: Any) -> None:
        machine = which.choice(self.office.machines[which.choice(sorted(self.office.machines))])
        machine.be(not machine.ready, self.office.now)

    @rule()
    def come_or_go(self) -> None:
        self.office.away = not self.office.away
        self.office.restart()

    @rule(hourly=st.integers(0, 3 * RATE), ahead=st.integers(2, 100_000))
    def price(self, hourly: int, ahead: int) -> None:
        at = round((self.office.now + ahead) * 1000)
        assume(at not in self.told)
        self.told.append(at)
        self.do(self.office.price(hourly, at=at / 1000))

    @rule(who=st.integers(0, 1), prompt=st.integers(0, 10**6), completion=st.none() | st.integers(0, 10**6))
    def use(self, who: int, prompt: int, completion: int | None) -> None:
        if not hasattr(self, "used"):
            self.used = 0
        self.used += 1
        event = tokens(self.used, self.who[who].account, self.office.now, prompt, completion)
        for _ in range(2):  # the second time it is known
            self.do(usage.take(self.office.control, Report("s", 1, (event,))))

    @rule(at=st.integers(1, 4), after=st.booleans())
    def die(self, at: int, after: bool) -> None:
        self.office.db.at, self.office.db.after = self.office.db.writes + at, after
        try:
            self.do(self.office.look())
        except DiedError:
            self.office.restart()
        self.office.db.at = None

    @rule()
    def another_control(self) -> None:
        if not self.office.away:
            self.do(Billing(self.office.control, "two").step())

    @invariant()
    def books_are_right(self) -> None:
        if hasattr(self, "office"):
            self.do(self._check())

    async def _check(self) -> None:
        async with self.office.control.db.read() as tx:
            assert await tx.books.mismatches() == []
            held = {who.account: 0 for who in self.who}
            for bill, _, _ in await tx.runs.bills():
                held[bill.account_id] += bill.held
            for who in self.who:
                wallet = await tx.ledger.wallet(who.account)
                assert wallet.held == held[who.account]
                assert wallet.owed == sum(c.owed for c in (await tx.bills.carries(who.account)).values())

    def teardown(self) -> None:
        if not hasattr(self, "office"):
            return
        self.office.away = False
        self.do(self.office.look())
        self.do(self.office.close())
        self.books_are_right()
        recompute(self.world.root / "pillion.db")
        self.do(self._runs_are_true())
        self.do(self.context.__aexit__(None, None, None))
        self.runner.close()
        self.folder.cleanup()

    async def _runs_are_true(self) -> None:
        """No replica is charged for a moment in which it was not ready."""
        truth = {m.replica.id: m.truth for m in self.office.all_ever}
        async with self.office.control.db.read() as tx:
            rows = await tx.runs.all_of(sorted(truth))
        for replica, stretches in truth.items():
            pieces = sorted((run.began_ms, run.seen_ms) for run in rows if run.replica == replica)
            assert all(a[1] <= b[0] for a, b in pairwise(pieces)), pieces
            for began, ended in pieces:
                covered = sum(max(0, min(ended, b * 1000) - max(began, a * 1000)) for a, b in stretches)
                assert ended - began - covered <= 2, (replica, began, ended, stretches)


Bookkeeping.TestCase.settings = settings(
    max_examples=60 if FULL else 12,
    stateful_step_count=50 if FULL else 30,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
test_bookkeeping = Bookkeeping.TestCase


async def test_a_month_of_everything(tmp_path: Path) -> None:
    world = World(tmp_path, {"local": FakeFleet("local", "http://nowhere")})
    world.clock.began = 1_700_000_000.0
    async with world.control(run=False) as control:
        office = Office(world, control)
        who = await world.account(control, "a")
        await pool(office)
        await office.price(RATE)
        await office.topup(who, 300 * RATE)
        first = await office.launch(who, 2)
        for day in range(30):
            if day % 7 == 3:
                await office.topup(who, 400 * RATE + day)
                await office.price(RATE + day * 1001, at=office.now + 3.5 * HOUR)
            if day % 5 == 1:
                machines = office.machines.get(first.id, [])
                for machine in machines[:1]:
                    machine.be(not machine.ready, office.now)
            if day % 11 == 8:
                await office.launch(who)
            office.away = day % 9 == 5
            event = tokens(day + 1, who.account, office.now, 12_345 + day, 678)
            await usage.take(control, Report("s", 1, (event,)))
            await office.wait(24 * HOUR, (8 if FULL else 24) * HOUR)
        office.away = False
        await office.look()
        await office.close()
        kinds = [kind for kind, _ in await office.entries(who)]
        async with control.db.read() as tx:
            assert await tx.books.mismatches() == []
    assert {"topup", "hold", "settlement", "refund", "usage"} == set(kinds)
    assert kinds.count("hold") > 20
    assert "open 0" in recompute(tmp_path / "pillion.db")


async def test_the_script_finds_what_is_wrong(tmp_path: Path) -> None:
    world = World(tmp_path, {"local": FakeFleet("local", "http://nowhere")})
    async with world.control(run=False) as control:
        office = Office(world, control)
        who = await world.account(control, "a")
        await pool(office)
        await usage.take(control, Report("s", 1, (tokens(1, who.account, office.now, 10**6, 0),)))
    with pytest.raises(AssertionError, match="open 150001"):
        recompute(tmp_path / "pillion.db")
