"""The gate: counting requests, clients that leave, and engines that mix up rows."""

import asyncio

import pytest
from gated_fake import BASE, Bench, until
from hypothesis import given
from hypothesis import strategies as st

ADAPTER = "adp_a@1"


async def test_requests_are_counted_by_model() -> None:
    bench = Bench()
    await bench.load(ADAPTER)
    calls = [bench.user.chat(model, tokens=1) for model in (BASE, ADAPTER, ADAPTER)]
    calls.append(bench.agent.chat(ADAPTER, tokens=1))
    await until(lambda: len(bench.engine.running) == 4)
    assert (await bench.state())["base"]["inflight"] == 1
    assert (await bench.adapter(ADAPTER))["inflight"] == 3
    bench.engine.tick(4)
    for call in calls:
        await call.answer()
    assert (await bench.state())["base"]["inflight"] == 0
    assert (await bench.adapter(ADAPTER))["inflight"] == 0


async def test_a_client_that_leaves_stops_the_generation() -> None:
    bench = Bench()
    await bench.load(ADAPTER)
    for stream in (True, False):
        bench.engine.aborted.clear()
        call = bench.user.chat(ADAPTER, tokens=9, stream=stream)
        await until(lambda: bench.engine.running == [ADAPTER])
        call.leave()
        await call.answer()
        assert bench.engine.aborted == [ADAPTER]
        assert (await bench.adapter(ADAPTER))["inflight"] == 0


async def test_a_client_that_leaves_before_its_body_is_read_is_no_error() -> None:
    bench = Bench()
    call = bench.user.chat(BASE)
    call._unread.clear()
    call.leave()
    assert (await call.answer()).messages == []


async def test_an_engine_that_fails_is_not_counted_for_ever() -> None:
    bench = Bench()
    await bench.load(ADAPTER)

    async def broken(scope: object, receive: object, send: object) -> None:
        raise RuntimeError("engine bug")

    bench.gate._app = broken
    with pytest.raises(RuntimeError, match="engine bug"):
        await bench.user.chat(ADAPTER).answer()
    assert (await bench.adapter(ADAPTER))["inflight"] == 0


async def test_streams_are_watched_for_disconnects_whatever_the_server_says() -> None:
    bench = Bench()
    seen = []

    async def inner(scope: dict[str, dict[str, str]], receive: object, send: object) -> None:
        seen.append(scope["asgi"]["spec_version"])

    bench.gate._app = inner
    await bench.user.chat(BASE).answer()
    assert seen == ["2.3"]


@given(st.lists(st.sampled_from(["base", "adapter", "leave", "tick"]), max_size=30))
def test_an_engine_that_mixes_up_rows_gets_one_kind_at_a_time(steps: list[str]) -> None:
    asyncio.run(one_kind_at_a_time(steps))


async def one_kind_at_a_time(steps: list[str]) -> None:
    bench = Bench(lora="refused")
    await bench.load(ADAPTER)
    calls = []
    for step in steps:
        if step == "leave" and calls:
            calls[len(calls) // 2].leave()
        elif step == "tick":
            bench.engine.tick()
        elif step in ("base", "adapter"):
            calls.append(bench.user.chat(BASE if step == "base" else ADAPTER, tokens=1))
        for _ in range(5):
            await asyncio.sleep(0)
        assert len(set(bench.engine.running)) <= 1
    bench.engine.tick(len(calls))
    for call in calls:
        await call.answer()
    assert len(bench.engine.most_mixed) <= 1
    assert not bench.engine.running


async def test_neither_kind_starves() -> None:
    bench = Bench(lora="refused")
    await bench.load(ADAPTER)
    first = bench.user.chat(BASE, tokens=1)
    await until(lambda: bench.engine.running == [BASE])
    waiting = bench.user.chat(ADAPTER, tokens=1)
    later = bench.user.chat(BASE, tokens=1)
    await until(lambda: True)
    bench.engine.tick(3)
    for call in (first, waiting, later):
        await call.answer()
    assert bench.engine.served == [BASE, ADAPTER, BASE]


async def test_unloading_cuts_off_what_still_waits_for_its_turn() -> None:
    bench = Bench(lora="refused")
    await bench.load(ADAPTER)
    base = bench.user.chat(BASE, tokens=1)
    await until(lambda: bench.engine.running == [BASE])
    waiting = bench.user.chat(ADAPTER, tokens=1)
    for _ in range(5):
        await asyncio.sleep(0)
    going = bench.agent.start("DELETE", f"/pillion/v1/adapters/{ADAPTER}?deadline_s=0")
    for _ in range(5):
        await asyncio.sleep(0)
    bench.engine.tick()
    assert (await base.answer()).status == 200
    assert (await waiting.answer()).code == "adapter_fenced"
    assert (await going.answer()).json()["cut"] == 1
