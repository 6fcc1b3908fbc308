"""Adapters: register, upload, list, rename, delete, versions, and their serving (SPEC §3, §4, §11)."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Request, Response
from fastapi.responses import FileResponse

from pillion.api.auth import Caller, Ctl, Manager
from pillion.api.multipart import read_form
from pillion.api.requests import (
    DeployBody,
    ImportBody,
    LaunchBody,
    LoadBody,
    MoveBody,
    RenameBody,
    UnloadBody,
    WarmupBody,
)
from pillion.control import adapters, attachments, explanations, imports, loads, moves, sessions, uploads
from pillion.control.explain import Explanation
from pillion.control.instances import Launch
from pillion.control.views import (
    AdapterView,
    AttachmentView,
    BackendView,
    Deleted,
    EligibleView,
    ImportView,
    Page,
)
from pillion.core.errors import InvalidRequestError
from pillion.core.replica import LoraSpec

router = APIRouter(tags=["adapters"])

After = Annotated[str | None, Query(max_length=40, description="Cursor: `next` of the page before.")]
Limit = Annotated[int, Query(ge=1, le=1000)]
BINARY = {"type": "string", "format": "binary"}
UPLOAD = "/v1/adapters/upload"
_LATER: dict[int | str, dict[str, Any]] = {
    202: {"description": "Begun, and not done yet.", "model": Page[AttachmentView]}
}
_UPLOAD = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["name", "base_model", "file"],
                    "properties": {
                        "name": {"type": "string"},
                        "base_model": {"type": "string"},
                        "region": {"type": "string"},
                        "file": BINARY,
                        "config": BINARY,
                    },
                }
            }
        },
    }
}


@router.get("/v1/adapters")
async def list_adapters(
    control: Ctl,
    caller: Caller,
    after: After = None,
    limit: Limit = 100,
    base_model: str | None = None,
    q: Annotated[str | None, Query(max_length=100, description="Part of a name or label.")] = None,
) -> Page[AdapterView]:
    return await adapters.listing(control, caller, after, limit, base_model, q)


@router.post("/v1/adapters", status_code=202)
async def import_adapter(control: Ctl, caller: Manager, body: ImportBody) -> ImportView:
    """Register an adapter from a Hugging Face repository; follow its job."""
    return await imports.begin(
        control, caller, body.name, body.base_model, body.repo, body.revision, body.region
    )


@router.post(UPLOAD, status_code=201, openapi_extra=_UPLOAD)
async def upload_adapter(control: Ctl, caller: Manager, request: Request) -> AdapterView:
    """Register an adapter from `file`: a safetensors file, a `.tar.gz` or a `.zip` of a PEFT folder."""
    async with uploads.receiving(control, caller) as upload:
        fields = await read_form(
            request.headers.get("content-type", ""),
            request.stream(),
            {"file": upload.write_file, "config": upload.write_config},
        )
        return await upload.register(fields)


@router.get("/v1/adapters/status")
async def adapters_status(control: Ctl, caller: Caller) -> Page[BackendView]:
    """What is loaded where: slots, used and free of each instance one can use."""
    return await loads.status(control, caller)


@router.post("/v1/adapters/warmup", status_code=202)
async def warmup(control: Ctl, caller: Manager, body: WarmupBody) -> Page[AttachmentView]:
    """Load adapters where their base runs, unpinned, without waiting."""
    return await loads.warmup(control, caller, [str(ref) for ref in body.adapters])


@router.get("/v1/adapters/{ref}")
async def get_adapter(control: Ctl, caller: Caller, ref: str) -> AdapterView:
    return await adapters.get(control, caller, ref)


@router.patch("/v1/adapters/{ref}")
async def rename_adapter(control: Ctl, caller: Manager, ref: str, body: RenameBody) -> AdapterView:
    """Change the label. Former labels keep resolving."""
    return await adapters.rename(control, caller, ref, body.label)


@router.delete("/v1/adapters/{ref}")
async def delete_adapter(control: Ctl, caller: Manager, ref: str, force: bool = False) -> Deleted:
    """Refused while in use, unless `force`, which drains first."""
    return await adapters.delete(control, caller, ref, force)


@router.post("/v1/adapters/{ref}/deploy", status_code=202)
async def deploy_adapter(control: Ctl, caller: Manager, ref: str, body: DeployBody) -> AttachmentView:
    """Attach to a running instance, or launch one and attach to it."""
    if (body.attach is None) == (body.launch is None):
        raise InvalidRequestError("deploy takes exactly one of attach and launch.")
    if body.attach is not None:
        return await attachments.attach(control, caller, body.attach.instance_id, ref)
    assert body.launch is not None
    return await attachments.launch_and_attach(control, caller, ref, launch_of(body.launch))


@router.post("/v1/adapters/{ref}/move", status_code=202)
async def move_adapter(control: Ctl, caller: Manager, ref: str, body: MoveBody) -> AttachmentView:
    """Attach at `to`, and detach at `from` once it is served there: no request fails."""
    return await moves.move(control, caller, ref, body.source, body.target)


@router.delete("/v1/sessions/{session_key:path}", responses=_LATER)
async def end_session(
    control: Ctl,
    caller: Manager,
    session_key: Annotated[str, Path(min_length=1, max_length=200)],
    response: Response,
) -> Page[AttachmentView]:
    """Unload what was loaded with this `session_key`: 200 once it is gone, 202 while it drains."""
    page, done = await sessions.end(control, caller, session_key)
    response.status_code = 200 if done else 202
    return page


@router.post("/v1/adapters/{ref}/load", responses=_LATER)
async def load_adapter(
    control: Ctl, caller: Manager, ref: str, response: Response, body: LoadBody | None = None
) -> Page[AttachmentView]:
    """200 when resident on all replicas of the backends; 202 with `wait: false` or where it takes longer."""
    body = body or LoadBody()
    wish = loads.Load(_backends(body.backends), body.pin, body.ttl_seconds, body.session_key, body.wait)
    page, done = await loads.load(control, caller, ref, wish)
    response.status_code = 200 if done else 202
    return page


@router.post("/v1/adapters/{ref}/unload", responses=_LATER)
async def unload_adapter(
    control: Ctl, caller: Manager, ref: str, response: Response, body: UnloadBody | None = None
) -> Page[AttachmentView]:
    page, done = await loads.unload(control, caller, ref, _backends(body.backends if body else None))
    response.status_code = 200 if done else 202
    return page


@router.get("/v1/adapters/{ref}/eligible-instances")
async def eligible_instances(control: Ctl, caller: Caller, ref: str) -> Page[EligibleView]:
    """Which instances can take this adapter and, for those that cannot, why."""
    return await attachments.eligible(control, caller, ref)


@router.get("/v1/adapters/{ref}/explain")
async def explain_adapter(control: Ctl, caller: Caller, ref: str) -> Explanation:
    """Where it should be, where it is, why not, and what happens next."""
    return await explanations.explained(control, caller, ref)


@router.get(
    "/v1/adapters/{ref}/download",
    response_class=FileResponse,
    responses={200: {"content": {"application/octet-stream": {"schema": BINARY}}}},
)
async def download_adapter(control: Ctl, caller: Manager, ref: str) -> FileResponse:
    """The live version's weights, as they were verified."""
    path, name = await adapters.weights(control, caller, ref)
    return FileResponse(path, media_type="application/octet-stream", filename=name)


def launch_of(body: LaunchBody) -> Launch:
    lora = LoraSpec(**body.lora.model_dump()) if body.lora else LoraSpec(enabled=False)
    return Launch(
        model=body.model,
        regions=body.regions,
        gpu_type=body.gpu_type,
        gpu_count=body.gpu_count,
        replicas=body.replicas,
        lora=lora,
        engine=body.engine,
        image=body.image,
        openai_compatible=body.openai_compatible,
        custom_api_path=body.custom_api_path,
        options=body.options,
    )


def _backends(given: list[int | str] | None) -> list[int] | None:
    if given is None:
        return None
    numbers = [int(b) if str(b).isascii() and str(b).isdigit() else -1 for b in given]
    if -1 in numbers:
        raise InvalidRequestError("backends are instance ids, such as 125.", param="backends")
    return numbers
