"""Loads on demand as a client sees them: one load for all who wait, and an honest error where there is none."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import msgspec
import pytest
from aiohttp import web

from pillion.core.routing import Routes
from pillion.core.snapshot import Adapter, Instance
from pillion.core.spans import Carried
from pillion.gateway import Limits
from pillion.gateway.cold import Asked, Cold, Outcome
from pillion.gateway.knowledge import Knowledge
from tests.gateway.conftest import Town
from tests.gateway.site import Control, Engine, chat, free_url, listening, site
from tests.gateway.test_retries import die, fenced
from tests.gateway.world import ACME, make_adapter, make_instance, make_key, make_replica, make_snapshot

COLD = make_adapter(1, instances=(), rank=8, permit=b"signed")


def refusal(status: int, code: str, message: str = "no", **headers: str) -> web.Response:
    body = {"error": {"message": message, "type": "x", "param": None, "code": code}}
    return web.json_response(body, status=status, headers=headers)


@dataclass
class Agent:
    """Beside an engine, which has what was loaded and nothing else."""

    engine: Engine
    url: str = ""
    asked: list[tuple[str, bytes]] = field(default_factory=list)
    answer: Callable[[], Awaitable[web.Response]] | None = None
    resident: bool = False

    async def handle(self, request: web.Request) -> web.StreamResponse:
        assert (request.method, request.path) == ("POST", "/v1/load")
        self.asked.append((request.headers["authorization"], await request.read()))
        if self.answer is not None:
            return await self.answer()
        was, self.resident = self.resident, True
        return web.json_response({"load_ms": 0.0 if was else 12.5})

    async def serve(self, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        return await (chat if self.resident else fenced)(request, body)


@dataclass
class Place:
    """A gateway that knows of an on-demand instance with replicas `a` and `b`, which hold nothing."""

    town: Town
    a: Agent
    b: Agent

    def instance(self, *agents: Agent, **fields: Any) -> Instance:
        names = {id(self.a): "a", id(self.b): "b"}
        warm = fields.pop("warm", ())
        replicas = (
            make_replica(
                names[id(agent)],
                *((COLD,) if agent in warm else ()),
                url=agent.engine.url,
                agent_url=agent.url,
                load_key=f"load-{names[id(agent)]}",
            )
            for agent in agents
        )
        return make_instance(1, *replicas, **({"on_demand": True, "max_rank": 8} | fields))

    async def only(self, *agents: Agent, adapter: Adapter = COLD, **fields: Any) -> None:
        await self.town.publish(self.town.entry, adapter, self.instance(*agents, **fields))

    async def chat(self, **extra: Any) -> tuple[int, Any, Any]:
        status, headers, body = await self.town.site.chat(self.town.key, "ft1:1", **extra)
        return status, headers, body

    @property
    def asked(self) -> int:
        return len(self.a.asked) + len(self.b.asked)


@pytest.fixture
async def place(town: Town) -> AsyncIterator[Place]:
    made = Place(town, Agent(town.a), Agent(town.b))
    for agent in (made.a, made.b):
        agent.engine.behave = agent.serve
    async with listening(made.a.handle) as made.a.url, listening(made.b.handle) as made.b.url:
        await made.only(made.a, made.b)
        yield made


async def test_what_is_not_there_is_loaded_first_and_the_answer_says_so(place: Place) -> None:
    status, headers, body = await place.chat()
    assert (status, headers["x-pillion-cold"], body["model"]) == (200, "load", "ft1:1")
    there = place.a if place.a.asked else place.b
    name = headers["x-pillion-replica"]
    assert there.asked == [(f"Bearer load-{name}", b"signed")]
    assert there.engine.body["model"] == COLD.engine_name
    status, headers, _ = await place.chat()
    assert (status, headers["x-pillion-replica"]) == (200, name)
    assert "x-pillion-cold" not in headers
    assert place.asked == 1, "this gateway knows without being told"
    assert await place.town.site.metric("pillion_gateway_cold_loads_total") == 1


async def test_many_requests_wait_for_one_load(place: Place) -> None:
    await place.only(place.a)
    begun = asyncio.Event()
    go = asyncio.Event()

    async def slowly() -> web.Response:
        begun.set()
        await go.wait()
        place.a.resident = True
        return web.json_response({"load_ms": 30.0})

    place.a.answer = slowly
    calls = [asyncio.create_task(place.chat()) for _ in range(30)]
    await begun.wait()
    left = asyncio.create_task(place.chat())
    while await place.town.site.metric("pillion_gateway_in_flight") < 31:
        await asyncio.sleep(0.01)
    left.cancel()
    go.set()
    for call in calls:
        status, headers, _ = await call
        assert (status, headers["x-pillion-cold"]) == (200, "load")
    assert len(place.a.asked) == 1


async def test_the_load_outlives_the_one_who_wanted_it(place: Place) -> None:
    await place.only(place.a)
    begun, go = asyncio.Event(), asyncio.Event()

    async def slowly() -> web.Response:
        begun.set()
        await go.wait()
        place.a.resident = True
        return web.json_response({"load_ms": 30.0})

    place.a.answer = slowly
    first = asyncio.create_task(place.chat())
    await begun.wait()
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    second = asyncio.create_task(place.chat())
    go.set()
    assert (await second)[0] == 200
    assert len(place.a.asked) == 1


async def test_a_full_replica_is_passed_over_and_all_full_is_503(place: Place) -> None:
    async def full() -> web.Response:
        return refusal(503, "instance_at_capacity")

    first = place.a if (await place.chat())[1]["x-pillion-replica"] == "a" else place.b
    other = place.b if first is place.a else place.a
    first.answer, first.resident = full, False
    status, headers, _ = await place.chat()
    assert (status, headers["x-pillion-cold"], len(other.asked)) == (200, "load", 1)
    other.answer, other.resident = full, False
    status, headers, body = await place.chat()
    assert (status, body["error"]["code"]) == (503, "instance_at_capacity")
    assert "retry-after" in headers


async def test_what_was_evicted_is_loaded_again(place: Place) -> None:
    """The snapshot says that it is there; the engine knows better."""
    await place.only(place.a, warm=(place.a,))
    status, headers, _ = await place.chat()
    assert (status, headers["x-pillion-cold"], len(place.a.asked)) == (200, "load", 1)
    place.a.resident = False
    assert (await place.chat())[0] == 200
    assert len(place.a.asked) == 2


async def test_one_that_is_evicted_again_and_again_is_an_honest_error(place: Place) -> None:
    await place.only(place.a)
    place.a.engine.behave = fenced
    status, _, body = await place.chat()
    assert (status, body["error"]["code"]) == (503, "adapter_loading")
    assert 1 <= len(place.a.asked) <= 3


async def test_a_broken_adapter_is_told_by_its_failure_and_tried_twice_at_most(place: Place) -> None:
    async def broken() -> web.Response:
        return refusal(
            502, "adapter_ineffective", f"{COLD.engine_name} changes nothing", **{"retry-after": "7"}
        )

    place.a.answer = place.b.answer = broken
    status, headers, body = await place.chat()
    assert (status, body["error"]["code"], headers["retry-after"]) == (503, "adapter_ineffective", "7")
    assert "adp_" not in body["error"]["message"]
    assert "changes nothing" in body["error"]["message"]
    assert place.asked == 2


@pytest.mark.parametrize("how", ["broken", "full"])
async def test_who_has_it_answers_however_busy_where_another_did_not_load_it(place: Place, how: str) -> None:
    async def answer() -> web.Response:
        code = "adapter_ineffective" if how == "broken" else "instance_at_capacity"
        return refusal(502 if how == "broken" else 503, code)

    async def busy(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        if body["model"] != COLD.engine_name:
            await go.wait()
        return await chat(request, body)

    go = asyncio.Event()
    place.a.engine.behave, place.b.answer = busy, answer
    await place.only(place.a, warm=(place.a,))
    crowd = [asyncio.create_task(place.town.site.chat(place.town.key, COLD.base)) for _ in range(40)]
    while len(place.a.engine.asked) < len(crowd):
        await asyncio.sleep(0)
    there = place.instance(place.a, place.b, warm=(place.a,))
    another = msgspec.structs.replace(there.replicas[1], id="c")
    there = msgspec.structs.replace(there, replicas=(*there.replicas, another))
    await place.town.publish(place.town.entry, COLD, there)
    status, headers, _ = await place.chat()
    assert (status, headers["x-pillion-replica"]) == (200, "a")
    assert len(place.b.asked) == 1
    go.set()
    assert {status for status, *_ in await asyncio.gather(*crowd)} == {200}


async def test_who_has_it_and_failed_of_late_is_asked_before_the_request_is_refused(place: Place) -> None:
    async def broken() -> web.Response:
        return refusal(502, "artifact_missing")

    place.a.engine.behave, place.b.answer = die, broken
    await place.only(place.a, warm=(place.a,))
    assert (await place.chat())[0] == 503
    place.a.engine.behave = chat
    there = place.instance(place.a, place.b, warm=(place.a,))
    others = (msgspec.structs.replace(there.replicas[1], id=id) for id in "cd")
    there = msgspec.structs.replace(there, replicas=(*there.replicas, *others))
    await place.town.publish(place.town.entry, COLD, there)
    status, headers, _ = await place.chat()
    assert (status, headers["x-pillion-replica"]) == (200, "a")
    assert len(place.b.asked) == 2, "those that did not fail come first"


@pytest.mark.parametrize("how", ["refused", "rejected", "nonsense"])
async def test_an_agent_that_is_away_or_does_not_trust_us_is_passed_over(place: Place, how: str) -> None:
    async def rejects() -> web.Response:
        return refusal(403, "insufficient_scope")

    async def nonsense() -> web.Response:
        return web.Response(text="<html>")

    first = place.a if (await place.chat())[1]["x-pillion-replica"] == "a" else place.b
    first.resident = False
    first.answer = nonsense if how == "nonsense" else rejects
    if how == "refused":
        first.url = free_url()
    await place.only(place.a, place.b)
    first.engine.behave = fenced
    status, headers, _ = await place.chat()
    assert (status, headers["x-pillion-replica"]) == (200, "b" if first is place.a else "a")


async def test_waiting_has_an_end(place: Place, control: Control, tmp_path: Any) -> None:
    go = asyncio.Event()

    async def never() -> web.Response:
        await go.wait()
        return web.json_response({"load_ms": 1.0})

    place.a.answer = never
    text, entry = make_key()
    other = Control()
    async with (
        listening(other.handle) as other.url,
        site(tmp_path / "other", other, limits=Limits(drain_s=2, cold_wait_s=0.2)) as running,
    ):
        await other.publish(make_snapshot(entry, COLD, place.instance(place.a)))
        status, headers, body = await running.chat(text, "ft1:1")
        assert (status, body["error"]["code"], headers["retry-after"]) == (503, "adapter_loading", "1")
        go.set()


async def test_one_that_ended_while_it_was_loaded_is_not_served(place: Place) -> None:
    await place.only(place.a)

    async def ends() -> web.Response:
        place.a.resident = True
        gone = make_adapter(1, instances=(), rank=8, permit=b"signed", expires_at=1.0)
        await place.only(place.a, adapter=gone)
        return web.json_response({"load_ms": 5.0})

    place.a.answer = ends
    status, _, body = await place.chat()
    assert (status, body["error"]["code"]) == (404, "adapter_not_deployed")
    assert not place.a.engine.asked


async def test_a_replica_that_dies_after_the_load_costs_no_request(place: Place) -> None:
    first = place.a if (await place.chat())[1]["x-pillion-replica"] == "a" else place.b
    first.engine.behave = die
    status, headers, _ = await place.chat()
    assert (status, headers["x-pillion-replica"]) == (200, "b" if first is place.a else "a")


async def test_where_it_is_off_nobody_is_asked(place: Place) -> None:
    await place.only(place.a, on_demand=False)
    status, _, body = await place.chat()
    assert (status, body["error"]["code"]) == (404, "adapter_not_deployed")
    assert "deploy" in body["error"]["message"]
    assert place.asked == 0


async def test_own_replicas_that_are_full_leave_it_to_the_pool(place: Place) -> None:
    async def full() -> web.Response:
        return refusal(503, "instance_at_capacity")

    place.a.answer = full
    pool = make_instance(
        2,
        make_replica("b", url=place.b.engine.url, agent_url=place.b.url, load_key="load-b"),
        account=None,
        on_demand=True,
        max_rank=64,
    )
    await place.town.publish(place.town.entry, COLD, place.instance(place.a), pool)
    status, headers, _ = await place.chat()
    assert (status, headers["x-pillion-instance"]) == (200, "2")
    assert "cache_salt" in place.b.engine.body


async def test_what_a_gateway_saw_goes_before_the_snapshot_until_that_is_newer() -> None:
    class NoLoads:
        async def load(self, url: str, load_key: str, permit: bytes, of: Carried) -> Asked:
            return Asked(Outcome.LOADED)

    replicas = [make_replica(name, agent_url="http://agent") for name in ("a", "b")]
    routes = Routes(make_snapshot(COLD, make_instance(1, *replicas, on_demand=True, max_rank=8)))
    knowledge = Knowledge(lambda: 100.0, 1e9)
    knowledge.apply(routes, confirmed_at=100.0)
    cold = Cold(NoLoads(), knowledge, lambda: 100.0, lambda result: None, 10.0)
    route = routes.resolve(ACME, "ft1:1", None, 100.0)
    assert cold.route(route) is route
    done: asyncio.Future[Asked] = asyncio.get_running_loop().create_future()
    cold.load(route, route.candidates[1], 5.0, done.set_result)
    assert (await done).outcome is Outcome.LOADED
    seen = cold.route(route)
    assert [(c.replica.id, c.resident) for c in seen.candidates] == [
        (route.candidates[1].replica.id, True),
        (route.candidates[0].replica.id, False),
    ]
    assert cold.route(route) is seen, "plans are kept by identity"
    cold.absent(route.candidates[1].replica.id, route)
    assert not any(c.resident for c in cold.route(route).candidates)
    knowledge.confirm(104.0)
    assert cold.route(route) is route
    await cold.close()


async def test_a_gateway_that_ends_asks_no_other_replica() -> None:
    class Slow:
        async def load(self, url: str, load_key: str, permit: bytes, of: Carried) -> Asked:
            begun.set()
            await asyncio.Event().wait()
            raise AssertionError

    def told(asked: Asked) -> None:
        heard.append(asked)

    begun, heard = asyncio.Event(), list[Asked]()
    replica = make_replica("a", agent_url="http://agent")
    routes = Routes(make_snapshot(COLD, make_instance(1, replica, on_demand=True, max_rank=8)))
    cold = Cold(Slow(), Knowledge(lambda: 0.0, 1e9), lambda: 0.0, lambda result: None, 10.0)
    route = routes.resolve(ACME, "ft1:1", None, 0.0)
    cold.load(route, route.candidates[0], 60.0, told)
    await begun.wait()
    await cold.close()
    await asyncio.sleep(0)
    assert not heard
