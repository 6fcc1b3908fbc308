"""The simulated engine's answers in the shapes of OpenAI's endpoints, as vLLM gives them."""

from __future__ import annotations

import base64
import struct
import zlib
from dataclasses import dataclass
from typing import Any

from pillion.engines.sim.asks import Ask
from pillion.engines.sim.words import Voice, token_id


@dataclass(frozen=True)
class Piece:
    """One token of one choice. `finish` is set on the last one."""

    choice: int
    index: int
    text: str
    finish: str | None = None


@dataclass(frozen=True)
class Head:
    """What all parts of one answer share. `created` in seconds since the epoch."""

    id: str
    created: int
    ask: Ask
    voice: Voice

    def base(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.ask.model}


def pieces(voice: Voice, max_tokens: int, stop: tuple[str, ...], choice: int = 0) -> list[Piece]:
    """One choice's tokens, ended by `max_tokens` or before the first of `stop`."""
    said, found = "", []
    for index in range(max_tokens):
        text = voice.token(index)
        cut = min((at for at in ((said + text).find(mark) for mark in stop) if at >= 0), default=-1)
        if cut >= 0:
            found.append(Piece(choice, index, (said + text)[len(said) : max(cut, len(said))], "stop"))
            return found
        said += text
        found.append(Piece(choice, index, text, "length" if index == max_tokens - 1 else None))
    return found


def usage(ask: Ask, generated: int) -> dict[str, Any]:
    return {
        "prompt_tokens": ask.prompt_count,
        "completion_tokens": generated,
        "total_tokens": ask.prompt_count + generated,
        "prompt_tokens_details": None,
    }


def so_far(head: Head, generated: int) -> dict[str, Any]:
    return {"usage": usage(head.ask, generated)} if head.ask.continuous_usage else {}


def last_usage(head: Head, kind: str, choices: list[list[Piece]]) -> list[dict[str, Any]]:
    if not head.ask.include_usage:
        return []
    return [{**head.base(kind), "choices": [], "usage": usage(head.ask, sum(map(len, choices)))}]


# /v1/completions


