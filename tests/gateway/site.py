"""A gateway with fake engines and a fake control around it, all on loopback ports of their own."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web
from aiohttp.web_request import FileField

from pillion.core import snapshot as wire
from pillion.core.snapshot import Snapshot
from pillion.gateway import GatewayConfig, Limits, serve
from tests.snapshots import difference

Behaviour = Callable[[web.Request, dict[str, Any]], Awaitable[web.StreamResponse]]
TOKEN = "internal-token"


@asynccontextmanager
async def listening(handler: Callable[[web.Request], Awaitable[web.StreamResponse]]) -> AsyncIterator[str]:
    """Serves every path with `handler`, which is cancelled when its client leaves; gives the URL."""
    server = web.Server(handler, handler_cancellation=True)
    runner = web.ServerRunner(server, shutdown_timeout=0.01)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, backlog=2048)
    await site.start()
    host, port = runner.addresses[0][:2]
    try:
        yield f"http://{host}:{port}"
    finally:
        await runner.cleanup()


def free_url() -> str:
    """Where nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return f"http://127.0.0.1:{sock.getsockname()[1]}"


def chunk(model: str, text: str) -> bytes:
    body = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": model}
    choices = [{"index": 0, "delta": {"content": text}, "finish_reason": None}]
    return b"data: " + json.dumps(body | {"choices": choices}).encode() + b"\n\n"


