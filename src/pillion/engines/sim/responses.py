"""OpenAI's Responses endpoint, stateless, as vLLM gives it: one message of one text."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pillion.engines.sim.answers import Head, Piece, usage


def whole(head: Head, choices: list[list[Piece]]) -> dict[str, Any]:
    text = "".join(part.text for part in choices[0])
    return _response(head, "completed", [_message(head, "completed", text)], len(choices[0]))


def opening(head: Head, choices: int) -> Iterator[dict[str, Any]]:
    begun = _response(head, "in_progress", [], None)
    yield {"type": "response.created", "response": begun}
    yield {"type": "response.in_progress", "response": begun}
    item = {**_message(head, "in_progress", ""), "content": []}
    yield {"type": "response.output_item.added", "output_index": 0, "item": item}
    yield {**_at(head), "type": "response.content_part.added", "part": _part("")}


def delta(head: Head, piece: Piece, generated: int) -> dict[str, Any]:
    return {**_at(head), "type": "response.output_text.delta", "delta": piece.text, "logprobs": []}


def closing(head: Head, choices: list[list[Piece]]) -> Iterator[dict[str, Any]]:
    text, tokens = "".join(piece.text for piece in choices[0]), len(choices[0])
    message = _message(head, "completed", text)
    yield {**_at(head), "type": "response.output_text.done", "text": text, "logprobs": []}
    yield {**_at(head), "type": "response.content_part.done", "part": _part(text)}
    yield {"type": "response.output_item.done", "output_index": 0, "item": message}
    yield {"type": "response.completed", "response": _response(head, "completed", [message], tokens)}


def _response(head: Head, status: str, output: list[dict[str, Any]], tokens: int | None) -> dict[str, Any]:
    counted = None if tokens is None else usage(head.ask, tokens)
    return {
        "id": head.id,
        "object": "response",
        "created_at": head.created,
        "model": head.ask.model,
        "status": status,
        "output": output,
        "parallel_tool_calls": True,
        "tool_choice": "auto",
        "tools": [],
        "usage": counted
        and {
            "input_tokens": counted["prompt_tokens"],
            "input_tokens_details": {"cached_tokens": 0},
            "output_tokens": counted["completion_tokens"],
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": counted["total_tokens"],
        },
    }


def _message(head: Head, status: str, text: str) -> dict[str, Any]:
    return {
        "id": f"msg_{head.id}",
        "type": "message",
        "role": "assistant",
        "status": status,
        "content": [_part(text)],
    }


def _part(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def _at(head: Head) -> dict[str, Any]:
    return {"item_id": f"msg_{head.id}", "output_index": 0, "content_index": 0}
