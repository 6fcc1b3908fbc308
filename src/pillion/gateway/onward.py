"""What is passed on as it is: everything that is not inference to control, and containers' own APIs (SPEC §4)."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import dataclass

from pillion.core.errors import NotFoundError, UnavailableError
from pillion.core.names import parse_row_id
from pillion.core.routing import Candidate, Route
from pillion.core.snapshot import Instance
from pillion.gateway import headers
from pillion.gateway.auth import authorize
from pillion.gateway.balance import Balance
from pillion.gateway.http import Answer, Body, Cut, Fields, Head
from pillion.gateway.knowledge import Knowledge
from pillion.gateway.metrics import Metrics
from pillion.gateway.upstream import ConnectionLost, ConnectRefused, Relay, UpstreamAnswer

CONTAINER = re.compile(r"/inference-instances/(?P<id>[^/]*)/proxy(?P<path>/.*)?")


@dataclass(frozen=True)
class ToControl:
    """Bodies stream both ways; nothing is held, decoded or changed."""

    relay: Relay
    url: str

    @asynccontextmanager
    async def answer(self, head: Head, body: Body, request_id: str) -> AsyncIterator[Answer]:
        """Raises `UnavailableError` with `control_unavailable`."""
        async with AsyncExitStack() as stack:
            try:
                # Control may refuse an upload before it is sent; what a container's server makes of it is not known.
                expect = (head.first("expect") or "").lower() == "100-continue"
                url = self.url.rstrip("/") + head.path
                fields = headers.to_control(head, request_id)
                upstream = await stack.enter_async_context(
                    _send(self.relay, head, url, fields, body, expect=expect)
                )
            except (ConnectRefused, ConnectionLost) as error:
                raise UnavailableError(
                    "The control API does not answer now. Inference goes on; try again shortly.",
                    code="control_unavailable",
                    retry_after=2.0,
                ) from error
            chunks = await stack.enter_async_context(aclosing(upstream.chunks()))
            yield Answer(upstream.status, _back(upstream, {"date", "x-request-id"}), _verbatim(chunks))


@dataclass(frozen=True)
class ToContainer:
    """Instances that do not speak OpenAI, bodies and answers verbatim."""

    knowledge: Knowledge
    relay: Relay
    balance: Balance
    metrics: Metrics

    @asynccontextmanager
    async def answer(self, head: Head, body: Body, request_id: str) -> AsyncIterator[Answer]:
        """Raises `PillionError`. Only a refused connection moves to another replica: the body goes out but once."""
        route, path = self._route(head)
        excluded: set[str] = set()
        async with AsyncExitStack() as stack:
            while (candidate := self.balance.choose(route, excluded)) is not None:
                try:
                    upstream = await self._send(candidate, head, path, body, request_id, stack)
                    break
                except ConnectRefused:
                    excluded.add(candidate.replica.id)
                    self._failed(candidate, "refused")
                except ConnectionLost as error:
                    self._failed(candidate, "lost")
                    raise UnavailableError("The replica was lost while it had this request.") from error
            else:
                raise UnavailableError(f"No replica of '{route.echo}' could be reached. Try again shortly.")
            chunks = await stack.enter_async_context(aclosing(upstream.chunks()))
            fields = _back(upstream, {"date", "server", "x-request-id"}) + headers.served_by(route, candidate)
            yield Answer(upstream.status, fields, _verbatim(chunks))

    def _route(self, head: Head) -> tuple[Route, str]:
        routes = self.knowledge.routes()
        account = authorize(routes, head, "inference").account
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

    async def _send(
        self, candidate: Candidate, head: Head, path: str, body: Body, request_id: str, stack: AsyncExitStack
    ) -> UpstreamAnswer:
        replica = candidate.replica
        fields = headers.to_container(head, replica.infer_key, request_id)
        async with AsyncExitStack() as attempt:
            attempt.enter_context(self.balance.holding(replica.id))
            url = replica.url.rstrip("/") + path
            upstream = await attempt.enter_async_context(_send(self.relay, head, url, fields, body))
            await stack.enter_async_context(attempt.pop_all())
            return upstream

    def _failed(self, candidate: Candidate, reason: str) -> None:
        self.balance.failed(candidate.replica.id)
        self.metrics.failed(reason)


@asynccontextmanager
async def _send(
    relay: Relay, head: Head, url: str, fields: Fields, body: Body, *, expect: bool = False
) -> AsyncIterator[UpstreamAnswer]:
    full = f"{url}?{head.query}" if head.query else url
    chunks = body.chunks() if head.has_body else None
    async with relay.send(head.method, full, fields, chunks, expect=expect) as upstream:
        yield upstream


def _to_instance(account: str, instance: Instance) -> Route:
    ready = tuple(Candidate(instance, replica, 0) for replica in instance.replicas if replica.ready)
    return Route("base", account, f"{instance.model}:{instance.id}", instance.model, None, ready)


def _back(upstream: UpstreamAnswer, dropped: set[str]) -> list[tuple[str, str]]:
    if upstream.status in (204, 304):
        dropped = dropped | {"content-length"}
    return headers.end_to_end(upstream.fields, dropped)


async def _verbatim(chunks: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
    try:
        async for chunk in chunks:
            yield chunk
    except ConnectionLost as error:
        raise Cut(str(error)) from error
