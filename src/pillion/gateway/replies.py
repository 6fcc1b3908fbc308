"""Heads of upstream's answers: the usual ones are read once, for as long as they are the same."""

from __future__ import annotations

import re
from typing import Any

from pillion.gateway.wire import digits_of_length

RawFields = list[tuple[bytes, bytes]]

MAX_KNOWN = 1024
MAX_KNOWN_BYTES = 4096
_TOKEN = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]"
_HEAD = re.compile(
    rb"HTTP/1\.1 200 [\t -~\x80-\xff]*+\r\n((?:" + _TOKEN + rb"++:[\t -~\x80-\xff]*+\r\n)++)\r\n"
)
_FIELD = re.compile(rb"([^:\r\n]++):[ \t]*+([^\r]*+)\r\n")
# What is framed in another way, or is not to be followed by another answer, is for the parser.
_UNUSUAL = frozenset({b"connection", b"content-length", b"transfer-encoding", b"upgrade"})


def length_of(fields: RawFields) -> int | None:
    """The body's, where its head says it."""
    given = next((value for name, value in fields if name == b"content-length"), b"")
    return int(given) if given.isdigit() else None


class ReplyHead:
    """Names of `fields` are lower case. It is not to be changed, but what is worked out from it may be `kept` on it.

    Where many answers share it, the length of their bodies is none of its fields.
    """

    __slots__ = ("fields", "kept", "status")

    def __init__(self, status: int, fields: RawFields) -> None:
        self.status = status
        self.fields = fields
        self.kept: Any = None


class ReplyHeads:
    """Reads what came in one piece: engines send the same head again and again but for its length."""

    def __init__(self) -> None:
        self._known: dict[bytes, ReplyHead | None] = {}

    def whole(self, data: bytes) -> tuple[ReplyHead, bytes] | None:
        """The head and the body where `data` is one whole answer, in the usual form; None for any other."""
        end = data.find(b"\r\n\r\n", 0, MAX_KNOWN_BYTES) + 4
        if end < 4:
            return None
        # As with requests: what is known had other digits at this very place.
        first, last = digits_of_length(data, end)
        if not first or len(data) - end != int(data[first:last]):
            return None
        key = data[:first] + data[last:end]
        head = self._known.get(key)
        if head is None:
            if key in self._known:
                return None
            head = _read(data[:end])
            if len(self._known) >= MAX_KNOWN:
                self._known.clear()
            self._known[key] = head
            if head is None:
                return None
        return head, data[end:]


def _read(raw: bytes) -> ReplyHead | None:
    """None where it is not so plain that nobody could read it otherwise."""
    found = _HEAD.fullmatch(raw)
    if found is None:
        return None
    fields = [(name.lower(), value.rstrip(b" \t")) for name, value in _FIELD.findall(found[1])]
    framing = [name for name, _ in fields if name in _UNUSUAL]
    if framing != [b"content-length"]:
        return None
    return ReplyHead(200, [(name, value) for name, value in fields if name != b"content-length"])
