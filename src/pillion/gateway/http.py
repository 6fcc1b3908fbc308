"""Requests and answers as the gateway's decisions see them: no server's and no client library's types."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import msgspec

from pillion.core.errors import PillionError

Fields = Sequence[tuple[str, str]]


class ClientLeft(Exception):
    """The client closed the connection before its request was whole."""


class Cut(Exception):
    """An answer that has begun cannot be finished: the connection must be broken, so that the client sees it."""


@dataclass(frozen=True, slots=True)
class Head:
    """A request without its body. `path` is as sent (not decoded), names of `fields` are lower case."""

    method: str
    path: str
    query: str
    fields: Fields
    peer: str

    def all(self, name: str) -> list[str]:
        return [value for key, value in self.fields if key == name]

    def first(self, name: str) -> str | None:
        return next((value for key, value in self.fields if key == name), None)

    @property
    def has_body(self) -> bool:
        return self.first("content-length") not in (None, "0") or self.first("transfer-encoding") is not None


class Body(Protocol):
    """A request's body, to be taken once."""

    def chunks(self) -> AsyncIterator[bytes]:
        """The bytes as they come. Raises `ClientLeft`."""
        ...


@dataclass(frozen=True, slots=True)
class Answer:
    """`body` is the whole of it or its chunks; chunks raise `Cut` where they end too early."""

    status: int
    fields: Fields
    body: bytes | AsyncGenerator[bytes, None] = b""


def json_answer(status: int, document: object, fields: Fields = ()) -> Answer:
    raw = msgspec.json.encode(document)
    length = ("content-length", str(len(raw)))
    return Answer(status, [("content-type", "application/json"), length, *fields], raw)


def error_answer(error: PillionError, fields: Fields = ()) -> Answer:
    """The error in OpenAI's shape, with `retry-after` where it has one."""
    extra = [*error.headers().items(), *fields]
    if error.status == 401:
        extra.append(("www-authenticate", "Bearer"))
    return json_answer(error.status, error.body(), extra)
