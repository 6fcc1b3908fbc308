"""Instances: launch, list, stop, logs, and what is attached to them."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Response
from fastapi.responses import StreamingResponse

from pillion.api.adapters import After, Limit, launch_of
from pillion.api.auth import Caller, Ctl, Manager
from pillion.api.requests import AttachBody, LaunchBody
from pillion.control import attachments, instances
from pillion.control.views import AttachmentView, InstanceView, Page

router = APIRouter(tags=["instances"])


@router.get("/v1/instances")
async def list_instances(
    control: Ctl,
    caller: Caller,
    after: After = None,
    limit: Limit = 100,
    all: Annotated[bool, Query(description="Also those that were stopped.")] = False,
) -> Page[InstanceView]:
    return await instances.listing(control, caller, after, limit, all)


@router.post("/v1/instances", status_code=202)
async def launch_instance(control: Ctl, caller: Manager, body: LaunchBody) -> InstanceView:
    return await instances.launch(control, caller, launch_of(body))


@router.get("/v1/instances/{id}")
async def get_instance(control: Ctl, caller: Caller, id: int) -> InstanceView:
    return await instances.get(control, caller, id)


@router.delete("/v1/instances/{id}", status_code=202)
async def stop_instance(control: Ctl, caller: Manager, id: int) -> InstanceView:
    """Stop: requests in flight finish or are cut off, engines end, attachments go with it."""
    return await instances.stop(control, caller, id)


@router.get(
    "/v1/instances/{id}/logs",
    response_class=StreamingResponse,
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
)
async def instance_logs(
    control: Ctl,
    caller: Manager,
    id: int,
    tail: Annotated[int, Query(ge=0, le=10_000)] = 200,
    follow: bool = False,
    replica: str | None = None,
) -> StreamingResponse:
    """The engines' logs as plain text, each line led by its replica where there are several."""
    lines = await instances.logs(control, caller, id, replica, tail, follow)
    return StreamingResponse(lines, media_type="text/plain; charset=utf-8")


@router.get("/v1/instances/{id}/adapters")
async def list_attached(control: Ctl, caller: Caller, id: int) -> Page[AttachmentView]:
    return await attachments.of_instance(control, caller, id)


@router.post("/v1/instances/{id}/adapters", status_code=202)
async def attach_adapter(control: Ctl, caller: Manager, id: int, body: AttachBody) -> AttachmentView:
    return await attachments.attach(control, caller, id, str(body.adapter))


@router.delete(
    "/v1/instances/{id}/adapters/{ref}",
    responses={202: {"description": "It drains.", "model": AttachmentView}},
)
async def detach_adapter(
    control: Ctl, caller: Manager, id: int, ref: str, response: Response, force: bool = False
) -> AttachmentView:
    """200 once every replica has proved it gone, 202 while it drains. `force` cuts requests in flight off at once."""
    view, done = await attachments.detach(control, caller, id, ref, force)
    response.status_code = 200 if done else 202
    return view
