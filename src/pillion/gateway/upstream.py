"""The seam to what lies behind the gateway: engines, containers, control."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from pillion.gateway.http import Fields


class ConnectRefused(Exception):
    """There was no connection: nothing was sent."""


class ConnectionLost(Exception):
    """The connection ended after the request was sent and before the answer was whole.

    `reused`: it was an idle one kept from before, which the other side may have closed for its age alone.
    """

    def __init__(self, message: str, *, reused: bool = False) -> None:
        super().__init__(message)
        self.reused = reused


class UpstreamAnswer(Protocol):
    """An answer whose body is still to come. Names of `fields` are lower case."""

    @property
    def status(self) -> int: ...

    @property
    def fields(self) -> Fields: ...

    def chunks(self) -> AsyncGenerator[bytes, None]:
        """The body as it comes, still encoded. Raises `ConnectionLost`."""
        ...


class Relay(Protocol):
    """Sends one request and gives its answer's head; leaving the context closes what is not read to its end."""

    def send(
        self,
        method: str,
        url: str,
        fields: Fields,
        body: bytes | AsyncIterator[bytes] | None,
        *,
        expect: bool = False,
    ) -> AbstractAsyncContextManager[UpstreamAnswer]:
        """`url` goes out as it is. `expect`: the body is sent only after upstream's 100 Continue.

        Raises `ConnectRefused`, `ConnectionLost`.
        """
        ...
