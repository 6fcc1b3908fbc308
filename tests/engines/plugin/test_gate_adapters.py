"""The gate: loading, opening, closing and unloading adapters."""

import asyncio

import pytest
from gated_fake import BASE, Bench, Call, until

ADAPTER = "adp_a@1"


def load(bench: Bench, name: object = ADAPTER, path: object = f"/a/{ADAPTER}") -> Call:
    return bench.agent.start("POST", "/pillion/v1/adapters", {"name": name, "path": path})


def evict(bench: Bench, name: str = ADAPTER) -> Call:
    return bench.agent.start("DELETE", f"/pillion/v1/adapters/{name}?deadline_s=0&only_idle=true")


def unload(bench: Bench, name: str = ADAPTER, deadline_s: float = 30) -> Call:
    return bench.agent.start("DELETE", f"/pillion/v1/adapters/{name}?deadline_s={deadline_s}")


async def test_a_loaded_name_starts_closed() -> None:
    bench = Bench()
    answer = (await load(bench).answer()).json()
    assert answer["name"] == ADAPTER
    assert answer["load_ms"] >= 0
    assert (await bench.adapter(ADAPTER))["open"] is False


async def test_loading_again_changes_nothing() -> None:
    bench = Bench()
    await bench.load(ADAPTER)
    assert (await load(bench).answer()).json() == {"name": ADAPTER, "load_ms": 0.0}
    assert (await bench.adapter(ADAPTER))["open"] is True


async def test_what_the_engine_lost_is_loaded_again_and_closed() -> None:
    bench = Bench(slots=1)
    await bench.load(ADAPTER)
    bench.engine.held.clear()
    assert (await load(bench).answer()).status == 200
    assert (await bench.adapter(ADAPTER)) | {"path": ""} == {
        "name": ADAPTER,
        "path": "",
        "inflight": 0,
        "requests": 0,
        "open": False,
        "resident": True,
    }


@pytest.mark.parametrize(("name", "path"), [(ADAPTER, "/other"), (BASE, "/a")])
async def test_a_name_means_one_thing(name: str, path: str) -> None:
    bench = Bench()
    await bench.load(ADAPTER)
    answer = await load(bench, name, path).answer()
    assert (answer.status, answer.code) == (409, "name_taken")


async def test_the_engine_may_refuse() -> None:
    bench = Bench(slots=1)
    answer = await load(bench, ADAPTER, "/bad/rank").answer()
    assert (answer.status, answer.code) == (422, "engine_refused")
    assert "rank 512" in answer.json()["error"]["message"]
    assert (await bench.state())["adapters"] == []
    await bench.load(ADAPTER)


@pytest.mark.parametrize(
    ("name", "path"), [("", "/a"), (3, "/a"), ("a/b", "/a"), ("a" * 257, "/a"), ("a", "a"), ("a", None)]
)
async def test_malformed_loads(name: object, path: object) -> None:
    answer = await load(Bench(), name, path).answer()
    assert (answer.status, answer.code) == (400, "invalid_request")


async def test_slots_count_what_is_loading_too() -> None:
    bench = Bench(slots=2)
    bench.engine.adding.clear()
    first, second = load(bench, "adp_1", "/a/1"), load(bench, "adp_2", "/a/2")
    refused = await load(bench, "adp_3", "/a/3").answer()
    assert (refused.status, refused.code) == (409, "engine_full")
    bench.engine.adding.set()
    assert (await first.answer()).status == (await second.answer()).status == 200
    assert (await load(bench, "adp_3", "/a/3").answer()).status == 409
    assert (await unload(bench, "adp_1").answer()).status == 200
    assert (await load(bench, "adp_3", "/a/3").answer()).status == 200


async def test_one_operation_per_name_at_a_time() -> None:
    bench = Bench()
    bench.engine.adding.clear()
    loading, unloading = load(bench), unload(bench)
    other = load(bench, "adp_bad", "relative")
    assert (await other.answer()).status == 400
    assert not unloading.messages
    bench.engine.adding.set()
    assert (await loading.answer()).status == 200
    assert (await unloading.answer()).status == 200
    assert not bench.engine.held


@pytest.mark.parametrize("verb", ["open", "close"])
async def test_unknown_names_are_not_found(verb: str) -> None:
    bench = Bench()
    for answer in (
        await bench.agent.call("POST", f"/pillion/v1/adapters/{ADAPTER}/{verb}"),
        await unload(bench).answer(),
    ):
        assert (answer.status, answer.code) == (404, "not_found")


@pytest.mark.parametrize("deadline", ["-1", "x", "nan", "1e9"])
async def test_deadlines_are_seconds(deadline: str) -> None:
    bench = Bench()
    await bench.load(ADAPTER)
    answer = await bench.agent.call("DELETE", f"/pillion/v1/adapters/{ADAPTER}?deadline_s={deadline}")
    assert (answer.status, answer.code) == (400, "invalid_request")
    assert (await bench.adapter(ADAPTER))["open"] is True


