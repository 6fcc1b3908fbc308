"""What stands behind the clients' connections: which part answers a request, and what the gateway answers itself."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from time import gmtime, strftime
from urllib.parse import unquote

from pillion.core.errors import MethodNotAllowedError, model_not_found
from pillion.gateway import headers
from pillion.gateway.auth import Doorkeeper
from pillion.gateway.config import Limits
from pillion.gateway.house import Exchange, House
from pillion.gateway.http import Answer, Head, json_answer
from pillion.gateway.inbound import Inbound
from pillion.gateway.inference import Inference
from pillion.gateway.knowledge import Knowledge
from pillion.gateway.metrics import CONTENT_TYPE, Metrics
from pillion.gateway.onward import CONTAINER, ToContainer, ToControl
from pillion.gateway.outbox import Outbox
from pillion.gateway.pool import Pool
from pillion.gateway.wire import Heads

# First segments under /v1/ that are control's. Any other POST there is inference.
CONTROL = frozenset(
    [
        "account",
        "adapters",
        "admin",
        "auth",
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
USUAL = frozenset({"/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses"})
OWN = frozenset({"/healthz", "/readyz", "/metrics"})
METHODS = ("DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT")


class Gateway(House):
    """`timer`: seconds that only grow. `clock`: since the epoch. `draining`: no more connections are taken."""

    def __init__(
        self,
        *,
        knowledge: Knowledge,
        door: Doorkeeper,
        inference: Inference,
        control: ToControl,
        container: ToContainer,
        pool: Pool,
        outbox: Outbox,
        metrics: Metrics,
        limits: Limits,
        clock: Callable[[], float],
        timer: Callable[[], float],
        new_id: Callable[[], str],
    ) -> None:
        self._knowledge = knowledge
        self._door = door
        self.inference = inference
        self._control = control
        self._container = container
        self._pool = pool
        self._metrics = metrics
        self._clock = clock
        self._new_id = new_id
        self._connections: set[Inbound] = set()
        self._emptied = asyncio.Event()
        self._date: tuple[int, bytes] = (0, b"")
        self.limits = limits
        self.outbox = outbox
        self.heads = Heads()
        self.timer = timer
        self.draining = False
        metrics.connections = lambda: len(self._connections)

    # What connections ask for

    def request_id(self, head: Head) -> str:
        return headers.request_id(head, self._new_id)

    def date(self) -> bytes:
        now = int(self._clock())
        if self._date[0] != now:
            self._date = now, strftime("%a, %d %b %Y %H:%M:%S GMT", gmtime(now)).encode()
        return self._date[1]

    def receive(self, head: Head, connection: Inbound) -> Exchange | None:
        """Raises `PillionError`."""
        kind = head.kept.get("kind") or head.kept.setdefault("kind", kind_of(head))
        connection.taken(kind)
        self._metrics.taken(kind)
        if kind == "inference":
            return self.inference.receive(head, connection)
        if kind == "control":
            if (allowed := _refused_to(head)) is not None:
                raise MethodNotAllowedError(head.method, head.path, allowed)
            return self._control.receive(head, connection)
        if kind == "container":
            return self._container.receive(head, connection)
        connection.give(self._models(head, connection) if kind == "models" else self._own(head, connection))
        return None

    def answered(self, kind: str, status: int) -> None:
        self._metrics.answered(kind, status)

    def malformed(self, status: int) -> None:
        self._metrics.malformed(status)

    def first_byte(self, kind: str, seconds: float) -> None:
        self._metrics.first_byte(kind, seconds)

    def opened(self, connection: Inbound) -> None:
        self._connections.add(connection)

    def closed(self, connection: Inbound) -> None:
        self._connections.discard(connection)
        if not self._connections:
            self._emptied.set()

    # What the server asks for

    def sweep(self, now: float) -> None:
        """Call it now and then with the loop's time."""
        for connection in list(self._connections):
            try:
                connection.check(now)
            except Exception:
                connection.crash()
        self._pool.sweep()

    def drain(self) -> None:
        """No new connections come: what is idle is closed, what is in flight finishes."""
        self.draining = True
        for connection in list(self._connections):
            connection.drain()

    def abort(self) -> None:
        for connection in list(self._connections):
            connection.abort()

    async def emptied(self) -> None:
        """Waits until no connection is left."""
        while self._connections:
            self._emptied.clear()
            await self._emptied.wait()

    # What it answers itself

    def _own(self, head: Head, connection: Inbound) -> Answer:
        if head.path == "/metrics":
            if not self._door.may_watch(head, connection.peer):
                self._door.authorize(self._knowledge.routes(), head, "admin", connection.peer)
            return Answer(200, [("content-type", CONTENT_TYPE)], self._metrics.text())
        if head.path == "/healthz":
            return json_answer(200, {"status": "ok"})
        self._knowledge.routes()
        if self.draining:
            return json_answer(503, {"status": "draining"})
        return json_answer(200, {"status": "ready", "snapshot": self._knowledge.version})

    def _models(self, head: Head, connection: Inbound) -> Answer:
        routes = self._knowledge.routes()
        account = self._door.authorize(routes, head, "inference", connection.peer).account
        listed = routes.list_models(account, self._clock())
        if head.path == "/v1/models":
            return json_answer(200, {"object": "list", "data": listed})
        wanted = unquote(head.path.removeprefix("/v1/models/"))
        found = [entry for entry in listed if entry["id"] == wanted]
        if not found:
            raise model_not_found(wanted[:200])
        return json_answer(200, found[0])


def kind_of(head: Head) -> str:
    """Which part answers: `own`, `models`, `inference`, `container`, or else `control`."""
    path, reads = head.path, head.method in ("GET", "HEAD")
    if not reads and path in USUAL:
        return "inference" if head.method == "POST" else "control"
    if reads and path in OWN:
        return "own"
    if reads and (path == "/v1/models" or path.startswith("/v1/models/")):
        return "models"
    if CONTAINER.fullmatch(path):
        return "container"
    if head.method == "POST" and ENGINE_PATH.fullmatch(path) and path not in NEVER_TO_ENGINES:
        return "control" if path.split("/")[2] in CONTROL else "inference"
    return "control"


def _refused_to(head: Head) -> tuple[str, ...] | None:
    """Of what is nothing for control: the methods to use instead."""
    if head.path in USUAL:
        return ("POST",)
    if head.path in OWN or head.path == "/v1/models":
        return ("GET", "HEAD")
    return None if head.method in METHODS else METHODS
