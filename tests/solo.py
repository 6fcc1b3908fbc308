"""Answers of a real engine, held against what the same version answered alone."""

from __future__ import annotations

import random
import threading
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

import httpx

# In half precision, which an engine takes where the processor has it, a batch's shape decides between near tokens.
OPTIONS = '{threads = 2, max_num_seqs = 16, dtype = "float32"}'
TIE = 1e-3
TOKENS = 8
PAUSE_S = 0.05  # after an error


@dataclass(frozen=True)
class Said:
    """Greedy tokens, and how far the second best lay behind at each."""

    tokens: list[str]
    margins: list[float]

    def agrees(self, other: Said) -> bool:
        """Whether `other` is the same answer, up to the first token that a rounding may have decided here."""
        for one, two, margin in zip(self.tokens, other.tokens, self.margins, strict=True):
            if margin < TIE:
                return True
            if one != two:
                return False
        return True


Solo = dict[tuple[str, str, str], Said]  # of a model, its version ("" for a base), a prompt


@dataclass
class Asker:
    """Asks, and keeps every answer that is not the one its version gave alone.

    `honest`: codes of errors that are no fault. `counts`: answers by model and version, errors by model and code. `last`:
    the last answer's headers.
    """

    http: httpx.Client
    solo: Solo
    honest: frozenset[str] = frozenset()
    wrong: list[str] = field(default_factory=list)
    counts: Counter[tuple[str, str]] = field(default_factory=Counter)
    last: Mapping[str, str] = field(default_factory=dict)

    def ask(self, model: str, prompt: str) -> tuple[str, Said | None]:
        """The version, and what it said; or the code of an error that is no fault."""
        body = {"model": model, "prompt": prompt, "max_tokens": TOKENS, "temperature": 0, "logprobs": 2}
        answer = self.http.post("/v1/completions", json=body)
        self.last = answer.headers
        if answer.status_code != 200:
            code = str(answer.json()["error"]["code"])
            assert code in self.honest, answer.text
            self.counts[model, code] += 1
            return code, None
        scores = answer.json()["choices"][0]["logprobs"]
        ranked = [sorted(top.values(), reverse=True) for top in scores["top_logprobs"]]
        version = answer.headers.get("x-pillion-adapter-version", "")
        self.counts[model, version] += 1
        return version, Said(scores["tokens"], [two[0] - two[-1] for two in ranked])

    def check(self, model: str, prompt: str) -> str:
        """The version that answered, or an error's code."""
        version, said = self.ask(model, prompt)
        if said is not None and not (alone := self.solo[model, version, prompt]).agrees(said):
            self.wrong.append(f"{model}, version {version}: {said.tokens}, alone {alone.tokens}")
        return version

    def until(self, ended: threading.Event, models: list[str], prompts: list[str], seed: int) -> None:
        draw = random.Random(seed)
        while not ended.is_set():
            try:
                said = self.check(draw.choice(models), draw.choice(prompts))
            except Exception as error:
                self.wrong.append(repr(error))
            else:
                if said in self.honest:
                    ended.wait(PAUSE_S)
