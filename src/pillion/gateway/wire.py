"""Requests read strictly from bytes: what two servers could read in two ways is refused (RFC 9112, 9110).

No I/O. The same bytes give the same requests however they are cut into packets.
"""

from __future__ import annotations

import re
from typing import Any

from pillion.gateway.http import Head

MAX_CHUNK_LINE = 256
MAX_TRAILERS = 8 * 2**10

_TOKEN = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]"
_HEAD = re.compile(
    rb"(?P<method>" + _TOKEN + rb"{1,32}) (?P<path>/[!-\"$->@-~]*+)(?:\?(?P<query>[!-\"$-~]*+))? HTTP/1\.(?P<minor>[01])\r\n"
    rb"(?P<fields>(?:" + _TOKEN + rb"++:[\t -~\x80-\xff]*+\r\n)*+)\r\n"
)  # fmt: skip
_FIELD = re.compile(r"([^:\r\n]++):[ \t]*+([^\r]*+)\r\n")
_TRAILERS = re.compile(rb"(?:" + _TOKEN + rb"++:[\t -~\x80-\xff]*+\r\n)*+\r\n")
_HOST = re.compile(r"[A-Za-z0-9._~!$&'()*+;=:\[\]%-]*")
_LENGTH = re.compile(r"[0-9]{1,18}")
_CHUNK = re.compile(rb"([0-9A-Fa-f]{1,15})(?:;[\t -~]*)?\r\n")
# The usual spellings of the one field that differs between a client's requests.
_USUAL_LENGTHS = (b"\r\ncontent-length: ", b"\r\nContent-Length: ")
MAX_KNOWN = 4096
MAX_KNOWN_BYTES = 4096
# In an unfinished head: a line ending that is none, or a first byte no method begins with.
_HOPELESS = re.compile(rb"(?<!\r)\n|\r[^\n]|^(?!\r\n|\r\Z)[^!#$%&'*+.^_`|~0-9A-Za-z-]")


