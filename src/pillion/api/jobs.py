"""Long work with progress and log."""

from __future__ import annotations

from fastapi import APIRouter
from fastapi.responses import StreamingResponse

from pillion.api.adapters import After, Limit
from pillion.api.auth import Caller, Ctl, Manager
from pillion.control import jobs
from pillion.control.views import JobView, Page

router = APIRouter(tags=["jobs"])


@router.get("/v1/jobs")
async def list_jobs(control: Ctl, caller: Caller, after: After = None, limit: Limit = 100) -> Page[JobView]:
    return await jobs.listing(control, caller, after, limit)


@router.get(
    "/v1/jobs/{id}",
    response_model=JobView,
    responses={200: {"content": {"application/x-ndjson": {"schema": {"type": "string"}}}}},
)
async def get_job(control: Ctl, caller: Caller, id: str, follow: bool = False) -> JobView | StreamingResponse:
    """`follow` streams the job as one JSON document per line whenever it changes, until it has ended."""
    view = await jobs.get(control, caller, id)
    if not follow:
        return view
    return StreamingResponse(jobs.follow(control, caller, id), media_type="application/x-ndjson")


@router.post("/v1/jobs/{id}/cancel")
async def cancel_job(control: Ctl, caller: Manager, id: str) -> JobView:
    return await jobs.cancel(control, caller, id)
