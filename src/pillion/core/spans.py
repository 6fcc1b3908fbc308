"""Spans: what is done, as a part of a trace that goes from process to process in W3C's fields.

Nothing is told unless whoever starts a part brings `Spans` that do.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import msgspec

Carried = Mapping[str, str]
FIELDS = ("traceparent", "tracestate")


class TraceTo(msgspec.Struct, frozen=True):
    """A collector's address, for OTLP over HTTP, and the share told of traces that begin here."""

    endpoint: str
    sample: float = 1.0


class Span(Protocol):
    carried: Carried

    def end(self, error: str | None = None) -> None:
        """It is over; `error`: the code of why it came to nothing."""
        ...


class Spans(Protocol):
    def begin(self, name: str, of: Carried, attributes: Mapping[str, str | int]) -> Span:
        """Part of the trace that `of` says; of one that begins here where that is empty."""
        ...

    def current(self) -> Carried:
        """Of what is being done in this task."""
        ...


class NoSpans:
    """Passes on what it was given."""

    def begin(self, name: str, of: Carried, attributes: Mapping[str, str | int]) -> Span:
        return _NoSpan(of)

    def current(self) -> Carried:
        return {}


class _NoSpan:
    def __init__(self, carried: Carried) -> None:
        self.carried = carried

    def end(self, error: str | None = None) -> None:
        pass


def carried_in(headers: Mapping[str, str]) -> Carried:
    """The fields of a request that say of which trace it is."""
    return {name: headers[name] for name in FIELDS if name in headers}
