"""Loading, refusing, cutting off and unloading on a real engine."""

import asyncio
import json
import shutil
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import httpx
import pytest
from asking import ask, load, names, running, unload, until
from running_engine import BASE, SLOTS, Engine

pytestmark = pytest.mark.xdist_group("real_engine")

LONG = {"prompt": "w5 w6 w7 w8", "max_tokens": 480, "temperature": 0, "ignore_eos": True}


class Stream:
    """A streamed completion that is read in the background."""

    def __init__(self, client: httpx.AsyncClient, model: str) -> None:
        self.events: list[str] = []
        self.begun = asyncio.Event()
        self._task = asyncio.create_task(self._read(client, model))

    async def _read(self, client: httpx.AsyncClient, model: str) -> None:
        body = {"model": model, "stream": True, **LONG}
        async with client.stream("POST", "/v1/completions", json=body) as answer:
            assert answer.status_code == 200
            async for line in answer.aiter_lines():
                if line:
                    self.events.append(line.removeprefix("data: "))
                    self.begun.set()

    async def end(self) -> list[str]:
        await asyncio.wait_for(self._task, 60)
        return self.events

    def leave(self) -> None:
        self._task.cancel()


@pytest.fixture(autouse=True)
async def nothing_loaded(engine: Engine) -> AsyncIterator[None]:
    """A test that fails leaves its adapters to nobody."""
    yield
    async with engine.agent() as agent:
        for name in await names(agent):
            await unload(agent, name, deadline_s=0)


async def test_an_unloaded_adapter_is_gone(engine: Engine) -> None:
    name = "adp_gone@1"
    async with engine.agent() as agent, engine.user() as user:
        await load(agent, engine, name, "one")
        assert await names(agent) == {name}
        await ask(user, name, "w9 w8")
        done = await unload(agent, name)
        assert (done["drained"], done["cut"]) == (0, 0)
        assert await names(agent) == set()
        models = {model["id"] for model in (await user.get("/v1/models")).json()["data"]}
        assert models == {BASE}
        answer = await user.post("/v1/completions", json={"model": name, **LONG})
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "adapter_not_resident")


async def test_streams_are_cut_and_the_adapter_does_not_come_back(engine: Engine, tmp_path: Path) -> None:
    name = "adp_cut@1"
    copy = tmp_path / "copy"
    shutil.copytree(engine.models / "one", copy)
    async with AsyncExitStack() as clients:
        agent = await clients.enter_async_context(engine.agent())
        user = await clients.enter_async_context(engine.user())
        await agent.post("/pillion/v1/adapters", json={"name": name, "path": str(copy)})
        await agent.post(f"/pillion/v1/adapters/{name}/open")
        # An engine that still ran one of these after the removal would look for the files, and die of it.
        shutil.rmtree(copy)
        beside = Stream(user, BASE)
        cut = [Stream(user, name) for _ in range(4)]
        plain = asyncio.create_task(user.post("/v1/completions", json={"model": name, **LONG}))
        for stream in (beside, *cut):
            await asyncio.wait_for(stream.begun.wait(), 30)
        done = await unload(agent, name, deadline_s=0)
        assert (done["drained"], done["cut"]) == (0, 5)
        assert await names(agent) == set()
        for stream in cut:
            events = await stream.end()
            assert json.loads(events[-1])["error"]["code"] == "adapter_detached"
        refused = await plain
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "adapter_fenced")
        assert refused.headers["x-pillion-retry"] == "1"
        assert (await beside.end())[-1] == "[DONE]"
        assert await names(agent) == set()
        assert await running(agent) == 0
        assert (await agent.get("/health")).status_code == 200


@pytest.mark.parametrize(
    ("folder", "says"),
    [
        ("bad-rank", "rank 512"),
        ("bad-shape", "size"),
        ("no-weights", "tensors"),
        ("nothing", "no adapter_config"),
    ],
)
async def test_a_bad_adapter_is_refused_and_disturbs_nobody(engine: Engine, folder: str, says: str) -> None:
    async with engine.agent() as agent, engine.user() as user:
        await load(agent, engine, "adp_good@1", "two")
        alone = {model: await ask(user, model, "w11 w12 w13") for model in (BASE, "adp_good@1")}
        beside = Stream(user, "adp_good@1")
        await asyncio.wait_for(beside.begun.wait(), 30)
        body = {"name": "adp_bad@1", "path": str(engine.models / folder)}
        refused = await agent.post("/pillion/v1/adapters", json=body)
        assert (refused.status_code, refused.json()["error"]["code"]) == (422, "engine_refused")
        assert says in refused.json()["error"]["message"]
        assert "stack trace" not in refused.json()["error"]["message"]
        assert await names(agent) == {"adp_good@1"}
        for model, answer in alone.items():
            assert (await ask(user, model, "w11 w12 w13")).tokens == answer.tokens
        assert (await beside.end())[-1] == "[DONE]"
        await unload(agent, "adp_good@1")


async def test_a_client_that_leaves_stops_the_generation(engine: Engine) -> None:
    async with engine.agent() as agent, engine.user() as user:
        await load(agent, engine, "adp_left@1", "three")
        for model in (BASE, "adp_left@1"):
            stream = Stream(user, model)
            plain = asyncio.create_task(user.post("/v1/completions", json={"model": model, **LONG}))
            await asyncio.wait_for(stream.begun.wait(), 30)
            assert await running(agent) >= 1
            stream.leave()
            plain.cancel()
            await until(lambda: nothing_runs(agent))
        await unload(agent, "adp_left@1")


async def nothing_runs(agent: httpx.AsyncClient) -> bool:
    state = (await agent.get("/pillion/v1/state")).json()
    counted = state["base"]["inflight"] + sum(adapter["inflight"] for adapter in state["adapters"])
    return counted == 0 and await running(agent) == 0


async def test_the_engine_is_full_before_it_evicts(engine: Engine) -> None:
    async with engine.agent() as agent:
        kept = [f"adp_full@{number}" for number in range(SLOTS)]
        for name in kept:
            await load(agent, engine, name, "two")
        body = {"name": "adp_over@1", "path": str(engine.models / "two")}
        refused = await agent.post("/pillion/v1/adapters", json=body)
        assert (refused.status_code, refused.json()["error"]["code"]) == (409, "engine_full")
        assert await names(agent) == set(kept)
        for name in kept:
            await unload(agent, name)


async def test_vllms_own_loading_does_not_exist(engine: Engine) -> None:
    async with engine.agent() as agent:
        body = {"lora_name": "x", "lora_path": str(engine.models / "one")}
        assert (await agent.post("/v1/load_lora_adapter", json=body)).status_code == 404
