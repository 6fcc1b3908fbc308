"""How much of a request's body is read. Uploads have limits of their own, and go to disk as they come."""

from __future__ import annotations

import re

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

MAX_BODY = 1 << 20


class BodyLimit:
    """Reading more than `limit` bytes raises 413, except of paths that match `streamed`."""

    def __init__(self, app: ASGIApp, streamed: re.Pattern[str], limit: int = MAX_BODY) -> None:
        self._app = app
        self._streamed = streamed
        self._limit = limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or self._streamed.fullmatch(scope["path"]):
            await self._app(scope, receive, send)
            return
        taken = 0

        async def limited() -> Message:
            nonlocal taken
            message = await receive()
            taken += len(message.get("body", b""))
            if taken > self._limit:
                raise HTTPException(413, f"the request's body is over {self._limit} bytes.")
            return message

        await self._app(scope, limited, send)
