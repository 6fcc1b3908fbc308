"""One request on its way through an engine: counted, and able to be cut off."""

import asyncio
import json
from collections.abc import Callable
from typing import Any

from .asgi import DISCONNECT, App, Message, Receive, Refusal, Scope, Send, send_refusal


class Flight:
    """A request whose body is read and whose model is known.

    `done` resolves when the engine no longer works on it. `cut()` ends it early: the inner application sees
    its client disconnect and aborts the generation, and the real client is told instead of being left short.
    Where the engine is `dead` before the answer's first byte, its server's excuse is not passed on.
    """

    def __init__(self, model: str, dead: Callable[[], bool]):
        loop = asyncio.get_running_loop()
        self.model = model
        self.done: asyncio.Future[None] = loop.create_future()
        self._cut: asyncio.Future[None] = loop.create_future()
        self._task = asyncio.current_task()
        self._listening: asyncio.Task[Message] | None = None
        self._body: bytes | None = None
        self._left = False
        self._dead = dead
        self._lost = False
        self._start: Message | None = None
        self._started = False
        self._events = False
        self._closed = False

    @property
    def is_cut(self) -> bool:
        return self._cut.done()

    def cut(self) -> None:
        """Ends the request; returns at once, `done` follows."""
        if not self._cut.done():
            self._cut.set_result(None)

    def cancel(self) -> None:
        """For an inner application that does not heed the disconnect."""
        if self._task is not None and not self.done.done():
            self._task.cancel()

    async def run(self, app: App, scope: Scope, body: bytes, receive: Receive, send: Send) -> None:
        """Passes the request on to `app`, with `body` already read off `receive`."""
        self._body = body
        # Under ASGI 2.3 an application watches `receive` for the client's leaving while it streams; later
        # versions only learn of it when they next send, which may be a long prefill away.
        inner = {**scope, "asgi": {**scope.get("asgi", {}), "spec_version": "2.3"}}
        self._client = (receive, send)
        try:
            await app(inner, self._receive, self._send)
        except asyncio.CancelledError:
            if not self._cut.done() or self._task is None:
                raise
            self._task.uncancel()
        except Exception:
            if not self._cut.done():
                raise
        finally:
            if self._listening is not None:
                self._listening.cancel()
            if self._left or self._cut.done():
                await self._settle()

    async def tell(self) -> None:
        """Says to a client whose request was cut off or lost that it was. Call after `done`."""
        if self._lost and not self._left:
            refusal = Refusal(503, "engine_dead", "The engine died before it answered.", dead="during")
            await send_refusal(self._client[1], refusal)
            return
        if not self._cut.done() or self._closed or self._left:
            return
        _, send = self._client
        message = f"The adapter '{self.model}' was detached while it answered."
        if not self._started:
            await send_refusal(send, Refusal(503, "adapter_fenced", message, retry=True))
        elif self._events:
            event = Refusal(503, "adapter_detached", message).body()
            data = b"data: " + json.dumps(event, separators=(",", ":")).encode() + b"\n\n"
            await send({"type": "http.response.body", "body": data, "more_body": False})
        # A plain answer that has begun cannot carry an error: left incomplete, the server drops the
        # connection, which the client sees as a failed read.

    async def _settle(self) -> None:
        # Frameworks cancel the handler of a client that left without awaiting it. Its abort reaches the
        # engine within the next steps of the loop; only then is the engine rid of this request.
        for _ in range(3):
            await asyncio.sleep(0)

    async def _receive(self) -> Message:
        if self._left or self._cut.done():
            return DISCONNECT
        if self._body is not None:
            body, self._body = self._body, None
            return {"type": "http.request", "body": body, "more_body": False}
        if self._listening is None:
            self._listening = asyncio.ensure_future(_disconnected(self._client[0]))
        first: set[asyncio.Future[Any]] = {self._listening, self._cut}
        await asyncio.wait(first, return_when=asyncio.FIRST_COMPLETED)
        self._left = self._left or self._listening.done()
        return DISCONNECT

    async def _send(self, message: Message) -> None:
        if self._cut.done() or self._lost:
            return
        if message["type"] == "http.response.start":
            self._start = message  # goes out with the first of the body: a stream's comes long before that
            return
        if self._start is not None:
            start, self._start = self._start, None
            kinds = [value for key, value in start.get("headers", []) if key.lower() == b"content-type"]
            self._events = bool(kinds) and kinds[0].startswith(b"text/event-stream")
            if (start["status"] >= 500 or self._events) and self._dead():
                self._lost = True
                return
            self._started = True
            await self._client[1](start)
        if message["type"] == "http.response.body" and not message.get("more_body", False):
            self._closed = True
        await self._client[1](message)


async def _disconnected(receive: Receive) -> Message:
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return message
