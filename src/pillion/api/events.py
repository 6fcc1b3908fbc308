"""What happened, and who did what: to the account, and for the operator to all."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import APIRouter, Query
from fastapi.responses import StreamingResponse

from pillion.api.adapters import After, Limit
from pillion.api.auth import Caller, Ctl, Operator, Owner
from pillion.control import adapters, audit, events, instances
from pillion.control.audit import AuditView
from pillion.control.context import Control
from pillion.control.events import AccountEventView, Wanted
from pillion.control.keys import Principal
from pillion.control.views import EventView, Page

router = APIRouter(tags=["events"])

Kinds = Annotated[
    list[Annotated[str, Query(max_length=80)]] | None,
    Query(alias="kind", max_length=50, description="Only of these kinds; may be repeated."),
]
Subject = Annotated[str | None, Query(max_length=200, description="Such as adapter:adp_… or instance:5.")]
Newest = Annotated[bool, Query(description="The newest first.")]
Follow = Annotated[bool, Query(description="Stream them, a JSON document per line, and those to come.")]
Account = Annotated[str | None, Query(max_length=80, description="Only this account's (its id).")]
ActionName = Annotated[str | None, Query(max_length=80, description="Such as attach_adapter.")]
_STREAMED: dict[int | str, dict[str, Any]] = {
    200: {"content": {"application/x-ndjson": {"schema": {"type": "string"}}}}
}


@router.get("/v1/events", response_model=Page[EventView], responses=_STREAMED)
async def list_events(
    control: Ctl,
    caller: Caller,
    after: After = None,
    limit: Limit = 100,
    kind: Kinds = None,
    subject: Subject = None,
    newest: Newest = False,
    follow: Follow = False,
) -> Page[EventView] | StreamingResponse:
    """What was asked for and what became of it, oldest first."""
    if follow:
        return _streamed(events.follow(control, caller, Wanted(subject, tuple(kind or ())), after))
    return await events.listing(control, caller, Wanted(subject, tuple(kind or ()), newest), after, limit)


@router.get("/v1/admin/events", response_model=Page[AccountEventView], responses=_STREAMED)
async def list_all_events(
    control: Ctl,
    caller: Operator,
    after: After = None,
    limit: Limit = 100,
    kind: Kinds = None,
    subject: Subject = None,
    account: Account = None,
    newest: Newest = False,
    follow: Follow = False,
) -> Page[AccountEventView] | StreamingResponse:
    """The same of all accounts, with what belongs to none."""
    if follow:
        wanted = Wanted(subject, tuple(kind or ()))
        return _streamed(events.follow_all(control, caller, wanted, account, after))
    wanted = Wanted(subject, tuple(kind or ()), newest)
    return await events.listing_all(control, wanted, account, after, limit)


@router.get("/v1/adapters/{ref}/events", response_model=Page[EventView], responses=_STREAMED)
async def adapter_events(
    control: Ctl,
    caller: Caller,
    ref: str,
    after: After = None,
    limit: Limit = 100,
    newest: Newest = False,
    follow: Follow = False,
) -> Page[EventView] | StreamingResponse:
    wanted = await adapters.events_of(control, caller, ref, newest and not follow)
    return await _of_one(control, caller, wanted, after, limit, follow)


@router.get("/v1/instances/{id}/events", response_model=Page[EventView], responses=_STREAMED)
async def instance_events(
    control: Ctl,
    caller: Caller,
    id: int,
    after: After = None,
    limit: Limit = 100,
    newest: Newest = False,
    follow: Follow = False,
) -> Page[EventView] | StreamingResponse:
    wanted = await instances.events_of(control, caller, id, newest and not follow)
    return await _of_one(control, caller, wanted, after, limit, follow)


@router.get("/v1/account/audit")
async def list_audit(
    control: Ctl, caller: Owner, after: After = None, limit: Limit = 100, action: ActionName = None
) -> Page[AuditView]:
    """Who did what in the account, newest first."""
    return await audit.listing(control, caller, action, after, limit)


@router.get("/v1/admin/audit")
async def list_all_audit(
    control: Ctl,
    caller: Operator,
    after: After = None,
    limit: Limit = 100,
    account: Account = None,
    action: ActionName = None,
) -> Page[AuditView]:
    """The same of all accounts."""
    return await audit.listing_all(control, account, action, after, limit)


async def _of_one(
    control: Control, caller: Principal, wanted: Wanted, after: str | None, limit: int, follow: bool
) -> Page[EventView] | StreamingResponse:
    if follow:
        return _streamed(events.follow(control, caller, wanted, after))
    return await events.listing(control, caller, wanted, after, limit)


def _streamed(lines: AsyncIterator[bytes]) -> StreamingResponse:
    return StreamingResponse(lines, media_type="application/x-ndjson")
