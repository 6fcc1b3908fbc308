"""The tokens an engine says it used: read from its answers, and taken out where the client did not ask for them."""

from __future__ import annotations

import re
from enum import Enum
from typing import Any

import msgspec

from pillion.gateway.said import Usage, read_document, read_usage

# A member `usage` with an object of at most one more level, or null. Quotes in JSON strings are escaped, so these
# bytes cannot be content.
_STRING = rb"\"(?:[^\"\\]++|\\.)*+\""
_OBJECT = rb"\{(?:[^{}\"]++|" + _STRING + rb"|\{(?:[^{}\"]++|" + _STRING + rb")*+\})*+\}"
_USAGE = re.compile(rb'"usage"\s*:\s*(' + _OBJECT + rb"|null)(\s*,)?")
_USUAL = b'"usage":{'
_UNQUOTED = _USUAL[1:]  # cheaper to find: quotes are everywhere
BACKSLASH = ord("\\")
_COMMA, _QUOTE, _OPENS = b',"{'
_NO_CHOICE = re.compile(rb'"choices"\s*:\s*\[\s*\]')


class Wanted(Enum):
    """What of the usage in a stream its client asked for. `AS_IT_IS`: nothing was added, so nothing is taken."""

    AS_IT_IS = 0
    NOTHING = 1
    AT_THE_END = 2
    ALWAYS = 3


class Tokens:
    """Of one answer: `prompt`, `cached` and `completion` as last said by the engine, None where it said nothing.

    `written`: at least so many were, where that is seen before it is said.
    """

    __slots__ = ("_last", "written")

    def __init__(self) -> None:
        self._last: bytes | Usage | None = None
        self.written = 0

    def document(self, text: bytes) -> None:
        """A whole JSON answer."""
        at = text.rfind(b'"usage"')
        if at < 0 or (text[at : at + 9] == _USUAL and self._plain(text, at, Wanted.AS_IT_IS) is not None):
            return
        if (plain := _USAGE.match(text, at)) is not None and plain[1] != b"null":
            self._last = plain[1]
            return
        try:
            found = read_document(text)
        except (msgspec.DecodeError, RecursionError):
            return
        self._last = found.usage or (found.response.usage if found.response is not None else None)

    def sift(self, event: bytes, wanted: Wanted) -> bytes:
        """One event, without the usage its client did not ask for."""
        plain = self.sift_plain(event, wanted)
        return self.sift_any(event, wanted) if plain is None else plain

    def sift_plain(self, rest: bytes, wanted: Wanted) -> bytes | None:
        """An event or its end, without that usage; None where it is not as engines print it, or there is nothing else."""
        at = rest.rfind(_UNQUOTED) - 1
        if at < 0:
            return None if rest.find(b'"usage') >= 0 else rest
        return self._plain(rest, at, wanted) if rest[at] == _QUOTE else None

    def sift_any(self, event: bytes, wanted: Wanted) -> bytes:
        """The same, however its JSON is printed."""
        if b'"usage"' not in event:
            return event
        at = event.rfind(b'"usage"')
        while (member := _USAGE.match(event, at)) is None:  # it is what somebody says
            if (at := event.rfind(b'"usage"', 0, at)) < 0:
                return event
        if member[1] != b"null":
            self._last = member[1]
        if wanted is Wanted.AS_IT_IS or wanted is Wanted.ALWAYS:
            return event
        if _NO_CHOICE.search(event):
            return event if wanted is Wanted.AT_THE_END else b""
        before, after = event[:at].rstrip(), event[member.end() :]
        # Between two members one comma stays.
        if before.endswith(b",") and not member[2]:
            before = before[:-1]
        return before + after

    def _plain(self, event: bytes, at: int, wanted: Wanted) -> bytes | None:
        """The same, and quicker, for usage as engines print it, at `at`: an object of numbers. None for any other."""
        end = event.find(b"}", at) + 1
        found = event[at + 8 : end]
        if not found or BACKSLASH in found or _OPENS in found[1:] or found.count(b'"') & 1:
            return None
        if wanted is Wanted.NOTHING or wanted is Wanted.AT_THE_END:
            if event.find(b'"choices":[{') < 0 or event[at - 1] != _COMMA:
                return None
            event = event[: at - 1] + event[end:]
        self._last = found
        return event

    @property
    def counted(self) -> tuple[int | None, int | None, int | None]:
        """Prompt, cached, completion."""
        usage = self._read()
        if usage is None:
            return None, None, self.written or None
        details = usage.prompt_tokens_details or usage.input_tokens_details
        said = _either(usage.completion_tokens, usage.output_tokens)
        return (
            _either(usage.prompt_tokens, usage.input_tokens),
            None if details is None else details.cached_tokens,
            said or self.written or said,
        )

    def _read(self) -> Usage | None:
        last: Any = self._last
        if isinstance(last, bytes):
            try:
                last = read_usage(last)
            except msgspec.DecodeError:
                last = None
            self._last = last
        return last  # type: ignore[no-any-return]


def _either(one: int | None, other: int | None) -> int | None:
    return other if one is None else one
