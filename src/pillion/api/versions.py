"""Versions of an adapter: added, made live, rolled back, tried on a share of the requests (SPEC §3, §11)."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError

from pillion.api.auth import Caller, Ctl, Manager
from pillion.api.multipart import read_form
from pillion.api.requests import CanaryBody, VersionImportBody
from pillion.control import imports, uploads, versions
from pillion.control.views import ImportView, Page, VersionView
from pillion.core.errors import RequestTooLargeError

router = APIRouter(tags=["adapters"])

MAX_JSON = 1 << 20
BINARY = {"type": "string", "format": "binary"}
Live = Annotated[bool, Query(description="Whether it goes live by itself.")]
_LATER: dict[int | str, dict[str, Any]] = {
    202: {"description": "Asked for. Its `state` says how far it is.", "model": VersionView}
}
_ADDED: dict[int | str, dict[str, Any]] = {
    200: {"description": "These bytes are a version already.", "model": VersionView},
    202: {"description": "A job imports it.", "model": ImportView},
}
_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file"],
                    "properties": {
                        "name": {"type": "string"},
                        "base_model": {"type": "string"},
                        "region": {"type": "string"},
                        "file": BINARY,
                        "config": BINARY,
                    },
                }
            },
            "application/json": {"schema": VersionImportBody.model_json_schema()},
        },
    }
}


@router.get("/v1/adapters/{ref}/versions")
async def list_versions(control: Ctl, caller: Caller, ref: str) -> Page[VersionView]:
    """Oldest first, each with its `state`."""
    return await versions.listing(control, caller, ref)


@router.post(
    "/v1/adapters/{ref}/versions",
    status_code=201,
    response_model=VersionView | ImportView,
    responses=_ADDED,
    openapi_extra=_BODY,
)
async def add_version(
    control: Ctl, caller: Manager, ref: str, request: Request, response: Response, live: Live = True
) -> VersionView | ImportView:
    """New bytes: `file` as for an upload, or JSON `{repo, revision?}` to import. They go live once replicas have them."""
    kind = request.headers.get("content-type", "")
    if kind.partition(";")[0].strip().lower() == "application/json":
        body = await _import_body(request)
        response.status_code = 202
        return await imports.begin_version(control, caller, ref, body.repo, body.revision, live)
    await versions.listing(control, caller, ref)  # before its bytes are taken
    async with uploads.receiving(control, caller) as upload:
        fields = await read_form(
            kind, request.stream(), {"file": upload.write_file, "config": upload.write_config}
        )
        version, new = await upload.add_version(ref, fields, live)
    response.status_code = 201 if new else 200
    return version


@router.post("/v1/adapters/{ref}/versions/{version}/live", responses=_LATER)
async def make_live(control: Ctl, caller: Manager, ref: str, version: int, response: Response) -> VersionView:
    """200 when it is live and every gateway knows, 202 while replicas load it, or where it failed."""
    view, done = await versions.go_live(control, caller, ref, version)
    response.status_code = 200 if done else 202
    return view


@router.post("/v1/adapters/{ref}/rollback", responses=_LATER)
async def rollback(control: Ctl, caller: Manager, ref: str, response: Response) -> VersionView:
    """Back to the version that was live before; or, while another is going live, to the one that is."""
    view, done = await versions.rollback(control, caller, ref)
    response.status_code = 200 if done else 202
    return view


@router.put("/v1/adapters/{ref}/canary", responses=_LATER)
async def set_canary(
    control: Ctl, caller: Manager, ref: str, body: CanaryBody, response: Response
) -> VersionView:
    """Send a share of the requests to a version. It takes a slot more on every replica."""
    view, done = await versions.set_canary(control, caller, ref, body.version, body.share)
    response.status_code = 200 if done else 202
    return view


@router.delete("/v1/adapters/{ref}/canary")
async def end_canary(control: Ctl, caller: Manager, ref: str) -> VersionView:
    return await versions.end_canary(control, caller, ref)


async def _import_body(request: Request) -> VersionImportBody:
    raw = bytearray()
    async for chunk in request.stream():
        raw += chunk
        if len(raw) > MAX_JSON:
            raise RequestTooLargeError(f"the request's body is over {MAX_JSON} bytes.")
    try:
        return VersionImportBody.model_validate_json(bytes(raw))
    except ValidationError as error:
        found = [{**e, "loc": ("body", *e["loc"])} for e in error.errors()]
        raise RequestValidationError(found) from error
