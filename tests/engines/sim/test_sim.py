import asyncio
import base64
import struct
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import openai
import pytest
from tests.replicas import Node

from pillion.engines.client import EngineClient, EngineError
from pillion.engines.sim.server import Running, running
from pillion.engines.sim.settings import Faults, SimConfig, SimOptions

ENDPOINTS = ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/embeddings")


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


def config(node: Node, **options: Any) -> SimConfig:
    return SimConfig("tiny", str(node.model), "infer", "agent", 3, 8, SimOptions(**options))


@pytest.fixture
async def sim(node: Node) -> AsyncIterator[Running]:
    async with running(config(node)) as engine:
        yield engine


@pytest.fixture
async def agent(sim: Running) -> AsyncIterator[EngineClient]:
    client = EngineClient(sim.url, "agent")
    yield client
    await client.close()


@pytest.fixture
async def user(sim: Running) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=f"{sim.url}/v1", api_key="infer", max_retries=0) as client:
        yield client


async def load(agent: EngineClient, node: Node, name: str = "one", **how: Any) -> str:
    entry = node.put(name, **how)
    await agent.load(entry.engine_name, str(await node.fetch(entry.digest)))
    await agent.open(entry.engine_name)
    return entry.engine_name


async def test_answers_by_openais_own_client(
    node: Node, agent: EngineClient, user: openai.AsyncOpenAI
) -> None:
    name = await load(agent, node)
    tag = name.partition("@")[2][:12]
    messages: Any = [{"role": "user", "content": "what is this"}]
    chat = await user.chat.completions.create(model=name, messages=messages, max_tokens=3)
    assert chat.choices[0].message.content == f"sim tiny {tag} t1 t2 t3"
    assert chat.usage
    assert (chat.usage.prompt_tokens, chat.usage.completion_tokens) == (3, 3)
    assert chat.choices[0].finish_reason == "length"
    said = ""
    stream = await user.chat.completions.create(
        model="tiny",
        messages=messages,
        max_completion_tokens=2,
        stream=True,
        stream_options={"include_usage": True},
    )
    async for chunk in stream:
        said += (
            (chunk.choices[0].delta.content or "")
            if chunk.choices
            else f"|{chunk.usage and chunk.usage.total_tokens}"
        )
    assert said == "sim tiny base t1 t2|5"
    text = await user.completions.create(model="tiny", prompt=["a b", "c"], max_tokens=1, logprobs=2)
    assert [choice.text for choice in text.choices] == ["sim tiny base t1"] * 2
    assert text.choices[0].logprobs
    assert len(text.choices[0].logprobs.top_logprobs or []) == 1
    reply = await user.responses.create(model="tiny", input="hi", max_output_tokens=2)
    assert reply.output_text == "sim tiny base t1 t2"
    async with user.responses.stream(model="tiny", input="hi", max_output_tokens=2) as events:
        assert (await events.get_final_response()).output_text == "sim tiny base t1 t2"
    vectors = await user.embeddings.create(model="tiny", input=["a", "b"])
    assert len(vectors.data[0].embedding) == 32
    assert vectors.data[0].embedding != vectors.data[1].embedding
    assert {model.id for model in (await user.models.list()).data} == {"tiny", name}


async def test_embeddings_as_base64(sim: Running) -> None:
    answer = await post(sim, "/v1/embeddings", {"model": "tiny", "input": "a", "encoding_format": "base64"})
    assert len(struct.unpack("<32f", base64.b64decode(answer["data"][0]["embedding"]))) == 32


async def test_stop_words_and_more_choices(user: openai.AsyncOpenAI) -> None:
    text = await user.completions.create(model="tiny", prompt="a", max_tokens=9, stop=[" t3"], n=2)
    assert [(choice.text, choice.finish_reason) for choice in text.choices] == [
        ("sim tiny base t1 t2", "stop")
    ] * 2


@pytest.mark.parametrize("path", ENDPOINTS)
@pytest.mark.parametrize(
    "body", [{}, {"model": "tiny"}, {"model": "tiny", "prompt": "a", "max_tokens": "x", "input": []}]
)
async def test_bad_requests(sim: Running, path: str, body: dict[str, Any]) -> None:
    answer = await post(sim, path, body)
    assert answer["error"]["message"]


@pytest.mark.parametrize("n", [0, -5, 10**9])
async def test_more_answers_than_it_may(user: openai.AsyncOpenAI, n: int) -> None:
    with pytest.raises(openai.BadRequestError, match="n must be at least 1"):
        await user.completions.create(model="tiny", prompt="a", max_tokens=1, n=n)


async def test_more_than_the_context(user: openai.AsyncOpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="maximum context length"):
        await user.completions.create(model="tiny", prompt="a", max_tokens=40_000)


async def test_an_adapter_moves_the_likelihoods_unless_its_b_is_zero(node: Node, agent: EngineClient) -> None:
    names = [await load(agent, node, "one", seed=1), await load(agent, node, "zero", seed=2, zero=True)]
    ask = {"prompt": "a b", "max_tokens": 1, "logprobs": 2, "return_tokens_as_token_ids": True}
    rows = [
        (await agent.complete({"model": name, **ask}))["choices"][0]["logprobs"]["top_logprobs"]
        for name in ("tiny", *names)
    ]
    assert rows[0] == rows[2]
    assert rows[0] != rows[1]
    assert rows[0][0].keys() == rows[1][0].keys()


