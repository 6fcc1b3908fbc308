"""API keys of the caller's account, and its Hugging Face token."""

from __future__ import annotations

from fastapi import APIRouter

from pillion.api.auth import Caller, Ctl, Manager
from pillion.api.requests import HfTokenBody, KeyBody
from pillion.control import accounts, keys
from pillion.control.views import AccountView, Deleted, KeyView, Page

router = APIRouter(tags=["keys"])


@router.get("/v1/keys")
async def list_keys(control: Ctl, caller: Manager) -> Page[KeyView]:
    return await keys.listing(control, caller)


@router.post("/v1/keys", status_code=201)
async def create_key(control: Ctl, caller: Manager, body: KeyBody) -> KeyView:
    """The key is in this answer and nowhere else."""
    terms = keys.Terms(body.expires_at, body.requests_per_minute, body.tokens_per_minute)
    return await keys.create(control, caller, body.name, list(body.scopes), terms)


@router.delete("/v1/keys/{id}")
async def revoke_key(control: Ctl, caller: Manager, id: str) -> KeyView:
    """Answered when every connected gateway refuses it; `unacknowledged` names those that did not say so in 2 s."""
    return await keys.revoke(control, caller, id)


@router.get("/v1/account")
async def get_account(control: Ctl, caller: Caller) -> AccountView:
    return await accounts.get(control, caller)


@router.put("/v1/account/hf-token")
async def put_hf_token(control: Ctl, caller: Manager, body: HfTokenBody) -> Deleted:
    await accounts.put_hf_token(control, caller, body.token)
    return Deleted("hf-token", deleted=False)


@router.delete("/v1/account/hf-token")
async def delete_hf_token(control: Ctl, caller: Manager) -> Deleted:
    return Deleted("hf-token", await accounts.delete_hf_token(control, caller))
