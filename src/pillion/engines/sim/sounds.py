"""Sounds written down by the simulated engine: a form with a file, as OpenAI and vLLM take it."""

from __future__ import annotations

from typing import Any

from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException
from starlette.requests import Request

from pillion.engines.plugin.pillion_engine.asgi import Receive, Scope
from pillion.engines.sim import asks
from pillion.engines.sim.answers import Head, Piece, last_usage, so_far
from pillion.engines.sim.asks import Ask, AskError, Limits

PATH = "/v1/audio/transcriptions"
TOKEN_BYTES = 1000


async def read_form(scope: Scope, receive: Receive) -> dict[str, Any]:
    """The fields, and of the file its size under `file`. Raises AskError."""
    try:
        async with Request(scope, receive).form() as form:
            return {
                name: value.size if isinstance(value, UploadFile) else value for name, value in form.items()
            }
    except MultiPartException as error:
        raise AskError(400, error.message) from error


def ask(body: dict[str, Any], limits: Limits) -> Ask:
    if not isinstance(body.get("file"), int):
        raise AskError(400, "file must be a file.", param="file")
    options = {
        "include_usage": body.get("stream_include_usage") == "true",
        "continuous_usage_stats": body.get("stream_continuous_usage_stats") == "true",
    }
    words = ["sound"] * (1 + body["file"] // TOKEN_BYTES)
    most = str(body.get("max_completion_tokens", ""))
    told = {
        "stream": body.get("stream") == "true",
        "stream_options": options,
        "max_completion_tokens": int(most) if most.isdigit() else None,
    }
    return asks.sound(body | told, words, limits)


def whole(head: Head, choices: list[list[Piece]]) -> dict[str, Any]:
    prompt, generated = head.ask.prompt_count, sum(map(len, choices))
    counted = {"input_tokens": prompt, "output_tokens": generated, "total_tokens": prompt + generated}
    return {
        "text": "".join(piece.text for parts in choices for piece in parts),
        "usage": {"type": "tokens", **counted},
    }


def opening(head: Head, choices: int) -> list[dict[str, Any]]:
    return []


def chunk(head: Head, piece: Piece, generated: int) -> dict[str, Any]:
    choice = {"delta": {"content": piece.text}, "finish_reason": piece.finish}
    return {**head.base("transcription.chunk"), "choices": [choice], **so_far(head, generated)}


def closing(head: Head, choices: list[list[Piece]]) -> list[dict[str, Any]]:
    return last_usage(head, "transcription.chunk", choices)
