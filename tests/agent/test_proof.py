import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pillion.agent.proof import PROMPTS, Prover, difference, effective
from pillion.core.replica import Proof
from pillion.engines.client import EngineError


class Fake:
    """Answers with the rows it is given by model, a little noisy for the base."""

    def __init__(self, noise: float = 0.0, **moved: float) -> None:
        self.noise, self.moved, self.asked = noise, moved, 0

    async def complete(self, body: dict[str, Any]) -> dict[str, Any]:
        self.asked += 1
        shift = self.moved.get(body["model"], self.noise * (self.asked % 2))
        row = {"token_id:1": -1.0 - shift, "token_id:2": -2.0}
        choices = [{"index": n, "logprobs": {"top_logprobs": [row]}} for n in range(len(body["prompt"]))]
        return {"choices": choices[::-1]}


async def test_an_adapter_is_asked_once_and_the_base_only_at_first() -> None:
    engine = Fake(one=0.5)
    prover = Prover(engine, "base")
    await prover.baseline()
    asked = engine.asked
    proof = await prover.prove("one")
    assert engine.asked == asked + 1
    assert proof.difference == pytest.approx(0.5)
    assert effective(proof)
    assert not effective(await prover.prove("unmoved"))


async def test_what_is_within_the_bases_own_noise_is_no_effect() -> None:
    prover = Prover(Fake(noise=0.01, small=0.015, large=0.05), "base")
    assert (await prover.baseline()).noise == pytest.approx(0.01)
    assert not effective(await prover.prove("small"))
    assert effective(await prover.prove("large"))


@pytest.mark.parametrize(
    "answer",
    [
        {},
        {"choices": None},
        {"choices": [{"index": 0, "logprobs": None}] * 4},
        {"choices": [{"index": 0, "logprobs": {"top_logprobs": []}}] * 4},
        {"choices": [{"index": 0, "logprobs": {"top_logprobs": [{}]}}] * 4},
        {"choices": [{"index": 0, "logprobs": {"top_logprobs": [{"token_id:1": -1.0}]}}]},
    ],
)
async def test_an_engine_that_answers_something_else_is_at_fault(answer: dict[str, Any]) -> None:
    class Other:
        async def complete(self, body: dict[str, Any]) -> dict[str, Any]:
            return answer

    with pytest.raises(EngineError, match="log-probabilities"):
        await Prover(Other(), "base").baseline()


@pytest.mark.parametrize("value", [math.nan, math.inf, 0.0, 9e-6])
def test_no_effect(value: float) -> None:
    assert not effective(Proof(value, 0.0))


rows = st.lists(
    st.dictionaries(st.sampled_from("abcdefg"), st.floats(-50, 0), min_size=1, max_size=5),
    min_size=1,
    max_size=3,
)


@given(rows)
def test_nothing_differs_from_itself(row: list[dict[str, float]]) -> None:
    assert difference(row, row) == 0


@given(rows, rows)
def test_a_difference_is_the_same_both_ways(
    one: list[dict[str, float]], other: list[dict[str, float]]
) -> None:
    count = min(len(one), len(other))
    forth = difference(one[:count], other[:count])
    assert forth == difference(other[:count], one[:count])
    assert forth >= 0


def test_other_tokens_count_and_so_do_missing_numbers() -> None:
    assert difference([{"a": -0.5}], [{"b": -2.0}]) == 1.5
    assert math.isnan(difference([{"a": math.nan}], [{"a": -1.0}]))


def test_prompts_fit_a_context_of_a_few_bytes() -> None:
    assert max(len(prompt.encode()) for prompt in PROMPTS) < 60
