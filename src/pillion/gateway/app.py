"""The gateway as an ASGI application: which part answers, and how an answer goes out."""

from __future__ import annotations

import asyncio
import re
import traceback
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, MutableMapping
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

import structlog

from pillion.core.errors import PillionError, model_not_found
from pillion.gateway import headers
from pillion.gateway.auth import authorize
from pillion.gateway.http import Answer, Body, ClientLeft, Cut, Head, error_answer, json_answer
from pillion.gateway.inference import Inference
from pillion.gateway.knowledge import Knowledge
from pillion.gateway.metrics import CONTENT_TYPE, Metrics
from pillion.gateway.onward import CONTAINER, ToContainer, ToControl

log = structlog.get_logger(__name__)

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

# First segments under /v1/ that are control's. Any other POST there is inference.
CONTROL = frozenset(
    [
        "account",
        "adapters",
        "admin",
        "billing",
        "catalog",
        "d2l",
        "files",
        "fine_tuning",
        "gpu-types",
        "instances",
        "invites",
        "jobs",
        "keys",
        "members",
        "regions",
        "registered-models",
        "sessions",
        "usage",
    ]
)
# What an engine may be asked: plain segments, no encoding and no dots to climb out of /v1/ by.
ENGINE_PATH = re.compile(r"/v1(/[A-Za-z0-9_-]+)+")
NEVER_TO_ENGINES = frozenset({"/v1/load_lora_adapter", "/v1/unload_lora_adapter", "/v1/models"})
CLIENT_LEFT = 499


class AsgiBody:
    """A request's body, and the news that the client has gone. `answered` is set before an answer's last byte."""

    def __init__(self, receive: Receive, expected: bool) -> None:
        self._receive = receive
        self._expected = expected
        self._whole = asyncio.Event()
        self.answered = False
        self.left = False

    @property
    def whole(self) -> bool:
        """Whether all of it was taken."""
        return not self._expected or self._whole.is_set()

    async def chunks(self) -> AsyncIterator[bytes]:
        while not self.whole:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise ClientLeft
            if not message.get("more_body", False):
                self._whole.set()
            if message.get("body"):
                yield message["body"]

    async def watch(self) -> None:
        """Ends with `left` set when the client goes before it is answered. Until the body is whole its reader is told."""
        if self._expected:
            await self._whole.wait()
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self.left = not self.answered


@dataclass(frozen=True)
class Gateway:
    """`timer`: seconds that only grow. `clock`: since the epoch. `draining` is set once no more is accepted."""

    knowledge: Knowledge
    inference: Inference
    control: ToControl
    container: ToContainer
    metrics: Metrics
    clock: Callable[[], float]
    timer: Callable[[], float]
    new_id: Callable[[], str]
    draining: asyncio.Event

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        head = _head(scope)
        body = AsgiBody(receive, head.has_body)
        kind = kind_of(head)
        with self.metrics.answering(kind):
            work = asyncio.ensure_future(Exchange(self, head, body, kind, send).run())
            watch = asyncio.ensure_future(body.watch())
            watch.add_done_callback(lambda _: body.left and work.cancel())
            try:
                status = await work
            except asyncio.CancelledError:
                if not body.left:
                    raise
                status = CLIENT_LEFT
            finally:
                watch.cancel()
        self.metrics.answered(kind, status)

    def answer(
        self, kind: str, head: Head, body: Body, request_id: str
    ) -> AbstractAsyncContextManager[Answer]:
        """Raises `PillionError` when it is entered."""
        if kind == "inference":
            return self.inference.answer(head, body)
        if kind == "container":
            return self.container.answer(head, body, request_id)
        if kind == "control":
            return self.control.answer(head, body, request_id)
        return self._own(kind, head)

    @asynccontextmanager
    async def _own(self, kind: str, head: Head) -> AsyncIterator[Answer]:
        if kind == "models":
            yield self._models(head)
        elif head.path == "/metrics":
            yield Answer(200, [("content-type", CONTENT_TYPE)], self.metrics.text())
        elif head.path == "/healthz":
            yield json_answer(200, {"status": "ok"})
        else:
            yield self._ready()

    def _ready(self) -> Answer:
        self.knowledge.routes()
        if self.draining.is_set():
            return json_answer(503, {"status": "draining"})
        return json_answer(200, {"status": "ready", "snapshot": self.knowledge.version})

    def _models(self, head: Head) -> Answer:
        routes = self.knowledge.routes()
        account = authorize(routes, head, "inference").account
        listed = routes.list_models(account, self.clock())
        if head.path == "/v1/models":
            return json_answer(200, {"object": "list", "data": listed})
        wanted = unquote(head.path.removeprefix("/v1/models/"))
        found = [entry for entry in listed if entry["id"] == wanted]
        if not found:
            raise model_not_found(wanted[:200])
        return json_answer(200, found[0])


