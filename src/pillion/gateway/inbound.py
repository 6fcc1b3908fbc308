"""A client's connection: requests read from it one after the other, answers written in the same order."""

from __future__ import annotations

import asyncio
import socket
import struct
import traceback
from typing import Any

import structlog

from pillion.core.errors import InvalidRequestError, PillionError
from pillion.gateway import http
from pillion.gateway.house import Exchange, House
from pillion.gateway.http import STATUS_LINES, Answer, Head, error_answer
from pillion.gateway.wire import Malformed, Reader

log = structlog.get_logger(__name__)

HIGH_WATER = 64 * 2**10
CLIENT_LEFT = 499
# A request behind one that is still answered waits here; its sender waits where it is longer.
MAX_WAITING = 64 * 2**10


class Inbound(asyncio.Protocol):
    """`request_id` is the present request's, `peer` its client's address."""

    __slots__ = (
        "_advancing",
        "_arrived",
        "_chunked",
        "_closing",
        "_deadline",
        "_exchange",
        "_expect",
        "_full",
        "_head",
        "_house",
        "_keep_alive",
        "_kind",
        "_lingering",
        "_loop",
        "_outbox",
        "_paused",
        "_reader",
        "_status",
        "_taken_at",
        "_transport",
        "_unframed",
        "_unsent",
        "peer",
        "request_id",
    )

    def __init__(self, house: House, loop: asyncio.AbstractEventLoop) -> None:
        self._house = house
        self._loop = loop
        self._transport: Any = None
        self._outbox = house.outbox
        self._reader = Reader(house.heads, house.limits.max_header_bytes)
        self._head: Head | None = None
        self._exchange: Exchange | None = None
        self._kind = ""
        self._status: int | None = None
        self._arrived = 0.0
        self._deadline = 0.0
        self._advancing = self._chunked = self._closing = self._lingering = self._paused = False
        self._expect = self._full = self._keep_alive = self._unframed = False
        self._unsent, self._taken_at = 0, 0.0
        self.request_id = ""
        self.peer = "unknown"

    # What the event loop calls

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        peer = transport.get_extra_info("peername")
        self.peer = str(peer[0]) if peer else "unknown"
        sock = transport.get_extra_info("socket")
        if sock is not None and sock.family != socket.AF_UNIX:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        transport.set_write_buffer_limits(high=HIGH_WATER)
        self._deadline = self._loop.time() + self._house.limits.header_timeout_s
        self._house.opened(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._house.closed(self)
        exchange, self._exchange = self._exchange, None
        if self._head is not None:
            self._head = None
            self._house.answered(self._kind, CLIENT_LEFT if self._status is None else self._status)
        if exchange is not None:
            _leave(exchange)

    def eof_received(self) -> None:
        self._outbox.flush()  # the connection is closed now

    def pause_writing(self) -> None:
        self._full = True
        if self._exchange is not None:
            self._exchange.client_full(True)

    def resume_writing(self) -> None:
        self._full = False
        if self._exchange is not None:
            self._exchange.client_full(False)
        elif self._head is None and not self._lingering:
            self.resume()
            self._deadline = self._loop.time() + self._house.limits.keep_alive_s
            self._advance()

    def data_received(self, data: bytes) -> None:
        if self._closing and not self._lingering:
            return
        self._reader.feed(data)
        self._advance()
        busy = self._head is not None or self._full
        if busy and self._reader.whole and self._reader.waiting > MAX_WAITING:
            self.pause()

    # What an exchange does

    def pause(self) -> None:
        """Takes no more of the request's body for now."""
        if not self._paused and not self._transport.is_closing():
            self._paused = True
            self._transport.pause_reading()

    def resume(self) -> None:
        if self._paused and not self._transport.is_closing():
            self._paused = False
            self._deadline = self._loop.time() + self._house.limits.body_timeout_s
            self._transport.resume_reading()

    def proceed(self) -> None:
        """The body is wanted: says 100 Continue to a client that waits for it."""
        if self._expect:
            self._expect = False
            if not self._reader.waiting:
                self._outbox.write(self._transport, b"HTTP/1.1 100 Continue\r\n\r\n")

    def answer(self, status: int, fields: bytes, body: bytes) -> None:
        """The whole of it."""
        if self._head is None:
            return
        if self._kind == "inference":
            self._house.first_byte(self._kind, self._house.timer() - self._arrived)
        head = self._top(status, fields, len(body))
        self._outbox.write(self._transport, head if self._head.method == "HEAD" else head + body)
        self._status = status
        self._done()

    def begin(self, status: int, fields: bytes, length: int | None, first: bytes = b"") -> None:
        """The head of an answer whose body follows, and its first bytes. `length` is None where it is not known."""
        if self._head is None:
            return
        bodiless = self._head.method == "HEAD" or status in (204, 304)
        self._chunked = length is None and not bodiless and self._head.minor == 1
        self._unframed = length is None and not bodiless and not self._chunked
        if self._unframed:
            self._keep_alive = False
        head = self._top(status, fields, length, chunked=self._chunked)
        self._house.first_byte(self._kind, self._house.timer() - self._arrived)
        if first and not bodiless:
            head = b"%b%x\r\n%b\r\n" % (head, len(first), first) if self._chunked else head + first
        self._outbox.write(self._transport, head)
        self._status = status

    def write(self, data: bytes) -> None:
        if self._head is None or self._head.method == "HEAD":
            return
        self._outbox.write(self._transport, b"%x\r\n%b\r\n" % (len(data), data) if self._chunked else data)

    def end(self, last: bytes = b"") -> None:
        if self._head is None:
            return
        if self._head.method == "HEAD":
            last = b""
        if self._chunked:
            last = b"%x\r\n%b\r\n0\r\n\r\n" % (len(last), last) if last else b"0\r\n\r\n"
        if last:
            self._outbox.write(self._transport, last)
        self._done()

    def cut(self, why: str) -> None:
        """An answer that has begun cannot be finished: breaks the connection, which is what the client must see."""
        log.warning("answer cut off", request_id=self.request_id, reason=why)
        if self._head is not None:
            self._closing = True
            if self._unframed:
                self._reset()
            self._done()

    def fail(self, error: PillionError, fields: http.Fields = ()) -> None:
        """The error as the answer; where one has begun, breaks it off."""
        if self._head is None:
            return
        if self._status is not None:
            self.cut(error.message)
            return
        self.give(error_answer(error, fields))

    def give(self, answer: Answer) -> None:
        self.answer(answer.status, http.lines(answer.fields), answer.body)

    def crash(self, last: bytes | None = None) -> None:
        """Call it while an exception is handled that nobody expected. `last`: what ends an answer that has begun; where
        there is none, it is broken off.
        """
        # As text: a logger that prints locals would print keys.
        trace = traceback.format_exc()
        path = "" if self._head is None else self._head.path
        log.error("request failed", request_id=self.request_id, path=path, traceback=trace)
        try:
            if last is None or self._status is None:
                self.fail(PillionError(f"The gateway failed at this request. Its id is {self.request_id}."))
            else:
                self.end(last)
        except Exception:
            self.abort()
            raise

    # What the house does

    def check(self, now: float) -> None:
        """Closes what has been slow for too long. `now` as the loop's time."""
        if self._stalled(now):
            self.abort()
            return
        if now < self._deadline or self._transport.is_closing():
            return
        limits = self._house.limits
        if self._head is None:
            if self._full and not self._lingering:  # it still takes the last answer
                return
            if self._reader.waiting and self._reader.whole:
                self._refuse(408, f"The request's headers did not come within {limits.header_timeout_s:g} s.")
            else:
                self._outbox.close(self._transport)
        elif not self._reader.whole and not self._paused and self._exchange is not None:
            exchange, self._exchange = self._exchange, None
            _leave(exchange)
            self.fail(InvalidRequestError(f"The body did not come within {limits.body_timeout_s:g} s."))

    def _stalled(self, now: float) -> bool:
        """Whether nothing has been taken for too long of what waits to go out, an end included."""
        unsent = self._transport.get_write_buffer_size()
        if not unsent or unsent != self._unsent:
            self._unsent, self._taken_at = unsent, now
            return False
        return bool(now >= self._taken_at + self._house.limits.stall_s)

    def drain(self) -> None:
        """Finishes what is in flight and closes."""
        if self._head is None:
            self._outbox.close(self._transport)
        else:
            self._keep_alive = False

    def abort(self) -> None:
        self._transport.abort()

    @property
    def length(self) -> int | None:
        """Of the present request's body; None where it comes in chunks."""
        return self._reader.length

    # Below

    def _advance(self) -> None:
        if self._advancing:
            return
        self._advancing = True
        try:
            while not self._transport.is_closing() and self._step():
                pass
        except Malformed as error:
            self._malformed(error)
        except Exception:
            exchange, self._exchange = self._exchange, None
            if exchange is None:
                self.crash()
            else:
                exchange.crashed()
        finally:
            self._advancing = False

    def _step(self) -> bool:
        """One head or one part of a body; whether there may be more to read now."""
        reader = self._reader
        if reader.whole:
            # Where its client is full, the next answer would only wait here in memory.
            if self._head is not None or self._lingering or self._full:
                return False
            head = reader.head()
            if head is None:
                if reader.waiting and not self._arrived:
                    self._arrived = self._house.timer()
                    self._deadline = self._loop.time() + self._house.limits.header_timeout_s
                return False
            self._receive(head)
            return True
        data = reader.body()
        exchange = self._exchange
        if exchange is None:
            # The rest of a body nobody wants.
            if reader.whole:
                self._linger_over()
            return bool(data) or reader.whole
        if data:
            if exchange.patient:
                self._deadline = self._loop.time() + self._house.limits.body_timeout_s
            exchange.body(data)
        if reader.whole and self._exchange is exchange:
            exchange.body_end()
        return self._head is None

    def _receive(self, head: Head) -> None:
        house = self._house
        self._head = head
        self._status = None
        self._arrived = house.timer()
        self.request_id = house.request_id(head)
        self._keep_alive = head.keep_alive and not house.draining
        bodiless = self._reader.length == 0
        self._expect = head.expects and not bodiless
        if not self._reader.whole:
            self._deadline = self._loop.time() + house.limits.body_timeout_s
        try:
            exchange = house.receive(head, self)
        except PillionError as error:
            self.fail(error)
            return
        if self._has(head):
            self._exchange = exchange
            if exchange is not None and bodiless:
                exchange.body_end()

    def _has(self, head: Head) -> bool:
        """Whether this is not answered yet. Apart, because a type checker, and so a compiler, takes it for granted above."""
        return self._head is head

    def taken(self, kind: str) -> None:
        """The house says what kind of request this is."""
        self._kind = kind

    def _top(self, status: int, fields: bytes, length: int | None, *, chunked: bool = False) -> bytes:
        head = self._head
        assert head is not None
        if self._expect:
            # Whether the body still comes is the client's choice, so nothing after it could be told from it.
            self._keep_alive = False
        if chunked:
            framing = b"transfer-encoding: chunked\r\n"
        elif length is None or status == 204:
            framing = b""
        else:
            framing = b"content-length: %d\r\n" % length
        if not self._keep_alive:
            framing += b"connection: close\r\n"
        elif head.minor == 0:
            framing += b"connection: keep-alive\r\n"
        return b"%b%b%bx-request-id: %b\r\ndate: %b\r\n\r\n" % (
            STATUS_LINES[status],
            fields,
            framing,
            self.request_id.encode(),
            self._house.date(),
        )

    def _done(self) -> None:
        """The answer is out."""
        self._head = None
        self._drop()
        self._house.answered(self._kind, self._status or CLIENT_LEFT)
        self._arrived = 0.0
        self.resume()
        if self._closing or (not self._keep_alive and (self._reader.whole or self._expect)):
            self._closing = True
            self._outbox.close(self._transport)
            return
        limits = self._house.limits
        if not self._reader.whole:
            self._lingering = True
            self._closing = not self._keep_alive
            self._deadline = self._loop.time() + limits.linger_s
            return
        self._deadline = self._loop.time() + limits.keep_alive_s
        if self._reader.waiting and not self._advancing:
            self._advance()

    def _reset(self) -> None:
        """Of an answer that only the connection's end ends, an orderly end would say that it is whole."""
        sock = self._transport.get_extra_info("socket")
        if sock is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._transport.abort()

    def _drop(self) -> None:
        self._exchange = None

    def _linger_over(self) -> None:
        self._lingering = False
        self._deadline = self._loop.time() + self._house.limits.keep_alive_s
        if self._closing:
            self._outbox.close(self._transport)

    def _malformed(self, error: Malformed) -> None:
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            _leave(exchange)
        if self._head is not None and self._status is not None:
            self.cut(error.message)
        else:
            self._refuse(error.status, error.message)

    def _refuse(self, status: int, message: str) -> None:
        """What cannot be read as a request gets an answer and no second chance."""
        answer = error_answer(InvalidRequestError(message))
        head, self._head, self._closing = self._head, None, True
        self._outbox.write(
            self._transport,
            b"%b%bcontent-length: %d\r\nconnection: close\r\n\r\n%b"
            % (STATUS_LINES[status], http.lines(answer.fields), len(answer.body), answer.body),
        )
        if head is None:
            self._house.malformed(status)
        else:
            self._house.answered(self._kind, status)
        self._outbox.close(self._transport)


def _leave(exchange: Exchange) -> None:
    try:
        exchange.left()
    except Exception:
        exchange.crashed()
