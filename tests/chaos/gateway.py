"""The real gateway in this event loop: it is ended and begun anew over what it kept, and asked over its own port."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import msgspec

from pillion.core.errors import PillionError
from pillion.core.routing import Route, Routes
from pillion.gateway.app import Gateway
from pillion.gateway.config import GatewayConfig, Limits
from pillion.gateway.inbound import Inbound
from pillion.gateway.server import _gateway
from tests.chaos.nodes import Engine

TOKEN = "internal"
ANSWER_S = 30.0


@dataclass(frozen=True)
class Answer:
    """`status` 0: the connection ended without one. `broken`: a stream that did not come to its end."""

    status: int
    headers: dict[str, str]
    raw: bytes
    broken: bool = False

    @property
    def code(self) -> str:
        try:
            return str(msgspec.json.decode(self.raw)["error"]["code"])
        except (msgspec.MsgspecError, KeyError, TypeError):
            return ""

    @property
    def text(self) -> str:
        """What the model said, whole or in events."""
        if not self.raw.startswith(b"data:"):
            return str(msgspec.json.decode(self.raw)["choices"][0]["text"])
        events = [line[5:].strip() for line in self.raw.splitlines() if line.startswith(b"data:")]
        found = [msgspec.json.decode(event) for event in events if event != b"[DONE]"]
        return "".join(c["text"] for event in found for c in event.get("choices", ()))


@dataclass(frozen=True)
class Asked:
    """A request as it was sent. `good`: engines by identity that could answer it then, its name there, and how often that
    was shut out before. `engines`: those that ran then.

    `lives` of the gateway, `ahead` of the clock.
    """

    account: int
    model: str
    began: float
    route: Route | None
    good: set[tuple[str, str, int]]
    engines: tuple[Engine, ...]
    lives: int
    ahead: float


class RunningGateway:
    """`port` stays the same over all its lives."""

    def __init__(self, state_dir: Path, internal_url: str, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._config = GatewayConfig(
            state_dir=state_dir,
            control_url="http://127.0.0.1:1",
            internal_url=internal_url,
            internal_token=TOKEN,
            limits=Limits(connect_timeout_s=0.5, spool_bytes=2**26, cold_wait_s=5.0),
        )
        self._stack = contextlib.AsyncExitStack()
        self._http: aiohttp.ClientSession | None = None
        self.port = 0
        self.lives = 0
        self.app: Gateway

    @property
    def routes(self) -> Routes:
        """Raises `ValueError` before the first snapshot."""
        return self.app._knowledge.newest()

    def residents(self) -> dict[str, frozenset[str]]:
        """What each replica has, as far as is known here."""
        try:
            instances = self.routes._instances.values()
        except ValueError:
            return {}
        return {replica.id: replica.resident for instance in instances for replica in instance.replicas}

    @property
    def overdrawn(self) -> bool:
        """Whether no request may be sent a second time now."""
        return self.app.inference.budget._tokens < 1.5

    async def begin(self) -> None:
        self.lives += 1
        loop = asyncio.get_running_loop()
        self._stack = contextlib.AsyncExitStack()
        self.app, _ = await self._stack.enter_async_context(_gateway(self._config, self._clock))
        listener = socket.create_server(("127.0.0.1", self.port))
        self.port = listener.getsockname()[1]
        server = await loop.create_server(lambda: Inbound(self.app, loop), sock=listener, backlog=256)
        self._stack.callback(self.app.abort)
        self._stack.callback(server.close)

    async def end(self) -> None:
        """Who waits for an answer does so in vain."""
        self.lives += 1
        await self._stack.aclose()

    async def close(self) -> None:
        await self.end()
        if self._http is not None:
            await self._http.close()

    def route(self, account: str, model: str) -> Route | None:
        """Where it would send a request now; None where it refuses."""
        try:
            return self.routes.resolve(account, model, None, self._clock())
        except (PillionError, ValueError):
            return None

    async def ask(
        self, key: str, model: str, tokens: int = 2, *, ref: str | None = None, stream: bool = False
    ) -> Answer:
        if self._http is None:
            self._http = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0, force_close=True))
        headers = {"authorization": f"Bearer {key}"} | ({"x-pillion-adapter-id": ref} if ref else {})
        body: dict[str, Any] = {"model": model, "prompt": "hi", "max_tokens": tokens, "stream": stream}
        url, raw, status, found = f"http://127.0.0.1:{self.port}/v1/completions", b"", 0, {}
        try:
            async with (
                asyncio.timeout(ANSWER_S),
                self._http.post(url, json=body, headers=headers) as answer,
            ):
                status, found = answer.status, {k.lower(): v for k, v in answer.headers.items()}
                async for part in answer.content.iter_any():
                    raw += part
        except (aiohttp.ClientError, ConnectionError, TimeoutError):
            return Answer(status, found, raw, broken=True)
        broken = status == 200 and stream and not raw.rstrip().endswith(b"[DONE]")
        return Answer(status, found, raw, broken)


def versions_of(route: Route) -> set[int]:
    return {r.version for r in (route, route.canary) if r is not None and r.version is not None}


def plain(answer: Answer, model: str, ref: str | None) -> tuple[int, bytes, dict[str, str]]:
    """Without what is of this one request alone."""
    raw = answer.raw.replace(model.encode(), b"MODEL") if ":" in model else answer.raw
    headers = {k: v for k, v in answer.headers.items() if k not in ("x-request-id", "date")}
    return answer.status, raw.replace(ref.encode(), b"REF") if ref else raw, headers
