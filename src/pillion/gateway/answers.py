"""What an engine answered, made fit for the client: its own `model`, OpenAI's errors, who answered (SPEC §4, §5)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from pillion.core.errors import PillionError
from pillion.gateway import headers
from pillion.gateway.body import USAGE_PATHS
from pillion.gateway.echo import DONE, RESPONSE_DONE, Echo, EventEcho
from pillion.gateway.faults import EngineError, Scrub, StreamBrokenError, error_event, parse_error
from pillion.gateway.replies import RawFields, ReplyHead
from pillion.gateway.tokens import Tokens, Wanted
from pillion.gateway.tries import NotResident

MAX_ERROR_BODY = 64 * 2**10
# How their streams end; one that ends without it was cut off, however orderly it looks.
ENDS = {"/v1/chat/completions": DONE, "/v1/completions": DONE, "/v1/responses": RESPONSE_DONE}


class TurnedAwayError(Exception):
    """The engine did nothing, and will do nothing: it does not take this gateway's key, or is dead."""


class EngineDiedError(Exception):
    """The engine died of the request, or while it had it."""


class CutShortError(Exception):
    """An answer that ended in good order and is not whole."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Who answers what: the path, the replacing of the engine's name by the client's, what an error may tell."""

    path: str
    echo: Echo
    scrub: Scrub
    wanted: Wanted


class Reply(Protocol):
    """An answer on its way. Its first bytes for the client begin it; until then the request may still move.

    `fields` go over the wire; `length` is the body's where it is known before its end.
    """

    status: int
    fields: bytes
    length: int | None
    tokens: Tokens

    def feed(self, data: bytes) -> bytes:
        """Bytes for the client. Raises `EngineError`."""
        ...

    def end(self) -> bytes:
        """The last of them. Raises `CutShortError`, or `PillionError` where an error is the answer."""
        ...

    def failed(self, error: PillionError) -> bytes | None:
        """The last bytes of an answer that had begun and fails; None where it has no place for an error."""
        ...


def read_reply(head: ReplyHead, length: int | None, origin: Origin, limit: int) -> Reply:
    """`length` of the body, where it is known. `limit`: bytes of a JSON document or of one event.

    Raises `NotResident`, `TurnedAwayError` and `EngineDiedError` where another replica may do better, `EngineError` where
    nothing can be read.
    """
    status, fields = head.status, head.fields
    if status == 503:
        if _first(fields, b"x-pillion-retry") == b"1":
            raise NotResident
        if dead := _first(fields, b"x-pillion-dead"):
            raise TurnedAwayError if dead == b"before" else EngineDiedError
    if status in (401, 403):
        raise TurnedAwayError
    if status >= 300:
        return _Refusal(status, origin.scrub)
    if head.kept is None:
        head.kept = _kind(fields), headers.from_engine(fields)
    kind, passed = head.kept
    if kind == b"encoded":
        raise EngineError("The engine compressed its answer, which it was told not to do.")
    if kind == b"text/event-stream":
        events = _Events if origin.path in USAGE_PATHS else _Deltas
        return events(status, passed, origin, limit)
    if kind == b"application/json":
        return _Document(status, passed, origin.echo, limit)
    return _Bytes(status, passed, length)


def _kind(fields: RawFields) -> bytes:
    """Of what it is an answer. `encoded`: in what would have to be read."""
    kind = _first(fields, b"content-type").partition(b";")[0].strip().lower()
    plain = _first(fields, b"content-encoding").lower() in (b"", b"identity")
    return kind if plain or kind not in (b"text/event-stream", b"application/json") else b"encoded"


class _Whole(Reply):
    """An answer that is read to its end before any of it goes out."""

    length: int | None = None
    fields = b""

    def __init__(self, status: int, limit: int) -> None:
        self.status = status
        self.tokens = Tokens()
        self._limit = limit
        self._parts: list[bytes] = []
        self._size = 0

    def feed(self, data: bytes) -> bytes:
        self._size += len(data)
        if self._size <= self._limit:
            self._parts.append(data)
        return b""

    def _read(self) -> bytes:
        return self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)

    def failed(self, error: PillionError) -> bytes | None:
        return None


class _Refusal(_Whole):
    def __init__(self, status: int, scrub: Scrub) -> None:
        super().__init__(status, MAX_ERROR_BODY)
        self._scrub = scrub

    def end(self) -> bytes:
        document = parse_error(self._read()) if self._size <= self._limit else None
        raise self._scrub.error(self.status, document)


class _Document(_Whole):
    def __init__(self, status: int, fields: bytes, echo: Echo, limit: int) -> None:
        super().__init__(status, limit)
        self.fields = fields
        self._echo = echo

    def feed(self, data: bytes) -> bytes:
        super().feed(data)
        if self._size > self._limit:
            raise EngineError(f"The engine's answer is larger than {self._limit} bytes.")
        return b""

    def end(self) -> bytes:
        text = self._read()
        self.tokens.document(text)
        return self._echo.json(text)


class _Events(Reply):
    """The stream as it comes. Where it fails, an error event is its last (SPEC §5)."""

    length: int | None = None

    def __init__(self, status: int, fields: bytes, origin: Origin, limit: int) -> None:
        self.status = status
        self.fields = fields
        ends = ENDS.get(origin.path)
        self._events = EventEcho(origin.echo, origin.scrub, limit, origin.wanted, ends or DONE)
        self._must_end = ends is not None
        self.tokens = self._events.tokens

    def feed(self, data: bytes) -> bytes:
        return self._events.feed(data)

    def end(self) -> bytes:
        rest = self._events.end()
        if self._must_end and not self._events.done:
            raise CutShortError("the stream ended without its last event")
        return rest

    def failed(self, error: PillionError) -> bytes | None:
        return error_event(error)


class _Deltas(_Events):
    """One whose usage is said at its end only. Each of its deltas is a token or more: who leaves before has had those."""

    def feed(self, data: bytes) -> bytes:
        self.tokens.written += data.count(b"delta\n")  # as an `event:` line ends; in JSON no line does
        return super().feed(data)


class _Bytes(Reply):
    """A kind that has no place for an error: where it ends too early, so does the connection."""

    def __init__(self, status: int, fields: bytes, length: int | None) -> None:
        self.status = status
        self.fields = fields
        self.length = length
        self.tokens = Tokens()

    def feed(self, data: bytes) -> bytes:
        return data

    def end(self) -> bytes:
        return b""

    def failed(self, error: PillionError) -> bytes | None:
        return None


def broken() -> StreamBrokenError:
    return StreamBrokenError(
        "The replica was lost while it answered: this stream is not complete. Try again."
    )


def _first(fields: RawFields, name: bytes) -> bytes:
    for key, value in fields:
        if key == name:
            return value
    return b""