class Exchange:
    """One request and its answer on the wire."""

    def __init__(self, gateway: Gateway, head: Head, body: AsgiBody, kind: str, send: Send) -> None:
        self._gateway = gateway
        self._head = head
        self._body = body
        self._kind = kind
        self._send = send
        self._request_id = headers.request_id(head, gateway.new_id)
        self._arrived = gateway.timer()
        self._status: int | None = None

    async def run(self) -> int:
        """Answers, whatever happens. Gives the status that went out, 499 where none could."""
        try:
            async with self._gateway.answer(self._kind, self._head, self._body, self._request_id) as answer:
                await self._answer(answer)
        except PillionError as error:
            await self._fail(error)
        except ClientLeft:
            return self._status or CLIENT_LEFT
        except Cut as cut:
            # Not finishing makes the server break the connection, which is what the client must see.
            log.warning("answer cut off", request_id=self._request_id, path=self._head.path, reason=str(cut))
        except Exception:
            # As text: a logger that prints locals would print keys.
            trace = traceback.format_exc()
            log.error("request failed", request_id=self._request_id, path=self._head.path, traceback=trace)
            await self._fail(
                PillionError(f"The gateway failed at this request. Its id is {self._request_id}.")
            )
        return self._status or CLIENT_LEFT

    async def _fail(self, error: PillionError) -> None:
        if self._status is None:
            await self._answer(error_answer(error))

    async def _answer(self, answer: Answer) -> None:
        self._status = answer.status
        fields = [*answer.fields, ("x-request-id", self._request_id)]
        if not self._body.whole and self._head.first("expect") is not None:
            # Whether the body still comes is the client's choice, so nothing after it could be told from it.
            fields.append(("connection", "close"))
        raw = [(name.encode("latin-1"), value.encode("latin-1", "replace")) for name, value in fields]
        await self._send({"type": "http.response.start", "status": answer.status, "headers": raw})
        if not isinstance(answer.body, bytes):
            await self._chunks(answer.body)
            answer = Answer(answer.status, answer.fields)
        elif self._kind == "inference":
            self._first_byte()
        self._body.answered = True
        await self._send({"type": "http.response.body", "body": answer.body, "more_body": False})

    async def _chunks(self, body: AsyncGenerator[bytes, None]) -> None:
        waiting = True
        async with aclosing(body) as chunks:
            async for chunk in chunks:
                if not chunk:
                    continue
                if waiting:
                    self._first_byte()
                    waiting = False
                await self._send({"type": "http.response.body", "body": chunk, "more_body": True})

    def _first_byte(self) -> None:
        self._gateway.metrics.first_byte(self._kind, self._gateway.timer() - self._arrived)


def kind_of(head: Head) -> str:
    """Which part answers: `own`, `models`, `inference`, `container`, or else `control`."""
    path, reads = head.path, head.method in ("GET", "HEAD")
    if reads and path in ("/healthz", "/readyz", "/metrics"):
        return "own"
    if reads and (path == "/v1/models" or path.startswith("/v1/models/")):
        return "models"
    if CONTAINER.fullmatch(path):
        return "container"
    if head.method == "POST" and ENGINE_PATH.fullmatch(path) and path not in NEVER_TO_ENGINES:
        return "control" if path.split("/")[2] in CONTROL else "inference"
    return "control"


def _head(scope: Scope) -> Head:
    fields = [(name.decode("latin-1").lower(), value.decode("latin-1")) for name, value in scope["headers"]]
    peer = scope["client"][0] if scope.get("client") else "unknown"
    return Head(
        scope["method"],
        scope["raw_path"].decode("ascii"),
        scope["query_string"].decode("latin-1"),
        fields,
        peer,
    )
