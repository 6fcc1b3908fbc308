"""Versions on the way of a request: who gets the canary, and what happens to one that meets a flip."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import msgspec
import pytest
from aiohttp import web

from pillion.core.names import engine_name
from pillion.core.routing import Routes
from pillion.core.snapshot import Adapter, Canary
from pillion.gateway.metrics import MAX_VERSIONS
from tests.gateway.conftest import Town
from tests.gateway.site import chat
from tests.gateway.test_retries import die, fenced
from tests.gateway.world import ACME, make_adapter, make_instance, make_replica, make_snapshot

OLD = make_adapter(1, version=3)
NEW = msgspec.structs.replace(OLD, version=4, engine_name=engine_name(OLD.id, "4" * 64))
assert OLD.engine_name is not None
assert NEW.engine_name is not None


def with_canary(share: float, **changes: Any) -> Adapter:
    assert NEW.engine_name is not None
    return msgspec.structs.replace(OLD, canary=Canary(4, NEW.engine_name, share), **changes)


def versions_routed(adapter: Adapter, *replicas: Any) -> dict[str, int | None]:
    """Version by draw."""
    routes = Routes(make_snapshot(adapter, make_instance(1, *replicas)))
    route = routes.resolve(ACME, "ft1:1", None, 1_000.0)
    found = {}
    for draw in ("0.0", "0.29", "0.3", "0.99"):
        drawn = route.drawn(float(draw))
        assert all(c.resident for c in drawn.candidates)
        found[draw] = drawn.version
    return found


def test_a_canary_gets_its_share_where_it_is_resident() -> None:
    both, old = make_replica("a", OLD, NEW), make_replica("b", OLD)
    assert versions_routed(with_canary(0.3), both, old) == {"0.0": 4, "0.29": 4, "0.3": 3, "0.99": 3}
    assert set(versions_routed(with_canary(0.0), both).values()) == {3}
    assert set(versions_routed(with_canary(1.0), both).values()) == {4}


def test_a_canary_that_is_nowhere_leaves_all_to_the_live_version() -> None:
    old, resting = make_replica("a", OLD), make_replica("b", OLD, NEW, ready=False)
    assert set(versions_routed(with_canary(1.0), old, resting).values()) == {3}


async def test_a_canary_that_kills_is_found_out(town: Town) -> None:
    """And goes no further: the live version answers from then on."""

    async def deadly(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        return await (die if body["model"] == NEW.engine_name else chat)(request, body)

    town.a.behave = town.b.behave = deadly
    replicas = [
        make_replica(n, OLD, NEW, url=e.url) for n, e in (("a", town.a), ("b", town.b), ("c", town.a))
    ]
    await town.publish(town.entry, with_canary(1.0), make_instance(1, *replicas))
    for _ in range(10):
        status, headers, _ = await town.site.chat(town.key, "ft1:1")
        assert (status, headers["x-pillion-adapter-version"]) == (200, "3")
    asked = Counter(body["model"] for _, body in (*town.a.asked, *town.b.asked))
    assert asked[OLD.engine_name] == 10
    assert 2 <= asked[NEW.engine_name] <= 4, "a connection that was kept may have ended for its age"


def test_a_canary_is_not_loaded_for_a_request() -> None:
    able = make_replica("a", OLD, agent_url="http://agent", load_key="load")
    adapter = with_canary(1.0, permit=b"permit", rank=8)
    routes = Routes(make_snapshot(adapter, make_instance(1, able, on_demand=True, max_rank=64)))
    assert routes.resolve(ACME, "ft1:1", None, 1_000.0).canary is None


async def asked(town: Town, count: int) -> Counter[str]:
    """Versions that answered, as the header tells; what engines were asked for agrees."""
    found: Counter[str] = Counter()
    for _ in range(count):
        town.a.asked.clear()
        town.b.asked.clear()
        status, headers, body = await town.site.chat(town.key, "ft1:1")
        assert (status, body["model"]) == (200, "ft1:1")
        version = headers["x-pillion-adapter-version"]
        (engine,) = [engine for engine in (town.a, town.b) if engine.asked]
        assert engine.body["model"] == {"3": OLD.engine_name, "4": NEW.engine_name}[version]
        found[version] += 1
    return found


async def test_requests_are_shared_out(town: Town) -> None:
    replicas = [make_replica(n, OLD, NEW, url=e.url) for n, e in (("a", town.a), ("b", town.b))]
    await town.publish(town.entry, with_canary(0.5), make_instance(1, *replicas))
    found = await asked(town, 60)
    assert min(found["3"], found["4"]) > 5  # one in 10^8 says less
    page = await (await town.site.client.get(f"{town.site.url}/metrics")).text()
    for version, count in found.items():
        line = (
            f'pillion_gateway_adapter_requests_total{{adapter="{OLD.id}",status="200",version="{version}"}}'
        )
        assert f"{line} {count}.0" in page
    await town.publish(town.entry, with_canary(0.0), make_instance(1, *replicas))
    assert await asked(town, 10) == {"3": 10}


@pytest.mark.parametrize("trouble", [die, fenced])
async def test_a_canary_that_does_not_answer_gives_way_to_the_live_version(town: Town, trouble: Any) -> None:
    async def behave(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        return await (trouble if body["model"] == NEW.engine_name else chat)(request, body)

    town.a.behave = behave
    town.b.behave = behave
    replicas = [make_replica("a", OLD, NEW, url=town.a.url), make_replica("b", OLD, url=town.b.url)]
    await town.publish(town.entry, with_canary(1.0), make_instance(1, *replicas))
    status, headers, _ = await town.site.chat(town.key, "ft1:1")
    assert (status, headers["x-pillion-adapter-version"]) == (200, "3")


async def test_a_request_that_meets_a_flip_is_answered_by_the_new_version(town: Town) -> None:
    """Its only replica has fenced the old version while the request was on its way, and has the new one."""
    held, flipped = asyncio.Event(), asyncio.Event()

    async def behave(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        if body["model"] == NEW.engine_name:
            return await chat(request, body)
        held.set()
        await flipped.wait()
        return await fenced(request, body)

    town.a.behave = behave
    instance = make_instance(1, make_replica("a", OLD, NEW, url=town.a.url))
    await town.publish(town.entry, OLD, instance)
    asking = asyncio.create_task(town.site.chat(town.key, "ft1:1"))
    await asyncio.wait_for(held.wait(), 10)
    await town.publish(town.entry, NEW, instance)
    flipped.set()
    status, headers, _ = await asking
    assert (status, headers["x-pillion-adapter-version"]) == (200, "4")


async def test_a_version_fenced_everywhere_is_not_asked_for_for_ever(town: Town) -> None:
    town.a.behave = town.b.behave = fenced
    replicas = [make_replica(n, OLD, NEW, url=e.url) for n, e in (("a", town.a), ("b", town.b))]
    await town.publish(town.entry, with_canary(1.0), make_instance(1, *replicas))
    status, _, body = await town.site.chat(town.key, "ft1:1")
    assert (status, body["error"]["code"]) == (503, "adapter_loading")
    assert len(town.a.asked) + len(town.b.asked) <= 3


async def test_metrics_of_versions_are_bounded(town: Town) -> None:
    from pillion.gateway.knowledge import Knowledge
    from pillion.gateway.metrics import Metrics

    metrics = Metrics(Knowledge(lambda: 0.0, 1.0))
    for number in range(MAX_VERSIONS + 50):
        metrics.version_answered(msgspec.structs.replace(OLD, id=f"adp_{number}"), 200)
    lines = [line for line in metrics.own().decode().splitlines() if "adapter_requests_total{" in line]
    assert len(lines) == MAX_VERSIONS + 1
    assert 'adapter="other",status="200",version=""} 50.0' in "".join(lines)
