"""API keys of the caller's account."""

from __future__ import annotations

from fastapi import APIRouter

from pillion.api.auth import Ctl, Manager
from pillion.api.requests import KeyBody, KeyChangeBody
from pillion.control import keys
from pillion.control.views import KeyView, Page

router = APIRouter(tags=["keys"])


def terms_of(body: KeyBody) -> keys.Terms:
    return keys.Terms(
        body.expires_at,
        body.requests_per_minute,
        body.tokens_per_minute,
        tuple(body.allow),
        body.spend_limit,
    )


@router.get("/v1/keys")
async def list_keys(control: Ctl, caller: Manager) -> Page[KeyView]:
    """Members who are no owner see those that they made."""
    return await keys.listing(control, caller)


@router.post("/v1/keys", status_code=201)
async def create_key(control: Ctl, caller: Manager, body: KeyBody) -> KeyView:
    """The key is in this answer and nowhere else."""
    return await keys.create(control, caller, body.name, list(body.scopes), terms_of(body))


@router.get("/v1/keys/{id}")
async def get_key(control: Ctl, caller: Manager, id: str) -> KeyView:
    return await keys.get(control, caller, id)


@router.patch("/v1/keys/{id}")
async def change_key(control: Ctl, caller: Manager, id: str, body: KeyChangeBody) -> KeyView:
    """Its name and what it is limited to; null takes a limit away. Answered as a revocation is."""
    return await keys.update(control, caller, id, body.model_dump(exclude_unset=True))


@router.delete("/v1/keys/{id}")
async def revoke_key(control: Ctl, caller: Manager, id: str) -> KeyView:
    """Answered when every connected gateway refuses it; `unacknowledged` names those that did not say so in 2 s."""
    return await keys.revoke(control, caller, id)
