"""An answer sent piece by piece, as server-sent events."""

from __future__ import annotations

from typing import Any

import msgspec

from pillion.engines.plugin.pillion_engine.asgi import Send

_HEADERS = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache")]
_encode = msgspec.json.Encoder().encode


class Stream:
    """`named`: events carry their type and number, as the Responses endpoint wants; else `[DONE]` ends it."""

    def __init__(self, send: Send, named: bool) -> None:
        self._send = send
        self._named = named
        self._count = 0

    async def begin(self) -> None:
        await self._send({"type": "http.response.start", "status": 200, "headers": _HEADERS})

    async def event(self, event: dict[str, Any]) -> None:
        head = b""
        if self._named:
            event = {**event, "sequence_number": self._count}
            head = f"event: {event['type']}\n".encode()
            self._count += 1
        data = head + b"data: " + _encode(event) + b"\n\n"
        await self._send({"type": "http.response.body", "body": data, "more_body": True})

    async def end(self) -> None:
        last = b"" if self._named else b"data: [DONE]\n\n"
        await self._send({"type": "http.response.body", "body": last, "more_body": False})
