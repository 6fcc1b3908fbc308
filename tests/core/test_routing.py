"""SPEC §2 as tables: what each form of `model` and header resolves to, and what is refused how."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.world import (
    ACME,
    BASE,
    OTHER,
    adapter_id,
    make_adapter,
    make_instance,
    make_replica,
    make_snapshot,
)
from pillion.core.errors import PillionError
from pillion.core.routing import Candidate, Route, Routes
from pillion.core.snapshot import Adapter, Model, Snapshot

NOW = 5_000.0
MINE = make_adapter(1, name="support", labels=("refunds", "ft10"), created_at=77.9)
SECOND = make_adapter(2, name="legal", labels=("ft11",))
FOREIGN = make_adapter(3, OTHER, name="secret", labels=("ft12",), instances=(9,))
DETACHED = make_adapter(4, name="idle", labels=("ft13",), instances=())
LOADING = make_adapter(5, name="fresh", labels=("ft14",))
EXPIRED = make_adapter(6, name="short", labels=("ft15",), expires_at=NOW)
SHORT_LIVED = make_adapter(7, name="brief", labels=("ft16",), expires_at=NOW + 1)
ASLEEP = make_adapter(8, name="asleep", labels=("ft17",), instances=(2,))
DRAFT = make_adapter(9, name="draft", labels=("ft18",), engine_name=None, version=None)
STRANDED = make_adapter(10, name="stranded", labels=("ft19",), instances=(404,))
REGIONAL = make_adapter(11, name="regional", labels=("ft20",), region="eu-1")
LOST_REGION = make_adapter(12, name="lost", labels=("ft21",), region="mars-1")
TRESPASSER = make_adapter(13, name="trespasser", labels=("ft22",), instances=(9,))
ON_POOL = make_adapter(14, name="pooled", labels=("ft23",), instances=(3,))
OTHER_BASE = make_adapter(15, name="elsewhere", labels=("ft24",), base="llama-8b", instances=(4,))

HERE = (MINE, SECOND, EXPIRED, SHORT_LIVED, TRESPASSER)
SNAPSHOT = make_snapshot(
    MINE, SECOND, FOREIGN, DETACHED, LOADING, EXPIRED, SHORT_LIVED, ASLEEP, DRAFT, STRANDED, REGIONAL, LOST_REGION,
    TRESPASSER, ON_POOL, OTHER_BASE,
    make_instance(
        1,
        make_replica("own-a", *HERE, REGIONAL),
        make_replica("own-b", *HERE, REGIONAL, region="eu-1"),
        make_replica("own-down", *HERE, ready=False),
        created_at=50.0,
    ),
    make_instance(2, make_replica("asleep", ASLEEP, ready=False)),
    make_instance(3, make_replica("pool", ON_POOL, MINE), account=None),
    make_instance(4, make_replica("llama", OTHER_BASE), model="llama-8b", served_model="llama-8b"),
    make_instance(5, make_replica("raw"), model="diffuser", openai_compatible=False, custom_api_path="/generate"),
    make_instance(9, make_replica("foreign", FOREIGN, TRESPASSER), account=OTHER),
    Model("llama-8b", ACME, "chat", True),
    Model("diffuser", ACME, "custom", False),
    Model("nowhere", None, "chat", True),
    Model("their-own", OTHER, "chat", True),
)  # fmt: skip
ROUTES = Routes(SNAPSHOT)


def replicas(route: Route) -> list[str]:
    return [candidate.replica.id for candidate in route.candidates]


def refusal(model: str, ref: str | None = None, account: str = ACME, routes: Routes = ROUTES) -> PillionError:
    with pytest.raises(PillionError) as caught:
        routes.resolve(account, model, ref, NOW)
    return caught.value


@pytest.mark.parametrize(
    ("model", "ref", "adapter", "where"),
    [
        ("refunds:1", None, MINE, ["own-a", "own-b"]),
        ("ft10:1", None, MINE, ["own-a", "own-b"]),
        (f"{BASE}:support", None, MINE, ["own-a", "own-b"]),
        (BASE, "support", MINE, ["own-a", "own-b"]),
        (BASE, "1", MINE, ["own-a", "own-b"]),
        (BASE, adapter_id(1), MINE, ["own-a", "own-b"]),
        (f"{BASE}:1", "support", MINE, ["own-a", "own-b"]),
        ("refunds:1", "support", MINE, ["own-a", "own-b"]),
        (f"{BASE}:support", "1", MINE, ["own-a", "own-b"]),
        (f"{BASE}:legal", None, SECOND, ["own-a", "own-b"]),
        ("ft16:7", None, SHORT_LIVED, ["own-a", "own-b"]),
        ("ft20:11", None, REGIONAL, ["own-b"]),
        ("ft23:14", None, ON_POOL, ["pool"]),
        ("llama-8b:elsewhere", None, OTHER_BASE, ["llama"]),
        (BASE, None, None, ["own-a", "own-b", "pool"]),
        (f"{BASE}:1", None, None, ["own-a", "own-b"]),
        (f"{BASE}:3", None, None, ["pool"]),
        ("llama-8b", None, None, ["llama"]),
        ("llama-8b:4", None, None, ["llama"]),
    ],
)
def test_resolves(model: str, ref: str | None, adapter: Adapter | None, where: list[str]) -> None:
    route = ROUTES.resolve(ACME, model, ref, NOW)
    assert (route.adapter, sorted(replicas(route)), route.echo) == (adapter, sorted(where), model)
    tiers = [candidate.tier for candidate in route.candidates]
    assert tiers == sorted(tiers)
    assert route.kind == ("base" if adapter is None else "adapter")
    for candidate in route.candidates:
        expected = adapter.engine_name if adapter else candidate.instance.served_model
        assert route.upstream_model(candidate) == expected


@pytest.mark.parametrize(
    ("model", "ref", "status", "code"),
    [
        ("unknown", None, 404, "model_not_found"),
        ("", None, 404, "model_not_found"),
        ("Qwen3 4B", None, 404, "model_not_found"),
        ("x" * 10_000, None, 404, "model_not_found"),
        (f"{BASE}:", None, 404, "model_not_found"),
        (f"{BASE}:1:2", None, 404, "model_not_found"),
        (f"{BASE}:01", None, 404, "model_not_found"),
        (f"{BASE}:99", None, 404, "model_not_found"),
        (f"{BASE}:9", None, 404, "model_not_found"),
        (f"{BASE}:4", None, 404, "model_not_found"),
        (f"{BASE}:unknown", None, 404, "model_not_found"),
        (f"{BASE}:secret", None, 404, "model_not_found"),
        (f"{BASE}:refunds", None, 404, "model_not_found"),
        ("llama-8b:support", None, 404, "model_not_found"),
        ("support", None, 404, "model_not_found"),
        ("refunds", None, 404, "model_not_found"),
        ("refunds:2", None, 404, "model_not_found"),
        ("ft12:3", None, 404, "model_not_found"),
        ("ft11:1", None, 404, "model_not_found"),
        ("their-own", None, 404, "model_not_found"),
        ("nowhere", None, 404, "model_not_found"),
        (BASE, "unknown", 404, "model_not_found"),
        (BASE, "secret", 404, "model_not_found"),
        (BASE, "3", 404, "model_not_found"),
        (BASE, adapter_id(3), 404, "model_not_found"),
        (BASE, "../etc", 404, "model_not_found"),
        (BASE, "", 404, "model_not_found"),
        ("unknown", "support", 404, "model_not_found"),
        ("llama-8b", "support", 400, "base_mismatch"),
        ("llama-8b:4", "support", 400, "base_mismatch"),
        ("refunds:1", "legal", 400, "base_mismatch"),
        (f"{BASE}:support", "2", 400, "base_mismatch"),
        (f"{BASE}:3", "legal", 404, "adapter_not_deployed"),
        ("ft13:4", None, 404, "adapter_not_deployed"),
        (f"{BASE}:idle", None, 404, "adapter_not_deployed"),
        (BASE, "idle", 404, "adapter_not_deployed"),
        ("ft15:6", None, 404, "adapter_not_deployed"),
        ("ft18:9", None, 404, "adapter_not_deployed"),
        ("ft19:10", None, 404, "adapter_not_deployed"),
        ("ft22:13", None, 404, "adapter_not_deployed"),
        ("ft14:5", None, 503, "adapter_loading"),
        ("ft17:8", None, 503, "no_healthy_replica"),
        ("ft21:12", None, 503, "no_healthy_replica"),
        (f"{BASE}:2", None, 503, "no_healthy_replica"),
        ("diffuser:5", None, 400, "invalid_request"),
        ("diffuser", None, 400, "invalid_request"),
    ],
)
def test_refuses(model: str, ref: str | None, status: int, code: str) -> None:
    error = refusal(model, ref)
    assert (error.status, error.code) == (status, code)
    assert len(error.message) < 500
    if status == 503:
        assert error.retry_after


def test_unknown_and_foreign_are_the_same_bytes() -> None:
    for foreign, unknown, ref in [
        ("ft12:3", "ft12:4", None),
        (f"{BASE}:secret", f"{BASE}:secres", None),
        (f"{BASE}:9", f"{BASE}:8", None),
        ("their-own", "their-owm", None),
        (BASE, BASE, "secret"),
    ]:
        theirs = json.dumps(refusal(foreign, ref).body())
        other = ref and "secres"
        nobodys = json.dumps(refusal(unknown, other).body())
        assert theirs == nobodys.replace(unknown, foreign).replace("secres", "secret")


def test_not_deployed_tells_how_to_deploy() -> None:
    message = refusal("ft13:4").message
    assert f"/v1/adapters/{adapter_id(4)}/deploy" in message
    assert "idle" in message


def test_custom_container_is_told_its_path() -> None:
    assert "/inference-instances/5/proxy/generate" in refusal("diffuser:5").message


def test_own_instances_come_before_pools() -> None:
    tiers = {c.replica.id: c.tier for c in ROUTES.resolve(ACME, BASE, None, NOW).candidates}
    assert tiers == {"own-a": 0, "own-b": 0, "pool": 1}
    assert replicas(ROUTES.resolve(OTHER, BASE, None, NOW)) == ["foreign", "pool"]


def test_row_id_and_instance_id_with_the_same_number() -> None:
    """`refunds:1` is adapter 1, `<base>:1` is instance 1: the head tells them apart."""
    assert ROUTES.resolve(ACME, "refunds:1", None, NOW).adapter is MINE
    assert ROUTES.resolve(ACME, f"{BASE}:1", None, NOW).adapter is None


def test_a_broken_promise_of_uniqueness_is_ambiguous() -> None:
    twins = make_adapter(20, name="twin"), make_adapter(21, name="twin")
    label_like_model = make_adapter(1, labels=(BASE,))
    routes = Routes(
        make_snapshot(*twins, label_like_model, make_instance(1, make_replica("r", *twins, label_like_model)))
    )
    assert refusal(f"{BASE}:twin", routes=routes).code == "ambiguous_ref"
    assert refusal(BASE, "twin", routes=routes).code == "ambiguous_ref"
    assert refusal(f"{BASE}:1", routes=routes).code == "ambiguous_ref"


def test_lists_what_can_be_called() -> None:
    listed = {entry["id"]: entry for entry in ROUTES.list_models(ACME, NOW)}
    assert set(listed) == {
        BASE, f"{BASE}:1", f"{BASE}:3", "llama-8b", "llama-8b:4",
        "refunds:1", f"{BASE}:support", "ft11:2", f"{BASE}:legal", "ft16:7", f"{BASE}:brief",
        "ft20:11", f"{BASE}:regional", "ft23:14", f"{BASE}:pooled", "ft24:15", "llama-8b:elsewhere",
    }  # fmt: skip
    assert listed["refunds:1"] == {
        "id": "refunds:1", "object": "model", "created": 77, "owned_by": ACME, "parent": BASE,
    }  # fmt: skip
    assert listed[BASE]["parent"] is None
    assert listed[f"{BASE}:1"]["created"] == 50
    assert (listed[f"{BASE}:1"]["owned_by"], listed[f"{BASE}:3"]["owned_by"]) == (ACME, "pillion")


def test_every_listed_model_resolves() -> None:
    for account in (ACME, OTHER, "acc_nobody"):
        for entry in ROUTES.list_models(account, NOW):
            assert ROUTES.resolve(account, entry["id"], None, NOW).candidates


def test_an_account_without_anything_has_the_pools() -> None:
    assert [e["id"] for e in ROUTES.list_models("acc_nobody", NOW)] == [BASE, f"{BASE}:3"]


NAMES = st.sampled_from(["a", "b", "c", BASE, "m", "ft1", "ft2"])
SMALL = st.integers(1, 6)


@st.composite
def worlds(draw: st.DrawFn) -> Snapshot:
    """Adapters of two accounts with names and labels that collide, attached and resident anywhere."""
    adapters = [
        make_adapter(
            row,
            draw(st.sampled_from([ACME, OTHER])),
            name=draw(NAMES),
            labels=tuple(draw(st.lists(NAMES, min_size=1, max_size=3))),
            base=draw(st.sampled_from([BASE, "m"])),
            instances=tuple(draw(st.lists(SMALL, max_size=3))),
            region=draw(st.sampled_from([None, "local", "eu-1"])),
            expires_at=draw(st.sampled_from([None, NOW - 1, NOW, NOW + 1])),
        )
        for row in draw(st.lists(SMALL, unique=True))
    ]
    instances = [
        make_instance(
            number,
            *(
                make_replica(
                    f"r{number}-{index}",
                    *draw(st.lists(st.sampled_from(adapters), max_size=6) if adapters else st.just([])),
                    ready=draw(st.booleans()),
                    region=draw(st.sampled_from(["local", "eu-1"])),
                )
                for index in range(draw(st.integers(0, 2)))
            ),
            account=draw(st.sampled_from([ACME, OTHER, None])),
            model=draw(st.sampled_from([BASE, "m"])),
            openai_compatible=draw(st.booleans()),
        )
        for number in draw(st.lists(SMALL, unique=True))
    ]
    return make_snapshot(
        *adapters, *instances, Model("m", draw(st.sampled_from([ACME, OTHER, None])), "chat", True)
    )


ASKS = st.tuples(
    st.one_of(NAMES, st.builds("{}:{}".format, NAMES, st.one_of(NAMES, SMALL)), st.text(max_size=8)),
    st.one_of(st.none(), NAMES, SMALL.map(str), SMALL.map(adapter_id), st.text(max_size=5)),
)


def has(world: Snapshot, candidate: Candidate) -> frozenset[str]:
    return next(r.resident for i in world.instances for r in i.replicas if r.id == candidate.replica.id)


@given(worlds(), ASKS, st.data())
def test_never_a_foreign_adapter_nor_another_answerer(
    world: Snapshot, ask: tuple[str, str | None], data: st.DataObject
) -> None:
    model, ref = ask
    if world.adapters and data.draw(st.booleans()):
        adapter = data.draw(st.sampled_from(world.adapters))
        model, ref = f"{adapter.labels[0]}:{adapter.row_id}", None
    try:
        route = Routes(world).resolve(ACME, model, ref, NOW)
    except PillionError:
        return
    assert route.candidates
    assert (route.adapter is not None) or ref is None
    for candidate in route.candidates:
        assert candidate.replica.ready
        assert candidate.instance.account in (ACME, None)
        assert candidate.instance.model == route.base
        assert candidate.instance.openai_compatible
        if route.adapter is not None:
            adapter = route.adapter
            assert adapter.account == ACME
            assert adapter.expires_at is None or adapter.expires_at > NOW
            assert candidate.instance.id in adapter.instances
            assert route.upstream_model(candidate) == adapter.engine_name
            assert adapter.engine_name in has(world, candidate)
            assert adapter.region in (None, candidate.replica.region)


@given(worlds(), ASKS)
def test_what_another_account_has_changes_nothing(world: Snapshot, ask: tuple[str, str | None]) -> None:
    """The answer is the same, byte for byte, as if the other account had nothing at all."""

    def only_mine(rows):  # type: ignore[no-untyped-def]
        return tuple(row for row in rows if row.account != OTHER)

    alone = make_snapshot(
        *only_mine(world.adapters), *only_mine(world.instances), *only_mine(world.models[1:])
    )

    def outcome(snapshot: Snapshot) -> object:
        try:
            return Routes(snapshot).resolve(ACME, *ask, NOW)
        except PillionError as error:
            return error.status, error.body(), error.headers()

    assert outcome(world) == outcome(alone)
    assert Routes(world).list_models(ACME, NOW) == Routes(alone).list_models(ACME, NOW)


def on_demand_routes(adapter: Adapter, *, max_rank: int = 16, own: bool = True, **fields: object) -> Routes:
    """Adapter 1's owner has instance 1, which may load on demand, and there is a pool that does."""
    asked = {"agent_url": "http://agent", "load_key": "k"} | fields
    return Routes(
        make_snapshot(
            adapter,
            make_instance(
                1,
                make_replica("own", **asked),
                account=ACME if own else OTHER,
                on_demand=True,
                max_rank=max_rank,
            ),
            make_instance(2, make_replica("plain", **asked)),
            make_instance(3, make_replica("pool", **asked), account=None, on_demand=True, max_rank=64),
        )
    )