class Malformed(Exception):
    """Not a request that has one meaning. `status` is what its sender gets; nothing after it can be read."""

    def __init__(self, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.message = message
        self.status = status


class Heads:
    """Reads heads. Clients send the same one again and again but for the length: those are read once."""

    def __init__(self) -> None:
        self._same: dict[bytes, tuple[Head, int | None]] = {}
        self._sized: dict[bytes, Head] = {}

    def read(self, raw: bytes) -> tuple[Head, int | None]:
        """The head that is all of `raw`, and its body's length (None: chunks). Raises `Malformed`."""
        known = self._same.get(raw)
        if known is None:
            known = self._read(raw)
            self._keep(self._same, raw, known)
        return known

    def _read(self, raw: bytes) -> tuple[Head, int | None]:
        start, end = digits_of_length(raw, len(raw))
        if not start:
            return parse_head(raw)
        # What is known was valid with other digits at this very place, so it is with these: were the place another,
        # there would be a second field without digits, and none such is valid.
        key = raw[:start] + raw[end:]
        head = self._sized.get(key)
        if head is None:
            head, length = parse_head(raw)
            self._keep(self._sized, key, head)
            return head, length
        return head, int(raw[start:end])

    def _keep(self, among: dict[bytes, Any], key: bytes, value: Any) -> None:
        if len(key) <= MAX_KNOWN_BYTES:
            if len(among) >= MAX_KNOWN:
                among.clear()
            among[key] = value


class Reader:
    """Requests from one connection: `feed` bytes, then `head`, and `body` until `whole`, and so on.

    `length` is of the present request's body, None where it comes in chunks.
    """

    __slots__ = ("_at", "_buffer", "_heads", "_left", "_max_head", "_searched", "_stage", "length", "whole")

    def __init__(self, heads: Heads, max_head: int) -> None:
        self._heads = heads
        self._max_head = max_head
        self.length: int | None = 0
        self._buffer = b""
        self._at = 0  # where chunks are read in it
        self._searched = 0
        self._left = 0
        self._stage = ""
        self.whole = True

    def feed(self, data: bytes) -> None:
        self._buffer = self._buffer + data if self._buffer else data

    @property
    def waiting(self) -> int:
        """Bytes that were fed and not taken."""
        return len(self._buffer)

    def head(self) -> Head | None:
        """The next request's head; None where it is not all here. Raises `Malformed`."""
        buffer = self._buffer
        if not buffer:
            return None
        start = 2 if buffer.startswith(b"\r\n") else 0
        end = buffer.find(b"\r\n\r\n", max(start, self._searched - 3), start + self._max_head)
        if end < 0:
            self._unfinished(buffer, start)
            return None
        end += 4
        head, length = self._heads.read(buffer[start:end])
        self._buffer = buffer[end:]
        self._searched = 0
        self.length = length
        self.whole = length == 0
        if length is None:
            self._stage, self._left = "size", 0
        else:
            self._stage, self._left = "length", length
        return head

    def body(self) -> bytes:
        """What there is of the body; nothing where more must come first. Raises `Malformed`."""
        if self._stage == "length":
            return self._take()
        parts: list[bytes] = []
        while not self.whole and self._piece(parts):
            pass
        # Once for all chunks: there may be tens of thousands of a byte each.
        self._buffer, self._at = self._buffer[self._at :], 0
        return b"".join(parts)

    def _take(self) -> bytes:
        """Of what is left of the body."""
        data, left = self._buffer, self._left
        if len(data) <= left:
            self._buffer = b""
        else:
            self._buffer, data = data[left:], data[:left]
        self._left = left - len(data)
        if not self._left:
            self.whole = True
        return data

    def _piece(self, parts: list[bytes]) -> bool:
        """Takes a chunk's data, or what is between two; whether there was enough."""
        at = self._at
        if self._stage == "data":
            data = self._buffer[at : at + self._left]
            parts.append(data)
            self._at = at + len(data)
            self._left -= len(data)
            if not self._left:
                self._stage = "end"
            return bool(data)
        if self._stage == "size":
            return self._size_line()
        if self._stage == "end":
            ending = self._buffer[at : at + 2]
            if not b"\r\n".startswith(ending):
                raise Malformed("A chunk is not as long as it says.")
            if len(ending) < 2:
                return False
            self._at = at + 2
            self._stage = "size"
            return True
        return self._trailers()

    def _size_line(self) -> bool:
        buffer, at = self._buffer, self._at
        end = buffer.find(b"\n", at, at + MAX_CHUNK_LINE)
        if end < 0:
            if len(buffer) - at >= MAX_CHUNK_LINE:
                raise Malformed("A chunk's size line is too long.")
            if len(buffer) > at and not _CHUNK.fullmatch(_finish(buffer[at:])):
                raise Malformed("A chunk's size is not valid.")
            return False
        found = _CHUNK.fullmatch(buffer, at, end + 1)
        if found is None:
            raise Malformed("A chunk's size is not valid.")
        self._left = int(found[1], 16)
        self._at = end + 1
        self._stage = "data" if self._left else "trailers"
        return True

    def _trailers(self) -> bool:
        """Checked and dropped: no one here reads any."""
        buffer, self._at = self._buffer[self._at :], 0
        self._buffer = buffer
        end = 2 if buffer.startswith(b"\r\n") else buffer.find(b"\r\n\r\n", 0, MAX_TRAILERS) + 4
        if end < 4 and end != 2:
            if len(buffer) >= MAX_TRAILERS:
                raise Malformed("The trailers are too long.")
            if _HOPELESS.search(buffer):
                raise Malformed("The trailers are not valid.")
            return False
        if not _TRAILERS.fullmatch(buffer, 0, end):
            raise Malformed("The trailers are not valid.")
        self._buffer = buffer[end:]
        self.whole = True
        return True

    def _unfinished(self, buffer: bytes, start: int) -> None:
        if _HOPELESS.search(buffer, max(0, self._searched - 1), start + self._max_head):
            raise Malformed("The request is not valid HTTP/1.1.")
        if len(buffer) >= start + self._max_head:
            raise Malformed(f"The request's headers are larger than {self._max_head} bytes.", 431)
        self._searched = len(buffer)


def digits_of_length(raw: bytes, until: int) -> tuple[int, int]:
    """From where to where the body's length stands in a head that ends before `until`; (0, 0) where it is not spelled as
    usual.
    """
    for name in _USUAL_LENGTHS:
        at = raw.find(name, 0, until)
        if at >= 0:
            start = at + len(name)
            end = raw.find(b"\r\n", start, until)
            if 0 < end - start <= 15 and raw[start:end].isdigit():
                return start, end
            break
    return 0, 0


def parse_head(raw: bytes) -> tuple[Head, int | None]:
    """The head that is all of `raw`, and its body's length (None: chunks). Raises `Malformed`."""
    found = _HEAD.fullmatch(raw)
    if found is None:
        raise Malformed("The request is not valid HTTP/1.1.")
    method, path, query, minor, fields = found.groups()
    head = Head(
        method.decode("ascii"),
        path.decode("ascii"),
        "" if query is None else query.decode("ascii"),
        [(name.lower(), value.rstrip(" \t")) for name, value in _FIELD.findall(fields.decode("latin-1"))],
    )
    head.minor = 1 if minor == b"1" else 0
    _check_host(head)
    length = _length(head)
    if length is not None:
        head = head.without("content-length")
    connection = head.first("connection")
    if connection is None:
        head.keep_alive = head.minor == 1
    else:
        tokens = {token.strip().lower() for value in head.all("connection") for token in value.split(",")}
        head.keep_alive = "close" not in tokens and (head.minor == 1 or "keep-alive" in tokens)
    if (expect := head.first("expect")) is not None and head.minor == 1:
        if len(head.all("expect")) > 1 or expect.lower() != "100-continue":
            raise Malformed("The only expectation there is, is 100-continue.", 417)
        head.expects = True
    return head, length


def _finish(line: bytes) -> bytes:
    """The beginning of a chunk's size line, made whole."""
    return line + b"\n" if line.endswith(b"\r") else line + b"\r\n"


def _check_host(head: Head) -> None:
    hosts = head.all("host")
    if len(hosts) > 1 or (not hosts and head.minor == 1) or (hosts and not _HOST.fullmatch(hosts[0])):
        raise Malformed("The request must have one valid Host.")


def _length(head: Head) -> int | None:
    """Of the body; None for chunks. What may be read in two ways is refused."""
    given, coding = head.first("content-length"), head.first("transfer-encoding")
    if coding is not None:
        if given is not None or head.minor == 0:
            raise Malformed("Transfer-Encoding with Content-Length, or in HTTP/1.0, has no one meaning.")
        if coding.lower() != "chunked" or len(head.all("transfer-encoding")) > 1:
            raise Malformed("The only Transfer-Encoding there is, is chunked.")
        return None
    if given is None:
        return 0
    if len(head.all("content-length")) > 1 or not _LENGTH.fullmatch(given):
        raise Malformed("The Content-Length is not valid.")
    return int(given)
