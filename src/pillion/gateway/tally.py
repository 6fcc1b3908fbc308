"""What is put down of one request: in its account, in its trace, in its key's limits."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pillion.core.routing import Candidate, Route
from pillion.core.snapshot import Key
from pillion.core.spans import Carried
from pillion.gateway.accounting import Ticket
from pillion.gateway.http import Head
from pillion.gateway.plans import Plan

if TYPE_CHECKING:
    from pillion.gateway.inference import Inference

# How often a stream's tokens are told to its ticket while it runs.
TELL_S = 1.0

# Tokens of the prompt, of these from a cache, of the answer; None where no engine told.
Counted = tuple[int | None, int | None, int | None]


class Tally:
    """`cold`: it waited for a load."""

    __slots__ = ("_in", "_key", "_ticket", "_told_at", "_trace", "cold", "request_id")

    def __init__(self, inference: Inference, head: Head, key: Key, request_id: str) -> None:
        self._in = inference
        self._key = key
        self.request_id = request_id
        self.cold = False
        self._ticket: Ticket | None = None
        self._told_at = 0.0
        tracing = inference.tracing
        self._trace = None if tracing is None else tracing.begin(head, key, request_id)

    def goes_to(self, route: Route, candidate: Candidate) -> None:
        """Before it is asked. Raises `PillionError` where it cannot be put down."""
        if self._ticket is None:
            meter, now = self._in.meter, self._in.clock()
            self._ticket = meter.admit(self._key, route, candidate, self.request_id, now)
        else:
            self._ticket.served_by(route, candidate)

    def loaded(self) -> None:
        """What it waited for."""
        if not self.cold and self._ticket is not None:
            self.cold = True
            self._ticket.cold()

    def carried(self) -> Carried | None:
        """What makes that which comes next a part of its trace."""
        return None if self._trace is None else self._trace.carried()

    def began(self, now: float) -> None:
        """Its answer."""
        self._told_at = now
        if self._ticket is not None:
            self._ticket.first_byte(now)

    def due(self, now: float) -> bool:
        """Whether what a stream has used by now is to be told."""
        return now >= self._told_at + TELL_S and self._ticket is not None

    def keep(self, counted: Counted, now: float) -> None:
        self._told_at = now
        if self._ticket is not None:
            self._ticket.keep(*counted)

    def done(self, status: int, model: str, plan: Plan | None, counted: Counted) -> None:
        """`model` is what was asked for."""
        if self._trace is not None:
            self._trace.end(status, model, plan, counted, self.cold)
        ticket = self._ticket
        if ticket is None:
            return
        now = self._in.clock()
        if plan is not None and (adapter := plan.route.adapter) is not None:
            self._in.metrics.version_answered(adapter, status)
        prompt, cached, completion = counted
        ticket.tokens(prompt, cached, completion)
        if prompt or completion:
            self._in.rates.spent(self._key, (prompt or 0) + (completion or 0), now)
        self._ticket = None
        ticket.done(status, now)

    def write_off(self, model: str, plan: Plan | None, counted: Counted) -> None:
        """It crashed."""
        ticket, self._ticket = self._ticket, None
        if ticket is not None:
            ticket.tokens(*counted)
            ticket.done(500, self._in.clock())
        if self._trace is not None:
            self._trace.end(500, model, plan, (), self.cold)
