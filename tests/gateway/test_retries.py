"""When a request may move to another replica, and when it must not (SPEC §5)."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest
from aiohttp import web
from msgspec.structs import replace

from tests.gateway.conftest import Town
from tests.gateway.site import Engine, chat, free_url, open_stream
from tests.gateway.world import BASE, make_adapter, make_instance, make_replica


async def die(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
    """Takes the request and is gone before a byte of the answer."""
    assert request.transport is not None
    request.transport.abort()
    return web.Response()


async def die_after_headers(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
    response = await open_stream(request)
    assert request.transport is not None
    request.transport.close()
    return response


async def die_in_json(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
    response = web.StreamResponse(headers={"content-type": "application/json", "content-length": "1000"})
    await response.prepare(request)
    await response.write(b'{"model":')
    assert request.transport is not None
    request.transport.close()
    return response


async def fenced(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
    error = {
        "error": {
            "message": f"{body['model']} is fenced",
            "type": "x",
            "param": None,
            "code": "adapter_fenced",
        }
    }
    return web.json_response(error, status=503, headers={"x-pillion-retry": "1"})


def dead(when: str) -> Any:
    """What an engine's gate says where the engine behind it died."""

    async def answer(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        error = {"error": {"message": "The engine died.", "type": "x", "param": None, "code": "engine_dead"}}
        return web.json_response(error, status=503, headers={"x-pillion-dead": when})

    return answer


def first_asked(town: Town) -> Engine:
    """The replica that idle ties go to for adapter 1."""
    return town.a if town.a.asked else town.b


async def test_refused_connection_moves_to_any_healthy_replica(town: Town) -> None:
    gone = [make_replica(f"gone-{n}", town.adapter, url=free_url()) for n in range(4)]
    instance = make_instance(1, *gone, make_replica("a", town.adapter, url=town.a.url))
    await town.publish(town.entry, town.adapter, instance)
    for _ in range(3):
        status, headers, _ = await town.site.chat(town.key, "ft1:1")
        assert (status, headers["x-pillion-replica"]) == (200, "a")
    # The four failed once each; after that they were asked last.
    assert 1 <= await town.site.metric("pillion_gateway_retries_total") <= 4
    assert len(town.a.asked) == 3


async def test_all_refused_is_503(town: Town) -> None:
    instance = make_instance(1, *(make_replica(f"gone-{n}", url=free_url()) for n in range(2)))
    await town.publish(town.entry, town.adapter, instance)
    status, headers, body = await town.site.chat(town.key, BASE)
    assert (status, body["error"]["code"], headers["retry-after"]) == (503, "no_healthy_replica", "2")


@pytest.mark.parametrize("failure", [die, die_after_headers, die_in_json])
async def test_lost_before_the_first_byte_moves_once(town: Town, failure: Any) -> None:
    for engine, other in ((town.a, town.b), (town.b, town.a)):
        engine.behave, other.behave = failure, chat
        status, _, body = await town.site.chat(town.key, "ft1:1", stream=False)
        assert (status, body["model"]) == (200, "ft1:1")


async def test_two_replicas_lost_is_the_end(town: Town) -> None:
    third = Engine()
    town.a.behave = town.b.behave = die
    instance = make_instance(
        1,
        make_replica("a", town.adapter, url=town.a.url),
        make_replica("b", town.adapter, url=town.b.url),
        make_replica("c", town.adapter, url=town.a.url),
        make_replica("d", town.adapter, url=town.b.url),
    )
    await town.publish(town.entry, town.adapter, instance)
    status, headers, body = await town.site.chat(town.key, "ft1:1")
    assert (status, body["error"]["code"]) == (503, "no_healthy_replica")
    assert "retry-after" in headers
    assert len(town.a.asked) + len(town.b.asked) + len(third.asked) == 2


@pytest.mark.parametrize("when", ["before", "during"])
async def test_a_request_that_an_engine_died_with_moves(town: Town, when: str) -> None:
    for engine, other in ((town.a, town.b), (town.b, town.a)):
        engine.behave, other.behave = dead(when), chat
        status, _, body = await town.site.chat(town.key, "ft1:1", stream=False)
        assert (status, body["model"]) == (200, "ft1:1")


async def test_two_engines_that_died_with_it_are_the_end_and_what_no_engine_began_is_free(town: Town) -> None:
    more = [make_replica(name, town.adapter, url=town.b.url) for name in ("b", "c", "d")]
    await town.publish(town.entry, town.adapter, make_instance(1, *more))
    town.b.behave = dead("during")
    status, _, body = await town.site.chat(town.key, "ft1:1")
    assert (status, "not tried again" in body["error"]["message"]) == (503, True)
    assert len(town.b.asked) == 2
    await town.publish(town.entry, make_adapter(2), make_instance(1, *more))
    town.b.asked.clear()
    town.b.behave = dead("before")
    status, _, body = await town.site.chat(town.key, BASE)
    assert (status, body["error"]["code"]) == (503, "no_healthy_replica")
    assert len(town.b.asked) == 3


async def test_retries_stop_when_the_budget_is_spent(town: Town) -> None:
    """Ten in reserve and one for ten requests: a replica that always dies costs no second load."""
    town.a.behave = town.b.behave = die
    for _ in range(30):
        await town.site.chat(town.key, BASE)
    assert len(town.a.asked) + len(town.b.asked) - 30 <= 10 + 3


async def test_fenced_adapter_moves_free_of_charge(town: Town) -> None:
    for engine, other in ((town.a, town.b), (town.b, town.a)):
        engine.behave, other.behave = fenced, chat
        for _ in range(20):
            status, _, _ = await town.site.chat(town.key, "ft1:1")
            assert status == 200


async def test_fenced_everywhere_is_loading(town: Town) -> None:
    town.a.behave = town.b.behave = fenced
    status, headers, body = await town.site.chat(town.key, "ft1:1")
    assert (status, body["error"]["code"], headers["retry-after"]) == (503, "adapter_loading", "1")
    assert "adp_" not in body["error"]["message"]
    assert [len(town.a.asked), len(town.b.asked)] == [1, 1]


async def test_fenced_because_it_was_detached_meanwhile_is_not_deployed(town: Town) -> None:
    async def detach_and_fence(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        if len(town.a.asked) + len(town.b.asked) == 1:
            await town.publish(town.entry, make_adapter(1, instances=()), town.instance(town.a, town.b))
        return await fenced(request, body)

    town.a.behave = town.b.behave = detach_and_fence
    status, _, body = await town.site.chat(town.key, "ft1:1")
    assert (status, body["error"]["code"]) == (404, "adapter_not_deployed")


async def test_never_the_base_for_an_adapter(town: Town) -> None:
    """Only replicas that hold it are asked, whatever fails."""
    town.a.behave = die
    holds = make_replica("a", town.adapter, url=town.a.url)
    lacks = make_replica("b", url=town.b.url)
    await town.publish(town.entry, town.adapter, make_instance(1, holds, lacks))
    status, _, body = await town.site.chat(town.key, "ft1:1")
    assert (status, body["error"]["code"]) == (503, "no_healthy_replica")
    assert not town.b.asked


async def test_an_idle_connection_closed_under_us_costs_nothing(town: Town) -> None:
    """The kept connection dies with the next request on it; the same replica answers on a new one."""
    await town.only(town.a)
    assert (await town.site.chat(town.key, BASE))[0] == 200
    old = town.a.asked[-1][0].transport

    async def only_on_new(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        return await (die if request.transport is old else chat)(request, body)

    town.a.behave = only_on_new
    assert (await town.site.chat(town.key, BASE))[0] == 200
    assert len(town.a.asked) == 3
    assert await town.site.metric("pillion_gateway_upstream_failures_total") == 0


async def test_idle_connections_that_are_all_lost_are_not_two_dead_replicas(town: Town) -> None:
    """What is between has forgotten them, and says so only when something is sent."""
    await town.only(town.a)
    both = asyncio.Barrier(2)

    async def together(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        await both.wait()
        return await chat(request, body)

    town.a.behave = together
    await asyncio.gather(*(town.site.chat(town.key, "ft1:1") for _ in range(2)))
    old = [request.transport for request, _ in town.a.asked]

    async def only_on_new(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        return await (die if request.transport in old else chat)(request, body)

    town.a.behave = only_on_new
    assert (await town.site.chat(town.key, "ft1:1"))[0] == 200
    assert await town.site.metric("pillion_gateway_quarantines_total") == 0


async def test_client_that_leaves_while_it_waits_closes_upstream(town: Town) -> None:
    asked, cancelled = asyncio.Event(), asyncio.Event()

    async def think(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        asked.set()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()
        return web.Response()

    town.a.behave = town.b.behave = think
    waiting = asyncio.ensure_future(town.site.chat(town.key, BASE))
    await asyncio.wait_for(asked.wait(), 10)
    waiting.cancel()
    await asyncio.wait_for(cancelled.wait(), 10)
    assert len(town.a.asked) + len(town.b.asked) == 1


async def test_what_killed_two_replicas_is_refused_for_a_while_and_nothing_else_is(town: Town) -> None:
    other = make_adapter(2)
    replicas = [make_replica(n, town.adapter, other, url=e.url) for n, e in (("a", town.a), ("b", town.b))]
    await town.publish(town.entry, town.adapter, other, make_instance(1, *replicas))
    town.a.behave = town.b.behave = die
    assert (await town.site.chat(town.key, "ft1:1"))[0] == 503
    town.a.behave = town.b.behave = chat
    asked = len(town.a.asked) + len(town.b.asked)
    status, headers, body = await town.site.chat(town.key, f"{BASE}:tune-1")
    assert (status, body["error"]["code"]) == (503, "no_healthy_replica")
    assert "quarantined" in body["error"]["message"]
    assert 50 <= int(headers["retry-after"]) <= 60
    assert len(town.a.asked) + len(town.b.asked) == asked
    assert await town.site.metric("pillion_gateway_quarantines_total") == 1
    assert (await town.site.chat(town.key, BASE))[0] == 200
    assert (await town.site.chat(town.key, "ft2:2"))[0] == 200
    # Another version is other bytes.
    renewed = make_adapter(1, version=4, engine_name=other.engine_name)
    await town.publish(town.entry, renewed, other, make_instance(1, *replicas))
    assert (await town.site.chat(town.key, "ft1:1"))[0] == 200


async def test_what_another_gateway_has_in_quarantine_is_refused_here_too(town: Town) -> None:
    name = town.adapter.engine_name or ""
    replicas = [make_replica(n, town.adapter, url=e.url) for n, e in (("a", town.a), ("b", town.b))]
    for refused, status in (
        ((name, time.time() + 60), 503),
        ((name, time.time() - 1), 200),
        (("another version", time.time() + 60), 200),
        (None, 200),
    ):
        adapter = replace(town.adapter, refused=refused)
        await town.publish(town.entry, adapter, make_instance(1, *replicas))
        got, _, body = await town.site.chat(town.key, "ft1:1")
        assert got == status, body
        assert got == 200 or "quarantined" in body["error"]["message"]
    assert len(town.a.asked) + len(town.b.asked) == 3
