"""The client's own `model` string in answers, where an engine put its name (SPEC §2), and the engine's usage."""

from __future__ import annotations

import re
from typing import Any

import msgspec

from pillion.gateway.faults import EngineError, Scrub
from pillion.gateway.tokens import Tokens, Wanted

# How streams end that are whole, and what of an event says so.
DONE = re.compile(rb"(?:\A|[\r\n])data: ?\[DONE\]\s*\Z")
RESPONSE_DONE = re.compile(
    DONE.pattern + rb'|"type"\s*:\s*"(?:response\.(?:completed|failed|incomplete)|error)"'
)
_BOUNDARY = re.compile(rb"\r\n\r\n|\n\r\n|\r\n\n|\n\n|\r\r")
_LONGEST_BOUNDARY = 4
_NEWLINE, _RETURN = b"\n\r"


class Echo:
    """Replaces `"model": "<upstream>"` in JSON text by the client's string.

    Quotes inside a JSON string are escaped, so these bytes can only be a member named `model`: content is never
    touched, and no number is printed anew. Where an engine calls itself something else, the JSON is parsed.
    """

    __slots__ = ("_echo", "_echoed", "_exact", "_name", "_named")

    def __init__(self, upstream: str, echo: str) -> None:
        name = msgspec.json.encode(upstream)
        self._exact = b'"model":' + name
        self._name = name
        self._named: re.Pattern[bytes] | None = None  # made where it is needed: that is rare, and takes long
        self._echoed = b'"model":' + msgspec.json.encode(echo)
        self._echo = echo

    def json(self, text: bytes) -> bytes:
        """The JSON document with `model`, and `response.model` of a response's events, replaced."""
        if (exact := self.exact(text)) is not None:
            return exact
        if self._named is None:
            self._named = re.compile(rb'"model"\s*:\s*' + re.escape(self._name))
        replaced, count = self._named.subn(lambda _: self._echoed, text)
        return replaced if count else self._parsed(text)

    def exact(self, text: bytes) -> bytes | None:
        """The same, at a fraction of the cost, where every `model` is the engine's name without a blank; else None."""
        exact = self._exact
        at = text.find(b'"model"')
        if at < 0:
            return text
        if not text.startswith(exact, at):
            return None
        end = at + len(exact)
        if text.find(b'"model"', end) < 0:
            return b"".join([text[:at], self._echoed, text[end:]])
        return text.replace(exact, self._echoed) if text.count(b'"model"') == text.count(exact) else None

    def opening(self, event: bytes) -> tuple[bytes, bytes]:
        """How an event begins, up to its one `model`, and how that goes to the client; nothing where there is no such."""
        at = event.find(self._exact)
        end = at + len(self._exact)
        if at < 0 or event.find(b'"model"') != at or event.find(b'"model"', end) >= 0:
            return b"", b""
        if event.find(b'"usage', 0, at) >= 0:
            return b"", b""
        return event[:end], event[:at] + self._echoed

    def _parsed(self, text: bytes) -> bytes:
        try:
            document = msgspec.json.decode(text)
        except (msgspec.DecodeError, RecursionError):
            return text
        changed = False
        for holder in (document, document.get("response") if isinstance(document, dict) else None):
            if isinstance(holder, dict) and isinstance(holder.get("model"), str):
                holder["model"] = self._echo
                changed = True
        return msgspec.json.encode(document) if changed else text


