"""A connection to what lies behind the gateway: an engine, a container, control. One request at a time is on it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import httptools

from pillion.gateway.replies import RawFields, ReplyHead, length_of

if TYPE_CHECKING:
    from pillion.gateway.pool import Pool

MAX_HEAD = 64 * 2**10
HIGH_WATER = 64 * 2**10


class Asker(Protocol):
    """Who sent a request and takes its answer. Nothing is called after `lost`, `refused`, `answered` or `crashed`."""

    def connected(self, connection: Outbound) -> None: ...

    def refused(self, why: str) -> None:
        """There was no connection: nothing was sent."""

    def proceed(self) -> None:
        """Upstream said 100 Continue."""

    def began(self, head: ReplyHead, length: int | None) -> None:
        """The answer begins; its body has `length` bytes, where that is known."""

    def came(self, data: bytes) -> None:
        """A part of the body, still encoded."""

    def answered(self) -> None:
        """The answer is whole."""

    def lost(self, why: str) -> None:
        """The connection ended before the answer was whole."""

    def upstream_full(self, full: bool) -> None:
        """Whether upstream takes less than was written to it."""

    def crashed(self) -> None:
        """One of these raised what nobody expected, which is being handled."""


@dataclass(eq=False, slots=True)
class Origin:
    """Where to connect. `prefix` goes before paths, `authority` is what `host` says."""

    host: str
    port: int
    tls: bool
    prefix: str
    authority: str


class Outbound(asyncio.Protocol):
    """`reused`: it has answered before, so the other side may have closed it for its age alone."""

    __slots__ = (
        "_asker",
        "_body",
        "_complete",
        "_continue",
        "_fields",
        "_fresh",
        "_head_only",
        "_headers_done",
        "_keep",
        "_odd",
        "_parser",
        "_paused",
        "_pool",
        "_received",
        "_sending",
        "_told",
        "_transport",
        "_until_close",
        "idle_since",
        "origin",
        "reused",
    )

    def __init__(self, pool: Pool, origin: Origin) -> None:
        self._pool = pool
        self.origin = origin
        self.reused = False
        self.idle_since = 0.0
        self._asker: Asker | None = None
        self._transport: Any = None
        self._parser = httptools.HttpResponseParser(self)
        self._paused = False
        self._reset()

    def _reset(self) -> None:
        self._fields: RawFields = []
        self._body: list[bytes] = []
        self._headers_done = self._told = self._complete = self._continue = False
        self._until_close = self._head_only = self._sending = self._keep = self._odd = False
        self._received = 0
        self._fresh = True

    # What an asker does

    def send(self, asker: Asker, data: bytes, *, whole: bool = True, head_only: bool = False) -> None:
        """A request, or its beginning. `head_only`: its answer has no body whatever it says (HEAD)."""
        self._asker = asker
        self._head_only = head_only
        self._sending = not whole
        self._pool.outbox.write(self._transport, data)

    def write(self, data: bytes, *, whole: bool) -> None:
        """More of the request's body."""
        self._sending = not whole
        if data:
            self._pool.outbox.write(self._transport, data)

    def choke(self, full: bool) -> None:
        """Nothing more is read while the one whom the answer is for is full."""
        if self._transport.is_closing():
            return
        self._paused = full
        if full:
            self._transport.pause_reading()
        else:
            self._transport.resume_reading()

    def abort(self) -> None:
        """Upstream sees at once that nobody waits. Tells the asker nothing."""
        self._asker = None
        self._transport.abort()

    def close(self) -> None:
        self._pool.outbox.close(self._transport)

    def cut(self, why: str) -> None:
        """Ends it as if upstream had."""
        self._lose(why)

    @property
    def open(self) -> bool:
        return not self._transport.is_closing()

    @property
    def asker(self) -> Asker | None:
        return self._asker

    # What the event loop calls

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        transport.set_write_buffer_limits(high=HIGH_WATER)
        self._pool.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._pool.remove(self)
        if self._asker is None:
            return
        if self._until_close and exc is None:
            self._finish(keep=False)
        else:
            self._lose("the connection was closed" if exc is None else repr(exc))

    def eof_received(self) -> None:
        return None

    def pause_writing(self) -> None:
        if self._asker is not None:
            self._asker.upstream_full(True)

    def resume_writing(self) -> None:
        if self._asker is not None:
            self._asker.upstream_full(False)

    def data_received(self, data: bytes) -> None:
        asker = self._asker
        if asker is None:
            self._transport.abort()
            return
        try:
            if not self._fresh or not self._came_whole(asker, data):
                self._read(asker, data)
        except Exception:
            if self._asker is not None:
                self.abort()
            asker.crashed()

    def _read(self, asker: Asker, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            if not self._complete:
                self._lose(f"no valid answer: {error!r}")
                return
            self._sending = True
        if self._body or self._complete:
            self._received = 0
        else:  # of a head, of extensions of a chunk, of trailers
            self._received += len(data)
        if self._odd or self._received > MAX_HEAD:
            self._lose("no valid answer: its status, its transfer-encoding, or the size of its headers")
            return
        if self._continue:
            self._continue = False
            asker.proceed()
        if self._headers_done:
            self._pass_on(asker)

    def _pass_on(self, asker: Asker) -> None:
        """What was read."""
        if not self._told:
            self._told = True
            asker.began(ReplyHead(self._parser.get_status_code(), self._fields), length_of(self._fields))
        if self._body and self._asker is not None:
            body, self._body = self._body, []
            asker.came(body[0] if len(body) == 1 else b"".join(body))
        if self._complete and self._asker is not None:
            self._finish(keep=self._keep)

    def _came_whole(self, asker: Asker, data: bytes) -> bool:
        """Whether it was the usual answer, in one piece: nothing of that is left for a parser."""
        self._fresh = False
        if self._sending or self._head_only or (whole := self._pool.heads.whole(data)) is None:
            return False
        head, body = whole
        asker.began(head, len(body))
        if body and self._asker is not None:
            asker.came(body)
        if self._asker is not None:
            self._finish(keep=True)
        return True

    # What httptools calls: it keeps only what it is told, since errors raised in here would lose their kind

    def on_message_begin(self) -> None:
        if self._complete:  # what follows the answer is none that was asked for
            self._sending = True

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._headers_done:
            self._fields.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        if self._complete:
            return
        status = self._parser.get_status_code()
        if status < 200:
            return
        self._headers_done = True
        codings = [value.lower() for name, value in self._fields if name == b"transfer-encoding"]
        framed = bool(codings) or any(name == b"content-length" for name, _ in self._fields)
        self._odd = status > 599 or codings not in ([], [b"chunked"])
        self._until_close = not framed and status not in (204, 304) and not self._head_only
        # The parser waits for the body that HEAD's answer does not have: this one is not used again.
        if self._head_only:
            self._complete = self._sending = True

    def on_body(self, data: bytes) -> None:
        if not self._head_only and not self._complete:
            self._body.append(data)

    def on_message_complete(self) -> None:
        if self._headers_done:
            # Afterwards the parser has forgotten.
            self._keep = not self._complete and self._parser.should_keep_alive()
            self._complete = True
            return
        # An interim answer.
        self._fields = []
        self._continue = self._continue or self._parser.get_status_code() == 100

    # Ends

    def _finish(self, *, keep: bool) -> None:
        asker, self._asker = self._asker, None
        # Bytes after the answer, or a request that is not all sent: nothing more may go over this one.
        if keep and not self._sending and not self._until_close and not self._transport.is_closing():
            self.reused = True
            self._reset()
            if self._paused:  # the client was full with the last bytes; who asks next does not wait for it
                self.choke(False)
            self._pool.give(self)
        else:
            self._pool.outbox.close(self._transport)
        if asker is not None:
            try:
                asker.answered()
            except Exception:
                asker.crashed()

    def _lose(self, why: str) -> None:
        asker, self._asker = self._asker, None
        if not self._transport.is_closing():
            self._transport.abort()
        if asker is not None:
            try:
                asker.lost(why)
            except Exception:
                asker.crashed()
