"""What an engine answered, made fit for the client: its own `model`, OpenAI's errors, who answered (SPEC §4, §5)."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass

from pillion.core.errors import PillionError
from pillion.gateway import headers
from pillion.gateway.echo import Echo, EventEcho
from pillion.gateway.faults import EngineError, Scrub, StreamBrokenError, error_event, parse_error
from pillion.gateway.http import Answer, Cut, Fields, error_answer
from pillion.gateway.tries import NotResident
from pillion.gateway.upstream import ConnectionLost, ConnectRefused, UpstreamAnswer

MAX_ERROR_BODY = 64 * 2**10
# Their streams end with [DONE]; one that ends without it was cut off, however orderly it looks.
ENDS_WITH_DONE = frozenset({"/v1/chat/completions", "/v1/completions"})

Chunks = AsyncGenerator[bytes, None]


@dataclass(frozen=True, slots=True)
class Origin:
    """Who answers what: the engine's name for it, the client's, the fields that tell who it was.

    `broken` is called when an answer that has begun ends too early.
    """

    path: str
    name: str
    echo: str
    fields: list[tuple[str, str]]
    broken: Callable[[], None]


async def make_answer(upstream: UpstreamAnswer, chunks: Chunks, origin: Origin, limit: int) -> Answer:
    """The answer, once its first byte is there: until then the request may still move.

    `limit`: bytes of a JSON document or of one event. Raises `NotResident`, `ConnectRefused` and `ConnectionLost`
    where another replica may do better, `PillionError` where the client must know.
    """
    if upstream.status == 503 and _first(upstream.fields, "x-pillion-retry") == "1":
        raise NotResident
    if upstream.status in (401, 403):
        raise ConnectRefused("the engine does not take the gateway's key")
    if upstream.status >= 300:
        return await _refusal(upstream, chunks, origin)
    kind = _first(upstream.fields, "content-type").partition(";")[0].strip().lower()
    if _first(upstream.fields, "content-encoding") not in ("", "identity"):
        kind = "encoded"
    if kind == "text/event-stream":
        return await _stream(upstream, chunks, origin, limit)
    if kind == "application/json":
        return await _document(upstream, chunks, origin, limit)
    first = await anext(chunks, b"")
    fields = headers.from_engine(upstream.fields, rewritten=False)
    return Answer(upstream.status, fields + origin.fields, _raw(first, chunks, origin))


async def _refusal(upstream: UpstreamAnswer, chunks: Chunks, origin: Origin) -> Answer:
    raw = await _read(chunks, MAX_ERROR_BODY)
    error = Scrub(origin.name, origin.echo).error(upstream.status, None if raw is None else parse_error(raw))
    return error_answer(error, origin.fields)


async def _document(upstream: UpstreamAnswer, chunks: Chunks, origin: Origin, limit: int) -> Answer:
    raw = await _read(chunks, limit)
    if raw is None:
        raise EngineError(f"The engine's answer is larger than {limit} bytes.")
    whole = Echo(origin.name, origin.echo).json(raw)
    fields = headers.from_engine(upstream.fields, rewritten=True)
    return Answer(upstream.status, [*fields, ("content-length", str(len(whole))), *origin.fields], whole)


async def _stream(upstream: UpstreamAnswer, chunks: Chunks, origin: Origin, limit: int) -> Answer:
    events = EventEcho(Echo(origin.name, origin.echo), Scrub(origin.name, origin.echo), limit)
    first = b""
    while not first:
        chunk = await anext(chunks, None)
        if chunk is None:
            break
        first = events.feed(chunk)
    if not first and origin.path in ENDS_WITH_DONE:
        raise ConnectionLost("the stream ended before its first event")
    fields = headers.from_engine(upstream.fields, rewritten=True)
    return Answer(upstream.status, fields + origin.fields, _events(first, events, chunks, origin))


async def _events(
    first: bytes, events: EventEcho, chunks: Chunks, origin: Origin
) -> AsyncGenerator[bytes, None]:
    """The stream as it comes. Where it fails, an error event is its last (SPEC §5)."""
    failure: PillionError | None = None
    try:
        yield first
        async for chunk in chunks:
            if out := events.feed(chunk):
                yield out
        rest = events.end()
        if origin.path in ENDS_WITH_DONE and not events.done:
            raise ConnectionLost("the stream ended without [DONE]")
        if rest:
            yield rest
    except ConnectionLost:
        failure = StreamBrokenError(
            "The replica was lost while it answered: this stream is not complete. Try again."
        )
    except EngineError as error:
        failure = error
    if failure is not None:
        origin.broken()
        yield error_event(failure)


async def _raw(first: bytes, chunks: Chunks, origin: Origin) -> AsyncGenerator[bytes, None]:
    """Bytes of a kind that has no place for an error: where they end too early, so does the connection."""
    try:
        yield first
        async for chunk in chunks:
            yield chunk
    except ConnectionLost as error:
        origin.broken()
        raise Cut(str(error)) from error


async def _read(chunks: Chunks, limit: int) -> bytes | None:
    """All of it, or None where it is more than `limit` bytes."""
    read = bytearray()
    async for chunk in chunks:
        read += chunk
        if len(read) > limit:
            return None
    return bytes(read)


def _first(fields: Fields, name: str) -> str:
    return next((value for key, value in fields if key == name), "")
