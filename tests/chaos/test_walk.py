"""A random walk of operations and faults under traffic: every answer is right or an honest error, and all comes back."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from pillion.control import adapters, attachments, instances, keys, loads, moves, sessions, versions
from pillion.control.instances import Launch
from pillion.control.keys import Principal
from pillion.control.loads import Load
from pillion.core.replica import LoraSpec
from tests.chaos.country import BASE, SLOTS
from tests.chaos.lives import REGIONS
from tests.chaos.nodes import Engine, Node
from tests.chaos.site import Site

FULL = bool(os.environ.get("PILLION_TEST_FULL"))
MOST = 12
TTL_S = 100.0
pytestmark = pytest.mark.timeout(3600 if FULL else 900)  # what is found is made small, which takes its time
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
        self.site = Site()
        self.instances: list[Ours] = []
        self.adapters: list[Ours] = []
        self.steps = 0

    def teardown(self) -> None:
        try:
            self.site.quiet()
            self.all_answers_are_right()
        finally:
            self.site.close()

    @invariant()
    def all_answers_are_right(self) -> None:
        if self.adapters:
            self.traffic()

    def traffic(self) -> None:
        """Something of everything is asked for."""
        self.steps += 1
        asked = [(account, f"{BASE}:{row.name}") for account, row in self.adapters]
        turn = [asked[(self.steps + n) % len(asked)] for n in range(min(6, len(asked)))]
        self.site.flying = turn[:3]
        self.site.run(self.site.traffic([(0, BASE), (1, BASE), *turn]))
        account, row = self.adapters[self.steps % len(self.adapters)]
        self.site.run(self.site.strangers(account, row))
        self.site.run(self.site.look())
        self.site.check()

    def who(self, account: int) -> Principal:
        return self.site.accounts[account]

    def do(self, work: Callable[[], Awaitable[Any]]) -> Any:
        return self.site.do(work)

    def happens(self, what: Callable[..., Any], *about: Any) -> None:
        """A fault, while requests are under way."""

        async def work() -> None:
            what(*about)

        self.do(work)

    def replica(self, number: int) -> tuple[Node, str]:
        replicas = self.site.replicas
        return replicas[number % len(replicas)]

    def engine(self, number: int) -> Engine:
        node, id = self.replica(number)
        return node.engines[id]

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
        places = self.site.placed()
        if not places:
            return 0, "nobody", 999
        account, adapter, instance = places[number % len(places)]
        return [who.account for who in self.site.accounts].index(account), adapter, instance

    # Operations.

    @initialize()
    def begin(self) -> None:
        """With the pool's there are four replicas in each region."""
        self._launch(0, ["eu", "us"], 4, SLOTS, False)
        self._launch(0, ["asia", "us"], 2, SLOTS, True)
        self._launch(1, ["asia", "eu"], 3, SLOTS, False)
        for account in (0, 0, 0, 1):
            self.register(account, None)
        for which, on in ((0, 0), (1, 1), (3, 0)):
            self.attach(which, on, False)
        self.site.quiet()

    @rule(
        account=accounts,
        places=st.sets(regions, min_size=1),
        each=st.integers(1, 2),
        slots=st.integers(1, 3),
        on_demand=st.booleans(),
    )
    def launch(self, account: int, places: set[str], each: int, slots: int, on_demand: bool) -> None:
        if len(self.site.replicas) <= MOST:
            self._launch(account, sorted(places), each * len(places), slots, on_demand)

    def _launch(self, account: int, places: list[str], replicas: int, slots: int, on_demand: bool) -> None:
        lora = LoraSpec(True, max_adapters=slots, on_demand=on_demand)
        wish = Launch(BASE, regions=places, replicas=replicas, lora=lora)
        made = self.do(lambda: instances.launch(self.site.control, self.who(account), wish))
        if made is not None:
            self.instances.append((account, made.id))

    @rule(account=accounts, region=st.sampled_from([None, None, None, "eu", "us"]))
    def register(self, account: int, region: str | None) -> None:
        row = self.do(lambda: self.site.register(account, region))
        if row is not None:
            self.adapters.append((account, row))

    @rule(which=number, on=number, stranger=rarely)
    def attach(self, which: int, on: int, stranger: bool) -> None:
        account, adapter, _ = self.adapter(which)
        instance = self.instance(on, account, stranger)
        self.site.expired.pop(adapter, None)
        made = self.do(lambda: attachments.attach(self.site.control, self.who(account), instance, adapter))
        assert made is None or not stranger
        if made is not None:
            self.site.kept.add((adapter, instance))

    @rule(which=number, force=st.booleans())
    def detach(self, which: int, force: bool) -> None:
        account, adapter, instance = self.placed(which)
        self.site.kept.discard((adapter, instance))
        who = self.who(account)
        self.do(lambda: attachments.detach(self.site.control, who, instance, adapter, force))

    @rule(which=number, on=number, pin=st.booleans(), ttl=st.sampled_from([None, TTL_S]), session=sessions_of)
    def load(self, which: int, on: int, pin: bool, ttl: float | None, session: str | None) -> None:
        account, adapter, _ = self.adapter(which)
        self.site.expired.pop(adapter, None)
        wish = Load([self.instance(on, account)], pin, ttl, session, wait=False)
        self.do(lambda: loads.load(self.site.control, self.who(account), adapter, wish))

    @rule(which=number)
    def unload(self, which: int) -> None:
        account, adapter, instance = self.placed(which)
        self.do(lambda: loads.unload(self.site.control, self.who(account), adapter, [instance]))

    @rule(account=accounts, session=st.sampled_from(["s1", "s2"]))
    def end_session(self, account: int, session: str) -> None:
        self.do(lambda: sessions.end(self.site.control, self.who(account), session))

    @rule(which=number, to=number)
    def move(self, which: int, to: int) -> None:
        account, adapter, source = self.placed(which)
        target = self.instance(to, account)
        self.site.kept -= {(adapter, source), (adapter, target)}
        self.site.expired.pop(adapter, None)
        self.do(lambda: moves.move(self.site.control, self.who(account), adapter, source, target))

    @rule(which=number, zero=rarely)
    def new_version(self, which: int, zero: bool) -> None:
        """`zero`: it changes nothing, and is not to go live."""
        account, adapter, row = self.adapter(which)

        async def work() -> None:
            made = await self.site.version(row, zero=zero)
            await versions.go_live(self.site.control, self.who(account), adapter, made)

        if row is not None:
            self.do(work)

    @rule(which=number)
    def rollback(self, which: int) -> None:
        account, adapter, _ = self.adapter(which)
        self.do(lambda: versions.rollback(self.site.control, self.who(account), adapter))

    @rule(which=number, version=st.integers(1, 3))
    def canary(self, which: int, version: int) -> None:
        account, adapter, _ = self.adapter(which)
        self.do(lambda: versions.set_canary(self.site.control, self.who(account), adapter, version, 0.5))

    @rule(which=number)
    def end_canary(self, which: int) -> None:
        account, adapter, _ = self.adapter(which)
        self.do(lambda: versions.end_canary(self.site.control, self.who(account), adapter))

    @rule(which=number)
    def stop(self, which: int) -> None:
        if len(self.instances) < 2:
            return
        account, instance = self.instances.pop(which % len(self.instances))
        self.site.kept = {(adapter, there) for adapter, there in self.site.kept if there != instance}
        self.do(lambda: instances.stop(self.site.control, self.who(account), instance))

    @rule(which=number, force=st.booleans())
    def delete(self, which: int, force: bool) -> None:
        """Not forced it is refused where it is in use, so that nothing is lost."""
        account, adapter, row = self.adapter(which)
        if force:
            self.site.kept = {(a, there) for a, there in self.site.kept if a != adapter}
        gone = self.do(lambda: adapters.delete(self.site.control, self.who(account), adapter, force))
        if gone is not None:
            self.adapters.remove((account, row))

    @rule(account=accounts)
    def revoke_a_key(self, account: int) -> None:
        async def work() -> None:
            made = await keys.create(self.site.control, self.who(account), "k", ["inference"])
            gone = await keys.revoke(self.site.control, self.who(account), made.id)
            assert made.key is not None
            answer = await self.site.gateway.ask(made.key, BASE)
            assert answer.status == 401 or gone.unacknowledged, answer

        self.do(work)

    @rule(seconds=st.sampled_from([1.0, 50.0, TTL_S + 2.5]))
    def time_passes(self, seconds: float) -> None:
        self.do(lambda: self.site.pass_time(seconds))

    @rule(on=number, pin=st.booleans(), alone=st.booleans())
    def a_time_to_live_ends(self, on: int, pin: bool, alone: bool) -> None:
        """While control is away, if `alone`. What is asked for at once is refused."""
        self.register(0, None)
        _, row = self.adapters[-1]
        wish = Load([self.instance(on, 0)], pin, TTL_S, wait=False)
        self.do(lambda: loads.load(self.site.control, self.who(0), row.id, wish))
        self.site.run(self.site.served(0, f"{BASE}:{row.name}"))
        if alone:
            self.site.stop_control()
        self.time_passes(TTL_S + 2.5)
        self.traffic()
        if alone:
            self.site.restart()

    # Faults.

    @rule(number=number)
    def engine_dies(self, number: int) -> None:
        node, id = self.replica(number)
        self.happens(node.kill_engine, id)

    @rule(number=number)
    def engine_hangs(self, number: int) -> None:
        self.happens(self.spoil, self.engine(number), {"hang": True})

    @rule(number=number, which=number)
    def engine_refuses_one(self, number: int, which: int) -> None:
        self.happens(self.spoil, self.engine(number), {"refuse_load": self.adapter(which)[1]})

    @rule(number=number, slow=st.sampled_from([1.0, 5.0]))
    def engine_is_slow(self, number: int, slow: float) -> None:
        self.happens(self.spoil, self.engine(number), {"slow": slow})

    @staticmethod
    def spoil(engine: Engine, faults: dict[str, Any]) -> None:
        engine.app.faults = msgspec.structs.replace(engine.app.faults, **faults)

    @rule(number=number)
    def agent_dies(self, number: int) -> None:
        node, id = self.replica(number)
        self.happens(node.kill_agent, id)

    @rule(number=number)
    def agent_and_engine_die(self, number: int) -> None:
        node, id = self.replica(number)
        self.happens(lambda: (node.kill_agent(id), node.kill_engine(id)))

    @rule(region=regions, spoilt=st.booleans(), number=number)
    def a_nodes_copies_are_lost(self, region: str, spoilt: bool, number: int) -> None:
        """Deleted or damaged; and an engine there begins anew, so that they are needed."""
        node = self.site.nodes[region]
        self.happens(node.spoil_cache if spoilt else node.lose_cache)
        here = [id for other, id in self.site.replicas if other is node]
        if here:
            self.happens(node.kill_engine, here[number % len(here)])

    @rule()
    def the_store_goes_away(self) -> None:
        self.happens(self.site.hide_store)

    @rule()
    def the_store_comes_back(self) -> None:
        self.happens(self.site.show_store)

    @rule(region=regions)
    def region_goes_away(self, region: str) -> None:
        self.do(self.site.nodes[region].go_away)

    @rule(region=regions)
    def region_comes_back(self, region: str) -> None:
        self.do(self.site.nodes[region].come_back)

    @rule(who=st.sampled_from(["control", "gateway", *REGIONS]), seconds=st.sampled_from([-0.5, 0.0, 0.5]))
    def a_clock_is_wrong(self, who: str, seconds: float) -> None:
        """Any two of them are a second apart at most."""
        self.happens(self.site.clock.skew.__setitem__, who, seconds)

    @rule()
    def gateway_restarts(self) -> None:
        self.do(self.site.restart_gateway)

    @rule(commits=st.integers(1, 4))
    def control_is_to_die(self, commits: int) -> None:
        self.site.kill_after(commits)

    @rule()
    def control_dies(self) -> None:
        self.site.restart()

    @rule(meanwhile=st.sampled_from(["time", "gateway", "engine", "agent", "nothing"]), number=number)
    def control_is_away_for_a_while(self, meanwhile: str, number: int) -> None:
        self.site.stop_control()
        acts: dict[str, Callable[[], Any]] = {
            "time": lambda: self.time_passes(TTL_S + 2.5),
            "gateway": self.gateway_restarts,
            "engine": lambda: self.engine_dies(number),
            "agent": lambda: self.agent_dies(number),
            "nothing": lambda: None,
        }
        acts[meanwhile]()
        self.traffic()
        self.site.restart()

    @rule(which=number, on=number)
    def database_is_away_for_a_while(self, which: int, on: int) -> None:
        self.site.database_away = True
        try:
            self.attach(which, on, False)
            self.traffic()
        finally:
            self.site.database_away = False

    @rule(often=rarely)
    def all_is_well_for_a_while(self, often: bool) -> None:
        if often:
            self.site.quiet()


TestWalk = Chaos.TestCase
TestWalk.settings = settings(
    max_examples=100 if FULL else 4,
    stateful_step_count=50 if FULL else 20,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    print_blob=True,
)
