"""Loads on demand: who may ask for one, how many cost one, what goes for it, and what never does."""

from __future__ import annotations

import asyncio
import os
import random
import time

import msgspec
import pytest

from pillion.core.permits import Permit, sign
from pillion.core.replica import GrantEntry, LoraSpec, OnDemand, ReplicaStatus
from tests.agent.conftest import QUICK, Serving, home_of
from tests.replicas import BASE, AgentClient, Node, grant, said

KEY = b"k" * 32
LORA = LoraSpec(enabled=True, max_adapters=2, max_rank=8, on_demand=True)
OPEN = OnDemand(KEY, None)
FULL = bool(os.environ.get("PILLION_TEST_FULL"))


def permit(entry: GrantEntry, key: bytes = KEY, **changes: object) -> bytes:
    made = Permit("acc_a", BASE, None, entry.adapter_id, entry.digest, entry.rank, entry.size_bytes)
    return sign(msgspec.structs.replace(made, **changes), key)


def resident(status: ReplicaStatus) -> set[str]:
    return {row.engine_name.partition("@")[0][4:] for row in status.adapters if row.state == "loaded"}


async def opened(agent: AgentClient, *entries: GrantEntry, version: int = 1, **changes: object) -> None:
    await agent.ready()
    changes.setdefault("on_demand", OPEN)
    assert await agent.grant(grant(version, *entries, **changes)) == 200
    await agent.until(lambda status: status.grant_version == version)


async def use(agent: AgentClient, entry: GrantEntry, times: int = 1) -> None:
    for _ in range(times):
        assert (await agent.ask(entry.engine_name))[0] == 200


async def test_many_who_ask_share_one_load(serving: Serving, node: Node) -> None:
    a = node.put("a", 1)
    async with serving(lora=LORA, options={"load_ms_per_mb": 20_000}) as agent:
        await opened(agent)
        answers = await asyncio.gather(*(agent.load(permit(a)) for _ in range(20)))
        assert {status for status, _ in answers} == {200}
        assert len({body["load_ms"] for _, body in answers}) == 1
        assert answers[0][1]["load_ms"] > 0
        assert said((await agent.ask(a.engine_name))[1]).split()[2] == a.digest[:12]
        assert await agent.load(permit(a)) == (200, {"load_ms": 0.0}), "it is there"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"account": "acc_b"}, "another account"),
        ({"base": "other"}, "rides on"),
        ({"region": "us-1"}, "bound to region"),
        ({"rank": 16}, "rank"),
        ({"expires_at": 1.0}, "time to live"),
        ({"key": b"other"}, "not signed"),
    ],
)
async def test_a_permit_that_is_not_for_here_loads_nothing(
    serving: Serving, node: Node, changes: dict[str, object], reason: str
) -> None:
    a = node.put("a", 1)
    async with serving(lora=LORA) as agent:
        await opened(agent, on_demand=OnDemand(KEY, "acc_a"))
        status, body = await agent.load(permit(a, **changes))  # type: ignore[arg-type]
        assert (status, body["error"]["code"]) == (403, "insufficient_scope")
        assert reason in body["error"]["message"]
        altered = bytearray(permit(a))
        altered[-1] ^= 1
        assert (await agent.load(bytes(altered)))[0] == 403
        assert not (await agent.status()).adapters


async def test_where_it_is_off_nothing_is_loaded_whatever_is_signed(serving: Serving, node: Node) -> None:
    a = node.put("a", 1)
    async with serving() as agent:
        await opened(agent)
        assert (await agent.load(permit(a)))[0] == 403
    async with serving(lora=LORA) as agent:
        await opened(agent, on_demand=None, version=2)
        assert (await agent.load(permit(a)))[0] == 403


async def test_the_load_key_opens_nothing_else_and_nothing_else_opens_loads(
    serving: Serving, node: Node
) -> None:
    a = node.put("a", 1)
    async with serving(lora=LORA) as agent:
        await opened(agent)
        for key in ("agent-token", "infer-key", "engine-key", ""):
            assert (await agent.load(permit(a), key))[0] == 401
        agent._token = {"authorization": "Bearer load-key"}
        with pytest.raises(AssertionError, match="token"):
            await agent.status()
        assert await agent.grant(grant(9)) == 401
        assert await agent.stop() == 401


