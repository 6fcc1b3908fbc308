"""What happened, and who did what: to the account, and for the operator to all."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from pillion.sdk import streams
from pillion.sdk.transport import Transport
from pillion.sdk.types import AuditRecord, Event, read, read_list


class Events:
    """`everyone` is for the operator: of all accounts."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def list(
        self,
        *,
        kinds: Sequence[str] = (),
        subject: str | None = None,
        newest: bool = False,
        limit: int | None = None,
        everyone: bool = False,
    ) -> Iterator[Event]:
        """Oldest first, or `newest` first."""
        query = _query(kinds, subject) | {"newest": "true" if newest else None}
        return self._transport.pages(Event, _path(everyone), query, limit)

    def follow(
        self,
        *,
        after: int | None = None,
        kinds: Sequence[str] = (),
        subject: str | None = None,
        everyone: bool = False,
    ) -> Iterator[Event]:
        """Those after the event `after`, and each that comes, until the caller stops or the key is good no more."""
        return followed(self._transport, _path(everyone), _query(kinds, subject) | {"after": after})

    def audit(
        self, *, action: str | None = None, limit: int | None = None, everyone: bool = False
    ) -> Iterator[AuditRecord]:
        """Who did what, newest first."""
        path = "/v1/admin/audit" if everyone else "/v1/account/audit"
        return self._transport.pages(AuditRecord, path, {"action": action}, limit)


def followed(transport: Transport, path: str, query: dict[str, Any]) -> Iterator[Event]:
    """What a list of events streams. A server that does not stream answers a page."""
    with transport.stream("GET", path, params={**query, "follow": "true"}) as response:
        if streams.streams(response):
            yield from (read(Event, event) for event in streams.objects(response))
        else:
            response.read()
            yield from read_list(Event, response.json())


def _path(everyone: bool) -> str:
    return "/v1/admin/events" if everyone else "/v1/events"


def _query(kinds: Sequence[str], subject: str | None) -> dict[str, Any]:
    return {"kind": [*kinds] or None, "subject": subject}
