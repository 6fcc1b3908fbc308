"""What is passed on as it is: everything that is not inference to control, and containers' own APIs (SPEC §4)."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass

from pillion.core.errors import NotFoundError, PillionError, UnavailableError
from pillion.core.names import parse_row_id
from pillion.core.routing import Candidate, Route
from pillion.core.snapshot import Instance
from pillion.gateway import headers, http
from pillion.gateway.auth import Doorkeeper
from pillion.gateway.balance import Balance
from pillion.gateway.house import Exchange
from pillion.gateway.http import Fields, Head
from pillion.gateway.inbound import Inbound
from pillion.gateway.knowledge import Knowledge
from pillion.gateway.metrics import Metrics
from pillion.gateway.outbound import Asker, Origin, Outbound
from pillion.gateway.pool import Pool
from pillion.gateway.replies import ReplyHead

# RFC 9110, section 9.2.2. Of methods that nobody knows nothing is known.
IDEMPOTENT = frozenset({"DELETE", "GET", "HEAD", "OPTIONS", "PUT", "TRACE"})
CONTAINER = re.compile(r"/inference-instances/(?P<id>[^/]*)/proxy(?P<path>/.*)?")


class Passage(Exchange, Asker):
    """One request and its answer, streamed both ways: nothing is held, decoded or changed.

    Subclasses say where it goes and what becomes of failures.
    """

    patient = True
    kind = "control"
    dropped: Collection[bytes] = ()

    def __init__(self, pool: Pool, head: Head, client: Inbound, path: str) -> None:
        self._pool = pool
        self._head = head
        self._client = client
        self._length = client.length
        self._path = f"{path}?{head.query}" if head.query else path
        self._upstream: Outbound | None = None
        self._waiting: list[bytes] = []
        self._whole = False
        self._expect = False
        self._begun = self._over = self._client_is_full = False

    # What the client's connection calls

    def body(self, data: bytes) -> None:
        if self._upstream is None or self._expect:
            self._waiting.append(data)
            self._client.pause()
        else:
            self._upstream.write(self._framed(data), whole=False)

    def body_end(self) -> None:
        self._whole = True
        if self._length == 0 or self._over:
            return
        if self._upstream is not None and not self._expect:
            self._upstream.write(self._ending(), whole=True)

    def left(self) -> None:
        self._close()

    def client_full(self, full: bool) -> None:
        self._client_is_full = full
        if self._upstream is not None:
            self._upstream.choke(full)

    # What upstream calls

    def connected(self, connection: Outbound) -> None:
        if self._over:
            self._pool.give(connection)
            return
        self._upstream = connection
        head = self._head
        expect = self._expect
        data = self._start(self._fields(), connection.origin)
        bodiless = self._length == 0
        connection.send(self, data, whole=bodiless, head_only=head.method == "HEAD")
        if self._client_is_full:
            connection.choke(True)
        if not bodiless and not expect:
            self._client.proceed()
            self._flow()

    def proceed(self) -> None:
        if self._expect:
            self._expect = False
            self._client.proceed()
            self._flow()

    def began(self, head: ReplyHead, length: int | None) -> None:
        self._begun = True
        fields = headers.back(head.fields, self.dropped) + self._extra()
        self._client.begin(head.status, fields, None if head.status == 204 else length)

    def came(self, data: bytes) -> None:
        self._client.write(data)

    def answered(self) -> None:
        self._upstream = None
        if not self._over:
            self._settle()
            self._client.end()

    def refused(self, why: str) -> None:
        if not self._over:
            self._fail(self.unreachable(why))

    def lost(self, why: str) -> None:
        if self._over:
            return
        reused = self._upstream is not None and self._upstream.reused
        self._upstream = None
        if self._begun:
            self._settle()
            self._client.cut(why)
        elif reused and self._length == 0 and self._head.method in IDEMPOTENT:
            # It was closed for its age; what is asked for may be asked twice.
            self._pool.connect(self._origin(), self)
        else:
            self._fail(self.unreachable(why))

    def upstream_full(self, full: bool) -> None:
        if full:
            self._client.pause()
        else:
            self._client.resume()

    def crashed(self) -> None:
        try:
            self._close()
        finally:
            self._client.crash()

    # What subclasses say

    def _origin(self) -> Origin:
        raise NotImplementedError

    def _fields(self) -> Fields:
        raise NotImplementedError

    def _extra(self) -> bytes:
        """Fields of the answer that are ours."""
        return b""

    def unreachable(self, why: str) -> PillionError:
        raise NotImplementedError

    # Below

    def _go(self) -> None:
        connection = self._pool.take(self._origin())
        if connection is None:
            self._pool.connect(self._origin(), self)
        else:
            self.connected(connection)

    def _start(self, fields: Fields, origin: Origin) -> bytes:
        head = self._head
        framing = ""
        if self._length is None:
            framing = "transfer-encoding: chunked\r\n"
        elif self._length or head.method in ("POST", "PUT", "PATCH"):
            framing = f"content-length: {self._length}\r\n"
        if self._expect:
            framing += "expect: 100-continue\r\n"
        line = f"{head.method} {origin.prefix}{self._path} HTTP/1.1\r\n"
        return line.encode("latin-1") + http.lines(fields) + framing.encode() + b"\r\n"

    def _flow(self) -> None:
        """What waited goes on, and the rest follows."""
        assert self._upstream is not None
        waiting, self._waiting = self._waiting, []
        for data in waiting:
            self._upstream.write(self._framed(data), whole=False)
        if self._whole:
            self._upstream.write(self._ending(), whole=True)
        self._client.resume()

    def _framed(self, data: bytes) -> bytes:
        return b"%x\r\n%b\r\n" % (len(data), data) if self._length is None else data

    def _ending(self) -> bytes:
        return b"0\r\n\r\n" if self._length is None else b""

    def _fail(self, error: PillionError) -> None:
        self._close()
        self._client.fail(error)

    def _settle(self) -> None:
        self._over = True

    def _close(self) -> None:
        if self._upstream is not None:
            self._upstream.abort()
            self._upstream = None
        if not self._over:
            self._settle()


@dataclass(frozen=True)
class ToControl:
    pool: Pool
    url: str
    door: Doorkeeper

    def receive(self, head: Head, client: Inbound) -> Passage:
        passage = _ControlPassage(self, head, client)
        passage.start()
        return passage


class _ControlPassage(Passage):
    dropped: Collection[bytes] = headers.NOT_FROM_CONTROL

    def __init__(self, control: ToControl, head: Head, client: Inbound) -> None:
        super().__init__(control.pool, head, client, head.path)
        self._control = control
        # Control may refuse an upload before it is sent; what a container's server makes of it is not known.
        self._expect = head.expects and self._length != 0

    def start(self) -> None:
        self._go()

    def _origin(self) -> Origin:
        return self._pool.origin(self._control.url)

    def _fields(self) -> Fields:
        client = self._control.door.client(self._head, self._client.peer)
        return headers.to_control(self._head, client, self._client.request_id)

    def unreachable(self, why: str) -> PillionError:
        return UnavailableError(
            "The control API does not answer now. Inference goes on; try again shortly.",
            code="control_unavailable",
            retry_after=2.0,
        )


@dataclass(frozen=True)
class ToContainer:
    """Instances that do not speak OpenAI."""

    knowledge: Knowledge
    door: Doorkeeper
    pool: Pool
    balance: Balance
    metrics: Metrics

    def receive(self, head: Head, client: Inbound) -> Passage:
        """Raises `PillionError`."""
        route, path = self._route(head, client.peer)
        passage = _ContainerPassage(self, route, path, head, client)
        passage.start()
        return passage

    def _route(self, head: Head, peer: str) -> tuple[Route, str]:
        routes = self.knowledge.routes()
        account = self.door.authorize(routes, head, "inference", peer).account
        parts = CONTAINER.fullmatch(head.path)
        number = parse_row_id(parts["id"]) if parts is not None else None
        instance = routes.instance(account, number) if number is not None else None
        if parts is None or instance is None:
            raise NotFoundError("There is no such instance, or you do not have access to it.")
        if instance.openai_compatible:
            name = f"{instance.model}:{instance.id}"
            raise NotFoundError(
                f"Instance {instance.id} speaks OpenAI's API. Call /v1/… with the model '{name}'."
            )
        return _to_instance(account, instance), parts["path"] or "/"


class _ContainerPassage(Passage):
    """Only a refused connection moves to another replica: the body goes out but once."""

    kind = "container"
    dropped: Collection[bytes] = headers.NOT_FROM_CONTAINER

    def __init__(self, shared: ToContainer, route: Route, path: str, head: Head, client: Inbound) -> None:
        super().__init__(shared.pool, head, client, path)
        self._shared = shared
        self._route = route
        self._excluded: set[str] = set()
        self._candidate: Candidate | None = None

    def start(self) -> None:
        """Raises `UnavailableError` where no replica is left."""
        route = self._route  # unlike other routes it may have no candidates at all
        candidate = self._shared.balance.choose(route, self._excluded) if route.candidates else None
        if candidate is None:
            raise UnavailableError(f"No replica of '{self._route.echo}' could be reached. Try again shortly.")
        self._candidate = candidate
        self._shared.balance.begin(candidate.replica.id)
        self._go()

    def refused(self, why: str) -> None:
        if self._over:
            return
        self._excluded.add(self._let_go("refused"))
        try:
            self.start()
        except PillionError as error:
            self._fail(error)

    def lost(self, why: str) -> None:
        if not self._over and not self._begun and self._upstream is not None and not self._upstream.reused:
            self._failed("lost")
        super().lost(why)

    def unreachable(self, why: str) -> PillionError:
        return UnavailableError("The replica was lost while it had this request.")

    def _origin(self) -> Origin:
        return self._pool.origin(self._replica().replica.url)

    def _fields(self) -> Fields:
        fields = headers.to_container(self._head, self._replica().replica.infer_key, self._client.request_id)
        return [("host", self._origin().authority), *fields]

    def _extra(self) -> bytes:
        return http.lines(headers.served_by(self._route, self._replica()))

    def _replica(self) -> Candidate:
        assert self._candidate is not None
        return self._candidate

    def _failed(self, reason: str) -> None:
        self._shared.balance.failed(self._replica().replica.id)
        self._shared.metrics.failed(reason)

    def _let_go(self, reason: str) -> str:
        self._failed(reason)
        replica = self._replica().replica.id
        self._shared.balance.end(replica)
        self._candidate = None
        return replica

    def _settle(self) -> None:
        super()._settle()
        if self._candidate is not None:
            self._shared.balance.end(self._candidate.replica.id)


def _to_instance(account: str, instance: Instance) -> Route:
    ready = tuple(Candidate(instance, replica, 0) for replica in instance.replicas if replica.ready)
    return Route("base", account, f"{instance.model}:{instance.id}", instance.model, None, ready)
