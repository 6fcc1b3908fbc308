"""Proof that an adapter changes what the engine says: its log-probabilities against the base's (SPEC §3)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from pillion.core.replica import Proof
from pillion.engines.client import EngineError

# Short, so that the smallest context takes them with a tokenizer of single bytes, and unlike each other.
PROMPTS = (
    "The capital of France is Paris, and",
    "def add(a, b):\n    return a +",
    "Q: What is 7 times 6?\nA:",
    "Hello! How are you today?",
)
FLOOR = 1e-5
SAFETY = 2.0

TOP = 5

# What may follow one prompt: log-probabilities in nats of the likeliest tokens.
Row = dict[str, float]


class Completions(Protocol):
    """What the proof needs of an engine."""

    async def complete(self, body: dict[str, Any]) -> dict[str, Any]: ...


@dataclass(frozen=True)
class Baseline:
    """The base's own answers to `PROMPTS`, and how much they differ from one asking to the next, in nats."""

    rows: tuple[Row, ...]
    noise: float


class Prover:
    """Asks one engine, from its start to its end."""

    def __init__(self, engine: Completions, base: str) -> None:
        self._engine = engine
        self._base = base
        self._baseline: Baseline | None = None

    async def baseline(self) -> Baseline:
        """Asks the base once together and once each alone, as batches of other shapes add up differently."""
        if self._baseline is None:
            together = await self._ask(self._base, PROMPTS)
            again = await self._ask(self._base, PROMPTS)
            alone = tuple([(await self._ask(self._base, [prompt]))[0] for prompt in PROMPTS])
            noise = max(difference(together, again), difference(together, alone))
            self._baseline = Baseline(together, noise)
        return self._baseline

    async def prove(self, name: str) -> Proof:
        """One request, which warms the adapter up as well. Whether it counts says `effective`."""
        baseline = await self.baseline()
        return Proof(difference(baseline.rows, await self._ask(name, PROMPTS)), baseline.noise)

    async def _ask(self, model: str, prompts: Sequence[str]) -> tuple[Row, ...]:
        """Of the token after each prompt: those of the prompts' own tokens are not there in every engine with LoRA.

        Raises `EngineError`.
        """
        answer = await self._engine.complete(
            {
                "model": model,
                "prompt": list(prompts),
                "max_tokens": 1,
                "temperature": 0,
                "logprobs": TOP,
                "return_tokens_as_token_ids": True,  # two tokens may have the same text
            }
        )
        try:
            choices = sorted(answer["choices"], key=lambda choice: choice["index"])
            rows = tuple(_row(choice["logprobs"]["top_logprobs"][0]) for choice in choices)
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            raise EngineError("the engine does not tell log-probabilities as it was asked to.") from error
        if len(rows) != len(prompts) or not all(rows):
            raise EngineError("the engine does not tell log-probabilities of every prompt.")
        return rows


def effective(proof: Proof) -> bool:
    """Whether the difference is more than noise. One that is not a number is none: such an adapter is broken."""
    return math.isfinite(proof.difference) and proof.difference > max(FLOOR, SAFETY * proof.noise)


def difference(one: Sequence[Row], other: Sequence[Row]) -> float:
    """The largest difference at any token after any prompt, in nats.

    A token that only one of the two has among its likeliest lies, in the other, below the least of those.
    """
    pairs = list(zip(one, other, strict=True))
    if any(math.isnan(value) for row in (*one, *other) for value in row.values()):
        return math.nan
    return max((max(_gap(a, b), _gap(b, a)) for a, b in pairs), default=0.0)


def _gap(one: Row, other: Row) -> float:
    least = min(other.values())
    gaps = (abs(value - other[token]) if token in other else value - least for token, value in one.items())
    return max(gaps, default=0.0)


def _row(tokens: dict[str, Any]) -> Row:
    return {token: math.nan if value is None else float(value) for token, value in tokens.items()}
