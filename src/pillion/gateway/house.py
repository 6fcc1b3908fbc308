"""What a client's connection calls: the house that stands behind it, and what answers one request there."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from pillion.gateway.config import Limits
from pillion.gateway.http import Head
from pillion.gateway.outbox import Outbox
from pillion.gateway.wire import Heads

if TYPE_CHECKING:
    from pillion.gateway.inbound import Inbound


class Exchange(Protocol):
    """Answers one request, by calling `answer`, or `begin`, `write` and `end`, or `cut`, on its connection.

    `patient`: a body may take as long as it keeps coming; else all of it must come within the limit.
    """

    kind: str
    patient: bool

    def body(self, data: bytes) -> None:
        """A part of the request's body."""

    def body_end(self) -> None:
        """The request is whole."""

    def left(self) -> None:
        """The client has gone: nothing more may be written."""

    def client_full(self, full: bool) -> None:
        """Whether the client takes less than was written to it."""

    def crashed(self) -> None:
        """It raised what nobody expected, which is being handled: lets go of all it has, and has its connection `crash`."""


class House(Protocol):
    """What stands behind the connections."""

    limits: Limits
    heads: Heads
    timer: Callable[[], float]
    outbox: Outbox
    draining: bool

    def request_id(self, head: Head) -> str: ...

    def date(self) -> bytes:
        """Now, as HTTP says it."""
        ...

    def receive(self, head: Head, connection: Inbound) -> Exchange | None:
        """Begins to answer; None where it is answered already. Raises `PillionError`."""
        ...

    def answered(self, kind: str, status: int) -> None: ...

    def malformed(self, status: int) -> None: ...

    def first_byte(self, kind: str, seconds: float) -> None: ...

    def opened(self, connection: Inbound) -> None: ...

    def closed(self, connection: Inbound) -> None: ...
