"""Requests as multipart forms: sounds and pictures come as files, and `model` beside them (RFC 7578).

Read as it comes and strictly, for the engine reads it too: what two readers could take for two forms is refused. All of
it is kept, like JSON, because a request may have to move to another replica. Bytes of files are never looked into.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import msgspec

from pillion.core.errors import InvalidRequestError
from pillion.gateway.body import MEDIA_KEYS, OPENAI_PATHS, Document
from pillion.gateway.http import Head
from pillion.gateway.tokens import Wanted

MAX_PARTS = 128
MAX_PART_HEAD = 8 * 2**10
MAX_VALUE = 2**20

_KIND = re.compile(
    r"multipart/form-data[ \t]*;[ \t]*boundary="
    r"(?:([0-9A-Za-z'+_.-]{1,70})|\"([0-9A-Za-z'()+_,./:=?-](?:[0-9A-Za-z'()+_,./:=? -]{0,68}[0-9A-Za-z'()+_,./:=?-])?)\")"
    r"(?:[ \t]*;[ \t]*charset=\"?utf-8\"?)?",
    re.IGNORECASE,
)
_FIELD = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]++):([\t -~\x80-\xff]*+)\r\n")
_FIELDS = re.compile(rb"(?:" + _FIELD.pattern + rb")++")
# No quotes and no backslashes within quotes: servers read those in more than one way.
_DISPOSITION = re.compile(
    rb"form-data"
    rb"(?:[ \t]*;[ \t]*(?:"
    rb"name=(?:\"(?P<name>[0-9A-Za-z_.-][0-9A-Za-z_.\[\]-]{0,63})\"|(?P<bare>[0-9A-Za-z_.-]{1,64}))"
    rb"|filename=(?:\"[^\"\\]*+\"|[0-9A-Za-z_.-]++)|filename\*=[0-9A-Za-z!#$&+.^_`|~'%()-]++))++",
    re.IGNORECASE,
)
_PARAMETER = re.compile(rb";[ \t]*(name|filename\*?)=", re.IGNORECASE)
_QUOTED = re.compile(rb"\"[^\"]*\"")
_PLAIN_ENCODINGS = (b"7bit", b"8bit", b"binary")
# Where engines tell of the tokens of a stream only if a field says so.
_COUNTED = frozenset({"/v1/audio/transcriptions", "/v1/audio/translations"})
_FALSE = frozenset({"", "0", "f", "false", "n", "no", "off"})
# Of these an engine might take another one than we.
_ONCE = frozenset(
    {"model", "cache_salt", "stream", "stream_include_usage", "stream_continuous_usage_stats", *MEDIA_KEYS}
)
_USAGE = {"stream_include_usage": "true", "stream_continuous_usage_stats": "true"}


@dataclass(slots=True)
class _Part:
    """Bytes `[start, end)` of the body, with the delimiter before it. `name` is without brackets, and `value` None where
    it is a file.
    """

    name: str
    start: int
    is_file: bool
    content: int
    end: int = 0
    value: str | None = None


def boundary_of(head: Head) -> bytes | None:
    """The boundary, where the head announces a form that an engine may get. Raises `InvalidRequestError`."""
    if "boundary" not in head.kept:
        head.kept["boundary"] = _boundary(head)
    return head.kept["boundary"]  # type: ignore[no-any-return]


class Form:
    """`feed` until it is all there, then `end`. Both raise `InvalidRequestError`."""

    __slots__ = ("_at", "_data", "_delimiter", "_parts", "_stage")

    def __init__(self, boundary: bytes) -> None:
        self._delimiter = b"--" + boundary
        self._data = bytearray()
        self._parts: list[_Part] = []
        self._stage = self._opening
        self._at = 0

    def feed(self, data: bytes) -> None:
        self._data += data
        while self._stage():
            pass

    def end(self) -> tuple[Document, str]:
        """The fields as a document, values as JSON strings and files null, and `model`."""
        if self._stage != self._over:
            raise _malformed("it ends before its last boundary")
        document: Document = {}
        for part in self._parts:
            if part.name in document and part.name in _ONCE:
                raise InvalidRequestError(f"The form has the field '{part.name}' twice.", param=part.name)
            document[part.name] = msgspec.Raw(msgspec.json.encode(part.value))
        model = next((part.value for part in self._parts if part.name == "model"), None)
        if not model:
            raise InvalidRequestError(
                "The form must have a field 'model' that is not a file. GET /v1/models lists what you can call.",
                param="model",
            )
        return document, model

    @property
    def text_size(self) -> int:
        """Bytes of what is not files."""
        return sum(part.end - part.start for part in self._parts if not part.is_file)

    def encode(self, values: Mapping[str, str]) -> bytes:
        """The form for an engine: these fields first, in place of the client's of the same names.

        The gate in front of an engine reads `model` where it is the first.
        """
        head = b"%b\r\nContent-Disposition: form-data; name=" % self._delimiter
        out = [b'%b"%b"\r\n\r\n%b\r\n' % (head, n.encode(), value.encode()) for n, value in values.items()]
        view, at = memoryview(self._data), 0
        for part in self._parts:
            if part.name in values:
                out.append(bytes(view[at : part.start]))
                at = part.end
        return b"".join([*out, view[at:]])

    # Below: each takes what it can from `_at` on, and says whether there may be more to take

    def _opening(self) -> bool:
        """A delimiter, then another part or the end."""
        data, at = self._data, self._at
        length = len(self._delimiter)
        if not self._delimiter.startswith(data[at : at + length]):
            raise _malformed("it does not begin with its boundary")
        after = bytes(data[at + length : at + length + 2])
        if len(after) < 2:
            if after not in (b"", b"\r", b"-"):
                raise _malformed("a boundary is followed by something else than the end of its line")
            return False
        if after == b"--":
            self._stage, self._at = self._over, at + length + 2
        elif after == b"\r\n":
            if len(self._parts) >= MAX_PARTS:
                raise _malformed(f"it has more than {MAX_PARTS} parts")
            self._stage = self._head
        else:
            raise _malformed("a boundary is followed by something else than the end of its line")
        return True

    def _head(self) -> bool:
        start = self._at + len(self._delimiter) + 2
        end = self._data.find(b"\r\n\r\n", start, start + MAX_PART_HEAD)
        if end < 0:
            if len(self._data) >= start + MAX_PART_HEAD:
                raise _malformed(f"a part's headers are larger than {MAX_PART_HEAD} bytes")
            return False
        name, is_file = _read_head(bytes(self._data[start : end + 2]))
        self._parts.append(_Part(name, self._at, is_file, content=end + 4))
        self._stage, self._at = self._content, end + 4
        return True

    def _content(self) -> bool:
        data, part = self._data, self._parts[-1]
        found = data.find(self._delimiter, self._at)
        known = len(data) - len(self._delimiter) + 1 if found < 0 else found
        if not part.is_file and known - part.content > MAX_VALUE + 2:
            raise InvalidRequestError(
                f"The form's field '{part.name}' is longer than {MAX_VALUE} bytes.", param=part.name
            )
        if found < 0:
            self._at = max(self._at, known)
            return False
        before = bytes(data[max(part.content, found - 2) : found])
        if before != b"\r\n":
            if found == part.content or before[-1:] in (b"\r", b"\n"):
                raise _malformed("a boundary does not stand alone on its line")
            self._at = found + 1
            return True
        part.end = found
        if not part.is_file:
            part.value = _text(part.name, bytes(data[part.content : found - 2]))
        self._stage, self._at = self._opening, found
        return True

    def _over(self) -> bool:
        if bytes(self._data[self._at :]) not in (b"", b"\r", b"\r\n"):
            raise _malformed("something comes after its last boundary")
        return False


def usage_asked(path: str, document: Document) -> tuple[dict[str, str], Wanted]:
    """Fields that have a stream tell its usage as it goes, and what of that the client itself asked for."""
    if path not in _COUNTED or not _true(document, "stream"):
        return {}, Wanted.AS_IT_IS
    if not _true(document, "stream_include_usage"):
        return _USAGE, Wanted.NOTHING
    return _USAGE, Wanted.ALWAYS if _true(document, "stream_continuous_usage_stats") else Wanted.AT_THE_END


def _true(document: Document, name: str) -> bool:
    given = msgspec.json.decode(document.get(name, b"null"))
    return given is not None and given.strip().lower() not in _FALSE


def _boundary(head: Head) -> bytes | None:
    kinds = head.all("content-type")
    if not any("multipart/" in kind.lower() for kind in kinds) or head.path in OPENAI_PATHS:
        return None
    found = _KIND.fullmatch(kinds[0]) if len(kinds) == 1 else None
    if found is None:
        raise InvalidRequestError(
            "The content-type of a form must be 'multipart/form-data; boundary=…', with a boundary of 1 to 70 "
            "letters, digits and - _ . ' +, and nothing else.",
            param="content-type",
        )
    return (found[1] or found[2]).encode()


def _read_head(raw: bytes) -> tuple[str, bool]:
    """A part's name, and whether it is a file."""
    if not _FIELDS.fullmatch(raw):
        raise _malformed("a part's headers are not valid")
    fields = [(name.lower(), value.strip(b" \t")) for name, value in _FIELD.findall(raw)]
    if any(n == b"content-transfer-encoding" and v.lower() not in _PLAIN_ENCODINGS for n, v in fields):
        raise _malformed("a part is encoded; send its bytes as they are")
    named = [value for name, value in fields if name == b"content-disposition"]
    found = _DISPOSITION.fullmatch(named[0]) if len(named) == 1 else None
    given = [] if found is None else _PARAMETER.findall(_QUOTED.sub(b"", named[0]).lower())
    if found is None or given.count(b"name") != 1 or len(set(given)) != len(given):
        raise _malformed(
            "a part needs one header 'content-disposition: form-data; name=\"…\"', of letters, digits and _ - . [ ], "
            "its filename without quotes and backslashes"
        )
    return (found["name"] or found["bare"]).decode().partition("[")[0], len(given) > 1


def _text(name: str, raw: bytes) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        raise InvalidRequestError(f"The form's field '{name}' is not valid UTF-8.", param=name) from None


def _malformed(why: str) -> InvalidRequestError:
    return InvalidRequestError(f"The body is not a valid form: {why}.")
