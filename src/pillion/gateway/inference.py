"""One inference request: who asks, what for, where it goes, and how its answer comes back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import dataclass

from pillion.core.errors import InvalidRequestError, RequestTooLargeError
from pillion.core.routing import Candidate, Route
from pillion.gateway import headers
from pillion.gateway.answers import Origin, make_answer
from pillion.gateway.auth import authorize
from pillion.gateway.balance import Balance, RetryBudget
from pillion.gateway.body import BodyPolicy, Document, cache_salt, encode, read_document
from pillion.gateway.config import Limits
from pillion.gateway.http import Answer, Body, Head
from pillion.gateway.knowledge import Knowledge
from pillion.gateway.metrics import Metrics
from pillion.gateway.tries import NotResident, Tries
from pillion.gateway.upstream import ConnectionLost, ConnectRefused, Relay


@dataclass(frozen=True, slots=True)
class Ask:
    """A request that was let in. `document` is what an engine may see of its body.

    The engine gets a request id of ours: two clients may choose the same.
    """

    account: str
    path: str
    head: Head
    model: str
    adapter_ref: str | None
    document: Document
    engine_request_id: str


@dataclass(frozen=True)
class Inference:
    """`clock`: seconds since the epoch."""

    knowledge: Knowledge
    relay: Relay
    balance: Balance
    budget: RetryBudget
    policy: BodyPolicy
    limits: Limits
    metrics: Metrics
    clock: Callable[[], float]
    new_id: Callable[[], str]

    @asynccontextmanager
    async def answer(self, head: Head, body: Body) -> AsyncIterator[Answer]:
        """The answer, whose chunks are to be taken inside the context; leaving it ends the generation upstream.

        Raises `PillionError`.
        """
        ask = await self._admit(head, body)
        self.budget.earn()
        async with AsyncExitStack() as stack:
            yield await self._place(ask, stack)

    async def _admit(self, head: Head, body: Body) -> Ask:
        key = authorize(self.knowledge.routes(), head, "inference")
        ref = headers.adapter_ref(head)
        headers.check_execution(head)
        document, model = read_document(await self._read(head, body))
        document = self.policy.apply(head.path, document)
        return Ask(key.account, head.path, head, model, ref, document, self.new_id())

    async def _read(self, head: Head, body: Body) -> bytes:
        limit = self.limits.max_body
        declared = head.first("content-length")
        if declared is not None and declared.isdigit() and int(declared) > limit:
            raise _too_large(limit)
        read = bytearray()
        try:
            async with asyncio.timeout(self.limits.body_timeout_s):
                async for chunk in body.chunks():
                    read += chunk
                    if len(read) > limit:
                        raise _too_large(limit)
        except TimeoutError:
            raise InvalidRequestError(
                f"The body did not come within {self.limits.body_timeout_s:g} s."
            ) from None
        return bytes(read)

    async def _place(self, ask: Ask, stack: AsyncExitStack) -> Answer:
        """Tries replicas until one answers. Each try sees the newest snapshot."""
        tries = Tries(self.budget)
        while True:
            route = self.knowledge.routes().resolve(ask.account, ask.model, ask.adapter_ref, self.clock())
            candidate = self.balance.choose(route, tries.excluded | tries.avoided)
            candidate = candidate or self.balance.choose(route, tries.excluded)
            if candidate is None:
                raise tries.verdict(route)
            if tries.reason is not None:
                self.metrics.retried(tries.reason)
            replica = candidate.replica.id
            try:
                async with AsyncExitStack() as attempt:
                    answer = await self._attempt(ask, route, candidate, attempt)
                    await stack.enter_async_context(attempt.pop_all())
                    return answer
            except ConnectRefused:
                self.failed(replica, "refused")
                tries.refused(replica)
            except NotResident:
                tries.absent(replica)
            except ConnectionLost as lost:
                if not lost.reused:
                    self.failed(replica, "lost")
                tries.lost(replica, reused=lost.reused)

    async def _attempt(self, ask: Ask, route: Route, candidate: Candidate, attempt: AsyncExitStack) -> Answer:
        replica = candidate.replica
        origin = Origin(
            path=ask.path,
            name=route.upstream_model(candidate),
            echo=ask.model,
            fields=headers.served_by(route, candidate),
            broken=lambda: self.failed(replica.id, "broken"),
        )
        attempt.enter_context(self.balance.holding(replica.id))
        upstream = await attempt.enter_async_context(
            self.relay.send(
                "POST",
                replica.url.rstrip("/") + ask.path,
                headers.to_engine(ask.head, replica.infer_key, ask.engine_request_id),
                encode(ask.document, origin.name, self._salt(ask, candidate)),
            )
        )
        chunks = await attempt.enter_async_context(aclosing(upstream.chunks()))
        return await make_answer(upstream, chunks, origin, self.limits.max_answer)

    def _salt(self, ask: Ask, candidate: Candidate) -> str | None:
        """On shared pools. What an account runs alone needs none, and its engine may not know the field."""
        if candidate.instance.account is not None:
            return None
        return cache_salt(self.knowledge.routes().pepper, ask.account, ask.document)

    def failed(self, replica: str, reason: str) -> None:
        self.balance.failed(replica)
        self.metrics.failed(reason)


def _too_large(limit: int) -> RequestTooLargeError:
    return RequestTooLargeError(f"The body is larger than {limit} bytes.")