COLD = make_adapter(1, instances=(), rank=8, permit=b"permit")


@pytest.mark.parametrize(
    ("adapter", "more", "where"),
    [
        (COLD, {}, ["own", "pool"]),
        (COLD, {"max_rank": 4}, ["pool"]),
        (COLD, {"own": False}, ["pool"]),
        (make_adapter(1, instances=(2,), rank=8, permit=b"permit"), {}, ["own", "pool"]),
    ],
)
def test_on_demand_it_may_go_where_it_is_not_yet(
    adapter: Adapter, more: dict[str, Any], where: list[str]
) -> None:
    route = on_demand_routes(adapter, **more).resolve(ACME, "ft1:1", None, NOW)
    assert replicas(route) == where
    assert not any(candidate.resident for candidate in route.candidates)


def test_where_it_is_comes_before_where_it_would_have_to_be_loaded() -> None:
    there = make_instance(
        1,
        *(make_replica(f"cold-{n}", agent_url="http://agent") for n in range(4)),
        make_replica("warm", COLD),
        on_demand=True,
        max_rank=8,
    )
    route = Routes(make_snapshot(COLD, there)).resolve(ACME, "ft1:1", None, NOW)
    assert [candidate.resident for candidate in route.candidates] == [True] + 4 * [False]
    assert replicas(route)[0] == "warm"


def test_on_demand_is_no_way_around_an_end_or_a_region() -> None:
    over = make_adapter(1, instances=(), rank=8, permit=b"permit", expires_at=NOW)
    assert refusal("ft1:1", routes=on_demand_routes(over)).code == "adapter_not_deployed"
    bound = make_adapter(1, instances=(), rank=8, permit=b"permit", region="eu-1")
    assert refusal("ft1:1", routes=on_demand_routes(bound)).code == "no_healthy_replica"
    unpermitted = make_adapter(1, instances=(), rank=8)
    assert refusal("ft1:1", routes=on_demand_routes(unpermitted)).code == "adapter_not_deployed"
    unheard = on_demand_routes(COLD, agent_url=None)
    assert refusal("ft1:1", routes=unheard).code == "adapter_loading"
    assert refusal(f"{BASE}:1", "1", routes=on_demand_routes(COLD, max_rank=4)).code == "adapter_not_deployed"
