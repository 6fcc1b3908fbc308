"""A random walk of operations and faults: nothing is ever over its cap or another's, and in the end all is as wished."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from pillion.control import adapters, attachments, instances, keys, loads, moves, sessions, versions
from pillion.control.instances import Launch
from pillion.control.keys import Principal
from pillion.control.loads import Load
from pillion.core.replica import LoraSpec
from tests.chaos.walk import REGIONS, Walk
from tests.control.fakes import FakeAgent

FULL = bool(os.environ.get("PILLION_TEST_FULL"))
MOST = 12
Ours = tuple[int, Any]  # which account, and what of it

regions = st.sampled_from(REGIONS)
accounts = st.sampled_from([0, 0, 0, 1])
number = st.integers(0, 30)
rarely = st.sampled_from([False] * 7 + [True])
sessions_of = st.sampled_from(["s1", "s2", None])


class Chaos(RuleBasedStateMachine):
    """What is drawn are numbers: which of the things that are there is meant, of an account of one's own or not."""

    def __init__(self) -> None:
        super().__init__()
        self.walk = Walk()
        self.instances: list[Ours] = []
        self.adapters: list[Ours] = []

    def teardown(self) -> None:
        try:
            self.walk.quiet()
        finally:
            self.walk.close()

    @invariant()
    def nothing_is_over_its_cap_or_anothers(self) -> None:
        self.walk.check()

    def who(self, account: int) -> Principal:
        return self.walk.accounts[account]

    def do(self, work: Callable[[], Awaitable[Any]]) -> Any:
        return self.walk.do(work)

    def agent(self, number: int) -> FakeAgent | None:
        agents = [agent for agent in self.walk.agents if agent.replica.alive]
        return agents[number % len(agents)] if agents else None

    def instance(self, number: int, account: int, stranger: bool = False) -> int:
        found = [id for owner, id in self.instances if (owner == account) != stranger]
        return found[number % len(found)] if found else 999

    def adapter(self, number: int) -> tuple[int, str, Any]:
        """Whose, its id, its row; of nobody where there is none."""
        if not self.adapters:
            return 0, "nobody", None
        account, row = self.adapters[number % len(self.adapters)]
        return account, row.id, row

    def placed(self, number: int) -> tuple[int, str, int]:
        """Whose, which adapter, on which instance; of nobody where nothing is attached or loaded."""
        places = self.walk.placed()
        if not places:
            return 0, "nobody", 999
        account, adapter, instance = places[number % len(places)]
        return [who.account for who in self.walk.accounts].index(account), adapter, instance

    # Operations.

    @initialize()
    def begin(self) -> None:
        self._launch(0, {"eu": 2, "us": 1}, 2)
        self._launch(0, {"us": 1, "asia": 1}, 2)
        for account in (0, 0, 0, 1):
            self.register(account, None)
        for which, on in ((0, 0), (1, 1)):
            self.attach(which, on, False)

    @rule(
        account=accounts, places=st.sets(regions, min_size=1), each=st.integers(1, 2), slots=st.integers(1, 3)
    )
    def launch(self, account: int, places: set[str], each: int, slots: int) -> None:
        if len(self.walk.agents) <= MOST:
            self._launch(account, dict.fromkeys(sorted(places), each), slots)

    def _launch(self, account: int, placement: dict[str, int], slots: int) -> None:
        wish = Launch(
            "tiny",
            regions=list(placement),
            replicas=sum(placement.values()),
            lora=LoraSpec(True, max_adapters=slots),
        )
        made = self.do(lambda: instances.launch(self.walk.control, self.who(account), wish))
        if made is not None:
            self.instances.append((account, made.id))

    @rule(account=accounts, region=st.sampled_from([None, None, None, "eu", "us"]))
    def register(self, account: int, region: str | None) -> None:
        row = self.do(lambda: self.walk.adapter(self.who(account), region))
        if row is not None:
            self.adapters.append((account, row))

    @rule(which=number, on=number, stranger=rarely)
    def attach(self, which: int, on: int, stranger: bool) -> None:
        account, adapter, _ = self.adapter(which)
        instance = self.instance(on, account, stranger)
        made = self.do(lambda: attachments.attach(self.walk.control, self.who(account), instance, adapter))
        assert made is None or not stranger
        if made is not None:
            self.walk.kept.add((adapter, instance))

    @rule(which=number, force=st.booleans())
    def detach(self, which: int, force: bool) -> None:
        account, adapter, instance = self.placed(which)
        self.walk.kept.discard((adapter, instance))
        who = self.who(account)
        self.do(lambda: attachments.detach(self.walk.control, who, instance, adapter, force))

    @rule(which=number, on=number, pin=st.booleans(), ttl=st.sampled_from([None, 100.0]), session=sessions_of)
    def load(self, which: int, on: int, pin: bool, ttl: float | None, session: str | None) -> None:
        account, adapter, _ = self.adapter(which)
        wish = Load([self.instance(on, account)], pin, ttl, session, wait=False)
        self.do(lambda: loads.load(self.walk.control, self.who(account), adapter, wish))

    @rule(which=number)
    def unload(self, which: int) -> None:
        account, adapter, instance = self.placed(which)
        self.do(lambda: loads.unload(self.walk.control, self.who(account), adapter, [instance]))

    @rule(account=accounts, session=st.sampled_from(["s1", "s2"]))
    def end_session(self, account: int, session: str) -> None:
        self.do(lambda: sessions.end(self.walk.control, self.who(account), session))

    @rule(which=number, to=number)
    def move(self, which: int, to: int) -> None:
        account, adapter, source = self.placed(which)
        target = self.instance(to, account)
        self.walk.kept -= {(adapter, source), (adapter, target)}
        self.do(lambda: moves.move(self.walk.control, self.who(account), adapter, source, target))

    @rule(which=number)
    def new_version(self, which: int) -> None:
        account, adapter, row = self.adapter(which)

        async def work() -> None:
            made = await self.walk.version(self.who(account), row)
            await versions.go_live(self.walk.control, self.who(account), adapter, made)

        if row is not None:
            self.do(work)

    @rule(which=number)
    def rollback(self, which: int) -> None:
        account, adapter, _ = self.adapter(which)
        self.do(lambda: versions.rollback(self.walk.control, self.who(account), adapter))

    @rule(which=number, version=st.integers(1, 3))
    def canary(self, which: int, version: int) -> None:
        account, adapter, _ = self.adapter(which)
        self.do(lambda: versions.set_canary(self.walk.control, self.who(account), adapter, version, 0.5))

    @rule(which=number)
    def end_canary(self, which: int) -> None:
        account, adapter, _ = self.adapter(which)
        self.do(lambda: versions.end_canary(self.walk.control, self.who(account), adapter))

    @rule(which=number)
    def stop(self, which: int) -> None:
        if len(self.instances) < 2:
            return
        account, instance = self.instances.pop(which % len(self.instances))
        self.walk.kept = {(adapter, there) for adapter, there in self.walk.kept if there != instance}
        self.do(lambda: instances.stop(self.walk.control, self.who(account), instance))

    @rule(which=number, force=st.booleans())
    def delete(self, which: int, force: bool) -> None:
        """Not forced it is refused where it is in use, so that nothing is lost."""
        account, adapter, row = self.adapter(which)
        if force:
            self.walk.kept = {(a, there) for a, there in self.walk.kept if a != adapter}
        gone = self.do(lambda: adapters.delete(self.walk.control, self.who(account), adapter, force))
        if gone is not None:
            self.adapters.remove((account, row))

    @rule(account=accounts)
    def revoke_a_key(self, account: int) -> None:
        async def work() -> None:
            made = await keys.create(self.walk.control, self.who(account), "k", ["inference"])
            await keys.revoke(self.walk.control, self.who(account), made.id)

        self.do(work)

    @rule(seconds=st.sampled_from([1.0, 50.0, 101.0]))
    def time_passes(self, seconds: float) -> None:
        self.walk.world.clock.ahead += seconds
        self.do(self.walk.tick)

    # Faults.

    @rule(number=number)
    def engine_dies(self, number: int) -> None:
        if (agent := self.agent(number)) is not None:
            agent.crash_engine()

    @rule(number=number)
    def engine_comes_back(self, number: int) -> None:
        if (agent := self.agent(number)) is not None and not agent.ready:
            agent.engine_is_back()

    @rule(number=number)
    def agent_dies(self, number: int) -> None:
        if (agent := self.agent(number)) is not None:
            self.walk.fleet_of(agent).kill(agent)

    @rule(number=number)
    def agent_restarts(self, number: int) -> None:
        if (agent := self.agent(number)) is not None:
            agent.restart()

    @rule(number=number)
    def agent_is_slow(self, number: int) -> None:
        if (agent := self.agent(number)) is not None:
            agent.hold = True

    @rule(number=number)
    def agent_falls_silent(self, number: int) -> None:
        if (agent := self.agent(number)) is not None:
            agent.tell(reachable=False)

    @rule(number=number, which=number)
    def engine_refuses_one(self, number: int, which: int) -> None:
        if (agent := self.agent(number)) is not None:
            agent.fails ^= {self.adapter(which)[1]}

    @rule(region=regions)
    def region_goes_away(self, region: str) -> None:
        fleet = self.walk.world.fleets[region]
        fleet.apply_error = fleet.observe_error = RuntimeError("the region does not answer")
        for agent in fleet.agents.values():
            agent.tell(reachable=False)

    @rule(region=regions)
    def region_comes_back(self, region: str) -> None:
        fleet = self.walk.world.fleets[region]
        fleet.apply_error = fleet.observe_error = None
        for agent in fleet.agents.values():
            if agent.replica.alive:
                agent.tell(reachable=True)

    @rule(commits=st.integers(1, 4))
    def control_is_to_die(self, commits: int) -> None:
        self.walk.kill_after(commits)

    @rule()
    def control_dies(self) -> None:
        self.walk.restart()

    @rule(which=number, on=number)
    def database_is_away_for_a_while(self, which: int, on: int) -> None:
        self.walk.database_away = True
        try:
            self.attach(which, on, False)
            self.do(self.walk.tick)
        finally:
            self.walk.database_away = False

    @rule()
    def all_is_well_for_a_while(self) -> None:
        self.walk.quiet()


TestWalk = Chaos.TestCase
TestWalk.settings = settings(
    max_examples=300 if FULL else 10,
    stateful_step_count=80 if FULL else 30,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    print_blob=True,
)