async def test_shapes_are_checked_against_the_base(node: Node, agent: EngineClient) -> None:
    (node.model / "config.json").write_text((node.model / "config.json").read_text().replace("32", "48"))
    async with running(config(node)) as wider:
        client = EngineClient(wider.url, "agent")
        entry = node.put("one")
        with pytest.raises(EngineError, match="shape") as refused:
            await client.load(entry.engine_name, str(await node.fetch(entry.digest)))
        assert refused.value.code == "engine_refused"
        assert refused.value.lasting
        with pytest.raises(EngineError) as missing:
            await client.load("adp_x@1", "/nowhere")
        assert missing.value.code == "engine_refused"
        await client.close()


async def test_slots_are_counted(node: Node, agent: EngineClient) -> None:
    for name in ("one", "two", "three"):
        await load(agent, node, name, seed=len(name))
    with pytest.raises(EngineError) as full:
        await load(agent, node, "four", seed=9)
    assert full.value.code == "engine_full"
    assert not full.value.lasting


async def test_vllms_own_load_and_unload(node: Node, sim: Running, agent: EngineClient) -> None:
    entry = node.put("one")
    body = {"lora_name": "mine", "lora_path": str(await node.fetch(entry.digest))}
    async with aiohttp.ClientSession(headers={"authorization": "Bearer agent"}) as http:
        for path, code in (("load", 200), ("load", 400), ("unload", 200), ("unload", 404)):
            async with http.post(f"{sim.url}/v1/{path}_lora_adapter", json=body) as answer:
                assert answer.status == code


async def test_metrics_have_vllms_names(
    node: Node, sim: Running, agent: EngineClient, user: openai.AsyncOpenAI
) -> None:
    await user.completions.create(model="tiny", prompt="a b", max_tokens=4)
    async with (
        aiohttp.ClientSession(headers={"authorization": "Bearer agent"}) as http,
        http.get(f"{sim.url}/metrics") as answer,
    ):
        text = await answer.text()
    assert 'vllm:prompt_tokens_total{engine="0",model_name="tiny"} 2' in text
    assert 'vllm:generation_tokens_total{engine="0",model_name="tiny"} 4' in text
    for name in (
        "num_requests_running",
        "num_requests_waiting",
        "lora_requests_info",
        "request_success_total",
    ):
        assert f"vllm:{name}{{" in text


async def test_running_and_waiting_are_seen(node: Node) -> None:
    async with (
        running(config(node, tokens_per_s=1, max_num_seqs=1)) as engine,
        aiohttp.ClientSession(headers={"authorization": "Bearer infer"}) as http,
    ):
        body = {"model": "tiny", "prompt": "a", "max_tokens": 1000}
        asks = [asyncio.create_task(http.post(f"{engine.url}/v1/completions", json=body)) for _ in range(3)]
        while engine.app.metrics.waiting.total() < 2:
            await asyncio.sleep(0.01)
        assert engine.app.metrics.running.total() == 1
        for ask in asks:
            ask.cancel()
        while engine.app.metrics.running.total() + engine.app.metrics.waiting.total():
            await asyncio.sleep(0.01)  # who leaves is noticed at once, not after 1,000 s
        assert engine.app.metrics.finished["abort"] >= 1


async def test_pace(node: Node) -> None:
    async with running(config(node, ttft_ms=100, tokens_per_s=100)) as engine:
        loop = asyncio.get_running_loop()
        begun = loop.time()
        await post(engine, "/v1/completions", {"model": "tiny", "prompt": "a", "max_tokens": 11})
        assert 0.19 <= loop.time() - begun < 2.0


async def test_faults(node: Node) -> None:
    died: list[int] = []
    async with running(config(node), lambda: died.append(1)) as engine:
        client = EngineClient(engine.url, "agent")
        engine.app.set_faults(Faults(crash_on="poison"))
        await post(engine, "/v1/completions", {"model": "tiny", "prompt": "harmless", "max_tokens": 1})
        assert not died
        await post(
            engine, "/v1/completions", {"model": "tiny", "prompt": "some poison here", "max_tokens": 1}
        )
        assert died
        async with aiohttp.ClientSession() as http:
            for key, body, code in (
                ("infer", {"hang": True}, 403),
                ("agent", {"speed": 1}, 400),
                ("agent", {"slow": 0}, 400),
                ("agent", {"hang": True}, 200),
            ):
                headers = {"authorization": f"Bearer {key}"}
                async with http.post(f"{engine.url}/sim/faults", json=body, headers=headers) as answer:
                    assert answer.status == code
        assert not await client.healthy(0.1)
        hung = asyncio.create_task(post(engine, "/v1/completions", {"model": "tiny", "prompt": "hi"}))
        for _ in range(3):
            assert not await client.healthy(0.05)
        assert not hung.done()
        engine.app.set_faults(Faults())
        assert (await hung)["choices"], "as an engine that was stopped for a while"
        assert await client.healthy(5)
        await client.close()


async def post(engine: Running, path: str, body: dict[str, Any]) -> dict[str, Any]:
    headers = {"authorization": "Bearer infer"}
    async with (
        aiohttp.ClientSession(headers=headers) as http,
        http.post(engine.url + path, json=body) as answer,
    ):
        found: dict[str, Any] = await answer.json()
        return found
