import asyncio
import time

import msgspec

from pillion.agent.home import EngineRecord
from pillion.agent.processes import identity
from tests.agent.conftest import Serving, home_of
from tests.replicas import AgentClient, Node, grant, row, said


async def test_converges_to_its_grant_and_says_so(node: Node, serving: Serving) -> None:
    one, two = node.put("one", 1), node.put("two", 2)
    async with serving() as agent:
        assert await agent.grant(grant(1, one, two)) == 200
        status = await agent.settled(1, one="loaded", two="loaded")
        assert status.ready
        assert status.stage == "ready"
        proof = row(status, one).proof
        assert proof is not None
        assert proof.difference > 0.01
        assert proof.noise == 0
        for entry in (one, two):
            code, answer = await agent.ask(entry.engine_name)
            assert code == 200
            assert said(answer).startswith(f"sim tiny {entry.digest[:12]} t1")
        assert said((await agent.ask("tiny"))[1]).startswith("sim tiny base")
        await agent.grant(grant(2, two))
        await agent.settled(2, two="loaded")
        code, answer = await agent.ask(one.engine_name)
        assert (code, answer["error"]["code"]) == (503, "adapter_not_resident")


async def test_an_adapter_that_changes_nothing_fails_and_leaves_the_engine(
    node: Node, serving: Serving
) -> None:
    good, bad = node.put("good", 1), node.put("bad", 2, zero=True)
    async with serving() as agent:
        await agent.grant(grant(1, good, bad))
        status = await agent.settled(1, good="loaded", bad="failed")
        failure = row(status, bad).failure
        assert failure is not None
        assert failure.code == "adapter_ineffective"
        state = await agent.engine("GET", "/pillion/v1/state")
        assert [held["name"] for held in state["adapters"]] == [good.engine_name]
        assert (await agent.ask(bad.engine_name))[0] == 503


async def test_what_the_engine_refuses_fails_alone_and_is_tried_again_when_asked(
    node: Node, serving: Serving
) -> None:
    good, refused = node.put("good", 1), node.put("refused", 2)
    async with serving(options={"faults": {"refuse_load": "refused"}}) as agent:
        await agent.grant(grant(1, refused, good))
        status = await agent.settled(1, good="loaded", refused="failed")
        failure = row(status, refused).failure
        assert failure is not None
        assert (failure.code, failure.message) == ("engine_refused", "told to refuse the adapter")
        await agent.fault(refuse_load="")
        await agent.grant(grant(2, refused, good))
        await agent.settled(2, good="loaded", refused="failed")
        await agent.grant(grant(3, refused, good, retry=(refused.engine_name,)))
        await agent.settled(3, good="loaded", refused="loaded")


async def test_rank_over_the_limit_is_refused_by_the_engine(node: Node, serving: Serving) -> None:
    async with serving() as agent:
        await agent.grant(grant(1, node.put("big", rank=16)))
        status = await agent.settled(1, big="failed")
        assert status.adapters[0].failure
        assert "rank is 16" in status.adapters[0].failure.message


async def test_what_the_store_lacks_is_tried_again_until_it_is_there(node: Node, serving: Serving) -> None:
    late, good = node.put("late", 1), node.put("good", 2)
    place = node.store / "adapters" / late.digest[:2] / late.digest
    place.rename(node.store / "away")
    async with serving() as agent:
        await agent.grant(grant(1, late, good))
        await agent.settled(1, late="failed", good="loaded")
        (node.store / "away").rename(place)
        await agent.settled(1, late="loaded", good="loaded")


async def test_a_damaged_copy_on_the_node_is_fetched_again(node: Node, serving: Serving) -> None:
    one = node.put("one", 1)
    async with serving() as agent:
        await agent.grant(grant(1, one))
        await agent.settled(1, one="loaded")
        await agent.grant(grant(2))
        await agent.settled(2)
        copy = node.data_dir / "cache" / "adapters" / one.digest / "adapter_model.safetensors"
        copy.chmod(0o600)
        copy.write_bytes(copy.read_bytes()[:-4] + b"\x00\x00\x00\x01")
        await agent.grant(grant(3, one))
        await agent.settled(3, one="loaded")
        assert said((await agent.ask(one.engine_name))[1]).startswith(f"sim tiny {one.digest[:12]}")


async def test_an_expired_adapter_goes_by_the_clock_alone(node: Node, serving: Serving) -> None:
    short = msgspec.structs.replace(node.put("short", 1), expires_at=time.time() + 2.0, hold="loaded")
    stays = node.put("stays", 2)
    async with serving() as agent:
        await agent.grant(grant(1, short, stays))
        await agent.settled(1, short="loaded", stays="loaded")
        await agent.settled(1, stays="loaded")
        assert time.time() >= (short.expires_at or 0)
        assert (await agent.ask(short.engine_name))[0] == 503


async def test_an_older_grant_is_refused_and_anothers_too(node: Node, serving: Serving) -> None:
    one = node.put("one", 1)
    async with serving() as agent:
        assert await agent.grant(grant(5, one)) == 200
        assert await agent.grant(grant(4)) == 409
        assert await agent.grant(grant(5, one)) == 200
        assert await agent.grant(grant(9, replica="r1-other-abcdef")) == 400
        await agent.settled(5, one="loaded")


async def test_no_more_than_its_slots_and_attached_before_loaded(node: Node, serving: Serving) -> None:
    loads = [msgspec.structs.replace(node.put(f"l{n}", n), hold="loaded") for n in range(3)]
    attached = node.put("att", 9)
    async with serving() as agent:
        await agent.grant(grant(1, *loads))
        await agent.settled(1, l0="loaded", l1="loaded", l2="loaded")
        await agent.grant(grant(2, *loads, attached))
        status = await agent.until(lambda s: s.grant_version == 2 and row_state(s, attached) == "loaded")
        assert sum(found.state == "loaded" for found in status.adapters) == 3


