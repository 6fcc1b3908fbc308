"""What the simulated model says, and how likely it finds it. All of it follows from the names alone."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

_EFFECT = 0.5


@dataclass(frozen=True)
class Voice:
    """Who answers: the base, or an adapter by 12 hex of its digest. `effective`: it differs from the base."""

    base: str
    tag: str = "base"
    effective: bool = False

    def token(self, index: int) -> str:
        """The text of token `index` (from 0); the first one carries who speaks."""
        return f"sim {self.base} {self.tag} t1" if index == 0 else f" t{index + 1}"

    def text(self, tokens: int) -> str:
        return "".join(self.token(index) for index in range(tokens))

    def logprob(self, token: str, position: int) -> float:
        """Nats, below 0: the base's own, moved a little by an adapter that has an effect."""
        likely = _share(f"{self.base}/{token}/{position}")
        moved = _EFFECT * _share(f"{self.tag}/{token}/{position}") if self.effective else 0.0
        return -(0.05 + 4.0 * likely + moved)


def prompt_tokens(prompt: object) -> list[str]:
    """A prompt as tokens: its words, or the numbers it is given as."""
    if isinstance(prompt, str):
        return prompt.split() or [""]
    if isinstance(prompt, Sequence):
        return [str(part) for part in prompt]
    return [""]


def token_id(token: str) -> int:
    return zlib.crc32(token.encode()) % 32000


def _share(text: str) -> float:
    return zlib.crc32(text.encode()) / 2**32