async def test_the_least_valuable_goes_and_what_is_held_or_in_flight_never(
    serving: Serving, node: Node
) -> None:
    held, warm, one, two = (node.put(name, number) for number, name in enumerate(["h", "w", "o", "t"]))
    lora = msgspec.structs.replace(LORA, max_adapters=3)
    async with serving(lora=lora, options={"tokens_per_s": 20}) as agent:
        await opened(agent, held)
        for entry in (warm, one):
            assert (await agent.load(permit(entry)))[0] == 200
        await use(agent, warm, 5)
        await use(agent, one)
        assert (await agent.load(permit(two)))[0] == 200
        assert resident(await agent.status()) == {"h", "w", "t"}, (
            "asked for once is worth less than five times"
        )
        streams = [asyncio.create_task(agent.ask(entry.engine_name, max_tokens=40)) for entry in (warm, two)]
        while sum(a["inflight"] for a in (await agent.engine("GET", "/pillion/v1/state"))["adapters"]) < 2:
            await asyncio.sleep(0.01)
        status, body = await agent.load(permit(one))
        assert (status, body["error"]["code"]) == (503, "instance_at_capacity")
        assert [status for status, _ in await asyncio.gather(*streams)] == [200, 200]
        assert (await agent.load(permit(one)))[0] == 200
        assert resident(await agent.status()) == {"h", "w", "o"}


async def test_none_is_evicted_before_it_served_what_it_was_loaded_for(serving: Serving, node: Node) -> None:
    a, b, c = (node.put(name, number) for number, name in enumerate("abc"))
    async with serving(lora=LORA) as agent:
        await opened(agent)
        for entry in (a, b):
            assert (await agent.load(permit(entry)))[0] == 200
        assert (await agent.load(permit(c)))[1]["error"]["code"] == "instance_at_capacity"
        await use(agent, b)
        assert (await agent.load(permit(c)))[0] == 200
        assert resident(await agent.status()) == {"a", "c"}


async def test_a_scan_of_cold_adapters_leaves_the_warm_ones(serving: Serving, node: Node) -> None:
    lora = msgspec.structs.replace(LORA, max_adapters=4)
    warm = [node.put(f"warm{n}", n) for n in range(3)]
    cold = [node.put(f"cold{n}", 100 + n) for n in range(1000 if FULL else 30)]
    async with serving(lora=lora) as agent:
        await opened(agent)
        for entry in warm:
            assert (await agent.load(permit(entry)))[0] == 200
            await use(agent, entry, 4)
        for number, entry in enumerate(cold):
            assert (await agent.load(permit(entry)))[0] == 200
            await use(agent, entry)
            await use(agent, warm[number % 3])  # they are asked for all the while
        assert resident(await agent.status()) == {"warm0", "warm1", "warm2", cold[-1].adapter_id[4:]}


async def test_a_load_by_control_pushes_out_what_came_on_demand_and_is_told_when_it_is_pushed_out(
    serving: Serving, node: Node
) -> None:
    a, b, c = (node.put(name, number) for number, name in enumerate("abc"))
    wish = msgspec.structs.replace(c, hold="loaded", account="acc_a")
    async with serving(lora=LORA) as agent:
        await opened(agent)
        for entry in (a, b):
            assert (await agent.load(permit(entry)))[0] == 200
            await use(agent, entry, 2)
        await opened(agent, wish, version=2)
        await agent.until(lambda status: "c" in resident(status))
        await use(agent, c)
        gone = ({"a", "b"} - resident(await agent.status())).pop()
        back = {"a": a, "b": b}[gone]
        assert (await agent.load(permit(back)))[0] == 200
        found = await agent.settled(2, a="loaded", b="loaded", c="registered")
        assert found.adapters[2].failure is None


async def test_who_asks_for_one_after_the_other_pushes_out_only_its_own(serving: Serving, node: Node) -> None:
    theirs, *many = (node.put(name, number) for number, name in enumerate("abcd"))
    async with serving(lora=LORA) as agent:
        await opened(agent)
        assert (await agent.load(permit(theirs, account="acc_modest")))[0] == 200
        await use(agent, theirs)
        for entry in many * 2:
            assert (await agent.load(permit(entry)))[0] == 200
            await use(agent, entry, 3)
            assert "a" in resident(await agent.status())


async def test_a_broken_adapter_costs_no_load_for_each_who_asks(serving: Serving, node: Node) -> None:
    a = node.put("a", 1)
    async with serving(lora=LORA) as agent:
        await opened(agent)
        await agent.fault(ineffective="*")
        status, body = await agent.load(permit(a))
        assert (status, body["error"]["code"]) == (502, "adapter_ineffective")
        await agent.fault(ineffective="")
        assert (await agent.load(permit(a)))[1]["error"]["code"] == "adapter_ineffective", "not even tried"
        assert not (await agent.status()).adapters


