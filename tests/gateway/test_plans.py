"""What is kept from request to request is what would be worked out anew, however snapshots change."""

from __future__ import annotations

import asyncio
import functools
from typing import Any

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from pillion.core.choice import rank
from pillion.core.errors import PillionError
from pillion.core.routing import Route, Routes
from pillion.core.snapshot import Canary, Instance, Replica, Snapshot, decode_news, encode
from pillion.core.standing import COLD
from pillion.gateway.knowledge import Knowledge
from pillion.gateway.outbox import Outbox
from pillion.gateway.plans import Plans
from pillion.gateway.pool import Pool
from tests.gateway.world import ACME, BASE, OTHER, make_adapter, make_instance, make_replica, make_snapshot
from tests.snapshots import difference

ASKS = [
    (account, model, ref)
    for account in (ACME, OTHER)
    for model, ref in [
        (BASE, None),
        (f"{BASE}:1", None),
        *((f"ft{row}:{row}", None) for row in range(1, 4)),
        (f"{BASE}:2", "1"),
        (BASE, "2"),
    ]
]
ROWS = range(1, 4)


def engine(row: int, version: int = 1) -> str:
    return f"adp_{row}@{version}"


@st.composite
def replicas(draw: st.DrawFn, name: str) -> Replica:
    names = st.builds(engine, st.sampled_from(ROWS), st.sampled_from([1, 2]))
    return msgspec.structs.replace(
        make_replica(name, url=f"http://{draw(st.sampled_from('xxxy'))}"),
        resident=frozenset(draw(st.lists(names, max_size=4))),
        ready=draw(st.sampled_from([True, True, True, False])),
        region=draw(st.sampled_from(["local", "local", "eu-1"])),
        agent_url=draw(st.sampled_from(["http://agent", "http://agent", None])),
    )


@st.composite
def snapshots(draw: st.DrawFn, version: int) -> Snapshot:
    adapters = [
        make_adapter(
            row,
            draw(st.sampled_from([ACME, ACME, OTHER])),
            engine_name=engine(row, draw(st.sampled_from([1, 2]))),
            instances=tuple(draw(st.lists(st.sampled_from([1, 2, 3]), unique=True))),
            region=draw(st.sampled_from([None, None, "eu-1"])),
            rank=8,
            permit=draw(st.sampled_from([None, b"permit"])),
            canary=draw(st.sampled_from([None, Canary(2, engine(row, 2), 0.5)])),
        )
        for row in draw(st.lists(st.sampled_from(ROWS), unique=True, min_size=1))
    ]
    instances = [
        make_instance(
            number,
            *(draw(replicas(f"r{number}-{n}")) for n in range(draw(st.integers(0, 3)))),
            account=draw(st.sampled_from([ACME, None])),
            on_demand=draw(st.booleans()),
            max_rank=draw(st.sampled_from([4, 8])),
            openai_compatible=draw(st.sampled_from([True, True, True, False])),
        )
        for number in draw(st.lists(st.sampled_from([1, 2, 3]), unique=True, min_size=1))
    ]
    return make_snapshot(*adapters, *sorted(instances, key=lambda one: one.id), version=version)


@st.composite
def next_one(draw: st.DrawFn, before: Snapshot) -> Snapshot:
    """Mostly it differs in what one replica has, or is."""
    version = before.version + 1
    places = [(i, r) for i in before.instances for r in i.replicas]
    what = draw(st.integers(0, 5))
    if what == 1:
        return msgspec.structs.replace(before, version=version, adapters=draw(snapshots(version)).adapters)
    if not places or what == 0:
        return draw(snapshots(version))
    instance, replica = draw(st.sampled_from(places))
    other = draw(replicas(replica.id))
    if draw(st.booleans()):
        other = msgspec.structs.replace(replica, resident=other.resident)
    found = tuple(other if one is replica else one for one in instance.replicas)
    changed = msgspec.structs.replace(instance, replicas=found)
    instances = tuple(changed if one is instance else one for one in before.instances)
    return msgspec.structs.replace(before, version=version, instances=instances)


def told(resolve: Any, ask: tuple[str, str, str | None]) -> Any:
    def all_of(route: Route) -> Any:
        found = [
            (
                c.replica.id,
                c.replica.url,
                c.replica.region,
                c.instance.id,
                c.instance.max_rank,
                c.tier,
                c.resident,
            )
            for c in route.candidates
        ]
        return found, route.upstream_name, route.canary and all_of(route.canary)

    try:
        return all_of(resolve(*ask))
    except PillionError as error:
        return error.body()


def plans_of(knowledge: Knowledge) -> Plans:
    return Plans(knowledge, _pool(), lambda: 1_000.0, 60.0)


@functools.cache
def _pool() -> Pool:
    async def make() -> Pool:
        return Pool(3.0, Outbox())

    return asyncio.run(make())


@given(st.data())
def test_what_is_kept_is_what_is_true(data: st.DataObject) -> None:
    snapshot = data.draw(snapshots(1))
    knowledge = Knowledge(lambda: 1_000.0, 60.0)
    knowledge.apply(Routes(snapshot), 1_000.0)
    plans = plans_of(knowledge)
    for _ in range(data.draw(st.integers(2, 6))):
        fresh = Routes(snapshot)
        for ask in ASKS:
            assert told(plans.resolve, ask) == told(functools.partial(fresh.resolve, now=1_000.0), ask)
        for _ in range(data.draw(st.sampled_from([1, 1, 1, 2]))):
            after = data.draw(next_one(snapshot))
            news: Any = decode_news(encode(difference(snapshot, after)))
            knowledge.apply(knowledge.newest().patched(news), 1_000.0)
            snapshot = after


