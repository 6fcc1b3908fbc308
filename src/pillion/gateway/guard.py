"""What uvicorn's httptools protocol leaves open: a bound on the size of a request's head and on its time, no Nagle."""

from __future__ import annotations

import asyncio
import socket
from typing import ClassVar

import msgspec
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from pillion.core.errors import InvalidRequestError
from pillion.gateway.config import Limits


class GuardedProtocol(HttpToolsProtocol):
    """Closes connections whose request's head is too large or too slow, and says so in OpenAI's shape."""

    limits: ClassVar[Limits] = Limits()
    _in_head = False
    _head_bytes = 0
    _head_timer: asyncio.TimerHandle | None = None
    _linger_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        # asyncio sets it only where the listener was made with an explicit protocol; without it an answer in two
        # writes waits 40 ms for the client's delayed ACK.
        connection: socket.socket | None = transport.get_extra_info("socket")
        if connection is not None and connection.family != socket.AF_UNIX:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._arm()

    def connection_lost(self, exc: Exception | None) -> None:
        self._disarm()
        self._end_lingering()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        began = self._in_head
        super().data_received(data)
        if not self._in_head or self.transport.is_closing():
            return
        self._arm()
        # The read in which a head begins may hold the end of the request before it, and is not counted.
        self._head_bytes += len(data) if began else 0
        if self._head_bytes > self.limits.max_header_bytes:
            self._refuse(431, f"The request's headers are larger than {self.limits.max_header_bytes} bytes.")

    def on_message_begin(self) -> None:
        self._in_head = True
        self._head_bytes = 0
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._in_head = False
        self._disarm()
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self._end_lingering()
        super().on_message_complete()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.cycle.response_complete and self.cycle.more_body and not self.transport.is_closing():
            self._linger_timer = self.loop.call_later(self.limits.linger_s, self.transport.close)

    def send_400_response(self, msg: str) -> None:
        self._refuse(400, "The request is not valid HTTP/1.1.")

    def _arm(self) -> None:
        if self._head_timer is None:
            self._head_timer = self.loop.call_later(self.limits.header_timeout_s, self._too_slow)

    def _disarm(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _end_lingering(self) -> None:
        if self._linger_timer is not None:
            self._linger_timer.cancel()
            self._linger_timer = None

    def _too_slow(self) -> None:
        self._head_timer = None
        if self._in_head:
            self._refuse(
                408, f"The request's headers did not come within {self.limits.header_timeout_s:g} s."
            )
        else:
            self.transport.close()

    def _refuse(self, status: int, message: str) -> None:
        if self.transport.is_closing():
            return
        body = msgspec.json.encode(InvalidRequestError(message).body())
        self.transport.write(
            STATUS_LINE[status]
            + b"content-type: application/json\r\nconnection: close\r\ncontent-length: %d\r\n\r\n" % len(body)
            + body
        )
        self.transport.close()


def guarded(limits: Limits) -> type[GuardedProtocol]:
    """The protocol with these limits; uvicorn makes one per connection and passes nothing of ours."""
    return type("GuardedProtocol", (GuardedProtocol,), {"limits": limits})
