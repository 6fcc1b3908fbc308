"""What a request tells those who count and limit."""

from __future__ import annotations

from typing import Protocol

from pillion.core.errors import PillionError
from pillion.core.routing import Candidate, Route
from pillion.core.snapshot import Key
from pillion.gateway.http import Fields


class Ticket(Protocol):
    """One request's account. Times are seconds since the epoch."""

    def served_by(self, route: Route, candidate: Candidate) -> None:
        """Another replica is asked, or for another version."""

    def tokens(self, prompt: int | None, cached: int | None, completion: int | None) -> None:
        """As last known; any number of times."""

    def keep(self, prompt: int | None, cached: int | None, completion: int | None) -> None:
        """Tokens of a stream that runs, so that a crash leaves them."""

    def cold(self) -> None:
        """It waited for a load."""

    def first_byte(self, now: float) -> None: ...

    def done(self, status: int, now: float) -> None:
        """Before the answer's last byte. 499: the client left."""


class Meter(Protocol):
    def admit(self, key: Key, route: Route, candidate: Candidate, request_id: str, now: float) -> Ticket:
        """Before an engine is asked. Raises `PillionError` where it cannot be put down."""
        ...

    def incident(self, kind: str, key: Key, route: Route, detail: str) -> None:
        """Something the account should hear of."""


class RateLimits(Protocol):
    def check(self, key: Key, now: float) -> PillionError | None:
        """Counts one request of this key; the error where it is one too many."""
        ...

    def spent(self, key: Key, tokens: int, now: float) -> None: ...

    def fields(self, key: Key, now: float) -> Fields:
        """`x-ratelimit-*` for its answer."""
        ...

    def lines(self, key: Key, now: float) -> bytes:
        """The same as they go over the wire."""
        ...
