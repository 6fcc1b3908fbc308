"""The hook that leaves an audit row for every call that is to change something: begun before, ended with the answer."""

from __future__ import annotations

import json
from typing import Any

from fastapi import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pillion.control import audit
from pillion.control.audit import Begun, Outcome
from pillion.control.context import Control
from pillion.control.keys import Principal

READING = frozenset({"GET", "HEAD", "OPTIONS"})
MAX_ANSWER = 1 << 20


async def begun(request: Request, control: Control, who: Principal) -> None:
    """The caller is known, and nothing is done yet. Raises `UnavailableError`."""
    if request.method in READING:
        return
    query = f"?{request.url.query}" if request.url.query else ""
    route = request.scope.get("route")
    request.state.audit = await audit.begin(
        control,
        who,
        action=getattr(route, "name", request.method.lower()),
        subject=f"{request.url.path}{query}",
        request_id=request.headers.get("x-request-id"),
    )


class Audited:
    """Ends what was begun, before the answer goes out: who has it finds it in the log."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] in READING:
            await self._app(scope, receive, send)
            return
        state: dict[str, Any] = scope.setdefault("state", {})
        start: Message | None = None

        async def end(outcome: Outcome) -> None:
            row: Begun | None = state.pop("audit", None)
            if row is not None:
                await audit.end(scope["app"].state.control, row, outcome)

        async def told(message: Message) -> None:
            nonlocal start
            if message["type"] == "http.response.start":
                start = message
                return
            if start is not None:
                await end(_outcome(start["status"], message.get("body", b"")))
                await send(start)
                start = None
            await send(message)

        try:
            await self._app(scope, receive, told)
        except Exception:  # who is outside of this answers
            await end(Outcome(500, "internal_error"))
            raise


def _outcome(status: int, body: bytes) -> Outcome:
    """`body`: the answer's first part, which is all of it where it is one of ours."""
    try:
        document = json.loads(body) if len(body) <= MAX_ANSWER else None
    except ValueError:
        document = None
    if not isinstance(document, dict):
        return Outcome(status)
    if status >= 400:
        error = document.get("error")
        return Outcome(status, error=str(error.get("code")) if isinstance(error, dict) else None)
    return Outcome(status, made=_made(document))


def _made(document: dict[str, Any]) -> str | None:
    inner = document.get("adapter")  # of an import, beside its job
    id = (
        document.get("id")
        or document.get("adapter_id")
        or (inner.get("id") if isinstance(inner, dict) else None)
    )
    return None if id is None else str(id)[:100]