def completion(head: Head, choices: list[list[Piece]]) -> dict[str, Any]:
    ask = head.ask
    made = []
    for choice, parts in enumerate(choices):
        prompt = ask.prompts[choice // ask.n]
        echo = " ".join(prompt) if ask.echo else ""
        made.append(
            {
                "index": choice,
                "text": echo + "".join(part.text for part in parts),
                "logprobs": completion_logprobs(head, parts),
                "finish_reason": parts[-1].finish if parts else "length",
                "stop_reason": None,
                "prompt_logprobs": prompt_logprobs(head.voice, prompt)
                if ask.prompt_logprobs is not None
                else None,
            }
        )
    return {
        **head.base("text_completion"),
        "choices": made,
        "usage": usage(ask, sum(map(len, choices))),
    }


def completion_opening(head: Head, choices: int) -> list[dict[str, Any]]:
    return []


def completion_chunk(head: Head, piece: Piece, generated: int) -> dict[str, Any]:
    choice = {
        "index": piece.choice,
        "text": piece.text,
        "logprobs": completion_logprobs(head, [piece]),
        "finish_reason": piece.finish,
        "stop_reason": None,
    }
    return {**head.base("text_completion"), "choices": [choice], **so_far(head, generated)}


def completion_closing(head: Head, choices: list[list[Piece]]) -> list[dict[str, Any]]:
    return last_usage(head, "text_completion", choices)


def completion_logprobs(head: Head, parts: list[Piece]) -> dict[str, Any] | None:
    """What was said comes first, then as many others as were asked for, all as text or all as ids."""
    top = head.ask.logprobs
    if top is None:
        return None
    offsets, at = [], 0
    for part in parts:
        offsets.append(at)
        at += len(part.text)
    rows = [_likely(head, part, max(1, top)) for part in parts]
    return {
        "tokens": [next(iter(row)) for row in rows],
        "token_logprobs": [next(iter(row.values())) for row in rows],
        "top_logprobs": rows,
        "text_offset": offsets,
    }


def _likely(head: Head, part: Piece, top: int) -> dict[str, float]:
    """Log-probabilities by token. The number of a token is the same whoever says it, the text of the first is not."""
    as_ids = bool(head.ask.raw.get("return_tokens_as_token_ids"))
    position = len(head.ask.prompts[part.choice // head.ask.n]) + part.index
    tokens = [f" t{part.index + 1}", *(f" u{other}" for other in range(1, top))]
    texts = [part.text, *tokens[1:]]
    names = [f"token_id:{token_id(token)}" for token in tokens] if as_ids else texts
    return {name: head.voice.logprob(token, position) for name, token in zip(names, tokens, strict=True)}


def prompt_logprobs(voice: Voice, prompt: list[str]) -> list[dict[str, Any] | None]:
    """None for the first token, which nothing predicts; then one token each."""
    rows: list[dict[str, Any] | None] = [None]
    for position, token in enumerate(prompt[1:], start=1):
        value = voice.logprob(token, position)
        rows.append({str(token_id(token)): {"logprob": value, "rank": 1, "decoded_token": token}})
    return rows


# /v1/chat/completions


def chat(head: Head, choices: list[list[Piece]]) -> dict[str, Any]:
    made = [
        {
            "index": choice,
            "message": {
                "role": "assistant",
                "content": "".join(part.text for part in parts),
                "tool_calls": [],
            },
            "logprobs": chat_logprobs(head, parts),
            "finish_reason": parts[-1].finish if parts else "length",
            "stop_reason": None,
        }
        for choice, parts in enumerate(choices)
    ]
    return {**head.base("chat.completion"), "choices": made, "usage": usage(head.ask, sum(map(len, choices)))}


def chat_opening(head: Head, choices: int) -> list[dict[str, Any]]:
    delta = {"role": "assistant", "content": ""}
    made = [
        {"index": index, "delta": delta, "logprobs": None, "finish_reason": None} for index in range(choices)
    ]
    return [{**head.base("chat.completion.chunk"), "choices": [one], **so_far(head, 0)} for one in made]


def chat_chunk(head: Head, piece: Piece, generated: int) -> dict[str, Any]:
    choice = {
        "index": piece.choice,
        "delta": {"content": piece.text},
        "logprobs": chat_logprobs(head, [piece]),
        "finish_reason": piece.finish,
    }
    return {**head.base("chat.completion.chunk"), "choices": [choice], **so_far(head, generated)}


def chat_closing(head: Head, choices: list[list[Piece]]) -> list[dict[str, Any]]:
    return last_usage(head, "chat.completion.chunk", choices)


def chat_logprobs(head: Head, parts: list[Piece]) -> dict[str, Any] | None:
    if head.ask.logprobs is None:
        return None
    content = []
    for part in parts:
        value = head.voice.logprob(part.text, part.index)
        one = {"token": part.text, "logprob": value, "bytes": list(part.text.encode())}
        content.append({**one, "top_logprobs": [one] if head.ask.logprobs else []})
    return {"content": content}


# /v1/embeddings


def embeddings(head: Head, dimensions: int) -> dict[str, Any]:
    coded = head.ask.raw.get("encoding_format") == "base64"
    data = []
    for index, prompt in enumerate(head.ask.prompts):
        vector = _vector(head.voice.base, prompt, dimensions)
        packed = base64.b64encode(struct.pack(f"<{dimensions}f", *vector)).decode() if coded else vector
        data.append({"index": index, "object": "embedding", "embedding": packed})
    return {**head.base("list"), "data": data, "usage": usage(head.ask, 0)}


def _vector(base: str, prompt: list[str], dimensions: int) -> list[float]:
    """A vector of length 1 that depends on all of the prompt."""
    seed = zlib.crc32(f"{base}/{' '.join(prompt)}".encode())
    raw = [zlib.crc32(struct.pack("<II", seed, index)) / 2**31 - 1.0 for index in range(dimensions)]
    length = sum(value * value for value in raw) ** 0.5 or 1.0
    return [value / length for value in raw]