async def open_stream(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(headers={"content-type": "text/event-stream; charset=utf-8"})
    await response.prepare(request)
    return response


async def chat(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
    """Answers `hello`, streamed word by word where that was asked for."""
    model = body["model"]
    if request.path == "/v1/embeddings":
        data = [{"object": "embedding", "index": 0, "embedding": [0.5, -1.25]}]
        return web.json_response({"object": "list", "model": model, "data": data, "usage": {}})
    if not body.get("stream"):
        message = {"role": "assistant", "content": "hello"}
        choices = [{"index": 0, "message": message, "finish_reason": "stop"}]
        return web.json_response(
            {"id": "c", "object": "chat.completion", "created": 1, "model": model, "choices": choices}
        )
    response = await open_stream(request)
    for text in ("hel", "lo"):
        await response.write(chunk(model, text))
    await response.write(b"data: [DONE]\n\n")
    return response


def _field(value: Any) -> Any:
    return (value.filename, value.content_type, value.file.read()) if isinstance(value, FileField) else value


@dataclass
class Engine:
    """A fake engine. `asked` has what it got; `behave` says what it does."""

    behave: Behaviour = chat
    asked: list[tuple[web.Request, dict[str, Any]]] = field(default_factory=list)
    url: str = ""

    async def handle(self, request: web.Request) -> web.StreamResponse:
        if request.content_type == "multipart/form-data":
            body = {name: _field(value) for name, value in (await request.post()).items()}
        else:
            body = json.loads(await request.read() or b"{}")
        self.asked.append((request, body))
        return await self.behave(request, body)

    @property
    def body(self) -> dict[str, Any]:
        """The last request's."""
        return self.asked[-1][1]

    @property
    def headers(self) -> Any:
        return self.asked[-1][0].headers


@dataclass
class Control:
    """A fake control: the snapshot long poll on one side, any public API on the other."""

    snapshot: Snapshot | None = None
    public: Callable[[web.Request], Awaitable[web.StreamResponse]] | None = None
    acknowledged: int = 0
    polls: int = 0
    url: str = ""
    changed: asyncio.Condition = field(default_factory=asyncio.Condition)
    given: dict[int, Snapshot] = field(default_factory=dict)

    async def publish(self, snapshot: Snapshot) -> None:
        """Gives out the snapshot and waits until the gateway has acknowledged it."""
        async with self.changed:
            self.snapshot = snapshot
            self.changed.notify_all()
            await asyncio.wait_for(self.changed.wait_for(lambda: self.acknowledged >= snapshot.version), 10)

    async def handle(self, request: web.Request) -> web.StreamResponse:
        if request.path == "/internal/v1/snapshot":
            return await self._poll(request)
        if self.public is not None:
            return await self.public(request)
        return web.json_response({"path": request.raw_path, "method": request.method})

    async def _poll(self, request: web.Request) -> web.StreamResponse:
        if request.headers.get("authorization") != f"Bearer {TOKEN}":
            return web.json_response({}, status=401)
        after = int(request.query["after"])
        async with self.changed:
            self.polls += 1
            self.acknowledged = max(self.acknowledged, after)
            self.changed.notify_all()
            await self.changed.wait_for(lambda: self.snapshot is not None and self.snapshot.version > after)
            assert self.snapshot is not None
            before = self.given.get(after)
            delta = None if before is None else difference(before, self.snapshot)
            self.given[self.snapshot.version] = self.snapshot
            return web.Response(body=wire.encode(delta or self.snapshot), content_type="application/msgpack")


@dataclass
class Site:
    """The gateway's address and a client for it."""

    url: str
    control: Control
    client: aiohttp.ClientSession
    stop: asyncio.Event
    serving: asyncio.Task[None]

    def post(self, path: str, key: str | None, document: object, **headers: str) -> Any:
        """An aiohttp request, to be awaited or entered."""
        fields = {name.replace("_", "-"): value for name, value in headers.items()}
        if key is not None:
            fields["authorization"] = f"Bearer {key}"
        return self.client.post(self.url + path, json=document, headers=fields)

    async def chat(self, key: str | None, model: str, **extra: Any) -> tuple[int, Any, Any]:
        """Status, headers, JSON."""
        headers = extra.pop("headers", {})
        document = {"model": model, "messages": [{"role": "user", "content": "hi"}], **extra}
        async with self.post("/v1/chat/completions", key, document, **headers) as answer:
            return answer.status, answer.headers, await answer.json()

    async def metric(self, name: str) -> float:
        """The sum over all labels."""
        async with self.client.get(self.url + "/metrics") as answer:
            lines = (await answer.text()).splitlines()
        values = [line.rpartition(" ")[2] for line in lines if line.startswith((name + "{", name + " "))]
        return sum(map(float, values))


async def at_rest(count: Callable[[], int]) -> None:
    """Until this grows no more, whatever those who share this loop do next."""
    before, rounds = count(), 0
    while rounds < 500:
        await asyncio.sleep(0)
        rounds = rounds + 1 if count() == before else 0
        before = count()


@asynccontextmanager
async def site(
    state_dir: Path,
    control: Control,
    *,
    control_url: str | None = None,
    internal_url: str | None = None,
    clock: Callable[[], float] = time.time,
    **fields: Any,
) -> AsyncIterator[Site]:
    """Runs a gateway. `fields` are `GatewayConfig`'s; control is reached where it listens unless told otherwise."""
    fields.setdefault("limits", Limits(drain_s=2))
    config = GatewayConfig(
        state_dir=state_dir,
        control_url=control_url or control.url,
        internal_url=internal_url or control.url,
        internal_token=TOKEN,
        port=0,
        **fields,
    )
    stop = asyncio.Event()
    address: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    serving = asyncio.ensure_future(
        serve(config, stop, lambda host, port: address.set_result(f"http://{host}:{port}"), clock=clock)
    )
    await asyncio.wait({serving, address}, return_when=asyncio.FIRST_COMPLETED)
    if not address.done():
        await serving
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as client:
        try:
            yield Site(await address, control, client, stop, serving)
        finally:
            stop.set()
    await serving


@asynccontextmanager
async def fleet(count: int) -> AsyncIterator[list[Engine]]:
    """That many engines, listening."""
    async with AsyncExitStack() as stack:
        engines = [Engine() for _ in range(count)]
        for engine in engines:
            engine.url = await stack.enter_async_context(listening(engine.handle))
        yield engines
