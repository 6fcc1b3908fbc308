"""Requests for the base and for adapters share batches, adapters come and go, and nobody gets another's weights.

Every greedy answer must equal the one the same model gave to the same prompt alone. Where the two best tokens
lie within 1e-3 the order of sums may flip them; such answers are counted apart, and must be few.
"""

import asyncio
import itertools
import json
import os
import random
from dataclasses import dataclass, field

import httpx
import pytest
from asking import Answer, ask, load, unload
from running_engine import BASE, Engine

pytestmark = pytest.mark.xdist_group("real_engine")

REQUESTS = 2000 if os.environ.get("PILLION_TEST_FULL") else 500
AT_ONCE = 24
TIE = 1e-3
STAYING = ("one", "two", "three")
SPECIAL = {0: "<pad>", 1: "<s>", 2: "</s>", 3: "<unk>"}
SWAPPED = ("four", "five")


@dataclass
class Tally:
    """How the mixed answers compare with those given alone."""

    same: int = 0
    ties: int = 0
    wrong: list[str] = field(default_factory=list)
    swaps: int = 0

    def add(self, model: str, prompt: str, alone: Answer, mixed: Answer) -> None:
        if mixed.tokens == alone.tokens:
            self.same += 1
            return
        pairs = enumerate(itertools.zip_longest(alone.tokens, mixed.tokens))
        first = next(at for at, (one, other) in pairs if one != other)
        if first < len(alone.margins) and alone.margins[first] < TIE:
            self.ties += 1
        else:
            self.wrong.append(f"{model} on {prompt!r}: {mixed.tokens} instead of {alone.tokens}")


def prompts(count: int) -> list[str]:
    draw = random.Random(11)
    return [
        " ".join(f"w{draw.randrange(4, 500)}" for _ in range(draw.randrange(3, 40))) for _ in range(count)
    ]


async def swap_until(done: asyncio.Event, agent: httpx.AsyncClient, engine: Engine, tally: Tally) -> None:
    for turn in itertools.count():
        name = f"adp_swap@{turn}"
        await load(agent, engine, name, SWAPPED[turn % len(SWAPPED)])
        await ask(agent, name, "w5 w6 w7")
        await unload(agent, name)
        tally.swaps += 1
        if done.is_set():
            return


async def test_the_plugin_is_in_place(engine: Engine) -> None:
    async with engine.agent() as agent:
        state = (await agent.get("/pillion/v1/state")).json()
    assert state["plugin"]["lora"] == "grouped", state
    assert state["base"] == {"name": BASE, "inflight": 0}


async def test_mixed_batches_with_hot_swaps(engine: Engine) -> None:
    tally = Tally()
    asked = [BASE, BASE, *(f"adp_{folder}@mixed" for folder in STAYING)]
    draw = random.Random(5)
    work = [(draw.choice(asked), prompt) for prompt in draw.choices(prompts(40), k=REQUESTS)]
    async with engine.agent() as agent, engine.user() as user:
        for folder in STAYING:
            await load(agent, engine, f"adp_{folder}@mixed", folder)
        # Asked one at a time, no batch holds two models.
        alone = {pair: await ask(user, *pair) for pair in sorted(set(work))}
        assert differ(alone, asked), "the adapters do not change the answers: the test would prove nothing"
        room = asyncio.Semaphore(AT_ONCE)

        async def one(model: str, prompt: str) -> None:
            async with room:
                tally.add(model, prompt, alone[model, prompt], await ask(user, model, prompt))

        done = asyncio.Event()
        swapping = asyncio.create_task(swap_until(done, agent, engine, tally))
        await asyncio.gather(*(one(*pair) for pair in work))
        done.set()
        await swapping
        for folder in STAYING:
            await unload(agent, f"adp_{folder}@mixed")
    print(f"{tally.same} same, {tally.ties} ties, {len(tally.wrong)} wrong, {tally.swaps} swaps")
    assert not tally.wrong, f"{len(tally.wrong)} of {REQUESTS} wrong, such as {tally.wrong[0]}"
    assert tally.ties <= REQUESTS // 100
    assert tally.same + tally.ties == REQUESTS
    assert tally.swaps >= 3


def differ(alone: dict[tuple[str, str], Answer], models: list[str]) -> bool:
    """Whether each model answers most prompts differently from each other model."""
    for one, other in itertools.combinations(sorted(set(models)), 2):
        both = [prompt for model, prompt in alone if model == one and (other, prompt) in alone]
        same = sum(alone[one, prompt].tokens == alone[other, prompt].tokens for prompt in both)
        if not both or same * 2 > len(both):
            return False
    return True


async def prompt_logprobs(client: httpx.AsyncClient, model: str, prompt: str) -> list[float]:
    """How likely `model` finds each token of `prompt` after those before it."""
    body = {"model": model, "prompt": prompt, "max_tokens": 1, "echo": True, "logprobs": 1, "temperature": 0}
    answer = await client.post("/v1/completions", json=body)
    assert answer.status_code == 200, answer.text
    found = answer.json()["choices"][0]["logprobs"]["token_logprobs"]
    return [value for value in found[:-1] if value is not None]


async def test_answers_are_those_of_transformers_and_peft(engine: Engine) -> None:
    """All at once; adapters of linear, embedding and output layers."""
    reference = json.loads((engine.models / "reference.json").read_text())
    async with engine.agent() as agent, engine.user() as user:
        for folders in (("one", "two", "three", "four"), ("five",)):
            models = {folder: f"adp_{folder}@reference" for folder in folders}
            for folder, name in models.items():
                await load(agent, engine, name, folder)
            await asyncio.gather(
                *(
                    agrees(user, model, prompt, want)
                    for folder, model in {"base": BASE, **models}.items()
                    for prompt, want in reference[folder].items()
                )
            )
            for name in models.values():
                await unload(agent, name)


async def agrees(user: httpx.AsyncClient, model: str, prompt: str, want: dict[str, list[float]]) -> None:
    answer, scores = await ask(user, model, prompt), await prompt_logprobs(user, model, prompt)
    assert scores == pytest.approx(want["scores"], abs=2e-3), f"{model} on {prompt!r}"
    for at, token in enumerate(want["tokens"]):
        if answer.margins[at] < TIE:
            return
        word = SPECIAL.get(int(token), f"w{token}")
        assert answer.tokens[at].strip() == word, f"{model} on {prompt!r}: {answer.tokens}"


async def test_prompts_are_scored_by_their_own_model(engine: Engine) -> None:
    """Also by adapters of the output layer ("four"), where rows are tokens instead of requests."""
    asked = [BASE, "adp_two@scored", "adp_four@scored"]
    async with engine.agent() as agent, engine.user() as user:
        for name in asked[1:]:
            await load(agent, engine, name, name.removeprefix("adp_").split("@")[0])
        pairs = [(model, prompt) for prompt in prompts(12) for model in asked]
        alone = [await prompt_logprobs(user, *pair) for pair in pairs]
        beside = [asyncio.create_task(ask(user, model, "w3 w4 w5")) for model in asked * 4]
        mixed = await asyncio.gather(*(prompt_logprobs(user, *pair) for pair in pairs))
        await asyncio.gather(*beside)
        for name in asked[1:]:
            await unload(agent, name)
    for (model, prompt), want, got in zip(pairs, alone, mixed, strict=True):
        assert got == pytest.approx(want, abs=2e-3), f"{model} on {prompt!r}"
    assert alone[0] != pytest.approx(alone[2], abs=0.1)
