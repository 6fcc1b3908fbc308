"""The gate: counting requests, clients that leave, and engines that may mix up rows."""

import pytest
from gated_fake import BASE, Bench, until

ADAPTER = "adp_a@1"


async def test_requests_are_counted_by_model() -> None:
    bench = Bench()
    await bench.load(ADAPTER)
    calls = [bench.user.chat(model, tokens=1) for model in (BASE, ADAPTER, ADAPTER)]
    calls.append(bench.agent.chat(ADAPTER, tokens=1))
    await until(lambda: len(bench.engine.running) == 4)
    assert (await bench.state())["base"]["inflight"] == 1
    assert (await bench.adapter(ADAPTER))["inflight"] == 3
    counts = await bench.agent.call("GET", "/pillion/v1/requests")
    assert counts.json() == {ADAPTER: {"inflight": 3, "requests": 2}}, "the agent's own are no demand"
    assert (await bench.user.call("GET", "/pillion/v1/requests")).status == 403
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


async def test_the_excuses_of_a_dead_engine_are_not_passed_on() -> None:
    bench = Bench()
    begun = bench.user.chat(BASE, 2, stream=True)
    await until(lambda: len(bench.engine.running) == 1)
    bench.engine.tick()
    await begun.events(2)
    lost = [bench.user.chat(BASE, 1, stream=True), bench.user.chat(BASE, 1, status=500)]
    whole = bench.user.chat(BASE, 1)
    await until(lambda: len(bench.engine.running) == 4)
    bench.engine.is_dead = True
    bench.engine.tick(4)
    for call in lost:
        await call.answer()
        assert (call.status, call.code, call.headers["x-pillion-dead"]) == (503, "engine_dead", "during")
    assert (await whole.answer()).status == (await begun.answer()).status == 200
    assert b"".join(message["body"] for message in begun.messages[1:]).count(b"data:") == 2
    late = await bench.user.chat(BASE).answer()
    assert (late.status, late.headers["x-pillion-dead"]) == (503, "before")
    assert bench.engine.served == [BASE] * 4


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


async def test_where_rows_may_be_mixed_up_the_base_is_refused_and_adapters_are_not() -> None:
    bench = Bench(lora="refused")
    for _ in range(2):
        refused = await bench.user.chat(BASE).answer()
        assert (refused.status, refused.code) == (503, "base_unsafe")
        assert "x-pillion-retry" not in refused.headers
        await bench.load(ADAPTER)
        assert (await bench.user.chat(ADAPTER).answer()).status == 200
    assert (await bench.state())["plugin"] == {"version": "0.1.0", "lora": "refused", "reason": "why"}


async def test_the_agent_may_ask_such_a_base_until_the_first_load() -> None:
    bench = Bench(lora="refused")
    for model in (BASE, None):
        call = bench.agent.start("POST", "/v1/completions", {"model": model})
        assert (await call.answer()).status == 200
    await bench.load(ADAPTER)
    for model in (BASE, None, ""):
        call = bench.agent.start("POST", "/v1/completions", {"model": model})
        assert (await call.answer()).code == "base_unsafe"