async def test_a_load_that_failed_and_has_no_slot_when_it_is_due_again_is_no_failure(
    serving: Serving, node: Node
) -> None:
    a, b, c = node.put("a", 1), node.put("b", 2), node.put("c", 3)
    kept, away = node.store, node.store.with_name("away")
    one, two, three = (msgspec.structs.replace(entry, hold="attached") for entry in (a, b, c))
    loaded = msgspec.structs.replace(three, hold="loaded")
    async with serving(lora=LORA) as agent:
        await opened(agent, one, two)
        await agent.until(lambda status: resident(status) == {"a", "b"})
        kept.rename(away)
        await opened(agent, one, loaded, version=2)
        await agent.until(lambda status: any(row.state == "failed" for row in status.adapters))
        await opened(agent, one, two, loaded, version=3)
        away.rename(kept)
        await agent.until(lambda status: {row.state for row in status.adapters} == {"loaded", "registered"})
        status, body = await agent.load(permit(c))
        assert (status, body["error"]["code"]) == (503, "instance_at_capacity")
        await opened(agent, one, loaded, version=4)
        await agent.until(lambda status: resident(status) == {"a", "c"})


async def test_what_is_dropped_leaves_and_does_not_come_back(serving: Serving, node: Node) -> None:
    a = node.put("a", 1)
    async with serving(lora=LORA) as agent:
        await opened(agent)
        assert (await agent.load(permit(a)))[0] == 200
        await opened(agent, version=2, drop=(a.engine_name,))
        await agent.until(lambda status: not status.adapters)
        assert (await agent.load(permit(a)))[0] == 403
        await opened(agent, version=3)
        assert (await agent.load(permit(a)))[0] == 200


async def test_one_whose_time_is_over_is_unloaded_by_itself(serving: Serving, node: Node) -> None:
    a = node.put("a", 1)
    async with serving(lora=LORA) as agent:
        await opened(agent)
        assert (await agent.load(permit(a, expires_at=time.time() + 0.5)))[0] == 200
        await agent.until(lambda status: not status.adapters)


async def test_the_next_agent_keeps_what_came_on_demand(serving: Serving, node: Node) -> None:
    a, b = node.put("a", 1), node.put("b", 2)
    home = home_of(node, node.spec(lora=LORA))
    async with serving(lora=LORA, keep=True) as agent:
        await opened(agent)
        for entry in (a, b):
            assert (await agent.load(permit(entry)))[0] == 200
        kept = msgspec.defstruct("Kept", [("entries", list)])
        while (on_disk := home.read("permitted.json", kept)) is None or len(on_disk.entries) < 2:  # type: ignore[attr-defined]
            await asyncio.sleep(0.01)
    async with serving(lora=LORA, keep=True) as agent:
        await agent.settled(1, a="loaded", b="loaded")
        assert await agent.load(permit(a)) == (200, {"load_ms": 0.0})
    home.remove("permitted.json")
    async with serving(lora=LORA) as agent:
        await agent.settled(1)


async def test_a_new_engine_is_filled_with_what_was_there(serving: Serving, node: Node) -> None:
    a = node.put("a", 1)
    async with serving(lora=LORA) as agent:
        await opened(agent)
        assert (await agent.load(permit(a)))[0] == 200
        await agent.fault(crash=True)
        await agent.until(lambda status: status.engine_epoch == 2 and resident(status) == {"a"})


async def test_nothing_is_lost_or_mixed_up_where_many_want_few_slots(serving: Serving, node: Node) -> None:
    """Twelve adapters, three slots, eight clients: each asks until it is served, by what it asked for."""
    entries = [node.put(f"n{n}", n) for n in range(12)]
    lora = msgspec.structs.replace(LORA, max_adapters=3)
    rng = random.Random(7)
    served = 0

    async def client(agent: AgentClient, order: list[GrantEntry]) -> None:
        nonlocal served
        for entry in order:
            for _ in range(500):
                status, body = await agent.load(permit(entry))
                assert status in (200, 503), body
                if status == 200:
                    status, body = await agent.ask(entry.engine_name)
                    assert status in (200, 503), body
                    if status == 200:
                        assert said(body).split()[2] == entry.digest[:12]
                        served += 1
                        break
            else:
                raise AssertionError("never served")

    async with serving(lora=lora, timing=QUICK) as agent:
        await opened(agent)
        await asyncio.gather(*(client(agent, rng.sample(entries, 12)) for _ in range(8)))
        assert served == 96
        state = await agent.engine("GET", "/pillion/v1/state")
        assert len(state["adapters"]) <= 3


async def test_who_waits_for_it_to_leave_does_not_bring_back_what_is_dropped_meanwhile(
    serving: Serving, node: Node
) -> None:
    a = node.put("a", 1)
    async with serving(lora=LORA) as agent:
        await opened(agent, leaving={a.engine_name: 1.0})
        waiting = asyncio.create_task(agent.load(permit(a)))
        await asyncio.wait([waiting], timeout=0.2)
        assert not waiting.done()
        await opened(agent, version=2, drop=(a.engine_name,))
        assert (await waiting)[0] == 403
        assert not (await agent.status()).adapters
