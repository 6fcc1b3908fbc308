"""What the caller's account used."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Query, Response
from fastapi.responses import StreamingResponse

from pillion.api.adapters import After, Limit
from pillion.api.auth import Ctl, Manager
from pillion.control import usage_queries
from pillion.control.views import Page, UsageEventView, UsageSnapshot, UsageSummary

router = APIRouter(tags=["usage"])

Id = Annotated[str | None, Query(max_length=80)]


@router.get("/v1/usage/summary")
async def usage_summary(
    control: Ctl,
    caller: Manager,
    window: Literal["24h", "7d", "30d", "month"] = "24h",
    group_by: Literal["model", "adapter", "key", "day", "instance"] = "model",
) -> UsageSummary:
    """Requests and tokens by group, in whole hours."""
    return await usage_queries.summary(control, caller, window, group_by)


@router.get(
    "/v1/usage/events",
    response_model=Page[UsageEventView],
    responses={200: {"content": {"text/csv": {"schema": {"type": "string"}}}}},
)
async def usage_events(
    control: Ctl,
    caller: Manager,
    after: After = None,
    limit: Limit = 100,
    adapter_id: Id = None,
    key_id: Id = None,
    format: Literal["json", "csv"] = "json",
) -> Page[UsageEventView] | Response:
    """One entry per request, oldest first. `format=csv` streams all of them from `after` on."""
    if format == "csv":
        lines = usage_queries.as_csv(control, caller, after, adapter_id, key_id)
        return StreamingResponse(lines, media_type="text/csv; charset=utf-8")
    return await usage_queries.events(control, caller, after, limit, adapter_id, key_id)


@router.get("/v1/billing/snapshot")
async def billing_snapshot(control: Ctl, caller: Manager) -> UsageSnapshot:
    """The month to date: by model, by day, and the share that went through adapters."""
    return await usage_queries.snapshot(control, caller)