async def test_removal_lets_a_stream_in_flight_finish(node: Node, serving: Serving) -> None:
    one = node.put("one", 1)
    async with serving(options={"tokens_per_s": 20}) as agent:
        await agent.grant(grant(1, one))
        await agent.settled(1, one="loaded")
        slow = asyncio.create_task(agent.ask(one.engine_name, max_tokens=20))
        await until_in_flight(agent, one.engine_name)
        await agent.grant(grant(2))
        await agent.until(lambda s: row_state(s, one) == "evicting")
        code, refused = await agent.ask(one.engine_name)
        assert (code, refused["error"]["code"]) == (503, "adapter_fenced")
        code, answer = await slow
        assert code == 200
        assert said(answer).endswith(" t20")
        await agent.settled(2)


async def test_removal_cuts_off_at_the_deadline(node: Node, serving: Serving) -> None:
    one = node.put("one", 1)
    async with serving(options={"tokens_per_s": 1}) as agent:
        await agent.grant(grant(1, one))
        await agent.settled(1, one="loaded")
        slow = asyncio.create_task(agent.ask(one.engine_name, max_tokens=1000))
        await until_in_flight(agent, one.engine_name)
        await agent.grant(grant(2, drain_deadline_s=0.1))
        await agent.settled(2)
        assert (await slow)[0] == 503


async def test_one_that_drains_is_cut_off_sooner_when_told_and_its_neighbour_is_not(
    node: Node, serving: Serving
) -> None:
    one, two = node.put("one", 1), node.put("two", 2)
    async with serving(options={"tokens_per_s": 20}) as agent:
        await agent.grant(grant(1, one, two))
        await agent.settled(1, one="loaded", two="loaded")
        endless = asyncio.create_task(agent.ask(one.engine_name, max_tokens=1000))
        slow = asyncio.create_task(agent.ask(two.engine_name, max_tokens=20))
        await until_in_flight(agent, one.engine_name)
        await until_in_flight(agent, two.engine_name)
        await agent.grant(grant(2))
        await agent.until(lambda s: row_state(s, one) == "evicting")
        await agent.grant(grant(3, leaving={one.engine_name: 0.0}))
        assert (await endless)[0] == 503
        assert (await slow)[0] == 200
        await agent.settled(3)


async def test_stop_drains_and_ends_the_engine(node: Node, serving: Serving) -> None:
    one = node.put("one", 1)
    async with serving(options={"tokens_per_s": 20, "max_num_seqs": 64}) as agent:
        await agent.grant(grant(1, one))
        status = await agent.settled(1, one="loaded")
        assert status.engine["max_requests"] == 64
        slow = [asyncio.create_task(agent.ask(name, max_tokens=10)) for name in (one.engine_name, "tiny")]
        await until_in_flight(agent, one.engine_name)
        assert await agent.stop(drain_s=20) == 200
        assert [code for code, _ in await asyncio.gather(*slow)] == [200, 200]
        assert not alive(status.engine["pid"])
    assert home_of(node, agent.spec).read("engine.json", EngineRecord) is None


async def test_its_api_needs_its_token(node: Node, serving: Serving) -> None:
    async with serving() as agent:
        for method, path in (("GET", "status"), ("PUT", "grant"), ("GET", "logs"), ("POST", "stop")):
            async with agent.http.request(method, f"{agent.url}/v1/{path}") as answer:
                assert answer.status == 401
        token = {"authorization": f"Bearer {agent.spec.agent_token}"}
        async with agent.http.put(f"{agent.url}/v1/grant", data=b"{", headers=token) as answer:
            assert answer.status == 400


async def test_its_log_is_the_engines(node: Node, serving: Serving) -> None:
    async with serving() as agent:
        await agent.ready()
        token = {"authorization": f"Bearer {agent.spec.agent_token}"}
        async with agent.http.get(f"{agent.url}/v1/logs", params={"tail": 2}, headers=token) as answer:
            lines = (await answer.text()).splitlines()
        assert len(lines) == 2
        async with agent.http.get(f"{agent.url}/v1/logs", params={"follow": "true"}, headers=token) as answer:
            assert b"Starting to load model" in await answer.content.readline()


async def test_starting_is_seen_in_stages(node: Node, serving: Serving) -> None:
    async with serving(options={"start_up_s": 1}) as agent:
        seen: list[str] = []
        await agent.until(lambda status: seen.append(status.stage) or status.ready)
        assert [stage for n, stage in enumerate(seen) if n == 0 or seen[n - 1] != stage] == [
            "starting",
            "loading",
            "warming",
            "ready",
        ]


async def test_its_keys_are_in_no_argument(node: Node, serving: Serving) -> None:
    async with serving() as agent:
        status = await agent.ready()
        with open(f"/proc/{status.engine['pid']}/cmdline", "rb") as file:
            arguments = file.read().decode()
        assert str(node.data_dir) in arguments
        assert agent.spec.engine_key not in arguments
        assert agent.spec.infer_key not in arguments


def row_state(status: object, entry: object) -> str | None:
    rows = status.adapters  # type: ignore[attr-defined]
    return next((found.state for found in rows if found.engine_name == entry.engine_name), None)  # type: ignore[attr-defined]


async def until_in_flight(agent: AgentClient, name: str) -> None:
    while True:
        state = await agent.engine("GET", "/pillion/v1/state")
        if any(held["name"] == name and held["inflight"] for held in state["adapters"]):
            return
        await asyncio.sleep(0.01)


def alive(pid: int) -> bool:
    return identity(pid) is not None
