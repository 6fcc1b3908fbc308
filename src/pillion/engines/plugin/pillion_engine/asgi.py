"""The little of HTTP that the gate speaks itself: reading a body, answering JSON and errors."""

import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Literal

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

DISCONNECT: Message = {"type": "http.disconnect"}


class Refusal(Exception):
    """An answer other than the one asked for, in OpenAI's error shape.

    `retry` marks a refusal that another replica, or this one a moment later, may well answer; `dead` one by an engine that
    is dead: `before` the request began, or `during` it.
    """

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        param: str | None = None,
        retry: bool = False,
        dead: Literal["before", "during"] | None = None,
    ):
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.param = param
        self.retry = retry
        self.dead = dead

    def body(self) -> dict[str, Any]:
        """The JSON object for the client."""
        return {
            "error": {
                "message": self.message,
                "type": _kind(self.status),
                "param": self.param,
                "code": self.code,
            }
        }


class ClientLeft(Exception):
    """The client closed the connection before its request was read."""


def headers_named(scope: Scope, name: bytes) -> list[bytes]:
    """All values of the header `name` (lower case), in order."""
    return [value for key, value in scope["headers"] if key.lower() == name]


async def read_body(scope: Scope, receive: Receive, limit: int) -> bytes:
    """The whole request body.

    Raises Refusal 413 above `limit` bytes, without holding more than that; ClientLeft on disconnect.
    """
    declared = headers_named(scope, b"content-length")
    if declared and declared[0].isdigit() and int(declared[0]) > limit:
        raise _too_large(limit)
    parts: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientLeft
        part = message.get("body", b"")
        size += len(part)
        if size > limit:
            raise _too_large(limit)
        parts.append(part)
        if not message.get("more_body", False):
            return b"".join(parts)


async def send_json(send: Send, status: int, body: object, headers: dict[str, str] | None = None) -> None:
    """Answers with `body` as JSON."""
    raw = json.dumps(body, separators=(",", ":")).encode()
    fields = {"content-type": "application/json", "content-length": str(len(raw)), **(headers or {})}
    encoded = [(key.encode("latin-1"), value.encode("latin-1")) for key, value in fields.items()]
    await send({"type": "http.response.start", "status": status, "headers": encoded})
    await send({"type": "http.response.body", "body": raw, "more_body": False})


async def send_refusal(send: Send, refusal: Refusal) -> None:
    """Answers with `refusal`; a retryable one carries `x-pillion-retry` and `retry-after`.

    A dead engine's carries `x-pillion-dead`.
    """
    headers = {"x-pillion-retry": "1", "retry-after": "1"} if refusal.retry else {}
    if refusal.dead is not None:
        headers["x-pillion-dead"] = refusal.dead
    if refusal.status == 401:
        headers["www-authenticate"] = "Bearer"
    await send_json(send, refusal.status, refusal.body(), headers)


def _too_large(limit: int) -> Refusal:
    return Refusal(413, "request_too_large", f"The request body is larger than {limit} bytes.")


def _kind(status: int) -> str:
    if status == 401:
        return "authentication_error"
    if status == 403:
        return "permission_error"
    return "invalid_request_error" if status < 500 else "server_error"
