"""Answers that come bit by bit: server-sent events, JSON lines, plain lines."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx

from pillion.sdk.errors import PillionConnectionError, PillionProtocolError, from_answer

DONE = "[DONE]"


def events(response: httpx.Response) -> Iterator[str]:
    """The data of each server-sent event (https://html.spec.whatwg.org/multipage/server-sent-events.html).

    Comments and the fields event, id and retry are passed over. An event that the end cuts off is not given.
    """
    data: list[str] = []
    for line in response.iter_lines():
        if not line:
            if data:
                yield "\n".join(data)
            data = []
        elif line.startswith("data:"):
            data.append(line[5:].removeprefix(" "))


def completion_chunks(response: httpx.Response) -> Iterator[dict[str, Any]]:
    """The chunks of an OpenAI stream.

    Raises the error event's error, and `PillionConnectionError` where it ends without `[DONE]`: never
    silently short.
    """
    for data in events(response):
        if data == DONE:
            return
        chunk = _object(data)
        if "error" in chunk:
            error = chunk["error"]
            status = error.get("status") if isinstance(error, dict) else None
            raise from_answer(status or response.status_code, chunk, response.headers, str(response.url))
        yield chunk
    raise PillionConnectionError("The stream ended before the answer did.", code="stream_cut")


def objects(response: httpx.Response) -> Iterator[dict[str, Any]]:
    """One JSON object per event or per line, whichever the server sends. An error among them is raised."""
    sse = _media_type(response) == "text/event-stream"
    for text in events(response) if sse else response.iter_lines():
        if not text.strip():
            continue
        if text == DONE:
            return
        value = _object(text)
        if "error" in value and set(value) == {"error"} and isinstance(value["error"], dict):
            raise from_answer(response.status_code, value, response.headers, str(response.url))
        yield value


def lines(response: httpx.Response) -> Iterator[str]:
    """The lines of a log, whether they come as text or as events."""
    sse = _media_type(response) == "text/event-stream"
    yield from events(response) if sse else response.iter_lines()


def streams(response: httpx.Response) -> bool:
    """False where the server answered with one document after all."""
    return _media_type(response) != "application/json"


def _media_type(response: httpx.Response) -> str:
    kind: str = response.headers.get("content-type", "")
    return kind.partition(";")[0].strip().lower()


def _object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise PillionProtocolError(f"The stream holds something that is no JSON: {text[:80]!r}") from error
    if not isinstance(value, dict):
        raise PillionProtocolError(f"The stream holds something that is no object: {text[:80]!r}")
    return value
