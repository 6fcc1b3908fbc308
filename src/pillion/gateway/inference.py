"""Inference requests: what all of them share, and the beginning of each."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import structlog

from pillion.core.routing import Route
from pillion.core.snapshot import Key
from pillion.core.usage import QUARANTINED
from pillion.gateway import headers
from pillion.gateway.accounting import Meter, RateLimits
from pillion.gateway.auth import Doorkeeper
from pillion.gateway.balance import Balance, RetryBudget
from pillion.gateway.body import BodyPolicy
from pillion.gateway.budgets import Budgets
from pillion.gateway.cold import Cold
from pillion.gateway.config import Limits
from pillion.gateway.exchange import InferenceExchange
from pillion.gateway.fair import Fair
from pillion.gateway.form import Form, boundary_of
from pillion.gateway.http import Head
from pillion.gateway.inbound import Inbound
from pillion.gateway.knowledge import Knowledge
from pillion.gateway.metrics import Metrics
from pillion.gateway.plans import Plans
from pillion.gateway.pool import Pool
from pillion.gateway.question import too_large
from pillion.gateway.tracing import Tracing

log = structlog.get_logger(__name__)


@dataclass
class Inference:
    """What all requests share. `clock`: seconds since the epoch. `random`: from [0, 1)."""

    knowledge: Knowledge
    pool: Pool
    plans: Plans
    cold: Cold
    door: Doorkeeper
    balance: Balance
    budget: RetryBudget
    policy: BodyPolicy
    limits: Limits
    metrics: Metrics
    meter: Meter
    rates: RateLimits
    budgets: Budgets
    fair: Fair
    clock: Callable[[], float]
    new_id: Callable[[], str]
    tracing: Tracing | None
    random: Callable[[], float]
    held_up: set[InferenceExchange] = field(default_factory=set)  # by a load, or for their turn

    def receive(self, head: Head, connection: Inbound) -> InferenceExchange:
        """Raises `PillionError` for what need not be read to be refused."""
        key = self.door.authorize(self.knowledge.routes(), head, "inference", connection.peer)
        ref = headers.checked_adapter_ref(head)
        length, limit = connection.length, self.limits.max_body
        if length is not None and length > limit:
            raise too_large(limit)
        if (refusal := self.rates.check(key, self.clock())) is not None:
            raise refusal
        boundary = boundary_of(head)
        connection.proceed()
        return InferenceExchange(
            self, head, connection, key, ref, None if boundary is None else Form(boundary)
        )

    def waiting(self) -> Iterator[InferenceExchange]:
        """Those that a replica has or is to have."""
        yield from list(self.held_up)
        for asker in self.pool.asking():
            if isinstance(asker, InferenceExchange):
                yield asker

    def quarantine(self, key: Key, route: Route, requests: str) -> None:
        """Two replicas died holding a request for this adapter, or two."""
        if route.adapter is None:
            return
        self.plans.quarantine(route.adapter)
        self.metrics.quarantined()
        self.meter.incident(QUARANTINED, key, route, f"Two replicas died holding {requests}.")
        log.warning("adapter quarantined", adapter=route.adapter.id, requests=requests)
