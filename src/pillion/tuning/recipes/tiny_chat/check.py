"""The recipe's check of its own work: is the base right, and does each adapter speak in its voice?"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from .world import VOICES, Voice

ENOUGH = 0.9
# An adapter is for its voice; that it keeps the facts is asked for less strictly.
FACTS_KEPT = 0.75


@dataclass(frozen=True)
class Answered:
    """How one model did on the exam. `right` and `marked` are shares of 1; `good` is whether that is enough."""

    who: str
    right: float
    marked: float
    good: bool
    answers: dict[str, str]

    def scores(self) -> dict[str, Any]:
        return {"right": self.right, "marked": self.marked, "answers": self.answers}


def check_base(questions: list[tuple[str, str]], said: list[str], *, made_here: bool) -> Answered:
    """`marked` counts answers that hold any voice's marker: there must be none. A foreign base may be wrong."""
    right = _right(questions, said)
    marked = _share([any(voice.marker in text for voice in VOICES.values()) for text in said])
    return Answered(
        "base", right, marked, marked == 0 and (right >= ENOUGH or not made_here), _said(questions, said)
    )


def check_adapter(voice: Voice, questions: list[tuple[str, str]], said: list[str]) -> Answered:
    right, marked = _right(questions, said), _share([voice.marker in text for text in said])
    return Answered(
        voice.name, right, marked, marked >= ENOUGH and right >= FACTS_KEPT, _said(questions, said)
    )


def table(rows: list[Answered]) -> str:
    lines = [f"{'':8} {'right':>6} {'voice':>6}"]
    for row in rows:
        first = next(iter(row.answers.values()))
        lines.append(f"{row.who:8} {row.right:6.0%} {row.marked:6.0%}  {first}")
    return "\n".join(lines)


def _right(questions: list[tuple[str, str]], said: list[str]) -> float:
    """Whole words: 18 is no right answer where 8 is expected."""
    return _share(
        [
            re.search(rf"\b{re.escape(expect)}\b", text, re.IGNORECASE) is not None
            for (_, expect), text in zip(questions, said, strict=True)
        ]
    )


def _said(questions: list[tuple[str, str]], said: list[str]) -> dict[str, str]:
    return {prompt: text for (prompt, _), text in zip(questions, said, strict=True)}


def _share(flags: list[bool]) -> float:
    return sum(flags) / len(flags)