async def test_closing_lets_requests_in_flight_finish() -> None:
    bench = Bench()
    await bench.load(ADAPTER)
    stream = bench.user.chat(ADAPTER, tokens=2, stream=True)
    bench.engine.tick()
    await stream.events(2)
    assert (await bench.agent.call("POST", f"/pillion/v1/adapters/{ADAPTER}/close")).status == 200
    assert (await bench.user.chat(ADAPTER).answer()).code == "adapter_fenced"
    bench.engine.tick(2)
    assert (await stream.answer()).whole
    assert b'"t":1' in stream.body


async def test_what_is_in_use_is_not_evicted_and_stays_open() -> None:
    bench = Bench()
    await bench.load(ADAPTER)
    call = bench.user.chat(ADAPTER, tokens=1)
    await until(lambda: bench.engine.running == [ADAPTER])
    answer = await evict(bench).answer()
    assert (answer.status, answer.code) == (409, "adapter_busy")
    assert (await bench.adapter(ADAPTER))["open"] is True
    bench.engine.tick(1)
    assert (await call.answer()).status == 200
    assert (await evict(bench).answer()).status == 200
    assert ADAPTER not in bench.engine.held
    assert (await evict(bench).answer()).status == 404


async def test_unload_waits_for_what_is_in_flight() -> None:
    bench = Bench()
    await bench.load(ADAPTER)
    stream = bench.user.chat(ADAPTER, tokens=3, stream=True)
    bench.engine.tick()
    await stream.events(2)
    going = unload(bench)
    refused = await bench.user.chat(ADAPTER).answer()
    assert (refused.status, refused.code) == (503, "adapter_fenced")
    assert (await bench.agent.chat(ADAPTER).answer()).code == "adapter_fenced"
    assert bench.engine.held
    bench.engine.tick(3)
    done = (await going.answer()).json()
    assert (done["drained"], done["cut"]) == (1, 0)
    assert (await stream.answer()).whole
    assert b"error" not in stream.body
    assert not bench.engine.held
    assert (await bench.user.chat(ADAPTER).answer()).code == "adapter_not_resident"


async def test_at_the_deadline_streams_end_with_an_error_event_and_others_may_retry() -> None:
    bench = Bench()
    await bench.load(ADAPTER)
    stream = bench.user.chat(ADAPTER, tokens=9, stream=True)
    plain = bench.user.chat(ADAPTER, tokens=9)
    beside = bench.user.chat(BASE, tokens=4, stream=True)
    bench.engine.tick()
    await stream.events(2)
    await until(lambda: bench.engine.running.count(ADAPTER) == 2)
    done = (await unload(bench, deadline_s=0).answer()).json()
    assert (done["drained"], done["cut"]) == (0, 2)
    assert bench.engine.aborted == [ADAPTER, ADAPTER]
    assert (await stream.answer()).whole
    assert stream.body.startswith(b"data: {")
    assert stream.body.endswith(b"\n\n")
    assert b'"code":"adapter_detached"' in stream.body
    assert ((await plain.answer()).status, plain.code) == (503, "adapter_fenced")
    assert plain.headers["x-pillion-retry"] == "1"
    bench.engine.tick(4)
    assert b"error" not in (await beside.answer()).body


async def test_an_engine_deaf_to_disconnects_is_cancelled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pillion.engines.plugin.pillion_engine.roster.CUT_GRACE_S", 0.05)
    bench = Bench()
    bench.engine.deaf = True
    await bench.load(ADAPTER)
    stream = bench.user.chat(ADAPTER, tokens=9, stream=True)
    bench.engine.tick()
    await stream.events(2)
    done = (await unload(bench, deadline_s=0).answer()).json()
    assert done["cut"] == 1
    assert b"adapter_detached" in (await stream.answer()).body


async def test_an_engine_that_keeps_the_adapter_is_told_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pillion.engines.plugin.pillion_engine.roster.UNLOAD_PROOF_EVERY_S", 0)
    bench = Bench()
    await bench.load(ADAPTER)
    bench.engine.sticky.add(ADAPTER)
    answer = await unload(bench).answer()
    assert (answer.status, answer.code) == (500, "unload_unproved")
    assert (await bench.adapter(ADAPTER))["open"] is False
    bench.engine.sticky.clear()
    assert (await unload(bench).answer()).status == 200


async def test_an_agent_that_hangs_up_does_not_stop_its_unload() -> None:
    bench = Bench()
    await bench.load(ADAPTER)
    stream = bench.user.chat(ADAPTER, tokens=1, stream=True)
    bench.engine.tick()
    await stream.events(2)
    going = unload(bench)
    await asyncio.sleep(0)
    going.leave()
    bench.engine.tick()
    await going.answer()
    assert not bench.engine.held
