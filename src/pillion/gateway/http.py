"""Requests and answers as the gateway's decisions see them, and header fields as bytes for the wire."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

import msgspec

from pillion.core.errors import PillionError

Fields = Sequence[tuple[str, str]]

STATUS_LINES = {
    status: b"HTTP/1.1 %d %b\r\n" % (status, _phrase.encode())
    for status in range(100, 600)
    for _phrase in [HTTPStatus(status).phrase if status in list(HTTPStatus) else ""]
}


class Head:
    """A request's head as it was sent, without its body's length. Names of `fields` are lower case, `path` is not
    decoded. `minor`: of HTTP/1.x. `expects`: 100 Continue. Heads that are the same are one object: it is not to be
    changed, but what is worked out from it may be kept on it (`kept`).
    """

    __slots__ = ("_first", "expects", "fields", "keep_alive", "kept", "method", "minor", "path", "query")

    def __init__(self, method: str, path: str, query: str, fields: Fields) -> None:
        self.method = method
        self.path = path
        self.query = query
        self.fields = fields
        self.minor = 1
        self.keep_alive = True
        self.expects = False
        self.kept: dict[str, Any] = {}
        self._first = dict(fields)
        if len(self._first) != len(fields):
            self._first = dict(reversed(fields))

    def without(self, name: str) -> Head:
        """The same, newly made, but for a field."""
        head = Head(self.method, self.path, self.query, [field for field in self.fields if field[0] != name])
        head.minor = self.minor
        return head

    def all(self, name: str) -> list[str]:
        if len(self._first) != len(self.fields):
            return [value for key, value in self.fields if key == name]
        value = self._first.get(name)
        return [] if value is None else [value]

    def first(self, name: str) -> str | None:
        return self._first.get(name)


class RequestIds:
    """Unique everywhere, by a prefix that is this process's alone, for a fraction of what randomness costs."""

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix
        self._last = 1_000_000_000

    def __call__(self) -> str:
        self._last += 1
        return f"req_{self._prefix}{self._last}"


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole one."""

    status: int
    fields: Fields
    body: bytes = b""


def json_answer(status: int, document: object, fields: Fields = ()) -> Answer:
    return Answer(status, [("content-type", "application/json"), *fields], msgspec.json.encode(document))


def error_answer(error: PillionError, fields: Fields = ()) -> Answer:
    """The error in OpenAI's shape, with `retry-after` where it has one."""
    extra = [*error.headers().items(), *fields]
    if error.status == 401:
        extra.append(("www-authenticate", "Bearer"))
    return json_answer(error.status, error.body(), extra)


def lines(fields: Fields) -> bytes:
    """Fields as they go over the wire."""
    return "".join([f"{name}: {value}\r\n" for name, value in fields]).encode("latin-1", "replace")