class EventEcho:
    """The same for server-sent events, however they are cut into packets. Gives out whole events only.

    `tokens` is told each usage that comes by; what of it the client did not ask for is taken out. `done` tells
    whether there was what ends a whole stream: `ends` in an event. Raises `EngineError` for an event over `limit` bytes.
    """

    __slots__ = (
        "_before",
        "_echo",
        "_ends",
        "_for_client",
        "_limit",
        "_rest",
        "_scrub",
        "_wanted",
        "done",
        "tokens",
    )

    def __init__(
        self,
        echo: Echo,
        scrub: Scrub,
        limit: int,
        wanted: Wanted = Wanted.AS_IT_IS,
        ends: re.Pattern[bytes] = DONE,
    ) -> None:
        self._ends = ends
        self._echo = echo
        self._scrub = scrub
        self._limit = limit
        self._wanted = wanted
        self._rest = bytearray()
        # A stream's events begin alike: id, time and model. That is looked at once.
        self._before = self._for_client = b""
        self.tokens = Tokens()
        self.done = False

    def feed(self, chunk: bytes) -> bytes:
        if not self._rest and (plain := self._plain(chunk)) is not None:
            return plain
        searched = max(0, len(self._rest) - _LONGEST_BOUNDARY + 1)
        self._rest += chunk
        ends = [match.end() for match in _BOUNDARY.finditer(self._rest, searched)]
        if not ends:
            if len(self._rest) > self._limit:
                raise EngineError(f"The engine sent an event of more than {self._limit} bytes.")
            return b""
        out, start = bytearray(), 0
        for end in ends:
            out += self._event(bytes(self._rest[start:end]))
            start = end
        del self._rest[:start]
        return bytes(out)

    def end(self) -> bytes:
        """What is left when upstream has ended in good order: an event that lacks its blank line."""
        rest, self._rest = bytes(self._rest), bytearray()
        return self._event(rest) + b"\n\n" if rest.strip() else b""

    def _plain(self, event: bytes) -> bytes | None:
        """The usual packet: one whole event of one line, as engines print them. None for any other."""
        before = self._before
        if (
            before
            and event.startswith(before)
            and (out := self._like_before(event[len(before) :])) is not None
        ):
            return out
        if event[:6] != b"data: " or event.find(b"\n") != len(event) - 2 or event[-2:] != b"\n\n":
            return None
        if _RETURN in event or event.find(b'"error"') >= 0:  # not `in`: see `body.may_hold_urls`
            return None
        out = self._echo.exact(event)
        if out is not None:
            if self._ends is not DONE:
                self.done = self.done or self._ends.search(event) is not None
            elif event == b"data: [DONE]\n\n":
                self.done = True
            else:
                self._before, self._for_client = self._echo.opening(event)
            out = self.tokens.sift(out, self._wanted)
        return out

    def _like_before(self, rest: bytes) -> bytes | None:
        """Of an event that begins as one before. None where there is more to look at than usage at its end."""
        if rest[-2:] != b"\n\n" or _NEWLINE in rest[:-2] or _RETURN in rest:
            return None
        # Cheaper to find than with the quote that ends them, of which there are many more.
        if rest.find(b'"model') >= 0 or rest.find(b'"error') >= 0:
            return None
        sifted = self.tokens.sift_plain(rest, self._wanted)
        # Where all of an event is taken out, so is its beginning.
        return None if sifted is None else self._for_client + sifted

    def _event(self, event: bytes) -> bytes:
        if (plain := self._plain(event)) is not None:
            return plain
        if self._ends.search(event):
            self.done = True
        if b'"model"' in event or b'"error"' in event:
            event = b"".join([self._line(line) for line in _lines(event)])
        return self.tokens.sift(event, self._wanted)

    def _line(self, line: bytes) -> bytes:
        if not line.startswith(b"data:"):
            return line
        text = line[5:].strip()
        ending = line[len(line.rstrip(b"\r\n")) :]
        if b'"error"' in text:
            text = self._scrubbed(text)
        return b"data: " + self._echo.json(text) + ending

    def _scrubbed(self, text: bytes) -> bytes:
        try:
            document: Any = msgspec.json.decode(text)
        except (msgspec.DecodeError, RecursionError):
            return text
        if not isinstance(document, dict) or not document.get("error"):
            return text
        return msgspec.json.encode(self._scrub.error(500, document).body())


def _lines(event: bytes) -> list[bytes]:
    """Of an event: JSON that is spread over several is one line from here on."""
    lines = event.splitlines(keepends=True)
    told = [line for line in lines if line.startswith(b"data:")]
    if len(told) < 2:
        return lines
    text = b" ".join([line[5:].strip() for line in told])
    try:
        msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError):
        return lines
    others = [line for line in lines if not line.startswith(b"data:")]
    others.insert(lines.index(told[0]), b"data: " + text + told[0][len(told[0].rstrip(b"\r\n")) :])
    return others
