"""What tests ask of a running engine."""

import asyncio
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import httpx
from running_engine import Engine


@dataclass(frozen=True)
class Answer:
    """Tokens of a greedy answer, and how far the second best lay behind at each."""

    tokens: tuple[str, ...]
    margins: tuple[float, ...]


async def ask(client: httpx.AsyncClient, model: str, prompt: str) -> Answer:
    answer = await client.post(
        "/v1/completions",
        json={"model": model, "prompt": prompt, "max_tokens": 12, "temperature": 0, "logprobs": 2},
    )
    assert answer.status_code == 200, answer.text
    (choice,) = answer.json()["choices"]
    best = [sorted(top.values(), reverse=True) for top in choice["logprobs"]["top_logprobs"]]
    return Answer(tuple(choice["logprobs"]["tokens"]), tuple(two[0] - two[-1] for two in best))


async def load(agent: httpx.AsyncClient, engine: Engine, name: str, folder: str) -> None:
    body = {"name": name, "path": str(engine.models / folder)}
    answer = await agent.post("/pillion/v1/adapters", json=body)
    assert answer.status_code == 200, answer.text
    assert (await agent.post(f"/pillion/v1/adapters/{name}/open")).status_code == 200


async def unload(agent: httpx.AsyncClient, name: str, deadline_s: float = 30) -> dict[str, Any]:
    answer = await agent.delete(f"/pillion/v1/adapters/{name}", params={"deadline_s": deadline_s})
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


async def running(agent: httpx.AsyncClient) -> int:
    """Requests the engine's own scheduler holds, running or waiting."""
    metrics = (await agent.get("/metrics")).text
    found = re.findall(r"^vllm:num_requests_(?:running|waiting)\{.*\} ([0-9.]+)", metrics, re.MULTILINE)
    assert len(found) == 2, metrics
    return int(sum(map(float, found)))


async def names(agent: httpx.AsyncClient) -> set[str]:
    """Adapters the engine holds."""
    state = (await agent.get("/pillion/v1/state")).json()
    return {adapter["name"] for adapter in state["adapters"] if adapter["resident"]}


async def until(met: Callable[[], Any], seconds: float = 20) -> None:
    """Asks `met`, a coroutine function, until it says yes."""
    async with asyncio.timeout(seconds):
        while not await met():
            await asyncio.sleep(0.05)