@given(snapshots(1))
def test_candidates_are_those_that_may_answer_in_their_order(snapshot: Snapshot) -> None:
    routes = Routes(snapshot)
    for adapter in snapshot.adapters:
        ask = f"ft{adapter.row_id}:{adapter.row_id}"
        try:
            route = routes.resolve(adapter.account, ask, None, 0.0)
        except PillionError:
            assert not able(snapshot, adapter)
            continue
        expected = able(snapshot, adapter)
        ranked = rank(f"{adapter.account}/{adapter.id}", expected, lambda one: one[2])
        assert [(c.tier, not c.resident, c.replica.id) for c in route.candidates] == sorted(
            ranked, key=lambda one: one[:2]
        )


def able(snapshot: Snapshot, adapter: Any) -> list[tuple[int, bool, str]]:
    """Tier, whether it is not there, and the replica's id: by the rules of SPEC §4, one by one."""
    found = []
    for i in snapshot.instances:
        if i.account not in (adapter.account, None) or not i.openai_compatible:
            continue
        takes = i.on_demand and adapter.permit is not None and adapter.rank <= i.max_rank
        for r in i.replicas:
            there = adapter.engine_name in r.resident and (i.id in adapter.instances or takes)
            if r.ready and adapter.region in (None, r.region) and (there or (takes and r.agent_url)):
                found.append((0 if i.account else 1, not there, r.id))
    return found


def crowd(count: int) -> tuple[Instance, Any]:
    adapter = make_adapter(1, engine_name=engine(1), instances=(), rank=8, permit=b"permit")
    made = [
        msgspec.structs.replace(
            make_replica(f"r{n}"), agent_url="http://agent", resident=frozenset({engine(2)})
        )
        for n in range(count)
    ]
    return make_instance(1, *made, account=None, on_demand=True, max_rank=8), adapter


def test_of_many_replicas_the_first_are_candidates() -> None:
    instance, adapter = crowd(500)
    routes = Routes(make_snapshot(adapter, instance))
    route = routes.resolve(ACME, "ft1:1", None, 0.0)
    order = rank(f"{ACME}/{adapter.id}", [r.id for r in instance.replicas], lambda id: id)
    assert [c.replica.id for c in route.candidates] == list(order[:COLD])
    assert len(routes.resolve(ACME, BASE, None, 0.0).candidates) == 500


def test_a_route_stays_the_same_object_while_others_come_and_go() -> None:
    instance, adapter = crowd(100)
    snapshot = make_snapshot(adapter, instance)
    knowledge = Knowledge(lambda: 1_000.0, 60.0)
    knowledge.apply(Routes(snapshot), 1_000.0)
    plans = plans_of(knowledge)
    kept = plans.resolve(ACME, "ft1:1", None)

    def hold(number: int, *names: str) -> None:
        nonlocal snapshot
        found = list(snapshot.instances[0].replicas)
        found[number] = msgspec.structs.replace(found[number], resident=frozenset(names))
        changed = msgspec.structs.replace(snapshot.instances[0], replicas=tuple(found))
        after = msgspec.structs.replace(snapshot, version=snapshot.version + 1, instances=(changed,))
        delta = difference(snapshot, after)
        assert len(delta.replicas) == 1
        assert not delta.instances
        knowledge.apply(knowledge.newest().patched(delta), 1_000.0)
        snapshot = after

    for number in range(5):
        hold(number, engine(3))
        assert plans.resolve(ACME, "ft1:1", None) is kept
    hold(7, engine(1))
    warm = plans.resolve(ACME, "ft1:1", None)
    assert [c.replica.id for c in warm.candidates if c.resident] == ["r7"]
    hold(7)
    assert not any(c.resident for c in plans.resolve(ACME, "ft1:1", None).candidates)


def test_a_canary_that_arrives_is_noticed() -> None:
    adapter = make_adapter(1, engine_name=engine(1), canary=Canary(2, engine(1, 2), 0.5))
    there = msgspec.structs.replace(make_replica("r"), resident=frozenset({engine(1)}))
    also = msgspec.structs.replace(there, resident=frozenset({engine(1), engine(1, 2)}))
    before, after = (
        make_snapshot(adapter, make_instance(1, one), version=version)
        for version, one in ((1, there), (2, also))
    )
    knowledge = Knowledge(lambda: 1_000.0, 60.0)
    knowledge.apply(Routes(before), 1_000.0)
    plans = plans_of(knowledge)
    assert plans.resolve(ACME, "ft1:1", None).canary is None
    knowledge.apply(knowledge.newest().patched(difference(before, after)), 1_000.0)
    assert plans.resolve(ACME, "ft1:1", None).canary is not None


def test_long_paths_are_not_kept() -> None:
    """A client may choose among very many of them."""
    knowledge = Knowledge(lambda: 1_000.0, 60.0)
    knowledge.apply(Routes(make_snapshot(make_instance(1, make_replica("r")))), 1_000.0)
    plans = plans_of(knowledge)
    route = plans.resolve(ACME, BASE, None)
    for number in range(100):
        path = f"/v1/{number}{'x' * 10_000}"
        assert path.encode() in plans.plan(route, route.candidates[0], path).prefix
    assert sum(len(plan.prefix) for plan in plans._plans.values()) < 100_000
    path = "/v1/chat/completions"
    assert plans.plan(route, route.candidates[0], path) is plans.plan(route, route.candidates[0], path)
